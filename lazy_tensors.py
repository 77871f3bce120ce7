"""Tensors that are made when they are asked for: a model larger than memory can be converted.

Reading some files is work: shards are joined, 8-bit values multiplied by their scales. Done for one
tensor at a time it needs the memory of one tensor. The file knows no formats and no models.
"""

from collections.abc import Callable, Iterator, Mapping

import torch


class LazyTensors(Mapping[str, torch.Tensor]):
    """The tensors `make(name)` of the names in `shapes`, made anew at each access and not kept.

    Names, their number and `shapes` are known without making any; dict(…) makes all of them once.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], make: Callable[[str], torch.Tensor]
    ) -> None:
        self.shapes, self._make = shapes, make

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)
