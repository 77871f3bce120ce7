#!/usr/bin/env python
"""Runs the eight graded commands and compares: python reproduce.py --out FOLDER.

Each command is a process of run_llama.py with a folder of its own. FOLDER/results.json holds what
they gave, FOLDER/report.html shows it. Exit status 1: a run failed.
"""

import shlex
import sys
from collections.abc import Sequence

from mini_llama import bundled, command_line
from mini_llama.command_line import OneLineParser, one_line_errors, parse_given
from mini_llama.reproduction.runs import Run, Settings, make_runs

PROGRAM = "reproduce.py"
RESULTS = "results.json"


def make_parser() -> OneLineParser:
    parser = command_line.make_parser(PROGRAM, __doc__, Settings)
    parser.add_argument("--plan", action="store_true", help="print the commands and stop")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep finished runs of the same settings and files, go on with interrupted training",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_given(make_parser(), argv)
    is_plan, is_resumed = args.pop("plan", False), args.pop("resume", False)
    with one_line_errors(PROGRAM):
        settings = Settings(**args)
        runs = make_runs(settings)
        if settings.is_bundled:
            bundled.announce("model and data")
        if is_plan:
            for run in runs:
                print(shlex.join(["python", "run_llama.py", *run.words]))
        elif not reproduce(settings, runs, is_resumed):
            sys.exit(1)


def reproduce(settings: Settings, runs: Sequence[Run], is_resumed: bool) -> bool:
    """Run, compare, report; whether all runs ended well. Raises OSError or ValueError."""
    from mini_llama.reproduction.processes import DONE, Results, run_all  # torch comes with it
    from mini_llama.reproduction.report import report
    from utils import raise_on_sigterm

    raise_on_sigterm()
    results = Results(settings.out / RESULTS)
    if results.path.exists() and not is_resumed:
        raise ValueError(
            f"{results.path} has the results of earlier runs: "
            "go on from there with --resume, or give another --out"
        )
    results.read()
    settings.out.mkdir(parents=True, exist_ok=True)
    pairs = []
    try:
        for pair in run_all(runs, results):
            pairs.append(pair)
    except (KeyboardInterrupt, SystemExit):
        print(f"stopped; what is done is in {results.path}: --resume goes on", file=sys.stderr)
        raise
    report(settings, pairs, results)
    return all(record.status == DONE for _, record in pairs)


if __name__ == "__main__":
    main()
