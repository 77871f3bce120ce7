#!/usr/bin/env python
"""Talk with a model: python chat.py --pretrained-model-path MODEL.

A line is a turn, and the answer is shown as it is written. From a pipe every line is a turn as
well, and standard output has the answers alone. Lines that begin with / are commands: /help.
"""

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

if sys.flags.safe_path:  # python -P and PYTHONSAFEPATH leave a command's own folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from mini_llama import bundled
from mini_llama.chatting import AUTO, TEMPLATE_BOUND, ChatOptions, is_template, start
from mini_llama.command_line import make_parser, one_line_errors, parse_given
from mini_llama.inference.talk import Talk
from mini_llama.threads import choose_threads

PROGRAM = "chat.py"


@one_line_errors(PROGRAM)
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, load the model, chat; user errors are one line on standard error."""
    parser = make_parser(PROGRAM, __doc__, ChatOptions)
    given = parse_given(parser, argv)
    if not is_template(given.get("template", AUTO)):
        parser.error(f"--template {given['template']} is not {TEMPLATE_BOUND}")
    names = {field.name for field in fields(ChatOptions)}
    stand_in = {k: v for k, v in bundled.stand_in(given).items() if k in names}
    options = ChatOptions(**stand_in | given)
    if stand_in:
        bundled.announce("model")
    choose_threads()
    from utils import raise_on_sigterm  # it imports NumPy: after the quick checks

    raise_on_sigterm()
    talk = Talk(start(options))
    talk.begin(options.system)
    talk.run()
    sys.exit(talk.status)


if __name__ == "__main__":
    main()
