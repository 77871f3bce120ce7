"""Additions as token ids, one per character, and batches of them.

Shapes: B batch, L longest addition in characters, T = L + 1 columns. Column t of the input holds
character t - 1, and column t of the target holds character t. For "12+3=15":

    input    0  1  2  +  3  =  1  5
    target   1  2  +  3  =  1  5  0    then -1 in the remaining columns
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from mini_llama.addition.additions import CHARS, IGNORED, PADDING, read_additions


class CharDataset(Dataset):
    """Additions, encoded once. Item i is (x, y), each int64 of T columns; `batch` returns several.

    The ids of `chars` are 1, 2, …; id 0 is padding, start and end. Raises ValueError for any other
    character, and for a word longer than `max_word_length`.
    """

    def __init__(self, words: Sequence[str], chars: Sequence[str], max_word_length: int) -> None:
        self.words, self.chars, self.max_word_length = words, chars, max_word_length
        self.stoi = {char: i for i, char in enumerate(chars, 1)}
        self.itos = {i: char for char, i in self.stoi.items()}
        self.ids = self._encode_all()  # (words, L) uint8, PADDING on the right

    def _encode_all(self) -> torch.Tensor:
        for word in self.words:
            if len(word) > self.max_word_length or not self.stoi.keys() >= set(word):
                allowed = f"at most {self.max_word_length} of {''.join(self.chars)}"
                raise ValueError(f"{word[:40]!r} is not allowed: it must be {allowed}")
        table = np.zeros(256, np.uint8)
        for char, i in self.stoi.items():
            table[ord(char)] = i
        encoded = np.array(self.words, dtype=f"S{self.max_word_length}")
        return torch.from_numpy(table[encoded.view(np.uint8).reshape(len(self.words), -1)])

    def __len__(self) -> int:
        return len(self.words)

    def contains(self, word: str) -> bool:
        return word in self.words

    def get_vocab_size(self) -> int:
        return len(self.chars) + 1

    def get_output_length(self) -> int:
        return self.max_word_length + 1

    def encode(self, word: str) -> torch.Tensor:
        """int64 ids, without start and end."""
        return torch.tensor([self.stoi[char] for char in word], dtype=torch.long)

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """Decode ids up to the end: leading 0s are the start, the first 0 after them is the end.

        Raises KeyError for an id without a character.
        """
        text = ""
        for i in map(int, ids):
            if i == PADDING and text:
                break
            text += "" if i == PADDING else self.itos[i]
        return text

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x, y), both (B, T), of the words with these indices (B,)."""
        ids = self.ids[indices].long()
        lengths = (ids != PADDING).sum(dim=1, keepdim=True)  # (B, 1)
        x, y = F.pad(ids, (1, 0)), F.pad(ids, (0, 1))
        return x, y.masked_fill(torch.arange(y.shape[1]) > lengths, IGNORED)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = self.batch(torch.tensor([range(len(self))[index]]))
        return x[0], y[0]


def make_dataset(words: Sequence[str]) -> CharDataset:
    """A dataset as wide as the longest of the additions."""
    return CharDataset(words, CHARS, max(map(len, words)))


def create_datasets(input_file: str | Path) -> CharDataset:
    """A dataset of the additions in a file. Raises OSError, ValueError as read_additions does."""
    return make_dataset(read_additions(input_file))


class Batches:
    """All items of a dataset in batches of (x, y), both (B, T): in order, or with a generator,
    shuffled anew for each pass.
    """

    def __init__(
        self, dataset: CharDataset, batch_size: int, generator: torch.Generator | None = None
    ) -> None:
        self.dataset, self.batch_size, self.generator = dataset, batch_size, generator

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        n = len(self.dataset)
        is_shuffled = self.generator is not None
        order = torch.randperm(n, generator=self.generator) if is_shuffled else torch.arange(n)
        for indices in order.split(self.batch_size):
            yield self.dataset.batch(indices)
