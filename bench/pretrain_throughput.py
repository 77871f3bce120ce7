#!/usr/bin/env python
"""Training tokens per second, ours beside transformers' LlamaForCausalLM with torch.optim.AdamW.

python bench/pretrain_throughput.py [--preset 15m] [--batch_size 16] [--context 256] [--rounds 5]

Both sides take turns in one process on the same random tokens, and medians over the rounds are
printed, for float32 and bfloat16 autocast, beside the machine's own matrix-multiply speed in that
type: "of the ceiling" is model_plan.training_flops times tokens per second over that speed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import transformers
from peers import transformers_config

from config import DTYPES, PRESETS
from mini_llama.checkpoints.sizes import count_parameters, training_flops
from mini_llama.layers.linear import linear
from mini_llama.pretraining.options import PretrainOptions
from mini_llama.pretraining.trainer import Trainer
from mini_llama.training.processes import Process


def our_step(options: PretrainOptions) -> Callable[[torch.Tensor], None]:
    trainer = Trainer(options, Process(), options.model_config())
    return trainer.train_step


def their_step(options: PretrainOptions) -> Callable[[torch.Tensor], None]:
    """The same shape, loss, clipping and betas, as a plain loop with transformers' model."""
    config = options.model_config()
    model = transformers.LlamaForCausalLM(transformers_config(config, use_cache=False)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.95))

    def step(windows: torch.Tensor) -> None:
        inputs = windows[:, :-1]
        is_half = options.dtype != "float32"
        with torch.autocast("cpu", getattr(torch, options.dtype), enabled=is_half):
            loss = model(input_ids=inputs, labels=inputs).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
        optimizer.step()

    return step


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def matmul_flops(dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations a second of a large square product: the best of several tries
    with PyTorch's own product and with linear.py's.
    """
    a = torch.randn(size, size, dtype=dtype)
    tries = [seconds(work) for _ in range(10) for work in (lambda: a @ a, lambda: linear(a, a))]
    return 2 * size**3 / min(tries)


def compare(options: PretrainOptions, rounds: int) -> None:
    """Print one row a side."""
    torch.manual_seed(0)
    config = options.model_config()
    windows = torch.randint(config.vocab_size, (options.batch_size, options.context + 1))
    steps = {"ours": our_step(options), "transformers": their_step(options)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step(windows)
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds(lambda step=step: step(windows)))
    ceiling = matmul_flops(getattr(torch, options.dtype))
    tokens = options.batch_size * options.context
    rates = {name: tokens / statistics.median(values) for name, values in times.items()}
    for name, rate in rates.items():
        share = rate * training_flops(config, options.context) / ceiling
        print(
            f"{options.dtype:<9} {name:<13} {rate:>8.0f} tokens/s  "
            f"{rate / rates['transformers']:>5.2f}x  {share:>4.0%} of the ceiling "
            f"({ceiling / 1e9:.0f} GFLOP/s)",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="15m")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    for dtype in DTYPES:
        options = PretrainOptions(
            preset=args.preset, batch_size=args.batch_size, context=args.context, dtype=dtype
        )
        if dtype == "float32":
            print(
                f"{args.preset}: {count_parameters(options.model_config()):,} parameters, "
                f"{args.batch_size} x {args.context} tokens a step"
            )
        compare(options, args.rounds)


if __name__ == "__main__":
    main()
