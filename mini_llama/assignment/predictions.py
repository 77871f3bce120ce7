"""Prediction files: a line `PREDICTION ||| SENTENCE` for every example, in the data's order."""

from collections.abc import Sequence
from pathlib import Path

from mini_llama.assignment.reviews import SEPARATOR, Example, read_examples
from utils import atomic_write


def write_predictions(
    path: str | Path, examples: Sequence[Example], predictions: Sequence[int | str]
) -> None:
    """Write the label predicted for every example, index or word, atomically. Raises OSError."""
    with atomic_write(path) as file:
        for example, guess in zip(examples, predictions, strict=True):
            file.write(f"{guess}{SEPARATOR}{example.sentence}\n")


def read_predictions(path: str | Path, examples: Sequence[Example], source: str) -> list[int]:
    """The label that a file predicts for each of `examples`, which were read from `source`.

    White space around sentences is not compared: editors strip it, Windows adds some. Raises
    OSError, and ValueError for a file of other sentences, or in another order.
    """
    found = read_examples(path)
    if [line.sentence for line in found] != [example.sentence.strip() for example in examples]:
        raise ValueError(f"{path} is not of the sentences of {source}")
    return [line.label for line in found]
