#!/usr/bin/env python
"""Fine-tuning and pre-training on a GPU, ours beside transformers' model on the same card.

python bench/gpu_training.py [--rounds 5] [--seconds 105] [--json FILE] [--markdown FILE]
                             [--device cuda] [--quick]

The peer is transformers' model (sdpa attention) with torch.optim.AdamW(fused=True) and the same
clipping. Weights and tokens are random; fine-tuning has batches of 80 rows whose lengths are drawn
from those of SST's training data. Each side is alone on the card: a few steps to warm up, then
`rounds` of many steps, timed from one synchronisation to the next; medians are printed, with the
least and the most, model FLOPs utilization (MFU) against the card's dense peak in that arithmetic,
and the peak of allocated memory. What does not fit into --seconds any more is left out, and said.
"""

import argparse
import dataclasses
import gc
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
import transformers
from peers import transformers_config

import lora
from classifier import ClassifierConfig, LlamaEmbeddingClassifier
from config import EDITIONS, PRESETS, LlamaConfig
from llama import Llama
from mini_llama.assignment.batches import Batch, pad_rows
from mini_llama.checkpoints.sizes import training_flops
from mini_llama.pretraining.options import PretrainOptions
from mini_llama.pretraining.trainer import Trainer
from mini_llama.tf32 import use_tf32
from mini_llama.training.processes import Process
from mini_llama.training.throughput import peak_flops
from optimizer import AdamW
from utils import autocast

# Tokens of SST's 8,544 training sentences, BOS included, in the 32,000-piece vocabulary: deciles.
SST_LENGTHS = (3, 11, 15, 19, 22, 25, 29, 33, 37, 44, 93)
VOCABULARY, PAD, LABELS, BATCH_SIZE = 32_000, 2, 5, 80
ROUND_SECONDS = 0.15
EPOCH = 4  # batches of fine-tuning
COMPILING_SECONDS = 30  # that a compiled side takes at least
Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """What is trained, in which arithmetic: "float32", "TF32" or "bfloat16"."""

    part: str
    name: str
    side: str
    arithmetic: str
    compile: bool = False
    records: bool = False  # the compiled step is replayed as a CUDA graph

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.arithmetic == "bfloat16" else "float32"


@dataclass(frozen=True)
class Row:
    """One side's figure: the median of the rounds, in tokens a second."""

    part: str
    name: str
    side: str
    arithmetic: str
    value: float
    least: float
    most: float
    step_ms: float
    memory_gb: float
    mfu: float | None
    unit: str = "tokens/s"
    peer: float | None = None

    def markdown(self) -> str:
        ratio = f"{self.value / self.peer:.2f}" if self.peer else ""
        mfu = f"{self.mfu:.1%}" if self.mfu is not None else ""
        return (
            f"| {self.name} | {self.arithmetic} | {self.side} | {self.value:,.0f} "
            f"({self.least:,.0f} to {self.most:,.0f}) | {ratio} | {self.step_ms:.1f} | {mfu} | "
            f"{self.memory_gb:.2f} |"
        )


HEADER = (
    "| | arithmetic | side | tokens/s (least to most) | against the peer | ms a step | MFU | "
    "memory, GB |\n|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Work:
    """Several optimizer steps to be repeated; tokens and operations of all of them."""

    step: Step
    tokens: float
    flops: float | None = None
    steps: int = 1


# Fine-tuning


def sst_batches(count: int, by_length: bool) -> list[Batch]:
    """Batches of random tokens, with SST's lengths; sorted ones first, as --mask_padding has."""
    generator = torch.Generator().manual_seed(0)
    place = torch.rand(count * BATCH_SIZE, generator=generator) * (len(SST_LENGTHS) - 1)
    marks = torch.tensor(SST_LENGTHS, dtype=torch.float32)
    low = place.floor().long().clamp(max=len(SST_LENGTHS) - 2)
    lengths = (marks[low] + (place - low) * (marks[low + 1] - marks[low])).round().long()
    if by_length:
        lengths = lengths.sort().values
    batches = []
    for chosen in lengths.split(BATCH_SIZE):
        rows = [
            torch.randint(3, VOCABULARY, (int(n),), generator=generator).tolist() for n in chosen
        ]
        labels = torch.randint(LABELS, (BATCH_SIZE,), generator=generator)
        batches.append(Batch(*pad_rows(rows, PAD), labels, []))
    return batches


def finetuning_config(preset: str) -> LlamaConfig:
    arithmetic = EDITIONS["mmia"]
    shape = PRESETS[preset] | {"vocab_size": VOCABULARY}
    return LlamaConfig(**shape | {"norm": arithmetic.norm, "attention": arithmetic.attention})


def our_finetuning(case: Case, preset: str, device: torch.device) -> Callable[[Batch], object]:
    """finetune.train_epoch's step."""
    with torch.device(device):
        llama = Llama(finetuning_config(preset))
        model = LlamaEmbeddingClassifier(ClassifierConfig("", LABELS), llama).train()
    if "LoRA" in case.side:
        lora.apply_lora(model.llama)
        model.to(device)
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-5)
    masks = "--mask_padding" in case.side

    def step(batch: Batch) -> float:
        lengths = batch.lengths.to(device) if masks else None
        with autocast(device, case.dtype):
            log_probs = model(batch.tokens.to(device), lengths)
        loss = F.nll_loss(log_probs, batch.labels.to(device), reduction="sum") / BATCH_SIZE
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def their_finetuning(case: Case, preset: str, device: torch.device) -> Callable[[Batch], object]:
    """The same loop; it reads the last real token, so it is given the padding mask."""
    config = transformers_config(finetuning_config(preset), num_labels=LABELS, pad_token_id=PAD)
    with torch.device(device):
        model = transformers.LlamaForSequenceClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)

    def step(batch: Batch) -> float:
        tokens, lengths = batch.tokens.to(device), batch.lengths.to(device)
        mask = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
        with autocast(device, case.dtype):
            loss = model(tokens, attention_mask=mask.long(), labels=batch.labels.to(device)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def finetuning(case: Case, preset: str, count: int, device: torch.device) -> Work:
    """Tokens are real ones, since padding teaches nothing; operations are of padded ones, which
    is what is multiplied, without the output layer, and without LoRA none are counted.
    """
    batches = sst_batches(count, "--mask_padding" in case.side)
    make = our_finetuning if case.side.startswith("ours") else their_finetuning
    step = make(case, preset, device)

    def epoch() -> None:
        for batch in batches:
            step(batch)

    padded = sum(batch.tokens.numel() for batch in batches)
    real = sum(int(batch.lengths.sum()) for batch in batches)
    config = finetuning_config(preset)
    config = dataclasses.replace(config, attention="causal")
    mean_length = padded // (BATCH_SIZE * len(batches))
    flops = training_flops(config, mean_length) - 6 * config.vocab_size * config.dim
    return Work(epoch, real, None if "LoRA" in case.side else padded * flops, count)


# Pre-training


def pretraining(case: Case, shape: tuple[str, int, int], device: torch.device) -> Work:
    preset, rows, context = shape
    options = PretrainOptions(
        preset=preset,
        batch_size=rows,
        context=context,
        dtype=case.dtype,
        compile=case.compile,
        attention="causal",
    )
    config = options.model_config(VOCABULARY)
    windows = torch.randint(VOCABULARY, (rows, context + 1))
    make = our_pretraining if case.side.startswith("ours") else their_pretraining
    step, tokens = make(options, config, device, case.records), rows * context
    return Work(lambda: step(windows), tokens, tokens * training_flops(config, context))


def our_pretraining(
    options: PretrainOptions, config: LlamaConfig, device: torch.device, records: bool
) -> Callable[[torch.Tensor], object]:
    plain = dataclasses.replace(options, compile=False) if records else options
    trainer = Trainer(plain, Process(device=device), config)
    if records:
        trainer.core.loss.compile(mode="reduce-overhead")
    return trainer.train_step


def their_pretraining(
    options: PretrainOptions, config: LlamaConfig, device: torch.device, records: bool
) -> Callable[[torch.Tensor], object]:
    with torch.device(device):
        made = transformers.LlamaForCausalLM(transformers_config(config, use_cache=False)).train()
    mode = "reduce-overhead" if records else None
    model = torch.compile(made, mode=mode) if options.compile else made
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.95), fused=True)

    def step(windows: torch.Tensor) -> tuple[float, float]:
        inputs = windows[:, :-1].to(device)
        with autocast(device, options.dtype):
            loss = model(input_ids=inputs, labels=inputs).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
        optimizer.step()
        return loss.item(), float(norm)

    return step


# Measuring


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(step: Step, count: int, device: torch.device) -> float:
    """Of one of so many steps."""
    wait(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    wait(device)
    return (time.perf_counter() - start) / count


def measure(case: Case, make: Callable[[], Work], args: argparse.Namespace) -> Row:
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    if case.compile:
        torch._dynamo.reset()  # or a second shape would be compiled for any shape
    use_tf32(device, case.arithmetic == "TF32" and device.type == "cuda")
    torch.manual_seed(0)
    work = make()
    seconds(work.step, 1 if args.quick else 2, device)
    once = seconds(work.step, 1, device)
    count = 1 if args.quick else max(1, min(30, round(ROUND_SECONDS / once)))
    times = [seconds(work.step, count, device) for _ in range(args.rounds)]
    rates = [work.tokens / t for t in times]
    median = statistics.median(times)
    how = ", compiled" * case.compile + ", recorded" * case.records
    peak = peak_flops(device, case.dtype, case.arithmetic == "TF32")
    mfu = work.flops / median / peak if work.flops and peak else None
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Row(
        *(case.part, case.name, case.side, case.arithmetic + how),
        *(statistics.median(rates), min(rates), max(rates)),
        *(1000 * median / work.steps, memory / 1e9, mfu),
    )


def finetuning_cases(preset: str) -> Iterator[Case]:
    name = f"{preset}, {BATCH_SIZE} texts"
    for arithmetic in ("float32", "TF32", "bfloat16"):
        yield Case("fine-tuning", name, "transformers", arithmetic)
        yield Case("fine-tuning", name, "ours", arithmetic)
        yield Case("fine-tuning", name, "ours, --mask_padding", arithmetic)
        if arithmetic != "float32":
            yield Case("fine-tuning", name, "ours, LoRA", arithmetic)


SHAPES = {
    ("42m", 16, 256): ("float32", "TF32", "bfloat16"),
    ("42m", 64, 1024): ("bfloat16",),
    ("110m", 16, 1024): ("TF32", "bfloat16"),
}
QUICK_SHAPES = {("260k", 2, 16): ("float32", "bfloat16")}
COMPILED_SHAPES = [("42m", 16, 256), ("42m", 64, 1024)]


def all_cases(args: argparse.Namespace) -> Iterator[tuple[Case, Callable[[], Work]]]:
    """Each case with what prepares it; what takes longest comes last."""
    device = torch.device(args.device)
    preset, count = ("260k", 1) if args.quick else ("42m", EPOCH)
    for case in finetuning_cases(preset):
        yield case, lambda case=case: finetuning(case, preset, count, device)
    for shape, arithmetics in (QUICK_SHAPES if args.quick else SHAPES).items():
        for arithmetic in arithmetics:
            for side in ("transformers", "ours"):
                case = Case("pre-training", name_of(shape), side, arithmetic)
                yield case, lambda c=case, s=shape: pretraining(c, s, device)
    if not args.quick or args.compile:
        for shape in list(QUICK_SHAPES) if args.quick else COMPILED_SHAPES:
            for side, records in itertools.product(("ours", "transformers"), (False, True)):
                case = Case("pre-training", name_of(shape), side, "bfloat16", True, records)
                yield case, lambda c=case, s=shape: pretraining(c, s, device)


def name_of(shape: tuple[str, int, int]) -> str:
    return f"{shape[0]}, {shape[1]} × {shape[2]}"


def with_peers(rows: list[Row]) -> list[Row]:
    """Each row with the rate of transformers at the same work in the same arithmetic."""
    peers = {(r.name, r.arithmetic): r.value for r in rows if r.side == "transformers"}
    return [dataclasses.replace(r, peer=peers.get((r.name, r.arithmetic))) for r in rows]


def write(args: argparse.Namespace, title: str, rows: list[Row]) -> None:
    rows = with_peers(rows)
    if args.json:
        found = {"title": title, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if args.markdown:
        parts = [title, ""]
        for part in dict.fromkeys(row.part for row in rows):
            table = [row.markdown() for row in rows if row.part == part]
            parts += [part, "", HEADER, *table, ""]
        args.markdown.write_text("\n".join(parts), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=105)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a dry run: tiny models, two rounds")
    parser.add_argument("--compile", action="store_true", help="with --quick: compiled sides, too")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    args.rounds = 2 if args.quick else args.rounds
    start, device = time.perf_counter(), torch.device(args.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    title = f"{card}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(title, HEADER, sep="\n", flush=True)
    rows: list[Row] = []
    failed = False
    for case, make in all_cases(args):
        left = args.seconds - (time.perf_counter() - start)
        if left < (COMPILING_SECONDS if case.compile and not args.quick else 3):
            print(f"left out, for lack of time: {case}", flush=True)
            continue
        try:
            rows.append(measure(case, make, args))
        except (RuntimeError, ValueError) as error:
            failed = True
            print(f"failed: {case}: {error}", flush=True)
            continue
        finally:
            gc.collect()
        print(with_peers(rows)[-1].markdown(), flush=True)
        write(args, title, rows)
    print(f"{time.perf_counter() - start:.0f} s")
    sys.exit(failed)


if __name__ == "__main__":
    main()
