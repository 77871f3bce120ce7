#!/usr/bin/env python
"""Generated tokens per second, ours beside transformers, at one of the presets' shapes.

python bench/decode_throughput.py [--preset 42m] [--prompt 30] [--tokens 128] [--rounds 5]
                                  [--contexts 64 128 256 512 1024 --figure decode.png]

All sides take turns in one process, greedily, with random weights; medians over the rounds are
printed. "First" is the prompt; "second" is the next token, before which weights are converted,
quantized or packed; the rate is that of all others; a compiled step is loaded before the first.
With --contexts the rate is measured at several lengths of the prompt as well, and drawn.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import transformers
from peers import transformers_config

from config import PRESETS, LlamaConfig
from llama import Llama
from mini_llama.inference.decoders import choose_decoder
from mini_llama.inference.generation import stream
from mini_llama.inference.sampling import Sampler

Timing = tuple[float, float, float]  # seconds for the first, the second token; then tokens/s
Side = Callable[[int, int], Timing]  # (prompt length, new tokens) → Timing


def our_side(llama: Llama, rows: int = 1, use_cache: bool = True, **options: Any) -> Side:
    """Tokens are timed as they come; `options` are choose_decoder's."""

    def run(length: int, count: int) -> Timing:
        prompt = torch.randint(3, 500, (1, length)).expand(rows, -1)
        times = [time.perf_counter()]
        decoder = choose_decoder(llama, rows, **options) if use_cache else None
        for _ in stream(llama, prompt, count, Sampler(0.0), use_cache, decoder):
            times.append(time.perf_counter())
        start, first, second, *_, last = times
        return first - start, second - first, rows * (count - 2) / (last - second)

    return run


def our_sides(config: LlamaConfig, rows: int) -> dict[str, Side]:
    llama = Llama(config).eval()
    bidirectional = dataclasses.replace(config, norm="layernorm", attention="bidirectional")
    return {
        "ours, float32": our_side(llama),
        "ours, bfloat16 weights": our_side(llama, precision="bfloat16"),
        "ours, int8 weights": our_side(llama, precision="int8"),
        "ours, float32, compiled": our_side(llama, compiled=True),
        "ours, bfloat16, compiled": our_side(llama, compiled=True, precision="bfloat16"),
        "ours, int8, compiled": our_side(llama, compiled=True, precision="int8"),
        f"ours, float32, {rows} texts": our_side(llama, rows),
        "ours, float32, no cache": our_side(llama, use_cache=False),
        "ours, bidirectional": our_side(Llama(bidirectional).eval(), use_cache=False),
    }


def their_side(config: LlamaConfig) -> Side:
    model = transformers.LlamaForCausalLM(transformers_config(config, eos_token_id=None)).eval()

    def run(length: int, count: int) -> Timing:
        """One token, two, and all of them: what lies between is decoding."""
        prompt = torch.randint(3, 500, (1, length))
        seconds = []
        for n in (1, 2, count):
            start = time.perf_counter()
            model.generate(prompt, max_new_tokens=n, do_sample=False, pad_token_id=0)
            seconds.append(time.perf_counter() - start)
        first, second, whole = seconds
        return first, second - first, (count - 2) / (whole - second)

    return run


def compare(sides: dict[str, Side], length: int, count: int, rounds: int) -> dict[str, Timing]:
    """Medians of every side, after one round that does not count."""
    timings: dict[str, list[Timing]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            timing = side(length, count)
            if number:
                timings[name].append(timing)
    return {
        name: tuple(statistics.median(column) for column in zip(*values, strict=True))
        for name, values in timings.items()
    }


def draw(rates: dict[str, list[float]], contexts: list[int], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, values in rates.items():
        axes.plot(contexts, values, marker="o", label=name)
    axes.set(xlabel="tokens before", ylabel="tokens per second", xscale="log", ylim=(0, None))
    axes.set_xticks(contexts, list(map(str, contexts)))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)


def scaling(sides: dict[str, Side], args: argparse.Namespace) -> None:
    """The table, and the figure, of rates against the length of the context."""
    left_out = ("texts", "no cache", "bidirectional")
    names = [name for name in sides if not any(word in name for word in left_out)]
    rates: dict[str, list[float]] = {name: [] for name in names}
    for context in args.contexts:
        # The cache holds 1,024 positions: the tokens end at the context's length, not begin there.
        medians = compare({name: sides[name] for name in names}, context - 32, 32, args.rounds)
        for name, (*_, rate) in medians.items():
            rates[name].append(rate)
        print(context, *(f"{name}: {rates[name][-1]:.0f}" for name in names), sep=" | ", flush=True)
    draw(rates, args.contexts, args.figure)
    print(f"figure: {args.figure}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="42m")
    parser.add_argument("--prompt", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contexts", type=int, nargs="+")
    parser.add_argument("--figure", type=Path, default=Path("decode.png"))
    args = parser.parse_args()
    shape = PRESETS[args.preset] | {"norm": "rmsnorm", "attention": "causal"}
    config = LlamaConfig(**shape | {"max_seq_len": 1024})
    print(
        f"{args.preset}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{torch.get_num_threads()} threads, {args.prompt} + {args.tokens} tokens"
    )
    sides = {"transformers, float32": their_side(config)} | our_sides(config, args.samples)
    medians = compare(sides, args.prompt, args.tokens, args.rounds)
    peer = medians["transformers, float32"][-1]
    for name, (first, second, rate) in medians.items():
        print(
            f"{name:<26} first {first * 1e3:>4.0f} ms, second {second * 1e3:>4.0f} ms, "
            f"then {rate:>6.1f}/s, {rate / peer:.2f}x"
        )
    if args.contexts:
        scaling(sides, args)


if __name__ == "__main__":
    main()
