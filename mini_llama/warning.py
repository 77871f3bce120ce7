"""A warning: one line on standard error, since standard output is for results."""

import functools
import sys


@functools.cache
def warn(text: str) -> None:
    """Print `text` as a warning, once a process."""
    print(f"warning: {text}", file=sys.stderr)
