"""What a SentencePiece model's file says beyond what its library tells: the protocol buffer that it
is, read field by field (github.com/google/sentencepiece, sentencepiece_model.proto).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
PIECES, TRAINER, NORMALIZER = 1, 2, 3
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # how a field is written


@dataclass
class SentencePieceFile:
    """Pieces as (text, score, type); the normaliser's rules, and its map of characters if any."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    model_type: int = UNIGRAM
    byte_fallback: bool = False
    space_is_suffix: bool = False
    normalizer: str = ""
    characters: bytes = b""
    adds_prefix: bool = True
    joins_spaces: bool = True
    escapes_spaces: bool = True


def parse(data: bytes) -> SentencePieceFile:
    """A file that the library has read."""
    content = SentencePieceFile()
    for number, value in _fields(data):
        if number == PIECES:
            content.pieces.append(_piece(value))
        elif number == TRAINER:
            spec = dict(_fields(value))
            content.model_type = spec.get(3, content.model_type)
            content.space_is_suffix = bool(spec.get(24, False))
            content.byte_fallback = bool(spec.get(35, False))
        elif number == NORMALIZER:
            spec = dict(_fields(value))
            content.normalizer = spec.get(1, b"").decode()
            content.characters = spec.get(2, b"")
            content.adds_prefix = bool(spec.get(3, True))
            content.joins_spaces = bool(spec.get(4, True))
            content.escapes_spaces = bool(spec.get(5, True))
    return content


def _piece(data: bytes) -> tuple[str, float, int]:
    spec = dict(_fields(data))
    score = struct.unpack("<f", spec.get(2, bytes(4)))[0]
    return spec.get(1, b"").decode(), score, spec.get(3, NORMAL)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int, or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        length = {FIXED64: 8, FIXED32: 4}.get(kind)
        if length is None:
            length, at = _varint(data, at)
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first; and where the next field begins."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
