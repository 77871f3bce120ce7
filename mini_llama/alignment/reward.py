"""Reward models (Llama 2, section 3.2.2): a number for an answer, learnt from comparisons.

A reward model is a language model whose output layer is replaced by one output; it is read at the
answer's last token. It is trained for one epoch: "training longer can lead to over-fitting".

Shapes: P pairs, B answers (of P pairs: 2P, the chosen ones first), T tokens.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lora import merged_state_dict
from mini_llama.alignment import losses
from mini_llama.alignment.chat import Tokens
from mini_llama.alignment.data import Encoder, Pair
from mini_llama.alignment.options import StageOptions
from mini_llama.alignment.records import Preference, read_preferences
from mini_llama.alignment.rl_options import RewardOptions
from mini_llama.alignment.start import FOLDER, MODEL, Start, keep_tokenizer
from mini_llama.alignment.supervised import Job, run_stage, settings_of
from mini_llama.checkpoints.formats.huggingface_tokenizer import write_tokenizer
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.task_heads import (
    BACKBONE_PREFIX,
    LlamaForSequenceClassification,
    load_task_head,
    save_task_head,
)
from mini_llama.training.core import Part, TrainerCore
from mini_llama.training.loop import report
from mini_llama.training.model_folder import is_expressible
from mini_llama.training.processes import Process
from mini_llama.training.progress import full_state

LABEL = "reward"
UNGRADED = 3  # the grade whose margin is 0 in every table
SAFE = ("chosen_safe", "rejected_safe")  # further keys of a line, true or false


class Rows(NamedTuple):
    """Texts padded on the right: token ids (B, T) and lengths (B,)."""

    tokens: torch.Tensor
    lengths: torch.Tensor


class PairRows(NamedTuple):
    """The rows of P pairs, the chosen answers first, their grades (P,), and whether each answer is
    safe (2P,), where that is learnt.
    """

    rows: Rows
    grades: torch.Tensor
    is_safe: torch.Tensor | None


@dataclass(frozen=True)
class JudgedPair:
    """A pair, and whether its answers are safe, the chosen one first; None where it is not said."""

    pair: Pair
    is_safe: tuple[bool, bool] | None = None


class RewardLoss(nn.Module):
    """The model with its loss as output: eq. 2, and on request the safety auxiliary loss."""

    def __init__(
        self, model: LlamaForSequenceClassification, margins: str, safety_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.model, self.margins, self.safety_weight = model, margins, safety_weight

    def forward(self, pairs: PairRows) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        scores = self.model(*pairs.rows)[:, 0]
        chosen, rejected = scores.chunk(2)
        margins = losses.margins_of(pairs.grades, self.margins)
        loss = losses.ranking_loss(chosen, rejected, margins)
        metrics = {"accuracy": (chosen > rejected).float().mean()}
        if pairs.is_safe is not None:
            loss = loss + self.safety_weight * losses.safety_loss(scores, pairs.is_safe)
            metrics["safe_accuracy"] = ((scores > 0) == pairs.is_safe).float().mean()
        return loss, metrics


def new_reward_model(start: Start) -> LlamaForSequenceClassification:
    """The start's model with a regression head of one output in place of the output layer."""
    head = LlamaForSequenceClassification(start.llama, [LABEL], start.tokenizer.pad_id)
    return head.to(start.llama.device)


def run(options: RewardOptions) -> int:
    """Train; the exit status. Raises OSError or ValueError, one line each."""
    return run_stage(options, read_preferences, make_job, export)


def make_job(
    options: RewardOptions,
    process: Process,
    start: Start,
    records: tuple[list[Preference], list[Preference]],
) -> Job[JudgedPair]:
    """The run over encoded pairs; says how many there are. Raises ValueError, naming the line."""
    model = new_reward_model(start)
    encoder = start.encoder(options.max_length)
    train, val = (judged_pairs(part, encoder, options.safety_weight > 0) for part in records)
    dropped = sum(map(len, records)) - len(train) - len(val)
    report(process, f"{len(train):,} pairs, {len(val):,} held out")
    if dropped:
        report(process, f"{dropped} pairs dropped: the chosen answer is unsafe, the other is safe")
    if not train:
        raise ValueError("no pair is left to train on: add some, or lower --val_fraction")
    for line in encoder.counts.lines(encoder.max_length):
        report(process, line)
    pad_id = start.tokenizer.pad_id
    return Job(
        options,
        process,
        network=model,
        loss=RewardLoss(model, options.margins, options.safety_weight),
        train=train,
        val=val,
        collate=partial(part_of, pad_id=pad_id, device=process.device),
        length=lambda judged: len(judged.pair.chosen.ids) + len(judged.pair.rejected.ids),
        save=partial(save_reward_model, model=model, options=options),
        settings=settings_of(options, start.llama.config),
        title="Reward model",
        loss_name="ranking loss, nats a pair",
        show=lambda: [grade_line(model, val, pad_id)] if val else [],
    )


def judged_pairs(
    records: Sequence[Preference], encoder: Encoder, with_safety: bool
) -> list[JudgedPair]:
    """Encoded pairs. For a safety model those whose chosen answer is unsafe, and whose other one is
    safe, are dropped (section 3.2.1). Raises ValueError, naming the line, for one without safety
    labels where they are needed.
    """
    found = []
    for record in records:
        labels = tuple(record.rest.get(name) for name in SAFE)
        is_said = all(isinstance(label, bool) for label in labels)
        if with_safety and not is_said:
            wrong = f"no {' and '.join(SAFE)} that are true or false"
            raise record.place.error(wrong, "add them, or leave --safety_weight out")
        if with_safety and labels == (False, True):
            continue
        is_safe = (bool(labels[0]), bool(labels[1])) if with_safety else None
        found.append(JudgedPair(encoder.preference(record), is_safe))
    return found


def part_of(pairs: Sequence[JudgedPair], pad_id: int, device: torch.device) -> Part:
    texts = [judged.pair.chosen for judged in pairs] + [judged.pair.rejected for judged in pairs]
    grades = [UNGRADED if p.pair.grade is None else p.pair.grade for p in pairs]
    is_safe = None
    if all(judged.is_safe for judged in pairs):
        labels = [judged.is_safe[i] for i in (0, 1) for judged in pairs if judged.is_safe]
        is_safe = torch.tensor(labels, device=device)
    rows = rows_of([text.ids for text in texts], pad_id, device)
    return Part(PairRows(rows, torch.tensor(grades, device=device), is_safe), len(pairs))


def rows_of(texts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> Rows:
    lengths = torch.tensor([len(ids) for ids in texts])
    tokens = torch.full((len(texts), int(lengths.max())), pad_id)
    for row, ids in zip(tokens, texts, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return Rows(tokens.to(device), lengths.to(device))


@torch.no_grad()
def score_texts(
    model: LlamaForSequenceClassification,
    texts: Sequence[Tokens],
    pad_id: int,
    size: int = 256,
) -> torch.Tensor:
    """The score of each text, read at its last token: (B,), in float32, on the CPU."""
    model.eval()
    device = model.llama.device
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    scores = torch.empty(len(texts))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        rows = rows_of([texts[i].ids for i in chosen], pad_id, device)
        scores[chosen] = model(*rows)[:, 0].float().cpu()
    return scores


def accuracy_by_grade(
    model: LlamaForSequenceClassification, pairs: Sequence[JudgedPair], pad_id: int
) -> dict[str, tuple[float, int]]:
    """Share of pairs that are ranked right and how many there are, of all and of each grade
    (table 8).
    """
    chosen, rejected = (
        score_texts(model, [getattr(judged.pair, name) for judged in pairs], pad_id)
        for name in ("chosen", "rejected")
    )
    groups = {"all": torch.ones(len(pairs), dtype=torch.bool)}
    for number, name in enumerate(losses.GRADES):
        groups[name] = torch.tensor([judged.pair.grade == number for judged in pairs])
    return {
        name: (losses.ranking_accuracy(chosen[group], rejected[group]), int(group.sum()))
        for name, group in groups.items()
        if group.any()
    }


def grade_line(
    model: LlamaForSequenceClassification, pairs: Sequence[JudgedPair], pad_id: int
) -> str:
    """ "accuracy: all 0.99 (300), significantly 1.00 (80), …"."""
    found = accuracy_by_grade(model, pairs, pad_id).items()
    return "accuracy: " + ", ".join(f"{name} {share:.3f} ({n})" for name, (share, n) in found)


def save_reward_model(
    trainer: TrainerCore,
    model: LlamaForSequenceClassification,
    options: RewardOptions,
    **facts: Any,
) -> None:
    """Write FOLDER/model.pt, adapters merged, which task_heads.load_task_head reads. Every process
    must call it; the first writes.
    """
    state = full_state(trainer)["model"] if options.shard else merged_state_dict(model)
    if not trainer.process.is_main:
        return
    kind = type(model).__name__
    content = json.loads(json.dumps({"architectures": [kind]} | model.fields()))
    tensors = {name.removeprefix(BACKBONE_PREFIX): tensor for name, tensor in state.items()}
    head = {"task_head": content, "architecture": kind, "margins": options.margins}
    path = Path(options.out) / MODEL
    save_checkpoint(path, model.llama.config, tensors, step=trainer.step, **head, **facts)


def export(options: StageOptions, start: Start, process: Process) -> None:
    """Write FOLDER/model, what FOLDER/model.pt has, in Hugging Face's form with its tokenizer, if
    its Llama has the same arithmetic.
    """
    if not process.is_main:
        return
    folder = Path(options.out)
    model = load_task_head(folder / MODEL)
    if is_expressible(model.llama.config):
        save_task_head(folder / FOLDER, model)
        write_tokenizer(start.tokenizer, folder / FOLDER)
    keep_tokenizer(folder, start.tokenizer)


def load_reward_model(
    path: str | Path, policy: Start, device: torch.device
) -> LlamaForSequenceClassification:
    """A reward model for this policy's texts, frozen and in evaluation mode.

    Raises OSError and ValueError as load_task_head does; ValueError for another head than one
    number, and for another vocabulary.
    """
    model = load_task_head(path)
    if not isinstance(model, LlamaForSequenceClassification) or len(model.labels) != 1:
        raise ValueError(
            f"{path} is a {type(model).__name__} with other outputs than one number: give a reward "
            "model, which align.py reward trains"
        )
    own, vocab_size = model.llama.config.vocab_size, policy.llama.config.vocab_size
    if own != vocab_size:
        raise ValueError(
            f"{path} has a vocabulary of {own} tokens and the policy one of {vocab_size}: a reward "
            "model reads the policy's tokens, so train one on the policy's own tokenizer"
        )
    return model.requires_grad_(False).to(device).eval()


@dataclass(frozen=True)
class Rewards:
    """What answers are worth: the helpfulness model's score or, with a safety model, R_c's."""

    helpfulness: LlamaForSequenceClassification
    safety: LlamaForSequenceClassification | None
    pad_id: int

    def __call__(self, texts: Sequence[Tokens], is_safety: Sequence[bool]) -> torch.Tensor:
        """Scores (B,) before the sigmoid; `is_safety` says so of each prompt. Raises ValueError for
        a score that is not a number.
        """
        scores = score_texts(self.helpfulness, texts, self.pad_id)
        if self.safety is not None:
            safety = score_texts(self.safety, texts, self.pad_id)
            scores = losses.combined_score(safety, scores, torch.tensor(list(is_safety)))
        if not bool(scores.isfinite().all()):
            wrong = next(x for x in scores.tolist() if not math.isfinite(x))
            raise ValueError(
                f"the reward of an answer is {wrong}: the reward model is damaged, or diverged as "
                "it was trained; train it again with a lower --lr"
            )
        return scores
