"""Pages of mapped files, given back after their tensors were used.

What was read of a mapped file counts as a process's memory until the system needs it elsewhere; a
checkpoint that is larger than memory is converted tensor by tensor, and needs no page twice.
"""

import ctypes
import functools
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch


class MappedPages:
    """The parts of files that a checkpoint's tensors are mapped from, private and copy on write."""

    def __init__(self) -> None:
        self._storages: list[torch.UntypedStorage] = []  # they keep the files mapped
        self._states: dict[Path, os.stat_result] = {}

    def map_file(self, path: Path) -> torch.Tensor:
        """All bytes of a file that is not empty, as uint8. Raises OSError."""
        self.watch(path)
        size = path.stat().st_size
        data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        self.add(data.untyped_storage())
        return data

    def watch(self, path: Path) -> None:
        """Remember the state of a file that is about to be mapped. Raises OSError."""
        self._states[path] = path.stat()

    def add(self, storage: torch.UntypedStorage) -> None:
        """A part of a watched file, mapped by torch, that nothing has been written to."""
        self._storages.append(storage)

    def give_back(self) -> None:
        """Forget what was read, where the system can: the next access reads the file again.

        What was written to a tensor since it was mapped is lost. Raises ValueError if a file was
        changed in place, since pages not read yet would have the new content.
        """
        for path, state in self._states.items():
            _check_unchanged(path, state)
        if forget := _find_forget():
            for storage in self._storages:
                forget(storage.data_ptr(), storage.nbytes())


def _check_unchanged(path: Path, before: os.stat_result) -> None:
    """A file that was removed, or replaced by another one, stays mapped as it was."""
    try:
        now = path.stat()
    except OSError:
        return
    is_same_file = (now.st_dev, now.st_ino) == (before.st_dev, before.st_ino)
    if is_same_file and (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise ValueError(f"{path} was changed while it was read; try again when nothing writes it")


@functools.cache
def _find_forget() -> Callable[[int, int], None] | None:
    """Linux's madvise with MADV_DONTNEED of an address and a length, which elsewhere is a hint or
    unknown.
    """
    if sys.platform != "linux":
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def forget(address: int, length: int) -> None:
        start = address - address % mmap.PAGESIZE
        madvise(start, address + length - start, mmap.MADV_DONTNEED)

    return forget
