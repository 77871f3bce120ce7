"""Files of labelled film reviews, and the zero-shot question that follows a review.

A file has one example a line, `LABEL ||| SENTENCE`, in UTF-8.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_llama.text_files import read_lines, read_text

SEPARATOR = " ||| "


@dataclass(frozen=True)
class Example:
    sentence: str
    label: int


def read_examples(path: str | Path) -> list[Example]:
    """The examples of a data file, in order, sentences stripped.

    Raises OSError if the file cannot be read, ValueError with the line's number if it is empty,
    not UTF-8, or a line is not `LABEL ||| SENTENCE` with an integer label of at least 0.
    """
    lines = read_lines(_existing(path))
    if not lines:
        raise ValueError(f"{path} is empty; a data file has lines LABEL{SEPARATOR}SENTENCE")
    return [_parse_line(line, f"{path} line {number}") for number, line in enumerate(lines, 1)]


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory, not a data file; give a file")
    if not path.exists():
        raise FileNotFoundError(
            f"data file {path} does not exist; check the path, or get it with bash setup.sh"
        )
    return path


def _parse_line(line: str, place: str) -> Example:
    parts = split_line(line)
    if parts is None:
        raise ValueError(f"{place} has no {SEPARATOR!r}; a line is LABEL{SEPARATOR}SENTENCE")
    label, sentence = parts
    if not (label.isascii() and label.isdigit() and len(label) < 10):
        raise ValueError(f"{place}: label {label[:20]!r} is not an integer of at least 0")
    return Example(sentence, int(label))


def split_line(line: str) -> tuple[str, str] | None:
    """Label and sentence of a line, stripped; None for a line that is not LABEL ||| SENTENCE."""
    label, separator, sentence = line.partition(SEPARATOR)
    return (label.strip(), sentence.strip()) if separator else None


def check_labels(path: str | Path, examples: Sequence[Example], num_labels: int) -> None:
    """Raise ValueError, with the line's number, for the first label not below `num_labels`."""
    for number, example in enumerate(examples, 1):
        if example.label >= num_labels:
            raise ValueError(
                f"{path} line {number}: label {example.label} is out of range: there are "
                f"{num_labels} labels, 0 to {num_labels - 1}; check --label-names and the data"
            )


def read_label_names(path: str | Path) -> list[str]:
    """The label words of a JSON list; a label is the index of its word.

    Raises OSError or ValueError (not a JSON list of at least two different non-empty words).
    """
    text = read_text(_existing(path))
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


def prompt_suffix(label_names: Sequence[str]) -> str:
    """The question that makes a language model answer with a label word; it ends with a space."""
    if len(label_names) == 2:
        choices = " or ".join(label_names)
    else:
        choices = ", ".join(label_names[:-1]) + f", or {label_names[-1]}"
    return f"Is this movie {choices}? This movie is "


def with_prompt(examples: Sequence[Example], label_names: Sequence[str]) -> list[Example]:
    """The same examples, each sentence followed by the zero-shot question."""
    suffix = prompt_suffix(label_names)
    return [Example(f"{example.sentence} {suffix}", example.label) for example in examples]
