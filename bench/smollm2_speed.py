#!/usr/bin/env python
"""SmolLM2-135M-Instruct: decoding and prefill, ours beside transformers and llama.cpp, in one run.

python download.py --smollm2
LLAMA_CPP_PYTHON=PYTHON python bench/smollm2_speed.py [--compile] [--tokens 48] [--rounds 5]
                                                      [--busy 0]

Greedy tokens after a prompt of 16, and the time of a prompt of 1,000; all sides take turns on as
many threads. LLAMA_CPP_PYTHON names a Python that has the package llama-cpp-python; without it
those sides are left out. With --compile our compiled steps are measured too, after minutes of
compiling them once. With --busy N, N endless loops take processor time from all sides, which keep
torch's own threads (bench/busy_machine.py measures those that the commands choose). transformers
has random weights of the same shape. Prints medians, and the lowest and highest of all rounds.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
import transformers
from busy_machine import busy_loops
from peers import transformers_config

from llama import Llama, load_pretrained
from mini_llama.inference.decoders import choose_decoder
from mini_llama.inference.generation import stream
from mini_llama.inference.sampling import Sampler

FILE = ROOT / "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = 16
Side = Callable[[int, int], tuple[float, float]]  # (prompt, tokens) → seconds for each
THEIRS = """
import json, sys, time, llama_cpp, numpy
path, threads, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = llama_cpp.Llama(path, n_ctx=context, n_batch=context, n_threads=threads,
                        n_threads_batch=threads, verbose=False)
print(llama_cpp.__version__, flush=True)
for line in sys.stdin:
    prompt, count = json.loads(line)
    model.reset()
    times = [time.perf_counter()]
    model.eval(prompt)
    times.append(time.perf_counter())
    for _ in range(count):
        logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        token = int(numpy.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax())
        model.eval([token])
    times.append(time.perf_counter())
    print(json.dumps([times[1] - times[0], times[2] - times[1]]), flush=True)
"""


def random_prompt(length: int) -> list[int]:
    return torch.randint(3, 40_000, (length,)).tolist()


def our_side(llama: Llama, compiled: bool = False) -> Side:
    """The decoder is made once, and its weights converted in the round that does not count."""
    decoder = choose_decoder(llama, compiled=compiled)

    def run(length: int, count: int) -> tuple[float, float]:
        prompt, times = torch.tensor([random_prompt(length)]), [time.perf_counter()]
        for _ in stream(llama, prompt, count + 1, Sampler(0.0), decoder=decoder):
            times.append(time.perf_counter())
        return times[1] - times[0], times[-1] - times[1]

    return run


def transformers_side(llama: Llama) -> Side:
    config = transformers_config(llama.config, eos_token_id=None)
    model = transformers.LlamaForCausalLM(config).eval()

    def run(length: int, count: int) -> tuple[float, float]:
        prompt, seconds = torch.tensor([random_prompt(length)]), []
        for tokens in (1, count + 1) if count else (1,):
            start = time.perf_counter()
            model.generate(prompt, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
            seconds.append(time.perf_counter() - start)
        return seconds[0], seconds[-1] - seconds[0]

    return run


def llama_cpp_side(python: str, path: Path, context: int) -> Side:
    """A process of its own, which is idle while the others have their turn."""
    threads = str(torch.get_num_threads())
    command = [python, "-c", THEIRS, str(path), threads, str(context)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes)
    print(f"llama-cpp-python {process.stdout.readline().strip()}: {path.name}", flush=True)

    def run(length: int, count: int) -> tuple[float, float]:
        process.stdin.write(json.dumps([random_prompt(length), count]) + "\n")
        process.stdin.flush()
        first, rest = json.loads(process.stdout.readline())
        return first, rest

    return run


def write_q8_0(folder: Path) -> Path:
    path = folder / "q8_0.gguf"
    command = [sys.executable, ROOT / "checkpoint.py", "convert", FILE, path]
    words = ["--to", "gguf", "--type", "q8_0"]
    subprocess.run([*command, *words], check=True, stdout=subprocess.DEVNULL)
    return path


def make_sides(folder: Path, args: argparse.Namespace) -> Iterator[tuple[str, Side]]:
    q8_0, llama = write_q8_0(folder), load_pretrained(FILE)
    yield "transformers, float32", transformers_side(llama)
    yield "ours, float32", our_side(llama)
    quantized = {
        "ours, int8": load_pretrained(FILE, quantize="int8"),
        "ours, int8, the blocks of Q8_0": load_pretrained(q8_0, quantize="int8"),
    }
    for name, model in quantized.items():
        yield name, our_side(model)
    if args.compile:
        yield "ours, float32, compiled", our_side(llama, compiled=True)
        for name, source in (("ours, int8", FILE), ("ours, int8, the blocks of Q8_0", q8_0)):
            model = load_pretrained(source, quantize="int8")
            yield f"{name}, compiled", our_side(model, compiled=True)
    if python := os.environ.get("LLAMA_CPP_PYTHON"):
        for name, path in (("Q4_1", FILE), ("Q8_0", q8_0)):
            yield f"llama.cpp, {name}", llama_cpp_side(python, path, args.prompt + args.tokens + 8)


def describe(seconds: list[float], unit: str, of: int = 0) -> str:
    """Median, lowest and highest, of seconds or of the rate of `of` things."""
    values = [of / value for value in seconds] if of else seconds
    return f"{statistics.median(values):6.2f} ({min(values):.2f} to {max(values):.2f}) {unit}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompt", type=int, default=1000, help="0 leaves it out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="endless loops beside")
    args = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, transformers {transformers.__version__}, load average "
        f"{os.getloadavg()[0]:.1f} before, {args.busy} endless loops beside"
    )
    with tempfile.TemporaryDirectory() as folder:
        sides = dict(make_sides(Path(folder), args))
        decoding: dict[str, list[float]] = {name: [] for name in sides}
        prompts: dict[str, list[float]] = {name: [] for name in sides}
        for side in sides.values():
            side(PROMPT, 2)
        with busy_loops(args.busy):
            for name, side in list(sides.items()) * args.rounds:
                decoding[name].append(side(PROMPT, args.tokens)[1])
                if args.prompt and "compiled" not in name:
                    prompts[name].append(side(args.prompt, 0)[0])
    print(f"load average {os.getloadavg()[0]:.1f} after")
    peer = statistics.median(decoding["transformers, float32"])
    for name, values in decoding.items():
        line = f"{name:<40} {describe(values, 'tokens/s', args.tokens)}"
        line += f", {peer / statistics.median(values):.2f}x"
        print(line + (f"; prompt {describe(prompts[name], 's')}" if prompts[name] else ""))


if __name__ == "__main__":
    main()
