#!/usr/bin/env python
"""Memory that loading needs: python bench/load_memory.py [--layers 10] [--work FOLDER].

Makes convert_memory.py's Hugging Face folder (bfloat16, about 90 MB a layer), loads it in every
form of checkpoints.memory.FORMS, each in a process of its own, and prints what the plan says of the
weights and the most memory that the process took: with the pages of mapped files (VmHWM), and
without any file's (RssAnon, sampled). Files go to a temporary folder, or to FOLDER.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from convert_memory import make_source, measure, read_status

from llama import load_pretrained
from mini_llama.checkpoints.memory import FORMS, Form
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.report import bytes_on_disk
from mini_llama.checkpoints.sizes import weight_bytes
from mini_llama.layers.quantized_linear import import_bitsandbytes


def load(source: str, form: Form) -> None:
    """The import of bitsandbytes is not loading."""
    if form.quantize == "nf4":
        import_bitsandbytes()
    kept = []
    print(read_status("RssAnon"))
    measure(lambda: kept.append(load_pretrained(source, "llama2", None, None, *form)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--work", help="folder on a disk with room for the model")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        load(args.measure[0], FORMS[int(args.measure[1])])
        return
    with tempfile.TemporaryDirectory(dir=args.work) as temporary:
        source = Path(temporary, "source")
        make_source(source, args.layers)
        config = read_checkpoint(source).make_config(norm="rmsnorm", attention="causal")
        print(f"source: {bytes_on_disk(source) / 1e9:.2f} GB in bfloat16")
        for number, form in enumerate(FORMS):
            command = [sys.executable, __file__, "--measure", str(source), str(number)]
            start = time.perf_counter()
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            seconds = time.perf_counter() - start
            lines = done.stdout.splitlines()
            anonymous_before, (before, most, anonymous) = int(lines[0]), map(int, lines[-1].split())
            print(
                f"{form}: {seconds:.0f} s, planned {weight_bytes(config, *form) / 1e6:.0f} MB, "
                f"at most {most / 1e6:.0f} MB ({anonymous / 1e6:.0f} MB not of files); "
                f"before the work {before / 1e6:.0f} MB ({anonymous_before / 1e6:.0f} MB)",
                flush=True,
            )


if __name__ == "__main__":
    main()
