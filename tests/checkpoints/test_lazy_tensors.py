"""Lazy tensors: a mapping that makes what is asked for, when it is asked for."""

import pytest
import torch

from mini_llama.checkpoints.lazy_tensors import LazyTensors


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
