"""All variants of all components, by the id of the mistake."""

from collections.abc import Collection, Iterator
from itertools import combinations, product

from mini_llama.diagnosis.mistakes import (
    addition_data,
    attention,
    classifier,
    evaluate_loss,
    feed_forward,
    generate,
    layer,
    lora,
    norm,
    optimizer,
    rope,
    train_one_epoch,
)
from mini_llama.diagnosis.mistakes.replacing import Family, Variant
from mini_llama.diagnosis.registry import MISTAKES

_COMPONENTS = (
    *(rope, norm, attention, feed_forward, layer),
    *(generate, lora, optimizer, classifier),
    *(addition_data, train_one_epoch, evaluate_loss),
)
VARIANTS: dict[str, tuple[Variant, ...]] = {
    MISTAKES[f"{module.__name__.rpartition('.')[2]}: {name}"].id: variants
    for module in _COMPONENTS
    for name, variants in module.VARIANTS.items()
}
# Mistakes in one formula, which can be combined.
FAMILIES: dict[str, tuple[Family, ...]] = {
    "rope": rope.FAMILIES,
    "norm": (norm.FAMILY,),
    "attention": (attention.FAMILY,),
    "generate": (generate.FAMILY,),
    "lora": (lora.FAMILY,),
    "optimizer": optimizer.FAMILIES,
    "classifier": (classifier.FAMILY,),
}


Together = tuple[tuple[str, int], ...]  # names of mistakes, and the index of the form of each


def combined(component: str, names: Collection[str]) -> Iterator[tuple[Together, Variant]]:
    """Yield each combination of the named mistakes within one formula, and its variant: pairs
    first, then up to as many as the family allows.
    """
    for family in FAMILIES.get(component, ()):
        chosen = [name for name in family.options if name in names]
        for count in range(2, family.most + 1):
            for together in combinations(chosen, count):
                numbered = (tuple(enumerate(family.options[name])) for name in together)
                for forms in product(*numbered):
                    merged = {key: value for _, form in forms for key, value in form.items()}
                    if len(merged) == sum(len(form) for _, form in forms):
                        numbers = (number for number, _ in forms)
                        key = tuple(zip(together, numbers, strict=True))
                        yield key, family.make(**merged)
