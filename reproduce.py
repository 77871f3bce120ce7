#!/usr/bin/env python
"""Run the eight graded commands and compare the results: python reproduce.py --out FOLDER.

Each command is a process of run_llama.py with its own folder. The results are written to
FOLDER/results.json and FOLDER/report.html. Exit status 1: a run failed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if sys.flags.safe_path:  # python -P and PYTHONSAFEPATH leave a command's own folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from mini_llama import bundled, command_line
from mini_llama.command_line import OneLineParser, one_line_errors, parse_given
from mini_llama.reproduction.runs import Settings, make_runs

PROGRAM = "reproduce.py"


def make_parser() -> OneLineParser:
    parser = command_line.make_parser(PROGRAM, __doc__, Settings)
    parser.add_argument("--plan", action="store_true", help="print the commands and stop")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep finished runs with the same settings and files, continue interrupted training",
    )
    return parser


@one_line_errors(PROGRAM)
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_given(make_parser(), argv)
    is_plan, is_resumed = args.pop("plan", False), args.pop("resume", False)
    settings = Settings(**args)
    runs = make_runs(settings)
    if settings.is_bundled:
        bundled.announce("model and data")
    if is_plan:
        for run in runs:
            print(run.command)
        return
    from mini_llama.reproduction.reproduction import reproduce  # imports torch

    if not reproduce(settings, runs, is_resumed):
        sys.exit(1)


if __name__ == "__main__":
    main()
