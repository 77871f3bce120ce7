"""Every variant of every component, by the id of the mistake that it makes."""

from mini_llama.diagnosis.mistakes import (
    attention,
    classifier,
    feed_forward,
    generate,
    layer,
    lora,
    norm,
    optimizer,
    rope,
)
from mini_llama.diagnosis.mistakes.replacing import Variant
from mini_llama.diagnosis.registry import MISTAKES

_COMPONENTS = (
    *(rope, norm, attention, feed_forward, layer),
    *(generate, lora, optimizer, classifier),
)
VARIANTS: dict[str, tuple[Variant, ...]] = {
    MISTAKES[f"{module.__name__.rpartition('.')[2]}: {name}"].id: variants
    for module in _COMPONENTS
    for name, variants in module.VARIANTS.items()
}
