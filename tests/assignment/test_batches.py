"""Padded batches of tokenised reviews: their order, their contents, their padding."""

import pytest
import torch

from mini_llama.assignment.batches import (
    encode_examples,
    make_batches,
    order_by_length,
    pad_rows,
)
from mini_llama.assignment.reviews import Example
from tokenizer import Tokenizer


def test_pad_rows():
    tokens, lengths = pad_rows([[1, 5], [1, 6, 7, 8], [1]], pad_id=3)
    assert tokens.tolist() == [[1, 5, 3, 3], [1, 6, 7, 8], [1, 3, 3, 3]]
    assert lengths.tolist() == [2, 4, 1] and tokens.dtype == torch.int64


def test_batches_in_order(tokenizer_model):
    tokenizer = Tokenizer(4, tokenizer_model)
    examples = [Example("the plot is good " * (i % 3), i % 2) for i in range(7)]
    batches = list(make_batches(encode_examples(examples, tokenizer), 3))
    assert [batch.indices for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    for batch in batches:
        for row, length, label, i in zip(
            batch.tokens, batch.lengths, batch.labels, batch.indices, strict=True
        ):
            ids = tokenizer.encode(examples[i].sentence, bos=True, eos=False)
            assert row.tolist() == ids + [tokenizer.pad_id] * (len(row) - length)
            assert label == examples[i].label and length == len(ids) <= 5


def test_shuffled_batches_lose_nothing_and_repeat_by_seed(tokenizer_model):
    tokenizer = Tokenizer(None, tokenizer_model)
    encoded = encode_examples([Example("good", 0)] * 50, tokenizer)

    def order(seed: int) -> list:
        generator = torch.Generator().manual_seed(seed)
        return [i for b in make_batches(encoded, 8, generator) for i in b.indices]

    first = order(1)
    torch.rand(5)  # the global generator has no say
    assert sorted(first) == list(range(50)) != first
    assert order(1) == first != order(2)


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_batches_by_length_lose_nothing_and_pad_little(count: int):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 60, (count,), generator=generator).tolist()

    def padded(batches: list) -> int:
        return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)

    in_order = order_by_length(lengths, 8)
    assert [lengths[i] for batch in in_order for i in batch] == sorted(lengths, reverse=True)
    orders = [
        order_by_length(lengths, 8, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1]
    for batches in (in_order, *orders):
        assert sorted(i for batch in batches for i in batch) == list(range(count))
        assert sum(len(batch) == 8 for batch in batches) == count // 8
        assert padded(batches) <= 1.1 * sum(lengths) or count < 100
    if count > 8:
        assert orders[0] != orders[2]
        longest = [max(lengths[i] for i in batch) for batch in orders[0]]
        if count > 100:
            assert longest not in (sorted(longest), sorted(longest, reverse=True))
