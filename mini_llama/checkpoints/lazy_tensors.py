"""Tensors by name that are made at each access, and not kept.

A model may be larger than memory: iterating over these tensors holds one of them at a time.
"""

import functools
from collections.abc import Callable, Iterator, Mapping

import torch

from mini_llama.checkpoints.mapped_pages import MappedPages
from mini_llama.layers.int8_blocks import Int8Blocks

STREAMED_BYTES = 2**28  # after this many, pages are given back


class LazyTensors(Mapping[str, torch.Tensor]):
    """`make(name)` gives a tensor; without `make`, `tensors` does.

    `meta` has the shapes and dtypes of `tensors`, as tensors on the meta device; making it reads no
    data. `read_blocks` has the readers of those that are int8 blocks in their file.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        make: Callable[[str], torch.Tensor] | None = None,
        read_blocks: Mapping[str, Callable[[], Int8Blocks]] | None = None,
    ) -> None:
        self.meta = dict(meta_tensors(tensors))
        self.read_blocks = dict(read_blocks or {})
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


class StreamedTensors(LazyTensors):
    """Tensors that are used one after another, of mapped files whose `pages` are given back as soon
    as STREAMED_BYTES were read.

    `on_read` is called with the bytes of every tensor that is read. Reading raises ValueError where
    a file was changed meanwhile (MappedPages.give_back).
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        pages: MappedPages,
        on_read: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.on_read = on_read
        self._tensors, self._pages = tensors, pages
        readers = tensors.read_blocks if isinstance(tensors, LazyTensors) else {}
        counted = {name: functools.partial(self._count, read) for name, read in readers.items()}
        super().__init__(tensors, self._read, counted)
        self.give_back()

    def changed(
        self, change: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]
    ) -> "StreamedTensors":
        """The same files' tensors after a change of each as it is read."""
        return StreamedTensors(change(self._tensors), self._pages, self.on_read)

    def give_back(self) -> None:
        """Give the pages back now."""
        self._pages.give_back()
        self._bytes_read = 0

    def _count(self, read: Callable[[], Int8Blocks]) -> Int8Blocks:
        if self._bytes_read >= STREAMED_BYTES:
            self.give_back()
        blocks = read()
        self._bytes_read += blocks.values.nbytes + blocks.scales.nbytes
        return blocks

    def _read(self, name: str) -> torch.Tensor:
        if self._bytes_read >= STREAMED_BYTES:
            self.give_back()
        tensor = self._tensors[name]
        self._bytes_read += tensor.nbytes
        self.on_read(tensor.nbytes)
        return tensor


def meta_tensors(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Shapes and dtypes, as tensors on the meta device, without reading any numbers."""
    if isinstance(tensors, LazyTensors):
        return tensors.meta
    return {name: tensor.to("meta") for name, tensor in tensors.items()}
