"""A trained classifier, and what its checkpoint remembers of the run that made it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from classifier import load_classifier
from llama import Llama
from mini_llama.assignment.reviews import is_index
from mini_llama.checkpoints.own_tokenizer import find_own_tokenizer
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.places import resolve_model
from mini_llama.resume import digest
from mini_llama.task_heads import (
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    load_task_head,
)
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.find import load_tokenizer


@dataclass(frozen=True)
class TrainedClassifier:
    """`model` maps token ids (B, T), and lengths (B,) or None, to log-probabilities (B, N). `facts`
    are what finetune.run_facts wrote, fewer in older files.
    """

    model: nn.Module
    llama: Llama
    facts: Mapping[str, Any]

    @property
    def names(self) -> list[str] | None:
        """The label words."""
        return self.facts.get("label_names")

    @property
    def written(self) -> list[str]:
        """What a prediction file has for each label: its index, or its word."""
        return self.facts.get("labels_written") or [str(i) for i in range(self.num_labels)]

    @property
    def num_labels(self) -> int:
        head = self.facts["classifier"]
        return int(head["num_labels"])

    def label_of(self, text: str) -> int | None:
        """The label that a data file spells so: its word, whatever its case, or its index."""
        for spelt in (self.written, self.names or []):
            same = [i for i, word in enumerate(spelt) if word.casefold() == text.casefold()]
            if text in spelt or len(same) == 1:
                return spelt.index(text) if text in spelt else same[0]
        names_numbers = any(map(is_index, self.names or []))
        is_label = is_index(text) and int(text) < self.num_labels and not names_numbers
        return int(text) if is_label else None


class HeadScores(nn.Module):
    """A head of Hugging Face's, read at the last real token, with log-probabilities as output."""

    def __init__(self, head: LlamaForSequenceClassification | LlamaForTokenClassification) -> None:
        super().__init__()
        self.head = head

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        logits = self.head(tokens, lengths).float()
        if logits.ndim == 3:  # (B, T, N): one row for each token
            rows = torch.arange(len(logits), device=logits.device)
            logits = logits[rows, -1 if lengths is None else lengths - 1]
        return F.log_softmax(logits, dim=-1)


def load_trained(path: str | Path, **arithmetic: str | None) -> TrainedClassifier:
    """What --option finetune or lora wrote, or a folder that checkpoint.py convert made of it, or
    another one of a LlamaForSequenceClassification. `arithmetic` is load_classifier's.

    Raises OSError or ValueError as load_classifier and load_task_head do, and ValueError for a head
    that gives no probabilities of labels.
    """
    path = resolve_model(path)
    if path.is_dir():
        return _load_folder(path)
    model = load_classifier(path, **arithmetic)
    return TrainedClassifier(model, model.llama, read_checkpoint(path).metadata)


def _load_folder(path: Path) -> TrainedClassifier:
    head = load_task_head(path)
    kinds = (LlamaForSequenceClassification, LlamaForTokenClassification)
    if not isinstance(head, kinds) or len(head.labels) < 2:
        raise ValueError(f"{path} has a head that gives no probabilities of a text's labels")
    if getattr(head, "problem_type", None) == "multi_label_classification":
        raise ValueError(f"{path} gives a text several labels; predict writes one")
    facts = {
        "classifier": {"num_labels": len(head.labels)},
        "label_names": list(head.labels),
        "mask_padding": True,  # it reads the last real token
    }
    return TrainedClassifier(HeadScores(head).eval(), head.llama, facts)


def tokenizer_of(
    trained: TrainedClassifier, path: str, explicit: str | None, max_len: int | None
) -> BaseTokenizer:
    """The tokenizer that the classifier was trained with: `explicit`, or the one that is found by
    the checkpoint, or the one where the training run had it.

    Raises ValueError for another one than its run's, which would give it other ids.
    """
    recorded = trained.facts.get("tokenizer") or {}
    found = explicit or _find(path, recorded)
    wanted = recorded.get("sha256")
    if wanted is not None and digest(found) != wanted:
        raise ValueError(
            f"{found} is not the tokenizer that {path} was trained with, {recorded.get('name')}: "
            "name that with --tokenizer"
        )
    return load_tokenizer(found, max_len)


def _find(path: str, recorded: Mapping[str, Any]) -> str | Path:
    places: Sequence[str | Path] = [find_own_tokenizer(path)]
    if recorded.get("path"):
        places = [*places, recorded["path"]]
    fitting = (place for place in places if _digest(place) == recorded.get("sha256"))
    return next(fitting, places[0])


def _digest(path: str | Path) -> str | None:
    try:
        return digest(path)
    except (OSError, ValueError):
        return None
