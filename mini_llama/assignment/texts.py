"""Texts to classify, as they come: from a file or standard input, with or without labels."""

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from mini_llama.assignment.options import STANDARD_STREAM
from mini_llama.assignment.reviews import existing, split_line
from mini_llama.assignment.table_files import Columns, is_table, read_rows
from mini_llama.text_files import decode_chunks, lines_of, read_chunks

CHUNK = 2**16  # bytes read at once

Known = Callable[[str], int | None]  # the label that is spelt so


@dataclass(frozen=True)
class Text:
    """A text, and its label if the file has labels."""

    sentence: str
    label: int | None


def read_texts(path: str, columns: Columns, known: Known) -> Iterator[Text]:
    """The texts of a file, or of standard input for "-", in order. Blank lines are left out.

    Lines are LABEL ||| SENTENCE if the first one is, with a label that is known; then all must be.
    A table has labels if it has a column of them. Raises OSError, and ValueError with the line's
    number.
    """
    if path != STANDARD_STREAM and is_table(path):
        for row in read_rows(path, columns):
            yield Text(row.text, _label(row.label, known, row.place))
        return
    name = "standard input" if path == STANDARD_STREAM else path
    is_labelled: bool | None = None
    for number, line in enumerate(_lines(path, name), 1):
        if not line.strip():
            continue
        parts = split_line(line)
        if is_labelled is None:
            is_labelled = parts is not None and known(parts[0]) is not None
        if not is_labelled:
            yield Text(line.strip(), None)
            continue
        place = f"{name} line {number}"
        if parts is None:
            raise ValueError(f"{place} has no ' ||| ', unlike the lines before it")
        yield Text(parts[1], _label(parts[0], known, place))


def _lines(path: str, name: str) -> Iterator[str]:
    if path == STANDARD_STREAM:
        source = cast(io.BufferedReader, sys.stdin.buffer)
        return lines_of(decode_chunks(source, name, CHUNK))
    return lines_of(read_chunks(existing(path), CHUNK))


def _label(text: str | None, known: Known, place: str) -> int | None:
    if text is None:
        return None
    label = known(text)
    if label is None:
        raise ValueError(f"{place}: label {text[:20]!r} is none of the classifier's")
    return label
