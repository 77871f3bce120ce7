"""Additions as token ids, one a character, and the batches that a model is trained on.

Shapes: B batch, L longest addition in characters, T = L + 1 columns. Column t of the input holds
character t - 1, column t of the target character t: "12+3=15" is

    input    0  1  2  +  3  =  1  5
    target   1  2  +  3  =  1  5  0    then -1 for every column that is left over
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from mini_llama.addition.additions import CHARS, IGNORED, PADDING, read_additions


class CharDataset(Dataset):
    """Additions, encoded once. Item i is (x, y), int64 of T columns each; `batch` gives several.

    `chars` have the ids 1, 2, …; id 0 is padding, beginning and end. Raises ValueError for a
    character that is not among them, or a word longer than `max_word_length`.
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
        """int64 ids, without beginning and end."""
        return torch.tensor([self.stoi[char] for char in word], dtype=torch.long)

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """Text of ids up to the end: 0 in front is the beginning, the first 0 after that the end.

        Raises KeyError for an id that has no character.
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
    """The additions, as wide as the longest of them."""
    return CharDataset(words, CHARS, max(map(len, words)))


def create_datasets(input_file: str | Path) -> CharDataset:
    """The additions of a file. Raises OSError, ValueError as read_additions does."""
    return make_dataset(read_additions(input_file))


class Batches:
    """All items of a dataset in batches of (x, y), both (B, T): in their order, or, with a
    generator, in a new one each time.
    """

    def __init__(
        self, dataset: CharDataset, batch_size: int, generator: torch.Generator | None = None
    ) -> None:
        self.dataset, self.batch_size, self.generator = dataset, batch_size, generator

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        n = len(self.dataset)
        is_mixed = self.generator is not None
        order = torch.randperm(n, generator=self.generator) if is_mixed else torch.arange(n)
        for indices in order.split(self.batch_size):
            yield self.dataset.batch(indices)
