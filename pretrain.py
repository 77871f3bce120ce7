#!/usr/bin/env python
"""Train a Llama from scratch on text: python pretrain.py --input TEXT… --out FOLDER.

A resumed run continues with the losses of an uninterrupted one. Under torchrun each process takes
its share of every batch.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if sys.flags.safe_path:  # python -P and PYTHONSAFEPATH leave a command's own folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from mini_llama.command_line import make_parser, one_line_errors, parse_given
from mini_llama.pretraining.options import PretrainOptions
from mini_llama.threads import choose_threads

PROGRAM = "pretrain.py"
DESCRIPTION = __doc__.partition("\n")[0]


@one_line_errors(PROGRAM)
def main(argv: Sequence[str] | None = None) -> None:
    given = parse_given(make_parser(PROGRAM, DESCRIPTION, PretrainOptions, show=repr), argv)
    options = PretrainOptions(**given)
    choose_threads()
    # these import torch: after the quick checks
    from mini_llama.pretraining.run import run
    from mini_llama.training.processes import end_process

    end_process(run(options))


if __name__ == "__main__":
    main()
