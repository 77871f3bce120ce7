#!/usr/bin/env python
"""The assignment's command line: python run_llama.py --option {generate,prompt,finetune,lora}."""

import sys
from collections.abc import Sequence
from pathlib import Path

if sys.flags.safe_path:  # python -P and PYTHONSAFEPATH leave a command's own folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from mini_llama import bundled
from mini_llama.assignment.option_parser import PROGRAM, parse
from mini_llama.assignment.options import Options
from mini_llama.command_line import one_line_errors
from mini_llama.threads import choose_threads


@one_line_errors(PROGRAM)
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the option; user errors are one line on standard error."""
    args, is_bundled = parse(argv)
    options = Options(**args)
    if is_bundled:
        bundled.announce("model and data")
    if options.option != "predict":  # its standard output is for predictions
        print(f"args: {args}", flush=True)
    choose_threads()
    from utils import raise_on_sigterm  # it imports NumPy: after the quick checks

    raise_on_sigterm()
    run(options)


def run(options: Options) -> None:
    """Run the option's module; the others are not imported."""
    if options.option == "generate":
        from mini_llama.assignment import completion

        completion.run(options)
    elif options.option == "prompt":
        from mini_llama.assignment import prompting

        prompting.run(options)
    elif options.option == "predict":
        from mini_llama.assignment import predict

        predict.run(options)
    else:
        from mini_llama.assignment import finetune

        finetune.run(options)


if __name__ == "__main__":
    main()
