"""Lazy tensors: a mapping that makes what is asked for, when it is asked for."""

import pytest
import torch

from mini_llama.checkpoints import lazy_tensors
from mini_llama.checkpoints.lazy_tensors import LazyTensors, StreamedTensors
from mini_llama.checkpoints.mapped_pages import MappedPages


def test_only_access_makes_a_tensor():
    made = []

    def make(name: str) -> torch.Tensor:
        made.append(name)
        return torch.full((2,), float(name))

    tensors = LazyTensors({name: torch.empty(2, device="meta") for name in ("1", "2")}, make)
    assert (len(tensors), list(tensors)) == (2, ["1", "2"])
    assert "1" in tensors and "3" not in tensors and tensors.get("3") is None
    with pytest.raises(KeyError):
        tensors["3"]
    assert made == []
    assert tensors["2"].tolist() == [2.0, 2.0]
    assert dict(tensors).keys() == {"1", "2"}
    assert made == ["2", "1", "2"]


class CountedPages(MappedPages):
    given_back = 0

    def give_back(self) -> None:
        self.given_back += 1


def test_streaming_gives_pages_back_after_so_many_bytes(monkeypatch):
    monkeypatch.setattr(lazy_tensors, "STREAMED_BYTES", 1000)
    held = {str(i): torch.full((20,), float(i)) for i in range(100)}  # 80 bytes each
    pages, read = CountedPages(), []
    tensors = StreamedTensors(held, pages, read.append)
    assert pages.given_back == 1  # what was read before
    assert all(torch.equal(tensors[name], held[name]) for name in tensors)
    assert read == [80] * 100
    assert pages.given_back == 1 + 7  # after 13, 26, …, 91 tensors
    assert all(tensor.is_meta for tensor in tensors.meta.values())
    assert "nothing" not in tensors and tensors.get("nothing") is None
