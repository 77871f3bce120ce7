"""Sentiment classifiers over a Llama: zero-shot by label words, and a trained linear head.

Both return log-probabilities (B, num_labels), unnormalised for the zero-shot one. They read the
LAST COLUMN of the batch, padding or not, as the assignment does; with `lengths` they read each
row's last real token and padding is masked.

Shapes: B batch, T tokens, C the model's width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from base_llama import shapes_only
from config import LlamaConfig, resolve_arithmetic
from llama import Llama, load_pretrained
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.record import Checkpoint, fit_tensors
from mini_llama.tokenization.base import BaseTokenizer

BACKBONE_PREFIX = "llama."


@dataclass(frozen=True)
class ClassifierConfig:
    """The classifiers' configuration; any object with these attributes will do.

    `option` "pretrain" freezes the backbone of the embedding classifier, anything else trains it.
    edition, norm, attention and quantize are load_pretrained's.
    """

    pretrained_model_path: str
    num_labels: int
    hidden_dropout_prob: float = 0.3
    option: str = "finetune"
    edition: str | None = None
    norm: str | None = None
    attention: str | None = None
    quantize: str | None = None


def load_backbone(config: ClassifierConfig) -> Llama:
    """The pretrained Llama that a classifier configuration names."""
    return load_pretrained(
        config.pretrained_model_path,
        edition=getattr(config, "edition", None),
        norm=getattr(config, "norm", None),
        attention=getattr(config, "attention", None),
        quantize=getattr(config, "quantize", None),
    )


class LlamaZeroShotClassifier(nn.Module):
    """Scores each label by the frozen model's log-probability of its name as the next word.

    For a name of several tokens, theirs are summed, all at the same position, as in the assignment.
    Raises ValueError if there are not `num_labels` label names, or a name has no token.
    """

    def __init__(
        self, config: ClassifierConfig, tokenizer: BaseTokenizer, label_names: Sequence[str]
    ) -> None:
        super().__init__()
        if len(label_names) != config.num_labels:
            raise ValueError(f"{len(label_names)} label names for {config.num_labels} labels")
        self.num_labels = config.num_labels
        self.tokenizer = tokenizer
        self.label_name_ids = [tokenizer.encode(name, bos=False, eos=False) for name in label_names]
        if not all(self.label_name_ids):
            raise ValueError(f"a label word has no token: {', '.join(label_names)}")
        self.llama = load_backbone(config).requires_grad_(False)

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids (B, T) of BOS + sentence + question → scores (B, num_labels)."""
        logits, _ = self.llama(input_ids, lengths=lengths, last_only=True)  # (B, 1, V)
        log_probs = F.log_softmax(logits[:, 0].float(), dim=-1)  # (B, V)
        scores = [log_probs[:, ids].sum(dim=-1) for ids in self.label_name_ids]
        return torch.stack(scores, dim=-1)


class LlamaEmbeddingClassifier(nn.Module):
    """Hidden state of the last column, dropout, linear head, log-softmax.

    Raises ValueError if the backbone would be trained but has quantized weights.
    """

    def __init__(self, config: ClassifierConfig, llama: Llama | None = None) -> None:
        super().__init__()
        self.num_labels = config.num_labels
        self.llama = load_backbone(config) if llama is None else llama
        trains = getattr(config, "option", "finetune") != "pretrain"
        if trains and getattr(self.llama, "quantization", None):
            raise ValueError(
                f"{self.llama.quantization} weights cannot be trained: load them without quantize"
            )
        self.llama.requires_grad_(trains)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier_head = nn.Linear(self.llama.config.dim, config.num_labels)

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids (B, T) of BOS + sentence → log-probabilities (B, num_labels)."""
        last = self.llama.last_hidden_state(input_ids, lengths)[:, 0]  # (B, C)
        return F.log_softmax(self.classifier_head(self.dropout(last)).float(), dim=-1)


def save_classifier(
    path: str | Path,
    config: LlamaConfig,
    state: dict[str, torch.Tensor],
    hidden_dropout_prob: float,
    **metadata: Any,
) -> None:
    """Write an embedding classifier's state dict atomically, with `metadata`, plain data."""
    head = {
        "num_labels": state["classifier_head.bias"].shape[0],
        "hidden_dropout_prob": hidden_dropout_prob,
    }
    save_checkpoint(path, config, state, classifier=head, **metadata)


def load_classifier(path: str | Path, **arithmetic: str | None) -> LlamaEmbeddingClassifier:
    """Load a classifier that save_classifier or a course's own code wrote, on the CPU and in
    evaluation mode. `arithmetic` is resolve_arithmetic's edition, norm and attention.

    Raises OSError or ValueError as read_checkpoint does, ValueError for a file without a head.
    """
    saved = read_checkpoint(path)
    head = saved.metadata.get("classifier")
    if not isinstance(head, dict):
        raise ValueError(f"{path} is a language model without a classifier head; fine-tune it")
    stored = {
        name.removeprefix(BACKBONE_PREFIX): tensor
        for name, tensor in saved.tensors.items()
        if name.startswith(BACKBONE_PREFIX)
    }
    backbone = Checkpoint(saved.path, saved.model_args, stored)
    chosen = resolve_arithmetic(backbone.recorded, **arithmetic)
    config = backbone.make_config(norm=chosen.norm, attention=chosen.attention)
    tensors = fit_tensors(backbone, config)
    with shapes_only():
        model = LlamaEmbeddingClassifier(ClassifierConfig(str(path), **head), llama=Llama(config))
    model.llama.arithmetic = chosen
    state = {BACKBONE_PREFIX + name: tensor for name, tensor in tensors.items()}
    for name in ("classifier_head.weight", "classifier_head.bias"):
        if name not in saved.tensors:
            raise ValueError(f"{path} lacks {name}")
        state[name] = saved.tensors[name]
    model.load_state_dict(state, assign=True)
    model.llama.tie_weights()
    return model.eval()
