"""Tokenised reviews, and padded batches of them.

Rows are padded on the right with the tokenizer's pad_id. Shapes: B batch, T tokens of the longest
row in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch.utils.data import DataLoader, Dataset

from mini_llama.assignment.reviews import Example
from mini_llama.tokenization.base import BaseTokenizer

POOL = 50  # batches whose texts are sorted together


@dataclass(frozen=True)
class EncodedExamples:
    """Examples with the token ids of each, BOS + sentence, and the id that pads them."""

    examples: Sequence[Example]
    rows: list[list[int]]
    pad_id: int

    @property
    def tokens(self) -> int:
        """Real tokens of all rows."""
        return sum(map(len, self.rows))


@dataclass(frozen=True)
class Batch:
    """tokens (B, T) and labels (B,) int64; lengths (B,): the real tokens of each row."""

    tokens: torch.Tensor
    lengths: torch.Tensor
    labels: torch.Tensor
    indices: list[int]


def encode_examples(examples: Sequence[Example], tokenizer: BaseTokenizer) -> EncodedExamples:
    """Tokenise every sentence; long ones are cut to the tokenizer's max_len."""
    rows = [tokenizer.encode(example.sentence, bos=True, eos=False) for example in examples]
    return EncodedExamples(examples, rows, tokenizer.pad_id)


def make_batches(
    encoded: EncodedExamples,
    batch_size: int,
    shuffle: torch.Generator | None = None,
    by_length: bool = False,
) -> DataLoader[Batch]:
    """Batches in order, or in `shuffle`'s order.

    With `by_length` texts of similar length share a batch, which means less padding and another
    order (order_by_length).
    """
    dataset = cast(Dataset[Batch], range(len(encoded.rows)))  # any sequence will do

    def collate(indices: list[int]) -> Batch:
        rows = [encoded.rows[i] for i in indices]
        labels = torch.tensor([encoded.examples[i].label for i in indices])
        return Batch(*pad_rows(rows, encoded.pad_id), labels, indices)

    if by_length:
        batches = order_by_length([len(row) for row in encoded.rows], batch_size, shuffle)
        return DataLoader(dataset, batch_sampler=batches, collate_fn=collate, generator=shuffle)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle is not None,
        generator=shuffle,
        collate_fn=collate,
    )


def order_by_length(
    lengths: Sequence[int], batch_size: int, shuffle: torch.Generator | None = None
) -> list[list[int]]:
    """Indices of all texts, each once, in batches of similar length.

    In `shuffle`'s order, texts are drawn into pools of POOL batches, each pool is sorted, and the
    batches are shuffled: texts still come together by chance. Without it the longest come first,
    so that a lack of memory shows at once.
    """
    count = len(lengths)
    pool, order = count, list(range(count))
    if shuffle is not None:
        pool, order = POOL * batch_size, torch.randperm(count, generator=shuffle).tolist()
    pools = (order[start : start + pool] for start in range(0, count, pool))
    order = [i for one in pools for i in sorted(one, key=lambda i: -lengths[i])]
    batches = [order[start : start + batch_size] for start in range(0, count, batch_size)]
    if shuffle is not None:
        batches = [batches[i] for i in torch.randperm(len(batches), generator=shuffle).tolist()]
    return batches


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids → (B, T), right-padded with pad_id, and their lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), int(lengths.max())), pad_id)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return tokens, lengths
