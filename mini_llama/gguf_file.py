"""The header of a GGUF file (llama.cpp's format): metadata, and where each tensor lies.

Every count, length and offset is checked against the file before it is used, so that a damaged or
hostile header costs one line and little memory. Source: ggml's docs/gguf.md, versions 2 and 3.
"""

import functools
import math
import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils import REMEDY

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of metadata entries
LARGEST_HEADER = 2**26  # bytes; 128,000 tokens with their merges take 8 million
ALIGNMENT, LARGEST_ALIGNMENT = 32, 2**20
MOST_DIMENSIONS, DEEPEST_ARRAY = 4, 3
LENGTH = struct.Struct("<Q")
STRING, ARRAY = 8, 9
# Metadata types that are one number, as NumPy names them.
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?"}
NUMBERS |= {10: "<u8", 11: "<i8", 12: "<f8"}
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


class TensorType(NamedTuple):
    """A row is made of blocks of `block` values, which take `size` bytes each."""

    name: str
    block: int
    size: int


TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1", 32, 40),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
}


class TensorInfo(NamedTuple):
    """A tensor's shape, slowest axis first as in torch, and where its bytes begin in the file."""

    shape: tuple[int, ...]
    type: TensorType
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self.type.block * self.type.size


@dataclass(frozen=True)
class GGUFFile:
    """A file's header. Arrays of numbers are NumPy's, of strings lists.

    What the methods return is None where the key is not there; they raise ValueError, naming file
    and key, for a value of another type.
    """

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def text(self, key: str) -> str | None:
        return self._typed(key, str, "a text")

    def flag(self, key: str) -> bool | None:
        return self._typed(key, bool, "true or false")

    def integer(self, key: str) -> int | None:
        return self._typed(key, int, "an integer")

    def number(self, key: str) -> float | None:
        value = self._typed(key, (int, float), "a number")
        return None if value is None else float(value)

    def texts(self, key: str) -> list[str] | None:
        value = self._typed(key, list, "a list of texts")
        if value and not isinstance(value[0], str):
            raise self.error(f"{key} is not a list of texts")
        return value

    def numbers(self, key: str) -> np.ndarray | None:
        return self._typed(key, np.ndarray, "a list of numbers")

    def _typed(self, key: str, kinds: Any, expected: str) -> Any:
        value = self.metadata.get(key)
        is_wrong_bool = isinstance(value, bool) and kinds is not bool
        if value is not None and (is_wrong_bool or not isinstance(value, kinds)):
            raise self.error(f"{key} is {str(value)[:40]!r}, not {expected}")
        return value

    def error(self, problem: str) -> ValueError:
        return ValueError(f"{self.path}: {problem}; {REMEDY}")

    @property
    def part(self) -> tuple[int, int]:
        """Which part of how many this file is, counted from 1; (1, 1) for a whole model."""
        number, count = self.integer("split.no") or 0, self.integer("split.count") or 1
        return number + 1, max(count, 1)


def is_gguf(start: bytes) -> bool:
    """Whether a file that begins so is a GGUF file."""
    return start.startswith(MAGIC)


def read_gguf(path: str | Path) -> GGUFFile:
    """The header of one file. Raises OSError, or ValueError of one line for what is damaged.

    It is kept until the file changes, since a command needs it several times.
    """
    path = Path(path)
    state = path.stat()
    return _read_once(path, state.st_ino, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _read_once(path: Path, *_: int) -> GGUFFile:
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(path, data)
    except (_HeaderError, struct.error) as error:
        raise ValueError(f"{path}: {error}; {REMEDY}") from None


def read_parts(path: str | Path) -> list[GGUFFile]:
    """The file, or all parts of the model whose first part it is. Raises OSError, ValueError."""
    path = Path(path)
    first = read_gguf(path)
    number, count = first.part
    if count == 1:
        return [first]
    named = PART.fullmatch(path.name)
    if number != 1:
        beginning = f"{named[1]}-00001-of-{named[3]}.gguf" if named else "the first part"
        raise ValueError(
            f"{path} is part {number} of {count} of a model: give the first, {beginning}"
        )
    if named is None or int(named[2]) != 1 or int(named[3]) != count:
        raise ValueError(
            f"{path} is the first of {count} parts, which are found by their names: rename it to "
            f"NAME-00001-of-{count:05}.gguf"
        )
    parts = [first]
    for other in range(2, count + 1):
        file = path.with_name(f"{named[1]}-{other:05}-of-{count:05}.gguf")
        if not file.is_file():
            raise FileNotFoundError(f"{file}, part {other} of {count}, is not there; {REMEDY}")
        parts.append(read_gguf(file))
        if parts[-1].part != (other, count):
            said = "part {} of {}".format(*parts[-1].part)
            raise ValueError(f"{file} says that it is {said}; {REMEDY}")
    _check_parts(parts)
    return parts


def _check_parts(parts: list[GGUFFile]) -> None:
    names = [name for part in parts for name in part.tensors]
    expected = parts[0].integer("split.tensors.count")
    if expected is not None and expected != len(names):
        raise parts[0].error(f"its parts hold {len(names)} tensors instead of {expected}")
    if len(set(names)) < len(names):
        again = next(name for name in names if names.count(name) > 1)
        raise parts[0].error(f"{again} is in two of its parts")


class _HeaderError(ValueError):
    """What is wrong, without the file's name."""


class _Cursor:
    """Reads a header front to back, never past its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place = data, 0
        self.end = min(len(data), LARGEST_HEADER)

    def take(self, count: int) -> bytes:
        self.require(count, 1)
        self.place += count
        return self.data[self.place - count : self.place]

    def require(self, count: int, size: int) -> None:
        """Raise unless `count` things of at least `size` bytes may follow."""
        if count * size <= self.end - self.place:
            return
        if self.end < len(self.data):
            raise _HeaderError(f"its header is larger than {LARGEST_HEADER} bytes, or damaged")
        raise _HeaderError(
            f"its header is truncated or damaged: {count * size} more bytes are announced after "
            f"byte {self.place}, and the file has {len(self.data)}"
        )

    def number(self, kind: str) -> Any:
        return np.frombuffer(self.take(np.dtype(kind).itemsize), kind)[0].item()

    def text(self) -> str:
        return self.take(LENGTH.unpack(self.take(LENGTH.size))[0]).decode(errors="replace")

    def texts(self, count: int) -> list[str]:
        """Many texts: as `text`, in half the time."""
        self.require(count, LENGTH.size)
        texts, data, place, end = [], self.data, self.place, self.end
        for _ in range(count):
            start = place + LENGTH.size
            if start > end:
                self.require(LENGTH.size, end)
            length = int.from_bytes(data[place:start], "little")
            place = start + length
            if place > end:
                self.place = start
                self.require(length, 1)
            texts.append(data[start:place].decode(errors="replace"))
        self.place = place
        return texts

    def value(self, kind: int, depth: int = 0) -> Any:
        """A metadata value of this type."""
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY or depth > DEEPEST_ARRAY:
            raise _HeaderError(f"its metadata has a value of type {kind}, which is unknown")
        inner, count = self.number("<u4"), self.number("<u8")
        if inner in NUMBERS:
            dtype = np.dtype(NUMBERS[inner])
            self.require(count, dtype.itemsize)
            return np.frombuffer(self.take(count * dtype.itemsize), dtype)
        if inner == STRING:
            return self.texts(count)
        self.require(count, LENGTH.size + 4)
        return [self.value(inner, depth + 1) for _ in range(count)]


def _read(path: Path, data: mmap.mmap) -> GGUFFile:
    cursor = _Cursor(data)
    magic, version, tensor_count, entry_count = HEADER.unpack(cursor.take(HEADER.size))
    if magic != MAGIC:
        raise _HeaderError("it is not a GGUF file")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        kind = f"{swapped}, big-endian" if swapped in VERSIONS else str(version)
        raise _HeaderError(f"it is of GGUF's version {kind}; 2 and 3, little-endian, are supported")
    cursor.require(entry_count, LENGTH.size + 4 + 1)
    metadata: dict[str, Any] = {}
    for _ in range(entry_count):
        key = cursor.text()
        if key in metadata:
            raise _HeaderError(f"its metadata has {key[:64]!r} twice")
        metadata[key] = cursor.value(cursor.number("<u4"))
    cursor.require(tensor_count, LENGTH.size + 4 + 8 + 4 + 8)
    infos = [_read_info(cursor) for _ in range(tensor_count)]
    start = _align(cursor.place, _alignment(metadata))
    tensors: dict[str, TensorInfo] = {}
    for name, info in infos:
        if name in tensors:
            raise _HeaderError(f"it has the tensor {name[:64]!r} twice")
        tensors[name] = info._replace(start=start + info.start)
    _check_places(tensors, start, _alignment(metadata), len(data))
    return GGUFFile(path, version, metadata, tensors)


def _align(place: int, alignment: int) -> int:
    return -(-place // alignment) * alignment


def _alignment(metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", ALIGNMENT)
    is_usable = type(alignment) is int and 8 <= alignment <= LARGEST_ALIGNMENT
    if not is_usable or alignment & (alignment - 1):
        raise _HeaderError(
            f"general.alignment is {str(alignment)[:20]}, not a power of 2 from 8 to "
            f"{LARGEST_ALIGNMENT}"
        )
    return alignment


def _read_info(cursor: _Cursor) -> tuple[str, TensorInfo]:
    """A tensor's name, and its info, with its place among the tensors' data."""
    name, dimensions = cursor.text(), cursor.number("<u4")
    shown = repr(name[:64])
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise _HeaderError(f"{shown} has {dimensions} dimensions, not 1 to {MOST_DIMENSIONS}")
    sizes = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions))
    number, start = struct.unpack("<IQ", cursor.take(12))
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        raise _HeaderError(f"{shown} is of type {number}, which is unknown")
    if 0 in sizes or math.prod(sizes) >= 2**63:
        raise _HeaderError(f"{shown} has the impossible shape {list(reversed(sizes))}")
    if sizes[0] % kind.block:
        raise _HeaderError(
            f"{shown} has rows of {sizes[0]} values, and {kind.name} has blocks of {kind.block}"
        )
    return name, TensorInfo(tuple(reversed(sizes)), kind, start)


def _check_places(
    tensors: dict[str, TensorInfo], start: int, alignment: int, file_bytes: int
) -> None:
    """Every tensor begins where it may, lies in the file, and shares no byte with another."""
    end = start
    for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
        shown = repr(name[:64])
        if info.start % alignment:
            raise _HeaderError(f"{shown} begins at byte {info.start}, no multiple of {alignment}")
        if info.start < end:
            raise _HeaderError(f"{shown} overlaps the tensor before it")
        end = info.start + info.nbytes
        if end > file_bytes:
            raise _HeaderError(
                f"it is truncated: {shown} ends at byte {end}, and the file has {file_bytes}"
            )


def count_types(parts: list[GGUFFile]) -> Iterator[tuple[str, int, int]]:
    """Of every type of tensor, the largest first: its name, how many there are, their bytes."""
    infos = [info for part in parts for info in part.tensors.values()]
    kinds = {info.type.name: [i for i in infos if i.type == info.type] for info in infos}
    sizes = {name: sum(info.nbytes for info in same) for name, same in kinds.items()}
    for name in sorted(kinds, key=lambda name: -sizes[name]):
        yield name, len(kinds[name]), sizes[name]
