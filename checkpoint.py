#!/usr/bin/env python
"""Say what a checkpoint holds, or write the same model in another format."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if sys.flags.safe_path:  # python -P and PYTHONSAFEPATH leave a command's own folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from config import ATTENTIONS, EDITIONS, NORMS, PRESETS
from mini_llama.checkpoints import options as known
from mini_llama.command_line import OneLineParser, one_line_errors, visible
from utils import check_not_there, raise_on_sigterm

PROGRAM = "checkpoint.py"


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog=PROGRAM, description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{info,convert}")
    text = known.INFO
    info = commands.add_parser("info", help=text, description=text, allow_abbrev=False)
    info.add_argument("path", metavar="PATH", help=known.SOURCES_AND_PRESETS)
    convert = commands.add_parser(
        "convert",
        help=known.CONVERT,
        description=known.CONVERT,
        epilog=known.describe_targets(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    convert.add_argument("source", metavar="SRC", help=known.SOURCES)
    convert.add_argument("destination", metavar="DST", help="file, or for huggingface folder")
    convert.add_argument("--to", required=True, choices=known.TARGETS, help="the format of DST")
    convert.add_argument("--type", choices=known.GGUF_TYPES, help="of a GGUF's matrices")
    for name, choices in (("edition", tuple(EDITIONS)), ("norm", NORMS), ("attention", ATTENTIONS)):
        help_text = f"{name} of the model, whatever SRC records"
        convert.add_argument(f"--{name}", choices=choices, help=help_text)
    convert.add_argument("--overwrite", action="store_true", help="replace a file DST")
    convert.add_argument("--adapters", metavar="PATH", help=known.ADAPTERS)
    convert.add_argument(
        "--max_shard_size",
        default=known.MAX_SHARD_SIZE,
        metavar="SIZE",
        help="largest file of weights of a huggingface folder, as 500MB (default: %(default)s)",
    )
    return parser


@one_line_errors(PROGRAM)
def main(argv: Sequence[str] | None = None) -> None:
    args = vars(make_parser().parse_args(argv))
    command = args.pop("command")
    raise_on_sigterm()
    (info if command == "info" else convert)(**args)


def info(path: str) -> None:
    from mini_llama.checkpoints import report
    from mini_llama.checkpoints.reading import read_checkpoint

    if path in PRESETS and not Path(path).exists():
        print(report.describe_preset(path))
    elif report.holds_adapters(path):
        print(report.describe_adapters(path))
    else:
        print(report.describe_checkpoint(read_checkpoint(path)))


def convert(source: str, destination: str, adapters: str | None, **options: Any) -> None:
    from tqdm import tqdm

    from mini_llama.checkpoints.classifier_export import export_if_classifier
    from mini_llama.checkpoints.conversion import add_adapters, prepare

    if lines := export_if_classifier(source, destination, options["to"]):
        print("\n".join(lines))
        return
    overwrite = options.pop("overwrite")
    options["to"] = known.target_name(options["to"], options.pop("type"))
    plan = prepare(source, destination, **options)
    check_not_there(destination, overwrite or plan.target.is_folder)
    add_adapters(plan, adapters)
    for note in plan.notes:
        print(note)
    shown = len(plan.notes)
    with tqdm(total=plan.bytes_to_read, unit="B", unit_scale=True, disable=None) as bar:
        plan.write(bar.update)
    print(*plan.notes[shown:], f"wrote {visible(destination)}{plan.target.hint}", sep="\n")


if __name__ == "__main__":
    main()
