"""GGUF's quantized types that are integers times a float16 scale, and in some plus a float16
minimum: 32 values a block (ggml-common.h).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from mini_llama.gguf_file import TensorInfo
from mini_llama.layers.int8_blocks import Int8Blocks

HALF = 2  # bytes of a scale or a minimum


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """uint8 (N, G, 16) → int8 (N, G, 32): all low halves, then all high ones."""
    return torch.cat((packed & 15, packed >> 4), dim=-1).to(torch.int8)


def _five_bits(block: torch.Tensor) -> torch.Tensor:
    """Each value's fifth bit stands before the others: 4 bytes, the first value's lowest."""
    bits = block[..., :4, None] >> torch.arange(8, dtype=torch.uint8) & 1  # (N, G, 4, 8)
    return _nibbles(block[..., 4:]) + 16 * bits.flatten(-2).to(torch.int8)


class Kind(NamedTuple):
    """`integers`: the bytes (N, G, …) after the numbers in float16 → int8 (N, G, 32)."""

    integers: Callable[[torch.Tensor], torch.Tensor]
    has_minima: bool = False
    bits: int = 8


KINDS = {
    "Q8_0": Kind(lambda block: block.view(torch.int8)),
    "Q5_0": Kind(lambda block: _five_bits(block) - 16),
    "Q5_1": Kind(_five_bits, has_minima=True),
    "Q4_0": Kind(lambda block: _nibbles(block) - 8, bits=4),
    "Q4_1": Kind(_nibbles, has_minima=True, bits=4),
}


def is_int8_blocks(info: TensorInfo) -> bool:
    return info.type.name in KINDS and len(info.shape) == 2


def read_blocks(raw: torch.Tensor, info: TensorInfo) -> Int8Blocks:
    """Copies of the integers and the scales in a tensor's bytes; for is_int8_blocks."""
    kind = KINDS[info.type.name]
    blocks = raw.view(info.shape[0], -1, info.type.size)  # (N, G, size)
    count = 1 + kind.has_minima
    floats = blocks[..., : count * HALF].contiguous().view(torch.float16)  # (N, G, 1 or 2)
    values = kind.integers(blocks[..., count * HALF :]).reshape(info.shape).contiguous()
    minima = floats[..., 1].contiguous() if kind.has_minima else None
    return Int8Blocks(values, floats[..., 0].contiguous(), minima, kind.bits)
