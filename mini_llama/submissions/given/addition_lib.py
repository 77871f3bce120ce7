"""Spring 2026's datasets of additions, character by character."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset


class CharDataset(Dataset):
    """Item i is (x, y): 0 and the ids; the ids, 0, and -1 for each column that is left over."""

    def __init__(self, words: Sequence[str], chars: Sequence[str], max_word_length: int) -> None:
        self.words, self.chars, self.max_word_length = words, chars, max_word_length
        self.stoi = {char: i for i, char in enumerate(chars, 1)}
        self.itos = {i: char for char, i in self.stoi.items()}

    def __len__(self) -> int:
        return len(self.words)

    def contains(self, word: str) -> bool:
        return word in self.words

    def get_vocab_size(self) -> int:
        return len(self.chars) + 1

    def get_output_length(self) -> int:
        return self.max_word_length + 1

    def encode(self, word: str) -> torch.Tensor:
        return torch.tensor([self.stoi[char] for char in word], dtype=torch.long)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.itos[int(i)] for i in ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = self.encode(self.words[index])
        x = torch.zeros(self.get_output_length(), dtype=torch.long)
        y = torch.full_like(x, -1)
        x[1 : len(ids) + 1] = ids
        y[: len(ids)] = ids
        y[len(ids)] = 0
        return x, y


def create_datasets(input_file: str | Path) -> CharDataset:
    """The additions of a file, one a line."""
    words = Path(input_file).read_text(encoding="utf-8").split()
    return CharDataset(words, list("+0123456789="), max(map(len, words)))
