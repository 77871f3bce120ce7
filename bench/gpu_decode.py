#!/usr/bin/env python
"""Generated tokens per second on a GPU, ours beside transformers, and beside the memory's bound.

python bench/gpu_decode.py [--presets 42m 1b] [--prompt 30] [--tokens 128] [--rounds 3]
                           [--json FILE] [--markdown FILE] [--device cuda] [--quick]

Greedy texts with random weights, whole, the prompt's pass included; all sides of a shape and a
precision take turns in one process, and medians over the rounds are printed. "A step on the GPU" is
one recorded graph among many without waiting; its bound is the bytes of the weights that a token
multiplies over the card's own reading speed, measured here.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import transformers
from peers import transformers_config

from config import PRESETS, LlamaConfig
from llama import Llama
from mini_llama.inference.decoders import choose_decoder
from mini_llama.inference.decoding import FastDecoder
from mini_llama.inference.generation import generate
from mini_llama.inference.graph_decoding import GraphDecoder
from mini_llama.inference.sampling import Sampler

SHAPES = {"42m": PRESETS["42m"], "110m": PRESETS["110m"]} | {
    # TinyLlama's, where the weights are large enough for the memory to count
    "1b": dict(dim=2048, n_layers=22, n_heads=32, n_kv_heads=4, hidden_dim=5632, vocab_size=32_000)
}
Text = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One side's figure: tokens a second, median of the rounds, with the least and the most."""

    shape: str
    precision: str
    side: str
    rate: float
    least: float
    most: float
    first_seconds: float
    bound: float
    peer: float | None = None
    step: float | None = None

    def markdown(self) -> str:
        ratio = f"{self.rate / self.peer:.2f}" if self.peer else ""
        share = f"{1 / self.step / self.bound:.0%}" if self.step else ""
        step = f"{self.step * 1e6:.0f}" if self.step else ""
        return (
            f"| {self.shape} | {self.precision} | {self.side} | {self.rate:,.0f} "
            f"({self.least:,.0f} to {self.most:,.0f}) | {ratio} | {step} | {share} | "
            f"{self.first_seconds:.1f} |"
        )


HEADER = (
    "| shape | precision | side | tokens/s (least to most) | over transformers' best | a step on "
    "the GPU, µs | of the bound | first text, s |\n|---|---|---|---|---|---|---|---|"
)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Text, device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def reading_speed(device: torch.device, size: int) -> float:
    """Bytes a second of a sum over `size` bytes of float32: the best of several."""
    numbers = torch.randn(size // 4, device=device)
    return size / min(seconds(lambda: numbers.sum(), device) for _ in range(20))


def multiplied_bytes(config: LlamaConfig, precision: str) -> float:
    """Of all matrices that one token is multiplied with, without scales, norms and the cache."""
    attention = config.dim * (2 * config.query_dim + 2 * config.kv_dim)
    feed_forward = 3 * config.dim * (config.hidden_dim or 0)
    numbers = config.n_layers * (attention + feed_forward) + config.vocab_size * config.dim
    return numbers * {"float32": 4, "bfloat16": 2, "int8": 1}[precision]


def our_sides(llama: Llama, precision: str, is_small: bool) -> dict[str, Any]:
    """Decoders: a graph of compiled layers, which int8 has alone, a graph, and without one."""
    decoders = {"ours, graph, compiled": choose_decoder(llama, 1, precision, True)}
    if precision != "int8":
        decoders["ours, graph"] = choose_decoder(llama, 1, precision)
        if is_small:
            decoders["ours, kernel by kernel"] = FastDecoder(llama, 1, precision)
    return decoders


def our_text(llama: Llama, decoder: Any, prompt: torch.Tensor, count: int) -> Text:
    return lambda: generate(llama, prompt, count, Sampler(0.0), decoder=decoder)


def step_seconds(decoder: Any, device: torch.device, count: int = 100) -> float | None:
    """Of one recorded step, the last text's longest; None where nothing is recorded."""
    if not isinstance(decoder, GraphDecoder) or decoder.memory is None:
        return None
    replay = decoder.memory.recorded[max(decoder.memory.recorded)]
    return seconds(lambda: [replay() for _ in range(count)], device) / count


def their_sides(
    config: LlamaConfig, dtype: torch.dtype, prompt: torch.Tensor, count: int
) -> dict[str, Text]:
    """generate as it is, and with a static cache, for which it compiles the model on a GPU."""
    with torch.device(prompt.device):
        model = transformers.LlamaForCausalLM(transformers_config(config, eos_token_id=None))
    model = model.to(dtype).eval()

    def text(**options: Any) -> Text:
        mask = torch.ones_like(prompt)
        return lambda: model.generate(
            prompt,
            attention_mask=mask,
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            **options,
        )

    return {
        "transformers": text(),
        "transformers, static cache, compiled": text(cache_implementation="static"),
    }


def measure(
    sides: dict[str, Text], rounds: int, device: torch.device
) -> dict[str, tuple[float, list[float]]]:
    """Of each side: seconds of its first text, and of the later ones, in turns."""
    results = {}
    for name, side in sides.items():
        results[name] = (seconds(side, device), [])
        side()  # a second one: what is compiled for other lengths, or chosen late
    for _ in range(rounds):
        for name, side in sides.items():
            results[name][1].append(seconds(side, device))
    return results


def compare(name: str, args: argparse.Namespace, speed: float) -> list[Row]:
    """All rows of one shape."""
    device = torch.device(args.device)
    shape = SHAPES[name] | {"norm": "rmsnorm", "attention": "causal", "max_seq_len": 1024}
    config = LlamaConfig(**shape)
    torch.manual_seed(0)
    prompt = torch.randint(3, 500, (1, args.prompt), device=device)
    rows = []
    for precision in args.precisions:
        if name != "42m" and precision == "float32":
            continue  # nobody runs it so
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        with torch.device(device):
            llama = Llama(config).to(dtype).eval()
        decoders = our_sides(llama, precision, name == "42m")
        sides = {k: our_text(llama, d, prompt, args.tokens) for k, d in decoders.items()}
        if precision != "int8":
            sides |= their_sides(config, dtype, prompt, args.tokens)
        results = measure(sides, args.rounds, device)
        rates = {side: [args.tokens / t for t in times] for side, (_, times) in results.items()}
        peers = [statistics.median(r) for side, r in rates.items() if "transformers" in side]
        peer = max(peers, default=rows[-1].peer if rows else None)
        bound = speed / multiplied_bytes(config, precision)
        for side, (first, _) in results.items():
            rate, least, most = statistics.median(rates[side]), min(rates[side]), max(rates[side])
            step = step_seconds(decoders.get(side), device)
            row = Row(name, precision, side, rate, least, most, first, bound, peer, step)
            rows.append(row)
            print(rows[-1].markdown(), flush=True)
        del llama, sides, decoders
        gc.collect()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", choices=SHAPES, nargs="+", default=["42m", "1b"])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--prompt", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a dry run: tiny, one round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.presets, args.precisions, args.rounds, args.tokens = ["42m"], ["float32"], 1, 4
    device = torch.device(args.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    speed = reading_speed(device, 2**26 if args.quick else 2**31)
    title = (
        f"{card}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{args.prompt} + {args.tokens} tokens, one text; reading {speed / 1e12:.2f} TB/s"
    )
    print(title, HEADER, sep="\n", flush=True)
    rows: list[Row] = []
    for name in args.presets:
        rows += compare(name, args, speed)
        if args.json:
            found = {"title": title, "rows": [asdict(row) for row in rows]}
            args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
        if args.markdown:
            lines = [title, "", HEADER, *(row.markdown() for row in rows)]
            args.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
