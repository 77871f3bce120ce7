"""A warning: one line on standard error, since standard output is for results."""

import sys


def warn(text: str) -> None:
    """Print `text` as a warning."""
    print(f"warning: {text}", file=sys.stderr)
