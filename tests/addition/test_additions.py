"""Additions as text: the numbering of pairs, files that are refused."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from mini_llama.addition import additions
from mini_llama.addition.additions import (
    N_PAIRS,
    pair_indices,
    pairs_from_indices,
    read_additions,
    without_pairs,
)


def test_pairs_are_numbered_one_to_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(additions, "N_NUMBERS", 10)
    monkeypatch.setattr(additions, "SMALLEST", 10)
    numbers = np.arange(55)
    pairs = list(zip(*map(np.ndarray.tolist, pairs_from_indices(numbers)), strict=True))
    expected = itertools.combinations_with_replacement(range(10, 20), 2)
    assert len(pairs) == len(set(pairs)) and set(pairs) == set(expected)
    for order in (1, -1):
        lines = ["{}+{}=".format(*pair[::order]) for pair in pairs]
        assert pair_indices(lines).tolist() == numbers.tolist()


def test_the_real_numbering_reaches_both_ends():
    assert len(range(1000, 10000)) * (9000 + 1) // 2 == N_PAIRS
    numbers = np.array([0, 1, 8999, 9000, N_PAIRS - 1, *range(7, N_PAIRS, 4_999_999)])
    smaller, larger = pairs_from_indices(numbers)
    assert smaller.min() >= 1000 and larger.max() <= 9999 and (smaller <= larger).all()
    lines = [f"{a}+{b}={a + b}" for a, b in zip(larger, smaller, strict=True)]
    assert pair_indices(lines).tolist() == numbers.tolist()


def test_pairs_of_other_lengths_have_no_number():
    assert pair_indices(["1+2=3", "10000+1000=11000", "1000+999=1999"]).tolist() == []
    assert pair_indices([]).tolist() == []


def test_files_are_read_as_lines(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf1+2=3\r\n\n 10+5=15 \n9999+9999=19998")
    assert read_additions(path) == ["1+2=3", "10+5=15", "9999+9999=19998"]
    assert read_additions(path, 2) == ["1+2=3", "10+5=15"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1+2=3\n1+2=4\n", "line 2: 1+2=4 is wrong: 1+2 is 3"),
        (b"1+2=3\n\n1+2\n", "line 3: '1+2' is not allowed"),
        (b"1+2=3=3\n", "line 1: '1+2=3=3' is not allowed"),
        ("١+٢=٣\n".encode(), "line 1: "),
        (b"1000000000+1000000000=2000000000\n", "at most 19 characters"),
        (b"\n \n", "holds no additions"),
        (b"\xff\xfe", "is UTF-16 by its byte order mark"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_additions(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"python addition_data_generation\.py"):
        read_additions(tmp_path / "a.txt")
    with pytest.raises(IsADirectoryError):
        read_additions(tmp_path)


def test_pairs_are_dropped_in_either_order():
    lines = ["1000+2000=3000", "2000+1000=3000", "1000+1000=2000", "1500+1500=3000"]
    assert without_pairs(lines, ["2000+1000=3000", "1500+1501=3001"]) == lines[2:]
