"""Classifiers as see.py looks at them: trained ones, and zero-shot by label words."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from classifier import ClassifierConfig, LlamaZeroShotClassifier
from llama import Llama
from mini_llama.assignment.adapters import load_adapters
from mini_llama.assignment.reviews import prompt_suffix, read_label_names
from mini_llama.assignment.task import announce
from mini_llama.assignment.trained import load_trained, tokenizer_of
from mini_llama.checkpoints.own_tokenizer import find_own_tokenizer
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.inside.options import SeeOptions
from mini_llama.places import resolve_model
from mini_llama.reproduction.results import Misclassified, Results
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.find import load_tokenizer
from utils import choose_device

ZERO_SHOT, TRAINED = "zero-shot", "trained"


@dataclass(frozen=True)
class Classifier:
    """`model` maps token ids (B, T) and lengths to scores (B, N) of `names`, and runs `llama`; a
    text is followed by `question`. `masks_padding` is how it was trained.
    """

    model: nn.Module
    llama: Llama
    names: list[str]
    kind: str
    question: str = ""
    masks_padding: bool = False

    def scores(self, tokens: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        """Token ids (B, T) → (B, N)."""
        return self.model(tokens, lengths=lengths)


def is_trained(path: str) -> bool:
    """Whether a checkpoint has a head of labels. Raises OSError or ValueError as reading does."""
    metadata = read_checkpoint(resolve_model(path)).metadata
    return "classifier" in metadata or "task_head" in metadata


def load_trained_classifier(options: SeeOptions) -> tuple[Classifier, BaseTokenizer]:
    """The trained classifier of the options' checkpoint. Raises OSError or ValueError."""
    path = options.pretrained_model_path
    trained = load_trained(path)
    tokenizer = tokenizer_of(trained, path, options.tokenizer, None)
    names = trained.names or trained.written
    masks = bool(trained.facts.get("mask_padding"))
    trained.model.to(choose_device(options.use_gpu))
    return Classifier(trained.model, trained.llama, list(names), TRAINED, "", masks), tokenizer


def load_zero_shot(options: SeeOptions) -> tuple[Classifier, BaseTokenizer]:
    """The language model, asked for a label word. Raises OSError or ValueError."""
    assert options.label_names is not None
    names = read_label_names(options.label_names)
    path = options.pretrained_model_path
    tokenizer = load_tokenizer(find_own_tokenizer(path, options.tokenizer))
    config = ClassifierConfig(
        path,
        len(names),
        option="prompt",
        edition=options.edition,
        norm=options.norm,
        attention=options.attention,
        quantize=options.quantize,
    )
    model = LlamaZeroShotClassifier(config, tokenizer, names)
    device = choose_device(options.use_gpu)
    announce(model.llama, tokenizer, path, device)
    if options.adapters:
        load_adapters(model.llama, options.adapters)
    question = f" {prompt_suffix(names, options.question)}"
    model.eval().to(device)
    return Classifier(model, model.llama, names, ZERO_SHOT, question), tokenizer


def read_worst(folder: str) -> list[Misclassified]:
    """The worst dev examples of a folder of reproduce.py, of its first run that has some.

    Raises OSError or ValueError.
    """
    path = Path(folder) / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: give a folder that reproduce.py wrote")
    results = Results(path)
    results.read()
    found = next((record.worst for record in results.records.values() if record.worst), None)
    if not found:
        raise ValueError(f"{path} has no worst examples: finish its runs with reproduce.py")
    return found


def worst_data(worst: list[Misclassified], names: list[str] | None) -> list[Mapping[str, Any]]:
    """What the page knows of them."""

    def name(label: int) -> str:
        return names[label] if names and 0 <= label < len(names) else str(label)

    return [
        {
            "text": example.sentence,
            "gold": name(example.gold),
            "predicted": name(example.predicted),
            "confidence": example.confidence,
        }
        for example in worst
    ]
