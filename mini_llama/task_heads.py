"""Heads for other tasks over a Llama: labels of sequences, labels of tokens, spans of answers.

They are Hugging Face's LlamaForSequenceClassification, LlamaForTokenClassification and
LlamaForQuestionAnswering, with their outputs, losses and folders. Sequences are labelled from the
last token's hidden state (Radford et al. 2018, section 3.2), answers are spans with a start and an
end (Devlin et al. 2019, section 4.2). The assignment's classifier is classifier.py.

Padding is on the right, and `lengths` (B,) counts each row's real tokens: with it, padding changes
neither a real token's output nor the loss. Without it all tokens count as real.

Shapes: B batch, T tokens, C the model's width, N labels.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from base_llama import INIT_STD, shapes_only
from llama import Llama, padding_mask
from lora import merged_state_dict
from mini_llama.bounds import check_bound
from mini_llama.checkpoints.formats import huggingface
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.record import fit_tensors, usable

BACKBONE_PREFIX = "llama."
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
IGNORED_LABEL = -100
# The defaults of a config.json that leaves them out.
CLASSIFIER_DROPOUT = 0.1
N_LABELS = 2


class TaskHead(nn.Module):
    """A backbone and a linear layer on its hidden states. The backbone loses its output layer.

    `pad_token_id` is only saved for Hugging Face, which finds padding by it. Raises ValueError if
    it is not an id of the vocabulary.
    """

    def __init__(self, llama: Llama, pad_token_id: int | None = None) -> None:
        super().__init__()
        vocab_size = llama.config.vocab_size
        is_id = (
            type(pad_token_id) is int and -1 <= pad_token_id < vocab_size
        )  # -1: none, in old files
        bound = f"an integer below vocab_size={vocab_size}"
        _check("pad_token_id", pad_token_id, pad_token_id is None or is_id, bound)
        llama.register_module("output", None)
        self.llama, self.pad_token_id = llama, pad_token_id

    @staticmethod
    def arguments(content: dict[str, Any], rows: int) -> dict[str, Any]:
        """A config.json → the constructor's arguments; `rows` are those of the head's weight.

        Raises ValueError for contradictions.
        """
        return {"pad_token_id": content.get("pad_token_id")}

    def fields(self) -> dict[str, Any]:
        """The head's fields in config.json."""
        return {"pad_token_id": self.pad_token_id}

    def _new_head(self, outputs: int, bias: bool) -> nn.Linear:
        head = nn.Linear(self.llama.config.dim, outputs, bias=bias)
        nn.init.normal_(head.weight, std=INIT_STD)
        if bias:
            nn.init.zeros_(head.bias)
        return head


class LabelHead(TaskHead):
    """A head with N outputs, named by `labels`. Raises ValueError if there are none."""

    def __init__(
        self,
        llama: Llama,
        labels: Sequence[str],
        pad_token_id: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__(llama, pad_token_id)
        self.labels = tuple(labels)
        _check("labels", self.labels, len(self.labels) > 0, "at least one name")
        self.score = self._new_head(len(self.labels), bias)

    @staticmethod
    def arguments(content: dict[str, Any], rows: int) -> dict[str, Any]:
        names, count = content.get("id2label"), content.get("num_labels")
        ids = [str(i) for i in range(rows)]
        if names is None:
            count = N_LABELS if count is None else count
            names = {i: f"LABEL_{i}" for i in ids}
        if not (isinstance(names, dict) and all(isinstance(name, str) for name in names.values())):
            raise ValueError("id2label is no JSON object of names")
        for stated in (len(names), len(names) if count is None else count):
            if stated != rows:
                raise ValueError(f"it says {stated} labels, and score.weight has {rows} rows")
        if set(names) != set(ids):
            raise ValueError(f"id2label does not name just the labels 0 to {rows - 1}")
        return TaskHead.arguments(content, rows) | {"labels": [names[i] for i in ids]}

    def fields(self) -> dict[str, Any]:
        ids = {name: i for i, name in enumerate(self.labels)}
        return super().fields() | {"id2label": dict(enumerate(self.labels)), "label2id": ids}


class LlamaForSequenceClassification(LabelHead):
    """Labels of whole rows or, with `problem_type` "regression", numbers.

    If `problem_type` is None, a single output means regression; with more outputs, integer labels
    mean single-label and float labels multi-label classification. transformers has the same rule,
    but keeps the type of its first batch. Raises ValueError for an unknown type.
    """

    def __init__(
        self,
        llama: Llama,
        labels: Sequence[str],
        pad_token_id: int | None = None,
        problem_type: str | None = None,
    ) -> None:
        super().__init__(llama, labels, pad_token_id)
        is_known = problem_type is None or problem_type in PROBLEM_TYPES
        _check("problem_type", problem_type, is_known, f"one of {', '.join(PROBLEM_TYPES)}")
        has_choice = problem_type != PROBLEM_TYPES[1] or len(self.labels) > 1
        _check("problem_type", problem_type, has_choice, "another one for a single label")
        self.problem_type = problem_type

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids (B, T) → logits (B, N), of the last real token.

        Hugging Face takes the last token that is not `pad_token_id`, ignoring its mask: the same
        token, unless a text ends in that id. Without the id it refuses batches.
        """
        return self.score(self.llama.last_hidden_state(tokens, lengths)[:, 0])

    def loss(
        self, tokens: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean loss over the batch, by `problem_type`:

        - regression, or None and N = 1: squared error, labels (B,) or (B, N);
        - single_label_classification, or None, N > 1 and integers: cross-entropy, labels (B,);
        - multi_label_classification, or None, N > 1 and floats: binary cross-entropy, labels (B, N)
          from 0 to 1.
        """
        logits = self(tokens, lengths).float()
        regression, single, multi = PROBLEM_TYPES
        by_labels = multi if labels.is_floating_point() else single
        kind = self.problem_type or (regression if len(self.labels) == 1 else by_labels)
        if kind == regression:
            return F.mse_loss(logits.flatten(), labels.flatten().float())
        if kind == single:
            return F.cross_entropy(logits, labels.flatten().long(), ignore_index=IGNORED_LABEL)
        return F.binary_cross_entropy_with_logits(logits, labels.float())

    @staticmethod
    def arguments(content: dict[str, Any], rows: int) -> dict[str, Any]:
        problem_type = {"problem_type": content.get("problem_type")}
        return LabelHead.arguments(content, rows) | problem_type

    def fields(self) -> dict[str, Any]:
        return super().fields() | {"problem_type": self.problem_type}


class LlamaForTokenClassification(LabelHead):
    """A label for every token, from itself and those before it; `dropout` is before the head."""

    def __init__(
        self,
        llama: Llama,
        labels: Sequence[str],
        pad_token_id: int | None = None,
        dropout: float = CLASSIFIER_DROPOUT,
    ) -> None:
        super().__init__(llama, labels, pad_token_id, bias=True)
        is_rate = isinstance(dropout, int | float) and 0 <= dropout < 1
        _check("classifier_dropout", dropout, is_rate, "at least 0 and below 1")
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids (B, T) → logits (B, T, N)."""
        return self.score(self.dropout(self.llama.hidden_states(tokens, lengths)))

    def loss(
        self, tokens: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean cross-entropy over labels (B, T), ignoring -100 and padding."""
        if lengths is not None:
            labels = labels.masked_fill(~_real(tokens, lengths), IGNORED_LABEL)
        logits = self(tokens, lengths).float()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL)

    @staticmethod
    def arguments(content: dict[str, Any], rows: int) -> dict[str, Any]:
        named = [content.get(name) for name in ("classifier_dropout", "hidden_dropout")]
        dropout = next((value for value in named if value is not None), CLASSIFIER_DROPOUT)
        return LabelHead.arguments(content, rows) | {"dropout": dropout}

    def fields(self) -> dict[str, Any]:
        return super().fields() | {"classifier_dropout": self.dropout.p}


class LlamaForQuestionAnswering(TaskHead):
    """Where in the row an answer starts and ends."""

    def __init__(self, llama: Llama, pad_token_id: int | None = None) -> None:
        super().__init__(llama, pad_token_id)
        self.qa_outputs = self._new_head(2, bias=True)

    def forward(
        self, tokens: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B, T) → logits of the start and of the end, each (B, T).

        With `lengths` they are -inf at padding, which Hugging Face does not mask.
        """
        logits = self.qa_outputs(self.llama.hidden_states(tokens, lengths))  # (B, T, 2)
        if lengths is not None:
            logits = logits.masked_fill(~_real(tokens, lengths).unsqueeze(-1), -math.inf)
        starts, ends = logits.unbind(-1)
        return starts, ends

    def loss(
        self,
        tokens: torch.Tensor,
        starts: torch.Tensor,
        ends: torch.Tensor,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean of the cross-entropies of `starts` and of `ends`, positions (B,).

        A position past the row's end is ignored, one below 0 is clamped to 0.
        """
        length = tokens.shape[1]
        limits = length if lengths is None else lengths
        losses = []
        for logits, positions in zip(self(tokens, lengths), (starts, ends), strict=True):
            positions = positions.clamp(min=0).masked_fill(positions >= limits, length)
            losses.append(F.cross_entropy(logits.float(), positions, ignore_index=length))
        return (losses[0] + losses[1]) / 2


KINDS = {
    kind.__name__: kind
    for kind in (
        LlamaForSequenceClassification,
        LlamaForTokenClassification,
        LlamaForQuestionAnswering,
    )
}


def _check(name: str, value: object, holds: bool, bound: str) -> None:
    check_bound(f"{name}={value!r}", holds, bound)


def _real(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(B, T): True for real tokens."""
    return padding_mask(lengths, tokens.shape[1])[:, 0, 0]


def load_task_head(folder: str | Path) -> TaskHead:
    """Load a Hugging Face folder with a head, as the class that its config.json names; on the CPU,
    in float32 and in evaluation mode.

    Raises OSError or ValueError as reading.read_checkpoint does; ValueError for a model without
    a head, and for a head that does not fit its config.json.
    """
    checkpoint, head = huggingface.split_head(read_checkpoint(folder))
    if head is None or head.architecture not in KINDS:
        raise ValueError(
            f"{folder} has no task head, neither score.weight nor qa_outputs.weight; "
            f"put a new one on load_pretrained's model: {', '.join(KINDS)}"
        )
    if missing := [name for name in head.names if name not in head.tensors]:
        raise ValueError(f"{folder} is a {head.architecture}, and lacks its head's {missing[0]}")
    config = checkpoint.make_config()  # tied, as there is no output layer
    backbone = fit_tensors(checkpoint, config)
    del backbone["output.weight"]
    is_tied = checkpoint.model_args["tie_word_embeddings"]
    weight = head.tensors[head.names[0]]
    rows = len(weight) if weight.ndim else 0
    try:
        with shapes_only():
            llama = Llama(dataclasses.replace(config, tie_word_embeddings=is_tied))
            kind = KINDS[head.architecture]
            model = kind(llama, **kind.arguments(head.content, rows))
        _check_head(head.tensors, model)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    state = {name: usable(tensor) for name, tensor in head.tensors.items()}
    state |= {BACKBONE_PREFIX + name: tensor for name, tensor in backbone.items()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def _check_head(tensors: dict[str, torch.Tensor], model: TaskHead) -> None:
    for name, tensor in tensors.items():
        shape = list(model.get_parameter(name).shape)
        if list(tensor.shape) != shape:
            raise ValueError(f"wrong shape {name} {list(tensor.shape)} instead of {shape}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is not a tensor of floating-point numbers")


def save_task_head(folder: str | Path, model: TaskHead) -> None:
    """Write model.safetensors and config.json in Hugging Face's form, LoRA adapters merged.

    Raises ValueError and OSError as huggingface.save_with_head does.
    """
    state = {
        name.removeprefix(BACKBONE_PREFIX): tensor
        for name, tensor in merged_state_dict(model).items()
    }
    kind = type(model).__name__
    huggingface.save_with_head(folder, model.llama.config, state, kind, model.fields())
