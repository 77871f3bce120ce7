"""The files that every course gives its students, for submissions that lack some of them.

They are ours, in the course's form: each is copied beside a student's modules, imports only what
stands there, and offers what the course's own offers them.
"""

from collections.abc import Collection
from pathlib import Path

GIVEN = ("base_llama.py", "config.py", "tokenizer.py", "utils.py")


def given_files(present: Collection[str]) -> dict[str, bytes]:
    """Those of GIVEN that are not among the names of a submission's files, by name."""
    absent = [
        name for name in GIVEN if not {name, name.replace(".py", "/__init__.py")} & {*present}
    ]
    return {name: Path(__file__).with_name(name).read_bytes() for name in absent}
