"""Data files and prompts, against the contract's formats."""

import re
from pathlib import Path

import pytest

from mini_llama.assignment.reviews import (
    Example,
    prompt_suffix,
    read_examples,
    read_label_names,
    with_prompt,
)

FIVE = ["awful", "bad", "average", "good", "excellent"]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_read_examples(tmp_path):
    content = "1 ||| A fine film .\r\n0 |||  Très mauvais\u2028 \n2 ||| odd ||| one\n3 ||| "
    path = write(tmp_path / "d.txt", b"\xef\xbb\xbf" + content.encode())
    assert read_examples(path) == [
        Example("A fine film .", 1),
        Example("Très mauvais", 0),
        Example("odd ||| one", 2),
        Example("", 3),
    ]


@pytest.mark.parametrize(
    ("split", "count", "non_ascii"),
    [
        ("sst-train", 8544, 90),
        ("sst-dev", 1101, 7),
        ("sst-test", 2210, 10),
        ("cfimdb-train", 1707, 102),
        ("cfimdb-dev", 245, 17),
        ("cfimdb-test", 488, 24),
    ],
)
def test_the_real_files(shared, split: str, count: int, non_ascii: int):
    path = shared / "data" / f"{split}.txt"
    examples = read_examples(path)
    assert len(examples) == count
    assert sum(not example.sentence.isascii() for example in examples) == non_ascii
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    assert [f"{e.label} ||| {e.sentence}" for e in examples] == [line.strip() for line in lines]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"1 ||| good\n\n2 ||| bad\n", "line 2 has no ' ||| '"),
        (b"1 ||| good\n0 | bad\n", "line 2 has no ' ||| '"),
        (b"one ||| good\n", "line 1: label 'one' is not an integer"),
        (b"1.0 ||| good\n", "label '1.0' is not an integer"),
        (b"-1 ||| good\n", "label '-1' is not an integer of at least 0"),
        (b"1 ||| good\n1 ||| caf\xe9\n", "line 2 is not UTF-8 (byte 0xe9)"),
    ],
)
def test_bad_data_names_file_and_line(tmp_path, content: bytes, message: str):
    path = write(tmp_path / "d.txt", content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_examples(path)
    assert str(path) in str(error.value)


def test_missing_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_examples(tmp_path / "nothere.txt")
    with pytest.raises(IsADirectoryError, match="is a directory"):
        read_examples(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", '{"a": 1}', '["one"]', '["a", 3]', '["a", "a"]', '["", "a"]']
)
def test_bad_label_names(tmp_path, content: str):
    path = write(tmp_path / "labels.json", content.encode())
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_label_names(path)


def test_label_names(shared):
    assert read_label_names(shared / "data" / "sst-label-mapping.json") == FIVE
    assert read_label_names(shared / "data" / "cfimdb-label-mapping.json") == ["bad", "good"]


def test_prompts_are_the_contracts():
    assert prompt_suffix(["bad", "good"]) == "Is this movie bad or good? This movie is "
    assert prompt_suffix(FIVE) == (
        "Is this movie awful, bad, average, good, or excellent? This movie is "
    )
    prompted = with_prompt([Example("Fine .", 1)], ["bad", "good"])
    assert prompted == [Example("Fine . Is this movie bad or good? This movie is ", 1)]
