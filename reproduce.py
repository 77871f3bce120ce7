#!/usr/bin/env python
"""Runs the eight graded commands and compares: python reproduce.py --out FOLDER.

Each command is a process of run_llama.py with a folder of its own. FOLDER/results.json holds what
they gave, FOLDER/report.html shows it. Exit status 1: a run failed.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from config import DTYPES, EDITIONS
from mini_llama import bundled
from mini_llama.assignment.options import OPTIONS
from mini_llama.command_line import OneLineParser, one_line_errors
from mini_llama.reproduction.runs import DATASETS, Run, Settings, make_runs

PROGRAM = "reproduce.py"
RESULTS = "results.json"
HELP = {
    "out": "folder for everything that is written",
    "only": "options to run",
    "data": "data sets to run them on",
    "seeds": "seeds of finetune and lora, from 1337 up",
    "epochs": "epochs of finetune and lora",
    "edition": "arithmetic of a course edition, and whose figures are compared",
    "max_sentence_len": "in finetune and lora, keep at most this many tokens of a text",
    "mask_padding": "mask padding and read the last real token",
    "dtype": "arithmetic of matrix products",
    "use_gpu": "run on a GPU",
    "pretrained_model_path": "checkpoint (default: stories42M.pt, else the bundled model)",
    "tokenizer": "tokenizer of the checkpoint, where it is not found by itself",
    "data_dir": "folder of the data files (default: data, else the bundled data)",
}
CHOICES = {"only": OPTIONS, "data": DATASETS, "edition": tuple(EDITIONS), "dtype": DTYPES}
TYPES = {"out": Path, "seeds": int, "epochs": int, "max_sentence_len": int}


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog=PROGRAM, description=__doc__, allow_abbrev=False)
    for field in fields(Settings):
        name, default = field.name, field.default
        flag = "--" + ("pretrained-model-path" if name == "pretrained_model_path" else name)
        if default is False:
            parser.add_argument(flag, action="store_true", help=HELP[name])
            continue
        is_list, is_required = name in ("only", "data"), name == "out"
        shown = "" if is_required or default is None else f" (default: {default})"
        if is_list:
            shown = " (default: all)"
        parser.add_argument(
            flag,
            dest=name,
            type=TYPES.get(name, str),
            default=None if is_required else default,
            required=is_required,
            nargs="+" if is_list else None,
            choices=CHOICES.get(name),
            metavar=None if name in CHOICES else name.upper(),
            help=HELP[name] + shown,
        )
    parser.add_argument("--plan", action="store_true", help="print the commands and stop")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep finished runs of the same settings and files, go on with interrupted training",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = vars(make_parser().parse_args(argv))
    is_plan, is_resumed = args.pop("plan"), args.pop("resume")
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
