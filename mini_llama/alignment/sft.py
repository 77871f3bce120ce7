"""Supervised fine-tuning on prompts and answers (Llama 2, section 3.1).

The loss is the next token's cross-entropy on answers, their EOS included, and on nothing else.

Shapes: B rows, T tokens, C the model's width.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

from llama import Llama
from lora import LoRALayer
from mini_llama.alignment.chat import Tokens
from mini_llama.alignment.data import Batch, Encoder, Row, collate, pack
from mini_llama.alignment.options import SftOptions
from mini_llama.alignment.records import Demonstration, read_demonstrations
from mini_llama.alignment.start import Start, save_model
from mini_llama.alignment.supervised import Job, run_stage, settings_of
from mini_llama.command_line import visible
from mini_llama.inference.decoders import PlainDecoder
from mini_llama.inference.generation import generate
from mini_llama.inference.sampling import Sampler
from mini_llama.layers.linear_loss import IGNORED, linear_cross_entropy
from mini_llama.training.core import Part
from mini_llama.training.loop import report
from mini_llama.training.processes import Process

SHOWN = 160  # characters of a prompt, and of an answer


class AnswerLoss(nn.Module):
    """The model with its loss as output, the form that the trainer takes."""

    def __init__(self, llama: Llama) -> None:
        super().__init__()
        self.llama = llama

    def forward(self, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy over the targets of a batch."""
        hidden = self.llama.hidden_states(batch.tokens, documents=batch.documents)  # (B, T, C)
        learnt = batch.targets != IGNORED
        weight = output_weight(self.llama)
        return linear_cross_entropy(hidden[learnt], weight, batch.targets[learnt])


def output_weight(llama: Llama) -> torch.Tensor:
    """The output layer's matrix (V, C), with its adapter, if it has one."""
    layer: nn.Module = llama.output
    if isinstance(layer, LoRALayer):
        return layer.merged_weight()
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def run(options: SftOptions) -> int:
    """Fine-tune; the exit status. Raises OSError or ValueError, one line each."""
    return run_stage(options, read_demonstrations, make_job)


def make_job(
    options: SftOptions,
    process: Process,
    start: Start,
    records: tuple[list[Demonstration], list[Demonstration]],
) -> Job[Row]:
    """The run over encoded records; says what they are. Raises ValueError, naming the line."""
    encoder = start.encoder(options.max_length)
    train, val = (rows_of(part, encoder, options.packing) for part in records)
    for line in [*describe(train, val), *encoder.counts.lines(encoder.max_length)]:
        report(process, line)
    return Job(
        options,
        process,
        network=start.llama,
        loss=AnswerLoss(start.llama),
        train=train,
        val=val,
        collate=partial(part_of, pad_id=start.tokenizer.pad_id, device=process.device),
        length=length,
        save=partial(save_model, start=start, options=options),
        settings=settings_of(options, start.llama.config),
        title="Supervised fine-tuning",
        loss_name="cross-entropy of answers, nats a token",
        show=partial(show_samples, start, options, [row[0] for row in val or train]),
    )


def rows_of(records: Sequence[Demonstration], encoder: Encoder, packing: bool) -> list[Row]:
    """One example a row, or as many as fit."""
    shown = tqdm(records, "encoding", disable=None, leave=False)
    examples = [example for record in shown for example in encoder.demonstration(record)]
    return pack(examples, encoder.max_length) if packing else [[example] for example in examples]


def length(row: Row) -> int:
    return sum(len(example.ids) for example in row)


def part_of(rows: Sequence[Row], pad_id: int, device: torch.device) -> Part:
    batch = collate(rows, pad_id)
    return Part(batch.to(device), batch.n_targets)


def describe(train: Sequence[Row], val: Sequence[Row]) -> list[str]:
    """How much there is to learn."""
    examples = [example for row in train for example in row]
    targets = sum(sum(example.learns) for example in examples)
    packed = f" in {len(train):,} rows" if len(train) < len(examples) else ""
    return [
        f"{len(examples):,} examples{packed} of {sum(map(length, train)):,} tokens, {targets:,} of "
        f"them answers; {sum(map(len, val)):,} held out"
    ]


def show_samples(start: Start, options: SftOptions, examples: Sequence[Tokens]) -> list[str]:
    """Prompts and the most probable answers, a line each."""
    lines = []
    start.llama.eval()
    for example in examples[: options.samples]:
        prompt = example.ids[: example.learns.index(True)]
        tokens = generate(
            start.llama,
            torch.tensor([prompt], device=start.llama.device),
            options.sample_tokens,
            Sampler(0.0),
            stop_id=start.ends,
            decoder=PlainDecoder(start.llama),
        )
        answer = start.tokenizer.decode(tokens[0, len(prompt) :].tolist())
        asked = start.tokenizer.decode(prompt)
        lines.append(f"sample: {visible(asked)[-SHOWN:]} → {visible(answer)[:SHOWN]}")
    return lines
