"""Additions of two four-digit numbers as text, `a+b=c`: indexing pairs, reading, deduplicating."""

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from mini_llama.text_files import read_lines

SMALLEST, N_NUMBERS = 1000, 9000  # four digits: 1000 to 9999
N_PAIRS = N_NUMBERS * (N_NUMBERS + 1) // 2  # unordered: 40,504,500
CHARS = tuple("+0123456789=")  # ids from 1 on
PADDING = 0  # also the start of a sequence and the end of an answer
EQUALS = CHARS.index("=") + 1
IGNORED = -1  # a target without loss
MAX_LENGTH = 19  # characters: the model has 20 columns, and the first holds PADDING
ADDITION = re.compile(r"(\d+)\+(\d+)=(\d+)", re.ASCII)


def pairs_from_indices(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smaller and the larger addends of the pairs with these indices, 0 to N_PAIRS - 1.

    Row r of a table with N_NUMBERS + 1 columns holds all pairs whose smaller addend is the r-th
    number and, to their left and in reverse, those whose smaller addend is the r-th from the end.
    """
    row, column = np.divmod(numbers, N_NUMBERS + 1)
    is_own = column > row
    smaller = np.where(is_own, row, N_NUMBERS - 1 - row)
    larger = np.where(is_own, column - 1, N_NUMBERS - 1 - column)
    return smaller + SMALLEST, larger + SMALLEST


def pair_indices(additions: Iterable[str]) -> np.ndarray:
    """The inverse of pairs_from_indices; additions without two four-digit numbers are skipped."""
    parts = [line.partition("=")[0].split("+") for line in additions]
    found = np.array(parts, dtype=np.int64).reshape(-1, 2) - SMALLEST
    found = found[((found >= 0) & (found < N_NUMBERS)).all(axis=1)]
    smaller, larger = found.min(axis=1), found.max(axis=1)
    is_own = smaller < N_NUMBERS // 2
    row = np.where(is_own, smaller, N_NUMBERS - 1 - smaller)
    column = np.where(is_own, larger + 1, N_NUMBERS - 1 - larger)
    return row * (N_NUMBERS + 1) + column


def read_additions(path: str | Path, limit: int | None = None) -> list[str]:
    """The first `limit` lines of a file, or all, stripped and without empty lines.

    Raises OSError, and ValueError naming the line if it is not `a+b=c`, too long, or a wrong sum.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; put the course's file there, or write files of your own: "
            "python addition_data_generation.py"
        )
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; give a file of additions")
    numbered = ((i, line.strip()) for i, line in enumerate(read_lines(path), 1))
    lines = []
    for number, line in islice(((i, line) for i, line in numbered if line), limit):
        check_addition(line, f"{path} line {number}")
        lines.append(line)
    if not lines:
        raise ValueError(f"{path} holds no additions; give a file of lines a+b=c")
    return lines


def check_addition(line: str, place: str) -> None:
    """Raise ValueError unless the line is `a+b=c`, true, and fits into the model."""
    match = ADDITION.fullmatch(line) if len(line) <= MAX_LENGTH else None
    if match is None:
        form = f"it must be a+b=c, at most {MAX_LENGTH} characters"
        raise ValueError(f"{place}: {line[:40]!r} is not allowed: {form}")
    a, b, c = map(int, match.groups())
    if a + b != c:
        raise ValueError(f"{place}: {line} is wrong: {a}+{b} is {a + b}")


def without_pairs(lines: Sequence[str], others: Iterable[str]) -> list[str]:
    """The lines whose pair, in either order, is not in `others`."""
    taken = {pair_of(line) for line in others}
    return [line for line in lines if pair_of(line) not in taken]


def pair_of(addition: str) -> tuple[int, int]:
    """Both addends, the smaller one first."""
    a, _, b = addition.partition("=")[0].partition("+")
    return min(int(a), int(b)), max(int(a), int(b))
