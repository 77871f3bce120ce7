#!/usr/bin/env python
"""Decoding speed while other processes have the cores, ours next to transformers.

python bench/busy_machine.py [--preset 42m|smollm2] [--busy 0 1 2] [--tokens 48] [--rounds 5]

Each measurement is a process of its own, since threads are chosen before torch is imported; the
sides take turns, with `busy` endless loops beside them. Prints medians of tokens per second: ours
with the threads and spins that mini_llama/threads.py chooses, ours with torch's own, with fewer
rounds of spinning, and transformers with torch's own.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

VARIABLES = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "MINI_LLAMA_THREADS")
# The shape of SmolLM2-135M: many small layers.
SMOLLM2 = {"vocab_size": 49152, "dim": 576, "n_layers": 30, "n_heads": 9, "n_kv_heads": 3}
SMOLLM2 |= {"hidden_dim": 1536, "rope_theta": 100_000}
# Side, what decodes, and its environment; None leaves the choice to mini_llama/threads.py.
SIDES: dict[str, tuple[str, dict[str, str] | None]] = {
    "ours": ("ours", None),
    "ours, torch's threads": ("ours", {}),
    "ours, 10,000 spins": ("ours", {"GOMP_SPINCOUNT": "10000"}),
    "ours, 1,000 spins": ("ours", {"GOMP_SPINCOUNT": "1000"}),
    "ours, one thread": ("ours", {"OMP_NUM_THREADS": "1"}),
    "transformers": ("theirs", {}),
    "transformers, one thread": ("theirs", {"OMP_NUM_THREADS": "1"}),
}


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure(side: str, preset: str, tokens: int) -> float:
    """Tokens per second of one process."""
    name, variables = SIDES[side]
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES} | (variables or {})
    command = [sys.executable, __file__, "--decode", name, "--preset", preset]
    command += ["--tokens", str(tokens), *(["--choose"] if variables is None else [])]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def decode(name: str, preset: str, tokens: int, choose: bool) -> float:
    if choose:
        from mini_llama.threads import choose_threads

        choose_threads()
    import decode_throughput as bench

    from config import PRESETS, LlamaConfig
    from llama import Llama

    shape = SMOLLM2 if preset == "smollm2" else PRESETS[preset]
    shape = shape | {"norm": "rmsnorm", "attention": "causal"}
    config = LlamaConfig(**shape | {"max_seq_len": 1024})
    side = bench.our_side(Llama(config).eval()) if name == "ours" else bench.their_side(config)
    side(30, 4)
    return side(30, tokens)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="42m")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--decode", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--choose", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.decode:
        print(decode(args.decode, args.preset, args.tokens, args.choose))
        return
    print(f"{args.preset}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before")
    for busy in args.busy:
        rates: dict[str, list[float]] = {side: [] for side in args.sides}
        with busy_loops(busy):
            for _ in range(args.rounds):
                for side in args.sides:
                    rates[side].append(measure(side, args.preset, args.tokens))
        for side, values in rates.items():
            spread = f"{min(values):.1f} to {max(values):.1f}"
            rate = statistics.median(values)
            print(f"{busy} busy | {side:<25} | {rate:>6.1f} tokens/s ({spread})", flush=True)


if __name__ == "__main__":
    main()
