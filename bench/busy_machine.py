#!/usr/bin/env python
"""Decoding and training while other processes have the cores, ours beside transformers.

python bench/busy_machine.py [--quick] [--preset 42m|smollm2] [--tokens 48] [--rounds 5]
                             [--machines idle "1 taken" "2 busy" "1 thread"]

Each measurement is a process of its own, since threads are chosen before torch is imported; the
sides take turns, in rounds, on each of these machines: idle; with endless loops beside, one on a
core of its own or as many as cores; with OMP_NUM_THREADS=1; and on one core by affinity. Prints
medians of tokens per second, of decoding and of a training step as finetune's (always of the 42M
shape for smollm2), and ours over
transformers'. --sides names more of them: ours with torch's own threads, or fewer rounds of
spinning. --quick: two rounds of fewer tokens on the first four machines.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

# Machine: endless loops beside, their cores (None: any), environment, cores of what is measured.
MACHINES: dict[str, tuple[int, set[int] | None, dict[str, str], set[int] | None]] = {
    "idle": (0, None, {}, None),
    "1 taken": (1, {0}, {}, None),
    "2 busy": (2, None, {}, None),
    "1 thread": (0, None, {"OMP_NUM_THREADS": "1"}, None),
    "1 core": (0, None, {}, {0}),
}
TASKS = ("decode", "train")
TRAINING_SHAPE = (10, 64)  # texts and tokens of a step
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


PEER = "transformers"
QUICK = ("ours", PEER)


@contextlib.contextmanager
def busy_loops(count: int, cores: set[int] | None = None) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        for loop in loops:
            if cores is not None:
                os.sched_setaffinity(loop.pid, cores)
        time.sleep(0.5)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure(side: str, machine: str, args: argparse.Namespace) -> dict[str, float | str]:
    """Tokens per second of one process, by task, and what it says of its threads."""
    (name, variables), (_, _, more, cores) = SIDES[side], MACHINES[machine]
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    environment |= (variables or {}) | more
    command = [sys.executable, __file__, "--measure", name, "--preset", args.preset]
    command += ["--tokens", str(args.tokens), *(["--choose"] if variables is None else [])]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        if cores is not None:
            os.sched_setaffinity(process.pid, cores)
        output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{side} ended with status {process.returncode}")
    return json.loads(output.splitlines()[-1])


def rates(name: str, preset: str, tokens: int, choose: bool) -> dict[str, float | str]:
    """Both tasks in this process."""
    if choose:
        from mini_llama.threads import choose_threads

        choose_threads()
    import decode_throughput as bench
    import torch

    from config import PRESETS, LlamaConfig
    from llama import Llama
    from mini_llama.threads import describe_threads

    shape = SMOLLM2 if preset == "smollm2" else PRESETS[preset]
    shape = shape | {"norm": "rmsnorm", "attention": "causal"}
    config = LlamaConfig(**shape | {"max_seq_len": 1024})
    side = bench.our_side(Llama(config).eval()) if name == "ours" else bench.their_side(config)
    side(30, 4)
    decoded = side(30, tokens)[-1]
    torch.set_flush_denormal(name == "ours")  # as finetune does
    trained = training_rate(name, "42m" if preset == "smollm2" else preset)
    return {"decode": decoded, "train": trained, "threads": describe_threads()}


def training_rate(name: str, preset: str) -> float:
    """Tokens per second of the second training step."""
    import classify_throughput as bench
    import torch

    make = bench.our_step if name == "ours" else bench.their_step
    step = make(preset, "float32")
    rows, length = TRAINING_SHAPE
    tokens = torch.randint(3, 32_000, (rows, length))
    lengths, labels = torch.full((rows,), length), torch.randint(5, (rows,))
    batch = bench.Batch(tokens, lengths, labels, [])
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        step(batch)
        seconds.append(time.perf_counter() - start)
    return tokens.numel() / seconds[-1]


def compare(machine: str, args: argparse.Namespace) -> None:
    """Print one machine's table."""
    count, cores, *_ = MACHINES[machine]
    found: dict[str, list[dict]] = {side: [] for side in args.sides}
    with busy_loops(count, cores):
        for _ in range(args.rounds):
            for side in args.sides:
                found[side].append(measure(side, machine, args))
    for task in TASKS:
        medians = {s: statistics.median(row[task] for row in rows) for s, rows in found.items()}
        for side, rows in found.items():
            values = [row[task] for row in rows]
            spread = f"{min(values):.1f} to {max(values):.1f}"
            against = f"{medians[side] / medians[PEER]:.2f}x" if PEER in medians else ""
            threads = ", ".join(dict.fromkeys(row["threads"] for row in rows))
            line = f"{medians[side]:>7.1f} tokens/s ({spread}) | {against} | {threads}"
            print(f"{machine} | {task} | {side} | {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="42m")
    parser.add_argument("--machines", nargs="+", choices=MACHINES, default=list(MACHINES))
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(QUICK))
    parser.add_argument("--quick", action="store_true", help="2 rounds, 24 tokens, 4 machines")
    parser.add_argument("--measure", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--choose", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(rates(args.measure, args.preset, args.tokens, args.choose)))
        return
    if args.quick:
        args.tokens, args.rounds, args.machines = 24, 2, args.machines[:4]
    print(f"{args.preset}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before")
    for machine in args.machines:
        compare(machine, args)
    print(f"load average {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
