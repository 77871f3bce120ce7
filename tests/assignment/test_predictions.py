"""Prediction files against their bytes, written by hand."""

import re
from pathlib import Path

import pytest

from mini_llama.assignment.predictions import read_predictions, write_predictions
from mini_llama.assignment.reviews import Example

EXAMPLES = [Example("A good café .", 4), Example("odd ||| one", 0), Example(" of its own", 1)]
CONTENT = "3 ||| A good café .\n0 ||| odd ||| one\n12 |||  of its own\n"


def written(folder: Path, content: str = CONTENT) -> Path:
    path = folder / "predictions.txt"
    path.write_bytes(content.encode())
    return path


def test_what_is_written(tmp_path):
    path = tmp_path / "predictions.txt"
    write_predictions(path, EXAMPLES, [3, 0, 12])
    assert path.read_bytes().decode() == CONTENT


@pytest.mark.parametrize("predictions", [[3, 0], [3, 0, 12, 1]])
def test_a_number_of_predictions_that_is_not_that_of_the_examples(tmp_path, predictions: list):
    """The file that stood there stays."""
    path = written(tmp_path, "1 ||| before\n")
    with pytest.raises(ValueError, match="zip"):
        write_predictions(path, EXAMPLES, predictions)
    assert path.read_text() == "1 ||| before\n"


@pytest.mark.parametrize("content", [CONTENT, CONTENT.replace("\n", " \r\n")], ids=["ours", "CRLF"])
def test_the_labels_are_those_predicted(tmp_path, content: str):
    assert read_predictions(written(tmp_path, content), EXAMPLES, "dev.txt") == [3, 0, 12]


@pytest.mark.parametrize(
    "content",
    [
        CONTENT.replace("good", "bad"),
        "".join(reversed(CONTENT.splitlines(keepends=True))),
        CONTENT + "1 ||| one more\n",
        CONTENT[: CONTENT.index("12")],
    ],
    ids=["another sentence", "another order", "one more", "one less"],
)
def test_sentences_of_another_file_are_refused(tmp_path, content: str):
    path = written(tmp_path, content)
    message = f"{path} is not of the sentences of dev.txt"
    with pytest.raises(ValueError, match=re.escape(message)):
        read_predictions(path, EXAMPLES, "dev.txt")
