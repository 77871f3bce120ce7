"""Files of labelled film reviews, and the zero-shot question that follows a review.

The assignment's files have one example a line, `LABEL ||| SENTENCE`, in UTF-8; table_files.py
reads others.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_llama.text_files import read_lines, read_text

SEPARATOR = " ||| "
UNLABELLED = " (texts without labels are for --option predict)"
DEFAULT_QUESTION = "Is this movie {labels}? This movie is "


@dataclass(frozen=True)
class Example:
    sentence: str
    label: int


@dataclass(frozen=True)
class Record:
    """A labelled text as its file has it; `place` is "FILE line N"."""

    label: str
    text: str
    place: str


def read_examples(path: str | Path) -> list[Example]:
    """The examples of a data file, in order, sentences stripped.

    Raises OSError if the file cannot be read, ValueError with the line's number if it is empty,
    not UTF-8, or a line is not `LABEL ||| SENTENCE` with an integer label of at least 0.
    """
    return [Example(record.text, _index(record)) for record in read_labelled_lines(path)]


def read_labelled_lines(path: str | Path) -> list[Record]:
    """The lines `LABEL ||| SENTENCE` of a data file, label and sentence stripped.

    Raises OSError, and ValueError with the line's number for a file that is empty, not UTF-8, or
    of other lines.
    """
    lines = read_lines(existing(path))
    if not lines:
        raise ValueError(f"{path} is empty; a data file has lines LABEL{SEPARATOR}SENTENCE")
    return [_parse_line(line, f"{path} line {number}") for number, line in enumerate(lines, 1)]


def existing(path: str | Path) -> Path:
    """The path of a data file. Raises OSError if it is not there."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory, not a data file; give a file")
    if not path.exists():
        raise FileNotFoundError(
            f"data file {path} does not exist; check the path, or get it with bash setup.sh"
        )
    return path


def _parse_line(line: str, place: str) -> Record:
    parts = split_line(line)
    if parts is None:
        raise ValueError(
            f"{place} has no {SEPARATOR!r}; a line is LABEL{SEPARATOR}SENTENCE{UNLABELLED}"
        )
    return Record(*parts, place)


def is_index(label: str) -> bool:
    """Whether a label is written as an integer of at least 0."""
    return label.isascii() and label.isdigit() and len(label) < 10


def _index(record: Record) -> int:
    if not is_index(record.label):
        what = f"label {record.label[:20]!r} is not an integer of at least 0"
        raise ValueError(f"{record.place}: {what}")
    return int(record.label)


def split_line(line: str) -> tuple[str, str] | None:
    """Label and sentence of a line, stripped; None for a line that is not LABEL ||| SENTENCE."""
    label, separator, sentence = line.partition(SEPARATOR)
    return (label.strip(), sentence.strip()) if separator else None


def read_label_names(path: str | Path) -> list[str]:
    """The label words of a JSON list; a label is the index of its word.

    Raises OSError or ValueError (not a JSON list of at least two different non-empty words).
    """
    text = read_text(existing(path))
    try:
        names = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); it must be a list of words") from None
    is_words = isinstance(names, list) and all(isinstance(n, str) and n.strip() for n in names)
    if not is_words or len(names) < 2 or len(set(names)) != len(names):
        raise ValueError(f"{path} must be a JSON list of at least two different label words")
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise ValueError(f"{path}: label word {name!r} has half of a surrogate pair: no text")
    return names


def prompt_suffix(label_names: Sequence[str], question: str | None = None) -> str:
    """The question that makes a language model answer with a label word: the assignment's, which
    ends with a space, or `question` with the words in the place of {labels}.
    """
    if len(label_names) == 2:
        choices = " or ".join(label_names)
    else:
        choices = ", ".join(label_names[:-1]) + f", or {label_names[-1]}"
    return (DEFAULT_QUESTION if question is None else question).replace("{labels}", choices)


def with_prompt(
    examples: Sequence[Example], label_names: Sequence[str], question: str | None = None
) -> list[Example]:
    """The same examples, each sentence followed by a space and the zero-shot question."""
    suffix = prompt_suffix(label_names, question)
    return [Example(f"{example.sentence} {suffix}", example.label) for example in examples]
