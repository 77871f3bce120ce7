#!/usr/bin/env python
"""Post-training: python align.py {sft,dpo,…} …

A resumed run continues with the losses of an uninterrupted one. Under torchrun each process takes
its share of every batch.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if sys.flags.safe_path:  # python -P and PYTHONSAFEPATH leave a command's own folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from mini_llama.alignment.inputs import check_inputs
from mini_llama.alignment.stages import STAGES
from mini_llama.command_line import OneLineParser, add_flags, one_line_errors, parse_given
from mini_llama.threads import choose_threads

PROGRAM = "align.py"
DESCRIPTION = "Post-training, in the order of Llama 2's section 3: fine-tuning, rewards, PPO."


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog=PROGRAM, description=DESCRIPTION, allow_abbrev=False)
    names = f"{{{','.join(STAGES)}}}"
    commands = parser.add_subparsers(dest="stage", required=True, metavar=names)
    common: dict[str, Any] = {"allow_abbrev": False, "argument_default": argparse.SUPPRESS}
    for name, stage in STAGES.items():
        command = commands.add_parser(name, help=stage.text, description=stage.text, **common)
        add_flags(command, stage.options, show=repr)
    return parser


@one_line_errors(PROGRAM)
def main(argv: Sequence[str] | None = None) -> None:
    given = parse_given(make_parser(), argv)
    stage = STAGES[given.pop("stage")]
    options = stage.options(**given)
    check_inputs(options)
    choose_threads()
    # these import torch: after the quick checks
    from mini_llama.training.processes import end_process

    end_process(importlib.import_module(stage.module).run(options))


if __name__ == "__main__":
    main()
