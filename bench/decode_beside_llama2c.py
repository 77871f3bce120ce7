#!/usr/bin/env python
"""Generated tokens per second, ours beside llama2.c, of the same random weights.

gcc -Ofast -march=native -fopenmp run.c -lm -o run, and runq.c likewise, from llama2.c's sources
python bench/decode_beside_llama2c.py RUN RUNQ [--preset 42m] [--tokens 128] [--rounds 5]

Its two programs read what checkpoint.py writes as llama2c (float32) and llama2c-q80 (int8, groups),
ours the same files. All take turns, greedily, from the first token on, on as many threads; a rate
is that after the first token. Prints medians, and the lowest and highest of all rounds.
"""

import argparse
import dataclasses
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from config import PRESETS, LlamaConfig
from llama import Llama, load_pretrained
from mini_llama.inference.decoders import choose_decoder
from mini_llama.inference.generation import stream
from mini_llama.inference.sampling import Sampler

BOS = 1
Side = Callable[[], float]  # → tokens per second


def write_models(folder: Path, preset: str) -> None:
    """Random weights as f32.bin and q80.bin, and a tokenizer.bin of pieces that nobody reads."""
    config = LlamaConfig(**PRESETS[preset] | {"norm": "rmsnorm", "attention": "causal"})
    torch.save(
        {"model": Llama(config).state_dict(), "model_args": dataclasses.asdict(config)},
        folder / "m.pt",
    )
    for name, kind in (("f32.bin", "llama2c"), ("q80.bin", "llama2c-q80")):
        command = [sys.executable, ROOT / "checkpoint.py", "convert", "--to", kind]
        command += ["--edition", "llama2", folder / "m.pt", folder / name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    piece = struct.pack("<fi", 0.0, 1) + b"a"
    Path(folder, "tokenizer.bin").write_bytes(struct.pack("<i", 1) + piece * config.vocab_size)


def their_side(program: Path, model: Path, tokens: int) -> Side:
    command = [program.resolve(), model, "-t", "0", "-n", str(tokens)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}

    def run() -> float:
        done = subprocess.run(
            command, cwd=model.parent, env=os.environ | threads, check=True, capture_output=True
        )
        return float(done.stderr.split()[-1])

    return run


def our_side(llama: Llama, tokens: int, compiled: bool) -> Side:
    decoder = choose_decoder(llama, compiled=compiled)

    def run() -> float:
        prompt = torch.tensor([[BOS]])
        times = []
        for _ in stream(llama, prompt, tokens, Sampler(0.0), decoder=decoder):
            times.append(time.perf_counter())
        return (tokens - 1) / (times[-1] - times[0])

    return run


def make_sides(folder: Path, args: argparse.Namespace) -> dict[str, Side]:
    sides = {
        "llama2.c run, float32": their_side(args.run, folder / "f32.bin", args.tokens),
        "llama2.c runq, int8": their_side(args.runq, folder / "q80.bin", args.tokens),
    }
    for kind, file, quantize in (("float32", "f32.bin", None), ("int8", "q80.bin", "int8")):
        llama = load_pretrained(folder / file, "llama2", quantize=quantize)
        # Compiled first: the other packs the weights of blocks, which are unpacked for it.
        sides[f"ours, {kind}, compiled"] = our_side(llama, args.tokens, True)
        sides[f"ours, {kind}"] = our_side(llama, args.tokens, False)
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("runq", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="42m")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(
        f"{args.preset}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, load average {os.getloadavg()[0]:.1f} before"
    )
    with tempfile.TemporaryDirectory() as name:
        write_models(Path(name), args.preset)
        sides = make_sides(Path(name), args)
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(args.rounds + 1):
            for side, run in sides.items():
                rate = run()
                if number:
                    rates[side].append(rate)
    print(f"load average {os.getloadavg()[0]:.1f} after")
    for side, values in rates.items():
        peer = rates["llama2.c runq, int8" if "int8" in side else "llama2.c run, float32"]
        ratio = statistics.median(values) / statistics.median(peer)
        spread = f"{min(values):.0f} to {max(values):.0f}"
        print(f"{side:<24} {statistics.median(values):6.1f} tokens/s ({spread}), {ratio:.2f}x")


if __name__ == "__main__":
    main()
