"""Text for pre-training from the generators that wrote the bundled data, data/demo/tales.py."""

import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mini_llama.bundled import FOLDER

# What --input may name instead of a file: kind, count and seed.
GENERATED = re.compile(r"(tales|reviews):([0-9]+)(?::([0-9]+))?")


def is_generated(name: str | Path) -> bool:
    """Whether an input names text of the bundled generators, such as tales:10000, and no file."""
    return GENERATED.fullmatch(str(name)) is not None and not Path(name).exists()


def generated_documents(name: str | Path) -> Iterator[str]:
    """KIND:COUNT or KIND:COUNT:SEED → that many stories, or reviews without labels."""
    match = GENERATED.fullmatch(str(name))
    assert match is not None, f"{name} is not generated"
    kind, count, seed = match.groups()
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    import tales

    stream = {"tales": tales.tales, "reviews": tales.unlabelled_reviews}[kind]
    return itertools.islice(stream(int(seed or 0)), int(count))


def generator_sources() -> list[Path]:
    """The files that decide what the generators write."""
    return sorted(FOLDER.glob("*.py"))
