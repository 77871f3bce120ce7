"""Direct preference optimization (Rafailov et al. 2023), not in Llama 2's paper: preferences
without a reward model and without sampling.

The reference is the model that the run starts from; with LoRA it is the model without adapters. Its
log probabilities are computed once, before the first step.

Shapes: P pairs, B = 2P answers, the chosen ones first; N tokens with loss, V vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from llama import Llama
from mini_llama.alignment.data import Batch, Encoder, Pair, collate
from mini_llama.alignment.losses import dpo_loss
from mini_llama.alignment.options import DpoOptions
from mini_llama.alignment.records import Preference, read_preferences
from mini_llama.alignment.sft import output_weight
from mini_llama.alignment.start import Start, save_model
from mini_llama.alignment.supervised import Job, run_stage, settings_of
from mini_llama.layers.linear import linear
from mini_llama.layers.linear_loss import IGNORED
from mini_llama.training.core import Part
from mini_llama.training.loop import report
from mini_llama.training.processes import Process
from utils import autocast


class Judged(NamedTuple):
    """A pair, and the reference's log probability of both answers."""

    pair: Pair
    chosen: float
    rejected: float


class PairBatch(NamedTuple):
    """The answers of P pairs, the chosen ones first, and the reference's log probabilities (B,)."""

    answers: Batch
    reference: torch.Tensor


def answer_log_probs(llama: Llama, batch: Batch) -> torch.Tensor:
    """Log probability of each row's answer, summed over its tokens: (B,), in float32."""
    hidden = llama.hidden_states(batch.tokens)  # (B, T, C)
    learnt = batch.targets != IGNORED
    logits = linear(hidden[learnt], output_weight(llama)).float()  # (N, V)
    found = -F.cross_entropy(logits, batch.targets[learnt], reduction="none")
    rows = learnt.nonzero()[:, 0]
    return found.new_zeros(len(batch.tokens)).index_add(0, rows, found)


class PreferenceLoss(nn.Module):
    """The model with its loss as output, the form that the trainer takes."""

    def __init__(self, llama: Llama, beta: float) -> None:
        super().__init__()
        self.llama, self.beta = llama, beta

    def forward(self, batch: PairBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Mean loss of the pairs; how far the implicit rewards are apart, and how often they are
        in the right order.
        """
        chosen, rejected = answer_log_probs(self.llama, batch.answers).chunk(2)  # (P,) each
        reference_chosen, reference_rejected = batch.reference.chunk(2)
        found = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, self.beta)
        margins = found.chosen_rewards - found.rejected_rewards
        return found.loss, {
            "accuracy": (margins > 0).float().mean(),
            "margin": margins.mean(),
            "chosen_reward": found.chosen_rewards.mean(),
            "rejected_reward": found.rejected_rewards.mean(),
        }


def run(options: DpoOptions) -> int:
    """Train; the exit status. Raises OSError or ValueError, one line each."""
    return run_stage(options, read_preferences, make_job)


def make_job(
    options: DpoOptions,
    process: Process,
    start: Start,
    records: tuple[list[Preference], list[Preference]],
) -> Job[Judged]:
    """The run over encoded pairs; says what they are. Raises ValueError, naming the line."""
    encoder = start.encoder(options.max_length)
    train, val = (pairs_of(part, encoder) for part in records)
    for line in encoder.counts.lines(encoder.max_length):
        report(process, line)
    report(process, f"{len(train):,} pairs, {len(val):,} held out")
    pad_id, device = start.tokenizer.pad_id, process.device
    judge = partial(judged, start.llama, options, pad_id)
    return Job(
        options,
        process,
        network=start.llama,
        loss=PreferenceLoss(start.llama, options.beta),
        train=judge(train),
        val=judge(val),
        collate=partial(part_of, pad_id=pad_id, device=device),
        length=lambda judged: pair_length(judged.pair),
        save=partial(save_model, start=start, options=options),
        settings=settings_of(options, start.llama.config),
        title="Direct preference optimization",
        loss_name="loss of a pair (log 2 at the start)",
    )


def pairs_of(records: Sequence[Preference], encoder: Encoder) -> list[Pair]:
    return [encoder.preference(record) for record in records]


def pair_length(pair: Pair) -> int:
    return len(pair.chosen.ids) + len(pair.rejected.ids)


def answers_of(pairs: Sequence[Pair], pad_id: int) -> Batch:
    """Both answers of all pairs, the chosen ones first."""
    rows = [[pair.chosen] for pair in pairs] + [[pair.rejected] for pair in pairs]
    return collate(rows, pad_id)


@torch.no_grad()
def judged(llama: Llama, options: DpoOptions, pad_id: int, pairs: Sequence[Pair]) -> list[Judged]:
    """The pairs, in their order, with the reference's log probabilities: those of `llama` now."""
    size = max(1, options.batch_size // options.accumulation)
    order = sorted(range(len(pairs)), key=lambda i: pair_length(pairs[i]))
    done: dict[int, Judged] = {}
    llama.eval()
    for i in tqdm(range(0, len(order), size), "reference", disable=None, leave=False):
        numbers = order[i : i + size]
        batch = answers_of([pairs[n] for n in numbers], pad_id).to(llama.device)
        with autocast(llama.device, options.dtype):
            found = answer_log_probs(llama, batch).chunk(2)
        for n, chosen, rejected in zip(numbers, *(part.tolist() for part in found), strict=True):
            done[n] = Judged(pairs[n], chosen, rejected)
    return [done[n] for n in range(len(pairs))]


def part_of(rows: Sequence[Judged], pad_id: int, device: torch.device) -> Part:
    answers = answers_of([row.pair for row in rows], pad_id).to(device)
    reference = [row.chosen for row in rows] + [row.rejected for row in rows]
    return Part(PairBatch(answers, torch.tensor(reference, device=device)), len(rows))
