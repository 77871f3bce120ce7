"""Additions as ids: the layout of inputs and targets by hand, batches, decoding."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from addition_lib import Batches, CharDataset, create_datasets, make_dataset

IDS = {"+": 1, "=": 12} | {str(digit): digit + 2 for digit in range(10)}
WORDS = ["12+34=46", "9+1=10", "95+95=190"]
# _ is id 0: the beginning in inputs, the end in targets; . carries no loss.
INPUTS = ["_12+34=46_", "_9+1=10___", "_95+95=190"]
TARGETS = ["12+34=46_.", "9+1=10_...", "95+95=190_"]


def ids(text: str) -> list[int]:
    return [(IDS | {"_": 0, ".": -1})[char] for char in text]


@pytest.fixture
def dataset() -> CharDataset:
    return make_dataset(WORDS)


def test_inputs_and_targets_by_hand(dataset: CharDataset):
    x, y = dataset.batch(torch.arange(3))
    assert x.dtype == y.dtype == torch.int64
    assert x.tolist() == list(map(ids, INPUTS))
    assert y.tolist() == list(map(ids, TARGETS))
    for index in (0, 1, 2, -1):
        x, y = dataset[index]
        assert (x.tolist(), y.tolist()) == (ids(INPUTS[index]), ids(TARGETS[index]))
    with pytest.raises(IndexError):
        dataset[3]


def test_what_the_handout_s_class_offers(dataset: CharDataset):
    assert dataset.stoi == IDS and dataset.itos == {i: char for char, i in IDS.items()}
    assert (len(dataset), dataset.get_vocab_size(), dataset.get_output_length()) == (3, 13, 10)
    assert dataset.contains("9+1=10") and not dataset.contains("1+9=10")
    assert dataset.encode("9+1=10").tolist() == ids("9+1=10")
    assert dataset.max_word_length == 9
    x, y = next(iter(DataLoader(dataset, batch_size=3)))
    assert x.tolist() == list(map(ids, INPUTS)) and y.tolist() == list(map(ids, TARGETS))


@pytest.mark.parametrize(
    ("tokens", "text"),
    [("12+34=46", "12+34=46"), ("_9+1=10_", "9+1=10"), ("_9+1=10_5_", "9+1=10"), ("__", "")],
)
def test_decoding_stops_at_the_end(dataset: CharDataset, tokens: str, text: str):
    assert dataset.decode(ids(tokens)) == text
    assert dataset.decode(torch.tensor(ids(tokens))) == text


@pytest.mark.parametrize("word", ["1+2=3x", "1 +2=3", "١+1=2", "123456+123456=246912"])
def test_other_words_are_refused(word: str):
    with pytest.raises(ValueError, match=r"is not allowed: it must be at most 15 of \+0123456789="):
        CharDataset(["1+2=3", word], "+0123456789=", 15)


def test_files_are_datasets(tmp_path: Path):
    (tmp_path / "a.txt").write_text("\n".join(WORDS))
    assert create_datasets(tmp_path / "a.txt").ids.tolist() == make_dataset(WORDS).ids.tolist()


def test_batches_hold_every_item_once():
    words = [f"{1000 + i}+2000={3000 + i}" for i in range(23)]
    dataset = make_dataset(words)
    every = [(x.tolist(), y.tolist()) for x, y in dataset]

    def items(batches: Batches) -> list:
        found = [pair for x, y in batches for pair in zip(x.tolist(), y.tolist(), strict=True)]
        return [(x, y) for x, y in found]

    plain = Batches(dataset, 10)
    assert items(plain) == every and len(plain) == len(list(plain)) == 3
    assert [len(x) for x, _ in plain] == [10, 10, 3]
    mixed = Batches(dataset, 10, torch.Generator().manual_seed(0))
    first, second = items(mixed), items(mixed)
    assert first != second and sorted(first) == sorted(second) == sorted(every)
    again = Batches(dataset, 10, torch.Generator().manual_seed(0))
    assert items(again) == first
