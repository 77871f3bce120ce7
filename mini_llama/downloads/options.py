"""The options of download.py."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mini_llama.command_line import OneLineParser
from mini_llama.downloads.fetching import Policy, seconds
from mini_llama.downloads.files import RemoteFile
from mini_llama.downloads.placing import SMOLLM2_HELP

PROGRAM = "download.py"


def parse(
    argv: Sequence[str] | None, files: Sequence[RemoteFile], folder: Path
) -> argparse.Namespace:
    """The command line; `folder` is the default of --folder."""
    parser = OneLineParser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Download weights, tokenizer, data and references; what is there is skipped.",
        epilog="Exit codes: 0 every file is there; 1 a file is missing or differs, or there is no "
        "network; 2 wrong usage; 130 interrupted. An interrupted download is resumed by the next "
        "run.",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=[file.name for file in files],
        help="only these files, named as --list names them",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=folder,
        metavar="DIR",
        help="where to put them (default: beside download.py)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace files that differ; rebuild stories42M.pt, which has no published hash",
    )
    parser.add_argument(
        "--list", action="store_true", help="show every file, its state and its source, then stop"
    )
    parser.add_argument(
        "--offline-ok", action="store_true", help="exit code 0 as well if there is no network"
    )
    parser.add_argument("--smollm2", action="store_true", help=SMOLLM2_HELP)
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=Policy.timeout,
        metavar="S",
        help="seconds without data before a connection counts as cut (default: %(default)g)",
    )
    return parser.parse_args(argv)
