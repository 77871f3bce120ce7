#!/usr/bin/env python
"""Fine-tuning, LoRA and prompting, ours beside transformers, on the real SST.

python bench/classify_throughput.py DATA TOKENIZER [--preset 42m] [--batch_size 80] [--steps 8]
                                    [--batch_sizes 10 20 40 80 160 --figure finetune.png]

DATA is sst-train.txt, TOKENIZER the 32,000-piece model; weights are random. All sides take turns on
the same batches in one process; printed are padded tokens a second (what the assignment's loop
multiplies), real tokens a second (what is learned from), both over all steps, and the median step.
The peer is LlamaForSequenceClassification with torch.optim.AdamW; it reads the last real token, so
it is given the padding mask. Peak memory is measured in a process of its own for each side. With
--batch_sizes the time of an epoch at each is printed and drawn instead.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
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
from mini_llama.assignment.batches import Batch, encode_examples, make_batches
from mini_llama.assignment.reviews import Example, read_examples, with_prompt
from optimizer import AdamW
from tokenizer import Tokenizer
from utils import autocast

LABELS = ["awful", "bad", "average", "good", "excellent"]
CPU = torch.device("cpu")
Step = Callable[[Batch], None]


def our_config(preset: str) -> LlamaConfig:
    arithmetic = EDITIONS["mmia"]
    return LlamaConfig(
        **PRESETS[preset]
        | {"vocab_size": 32_000, "norm": arithmetic.norm, "attention": arithmetic.attention}
    )


def our_step(preset: str, dtype: str, with_lora: bool = False, mask: bool = False) -> Step:
    model = LlamaEmbeddingClassifier(ClassifierConfig("", 5), Llama(our_config(preset))).train()
    if with_lora:
        lora.apply_lora(model.llama)
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-5)

    def step(batch: Batch) -> None:
        with autocast(CPU, dtype):
            log_probs = model(batch.tokens, batch.lengths if mask else None)
        loss = F.nll_loss(log_probs, batch.labels, reduction="sum") / len(batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def their_config(preset: str) -> transformers.LlamaConfig:
    return transformers_config(our_config(preset), num_labels=5, pad_token_id=3)


def their_step(preset: str, dtype: str) -> Step:
    model = transformers.LlamaForSequenceClassification(their_config(preset)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)

    def step(batch: Batch) -> None:
        mask = torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
        with autocast(CPU, dtype):
            loss = model(batch.tokens, attention_mask=mask.long(), labels=batch.labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def our_prompting(preset: str, dtype: str, mask: bool = False) -> Step:
    llama = Llama(our_config(preset)).eval()

    @torch.inference_mode()
    def step(batch: Batch) -> None:
        with autocast(CPU, dtype):
            last = llama.last_hidden_state(batch.tokens, batch.lengths if mask else None)
            F.log_softmax(llama.output(last)[:, 0].float(), dim=-1)

    return step


def their_prompting(preset: str) -> Step:
    model = transformers.LlamaForCausalLM(their_config(preset)).eval()

    @torch.inference_mode()
    def step(batch: Batch) -> None:
        F.log_softmax(model(batch.tokens, logits_to_keep=1).logits[:, 0], dim=-1)

    return step


# Name → (what makes the step, whether batches are of like length).
TRAINING = {
    "transformers, float32": (lambda p: their_step(p, "float32"), False),
    "transformers, bfloat16": (lambda p: their_step(p, "bfloat16"), False),
    "ours, float32": (lambda p: our_step(p, "float32"), False),
    "ours, bfloat16": (lambda p: our_step(p, "bfloat16"), False),
    "ours, float32, --mask_padding": (lambda p: our_step(p, "float32", mask=True), True),
    "ours, bfloat16, --mask_padding": (lambda p: our_step(p, "bfloat16", mask=True), True),
    "ours, LoRA, float32": (lambda p: our_step(p, "float32", with_lora=True), False),
    "ours, LoRA, bfloat16": (lambda p: our_step(p, "bfloat16", with_lora=True), False),
}
PROMPTING = {
    "transformers, float32": (their_prompting, False),
    "ours, float32": (lambda p: our_prompting(p, "float32"), False),
    "ours, float32, --mask_padding": (lambda p: our_prompting(p, "float32", mask=True), True),
    "ours, bfloat16": (lambda p: our_prompting(p, "bfloat16"), False),
}


def compare(
    sides: dict, args: argparse.Namespace, examples: list[Example], batch_size: int
) -> dict[str, tuple[float, ...]]:
    """Of every side: (padded tokens/s, real tokens/s, texts/s, median seconds a step)."""
    encoded = encode_examples(examples, Tokenizer(tokenizer_model=args.tokenizer))
    batches = {}
    for by_length in (False, True):
        order = torch.Generator().manual_seed(0)
        loader = make_batches(encoded, batch_size, order, by_length)
        batches[by_length] = list(loader)[: args.steps + 1]
    steps = {name: make(args.preset) for name, (make, _) in sides.items()}
    measured: dict[str, list[tuple]] = {name: [] for name in sides}
    for number in range(args.steps + 1):
        for name, step in steps.items():
            batch = batches[sides[name][1]][number]
            start = time.perf_counter()
            step(batch)
            seconds = time.perf_counter() - start
            if number:  # the first one warms up
                amounts = (batch.tokens.numel(), int(batch.lengths.sum()), len(batch.labels))
                measured[name].append((*amounts, seconds))
    rates = {}
    for name, rows in measured.items():
        *amounts, seconds = zip(*rows, strict=True)
        rates[name] = (*(sum(a) / sum(seconds) for a in amounts), statistics.median(seconds))
    return rates


def report(title: str, medians: dict[str, tuple]) -> None:
    base = next(iter(medians.values()))
    print(title)
    for name, (padded, real, texts, seconds) in medians.items():
        print(
            f"  {name:<32} {padded:>7.0f} padded/s ({padded / base[0]:.2f}x), {real:>6.0f} real/s "
            f"({real / base[1]:.2f}x), {texts:>6.1f} texts/s ({texts / base[2]:.2f}x), "
            f"{seconds:.2f} s a step",
            flush=True,
        )


def peak_memory(name: str, args: argparse.Namespace) -> float:
    """GB resident at the peak of two steps, in a process of its own."""
    words = [sys.executable, __file__, str(args.data), str(args.tokenizer), "--memory_of", name]
    words += ["--preset", args.preset, "--batch_size", str(args.batch_size)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def draw(seconds: dict[str, list[float]], batch_sizes: list[int], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, values in seconds.items():
        axes.plot(batch_sizes, values, marker="o", label=name)
    axes.set(xlabel="batch size", ylabel="seconds an epoch of SST", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def scaling(args: argparse.Namespace, examples: list[Example]) -> None:
    """The table, and the figure, of an epoch's time against the batch size."""
    names = ("transformers, float32", "ours, float32", "ours, bfloat16, --mask_padding")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for size in args.batch_sizes:
        rates = compare({name: TRAINING[name] for name in names}, args, examples, size)
        for name in names:
            seconds[name].append(len(examples) / rates[name][2])
        line = (f"{name}: {seconds[name][-1]:.0f} s an epoch" for name in names)
        print(size, *line, sep=" | ", flush=True)
    draw(seconds, args.batch_sizes, args.figure)
    print(f"figure: {args.figure}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="42m")
    parser.add_argument("--batch_size", type=int, default=80)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch_sizes", type=int, nargs="+")
    parser.add_argument("--figure", type=Path, default=Path("finetune.png"))
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    examples = read_examples(args.data)
    if args.memory_of:
        compare({args.memory_of: TRAINING[args.memory_of]}, args, examples, args.batch_size)
        # Linux's own count: getrusage's starts with the peak of the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        print(int(status.partition("VmHWM:")[2].split()[0]) / 1e6)
        return
    print(
        f"{args.preset}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{torch.get_num_threads()} threads, batch {args.batch_size}"
    )
    if args.batch_sizes:
        scaling(args, examples)
        return
    report("training", compare(TRAINING, args, examples, args.batch_size))
    report("prompting", compare(PROMPTING, args, with_prompt(examples, LABELS), args.batch_size))
    for name in TRAINING:
        print(f"  {name:<32} {peak_memory(name, args):.2f} GB at the peak of training", flush=True)


if __name__ == "__main__":
    main()
