#!/usr/bin/env python
"""Memory that conversions need: python bench/convert_memory.py [--layers 30] [--work FOLDER].

Makes a Hugging Face folder of about 90 MB a layer (bfloat16, width 2048, 0.5 GB a shard), converts
it to other formats and back, each in a process of its own, and prints the most memory that each
took: with the pages of mapped files (VmHWM), and without any file's (RssAnon, sampled).
All tensors are compared, bit by bit. Files go to a temporary folder, or to FOLDER, and are deleted.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from checkpoint import main as checkpoint_main
from config import EDITIONS, LlamaConfig, expected_shapes
from mini_llama.checkpoints.formats import huggingface
from mini_llama.checkpoints.formats.folder import save_shards
from mini_llama.checkpoints.lazy_tensors import LazyTensors, StreamedTensors
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.report import bytes_on_disk
from mini_llama.checkpoints.tensor_files import write_json

SHARD = "500MB"
STEPS = [
    ("source", "a.pt", "assignment"),
    ("source", "same", "huggingface"),
    ("source", "c.bin", "llama2c"),
    ("a.pt", "from_pt", "huggingface"),
    ("c.bin", "from_bin", "huggingface"),
]


def make_source(folder: Path, layers: int) -> None:
    """Random numbers: every tensor is another part of the same ones."""
    true = {name: getattr(EDITIONS["llama2"], name) for name in ("norm", "attention")}
    config = LlamaConfig(
        dim=2048, n_layers=layers, n_heads=32, n_kv_heads=8, tie_word_embeddings=False, **true
    )
    meta = {
        name: torch.empty(shape, dtype=torch.bfloat16, device="meta")
        for name, shape in expected_shapes(config)
    }
    largest = max(tensor.numel() for tensor in meta.values())
    numbers = torch.randn(largest + len(meta)).bfloat16()
    starts = {name: start for start, name in enumerate(meta)}

    def make(name: str) -> torch.Tensor:
        part = numbers[starts[name] : starts[name] + meta[name].numel()]
        return part.view(meta[name].shape).clone()

    folder.mkdir()
    theirs = huggingface.export_tensors(LazyTensors(meta, make), config)
    save_shards(folder, theirs, 500 * 10**6)
    write_json(folder / "config.json", huggingface.export_config(config))


def read_status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def measure(work: Callable[[], object]) -> None:
    """In a process of its own: work, and print the bytes before, at the most, and anonymous."""
    before, most = read_status("VmRSS"), [0]
    is_done = threading.Event()

    def sample() -> None:
        while not is_done.wait(0.005):
            most[0] = max(most[0], read_status("RssAnon"))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    work()
    is_done.set()
    print(before, read_status("VmHWM"), most[0])


def compare(first: Path, second: Path) -> int:
    """Tensors of which any bit differs, as float32, which holds bfloat16 exactly."""
    checkpoints = [read_checkpoint(path) for path in (first, second)]
    ours, theirs = (StreamedTensors(c.tensors, c.pages) for c in checkpoints)
    if ours.keys() != theirs.keys():
        return len(ours.keys() ^ theirs.keys())
    return sum(
        not torch.equal(ours[k].float().view(torch.int32), theirs[k].float().view(torch.int32))
        for k in ours
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--work", help="folder on a disk with 8 times the model's size")
    parser.add_argument("--measure", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        steps = ["convert", *args.measure, "--max_shard_size", SHARD]
        measure(lambda: checkpoint_main(steps))
        return
    with tempfile.TemporaryDirectory(dir=args.work) as temporary:
        work = Path(temporary)
        make_source(work / "source", args.layers)
        size = bytes_on_disk(work / "source")
        print(f"source: {size / 1e9:.2f} GB in shards of {SHARD}")
        for source, destination, to in STEPS:
            steps = [str(work / source), str(work / destination), "--to", to]
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, __file__, "--measure", *steps],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            seconds = time.perf_counter() - start
            before, most, anonymous = map(int, done.stdout.splitlines()[-1].split())
            different = compare(work / source, work / destination)
            print(
                f"{source} → {destination}: {seconds:.0f} s, at most {most / 1e6:.0f} MB "
                f"({most / size:.0%} of the source; {anonymous / 1e6:.0f} MB not of files; "
                f"{before / 1e6:.0f} MB before the work), {different} tensors differ",
                flush=True,
            )


if __name__ == "__main__":
    main()
