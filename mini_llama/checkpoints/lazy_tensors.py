"""Tensors by name that are made when they are asked for, and not kept.

A model may be larger than memory: whoever goes through these tensors one by one holds one of them.
The file knows neither models nor files.
"""

from collections.abc import Callable, Iterator, Mapping

import torch

# Pages of a mapped file that were read count as memory until the file is mapped anew.
REMAP_BYTES = 2**28


class LazyTensors(Mapping[str, torch.Tensor]):
    """`make(name)` gives a tensor; without `make`, `tensors` does.

    `meta` are tensors of the same shapes and dtypes on the meta device, without numbers. They are
    those of `tensors`, of which nothing is read.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        make: Callable[[str], torch.Tensor] | None = None,
    ) -> None:
        self.meta = dict(meta_tensors(tensors))
        self._make = make or tensors.__getitem__

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.meta:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:  # Mapping's own would make the tensor
        return name in self.meta

    def __iter__(self) -> Iterator[str]:
        return iter(self.meta)

    def __len__(self) -> int:
        return len(self.meta)


class RemappedTensors(LazyTensors):
    """The tensors of files that `open_files` maps, mapped anew as soon as REMAP_BYTES were read.

    `on_read` is told the bytes of every tensor that is read.
    """

    def __init__(
        self,
        open_files: Callable[[], Mapping[str, torch.Tensor]],
        on_read: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.on_read = on_read
        self._open_files, self._tensors, self._bytes_read = open_files, open_files(), 0
        super().__init__(self._tensors, self._read)

    def _read(self, name: str) -> torch.Tensor:
        if self._bytes_read >= REMAP_BYTES:
            self._tensors, self._bytes_read = self._open_files(), 0
        tensor = self._tensors[name]
        self._bytes_read += tensor.nbytes
        self.on_read(tensor.nbytes)
        return tensor


def meta_tensors(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Shapes and dtypes, as tensors on the meta device, without reading any numbers."""
    if isinstance(tensors, LazyTensors):
        return tensors.meta
    return {name: tensor.to("meta") for name, tensor in tensors.items()}
