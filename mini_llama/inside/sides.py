"""The model that is looked at, and the one that it is compared with."""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from config import EDITIONS, QUANTIZATIONS
from llama import Llama
from mini_llama.assignment.completion import load
from mini_llama.bounds import check_bound
from mini_llama.checkpoints.adapters import is_adapters, is_peft
from mini_llama.checkpoints.tensor_files import load_plain
from mini_llama.command_line import visible
from mini_llama.inside.classifying import (
    Classifier,
    is_trained,
    load_trained_classifier,
    load_zero_shot,
)
from mini_llama.inside.options import SeeOptions
from mini_llama.tokenization.base import BaseTokenizer
from utils import check_outputs


@dataclasses.dataclass(frozen=True)
class Side:
    """A loaded model, the options that it was loaded with, and what the page calls it."""

    llama: Llama
    tokenizer: BaseTokenizer
    options: SeeOptions
    title: str
    classifier: Classifier | None = None

    @property
    def masks_padding(self) -> bool:
        return self.options.mask_padding or (
            self.classifier is not None and self.classifier.masks_padding
        )

    @property
    def sampling(self) -> dict[str, float]:
        """How it samples, by the names that the page has for it."""
        options = self.options
        edition = options.model_options().edition_in_force
        return {
            "temperature": options.temperature,
            "epsilon": edition.epsilon if options.epsilon is None else options.epsilon,
            "topP": edition.top_p if options.top_p is None else options.top_p,
        }

    @property
    def facts(self) -> dict[str, str]:
        """What is said of the model, by name."""
        llama, config = self.llama, self.llama.config
        heads = f"{config.n_heads} heads of {config.head_dim}"
        if config.n_kv_heads < config.n_heads:
            heads += f", {config.n_kv_heads} key heads"
        facts = {
            "arithmetic": str(llama.arithmetic or f"{config.norm}, {config.attention} attention"),
            "shape": f"{config.n_layers} layers, width {config.dim}, {heads}, "
            f"feed-forward {config.hidden_dim}, vocabulary {config.vocab_size}",
        }
        if llama.quantization:
            facts["weights"] = llama.quantization
        else:
            facts["parameters"] = f"{sum(math.prod(p.shape) for p in llama.parameters()):,}"
        if self.options.adapters:
            facts["adapters"] = visible(Path(self.options.adapters).name)
        return facts


def load_sides(options: SeeOptions, outputs: Sequence[str]) -> list[Side]:
    """The model, and with --compare a second one. Raises OSError or ValueError."""
    first = load_side(options, name_of(options.pretrained_model_path), outputs)
    if options.compare is None:
        return [first]
    second = load_side(*other_options(options, options.compare), [])
    check_comparable(first, second, options.compare)
    return [first, second]


def load_side(options: SeeOptions, title: str, outputs: Sequence[str]) -> Side:
    """A language model, or a classifier where the options or the checkpoint say so."""
    with contextlib.redirect_stdout(sys.stderr):
        check_outputs(outputs, [options.pretrained_model_path])
        if options.label_names is None and not is_trained(options.pretrained_model_path):
            llama, tokenizer = load(options.model_options(), outputs)
            return Side(llama, tokenizer, options, title)
        if options.label_names is not None:
            classifier, tokenizer = load_zero_shot(options)
        else:
            check_own_arithmetic(options)
            classifier, tokenizer = load_trained_classifier(options)
    return Side(classifier.llama, tokenizer, options, title, classifier)


def check_own_arithmetic(options: SeeOptions) -> None:
    """Raise ValueError for what would change a trained classifier, or reads a language model."""
    bound = "left out: it is for a language model, and this is a classifier"
    check_bound(f"--code {options.code}", options.code is None, bound)
    for name in ("edition", "norm", "attention", "quantize", "adapters"):
        value = getattr(options, name)
        bound = "left out: a classifier keeps the arithmetic it learnt with"
        check_bound(f"--{name} {value}", value is None, bound)


def name_of(path: str) -> str:
    return visible(Path(path).name or path)


def other_options(options: SeeOptions, what: str) -> tuple[SeeOptions, str]:
    """The options of what --compare names, and its title: the same checkpoint in an edition's
    arithmetic, quantized, or with adapters; else another checkpoint.
    """
    name = name_of(options.pretrained_model_path)
    if what in EDITIONS:
        changed = dataclasses.replace(options, edition=what, norm=None, attention=None)
        return changed, f"{name} as {what}"
    if what in QUANTIZATIONS:
        return dataclasses.replace(options, quantize=what), f"{name} in {what}"
    if holds_adapters(what):
        return dataclasses.replace(options, adapters=what), f"{name} + {name_of(what)}"
    changed = dataclasses.replace(options, pretrained_model_path=what, adapters=None)
    return changed, name_of(what)


def holds_adapters(path: str) -> bool:
    """Whether a path has LoRA adapters, ours or PEFT's."""
    if is_peft(path):
        return True
    if not Path(path).is_file():
        return False
    with contextlib.suppress(OSError, ValueError):
        return is_adapters(load_plain(Path(path)))
    return False


def check_comparable(first: Side, second: Side, what: str) -> None:
    """Raise ValueError for models that do not read the same ids."""
    sizes = [side.llama.config.vocab_size for side in (first, second)]
    same = sizes[0] == sizes[1] and first.tokenizer.n_words == second.tokenizer.n_words
    bound = f"a model with the same vocabulary, {sizes[0]} pieces (this has {sizes[1]})"
    check_bound(f"--compare {what}", same, bound)
