#!/usr/bin/env python
"""See inside the model: python see.py [--text TEXT] --out page.html.

One page shows every step of a forward pass, in the order of llama.py: tokens, embedding, norms,
RoPE, attention, SwiGLU, logit lens, sampling; and how a text goes on, token by token. The page is
one file that needs no network.
"""

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

if sys.flags.safe_path:  # python -P and PYTHONSAFEPATH leave a command's own folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from mini_llama import bundled
from mini_llama.command_line import make_parser, one_line_errors, parse_given
from mini_llama.inside.options import SeeOptions
from mini_llama.threads import choose_threads

PROGRAM = "see.py"


@one_line_errors(PROGRAM)
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, trace, write the page; user errors are one line on standard error."""
    given = parse_given(make_parser(PROGRAM, __doc__, SeeOptions), argv)
    names = {field.name for field in fields(SeeOptions)}
    stand_in = {k: v for k, v in bundled.stand_in(given).items() if k in names}
    if stand_in:
        stand_in |= {} if "worst" in given else {"text": bundled.PROMPT_TEXT}
        stand_in.pop("label_names", None)  # nothing is asked, unless that is wished
    options = SeeOptions(**stand_in | given)
    if stand_in:
        bundled.announce("model")
    choose_threads()
    from mini_llama.inside.run import run  # it imports torch: after the quick checks

    run(options)


if __name__ == "__main__":
    main()
