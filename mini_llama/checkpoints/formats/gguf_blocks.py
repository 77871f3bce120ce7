"""GGUF's quantized types that are int8 times a float16 scale: 32 values a block (ggml-common.h)."""

from collections.abc import Callable

import torch

from mini_llama.gguf_file import TensorInfo
from mini_llama.layers.int8_blocks import Int8Blocks

SCALE_BYTES = 2


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """uint8 (N, G, 16) → (N, G, 32): all low halves, then all high ones."""
    return torch.cat((packed & 15, packed >> 4), dim=-1)


def _q4_0(block: torch.Tensor) -> torch.Tensor:
    return _nibbles(block).to(torch.int8) - 8


def _q5_0(block: torch.Tensor) -> torch.Tensor:
    """A fifth bit of each value stands in front, in 4 bytes, the first value's lowest."""
    bits = block[..., :4, None] >> torch.arange(8, dtype=torch.uint8) & 1  # (N, G, 4, 8)
    return (_nibbles(block[..., 4:]) + 16 * bits.flatten(-2)).to(torch.int8) - 16


# The bytes (N, G, …) after the scale → int8 (N, G, 32).
INTEGERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Q8_0": lambda block: block.view(torch.int8),
    "Q4_0": _q4_0,
    "Q5_0": _q5_0,
}


def is_int8_blocks(info: TensorInfo) -> bool:
    return info.type.name in INTEGERS and len(info.shape) == 2


def read_blocks(raw: torch.Tensor, info: TensorInfo) -> Int8Blocks:
    """Copies of the integers and the scales in a tensor's bytes; for is_int8_blocks."""
    blocks = raw.view(info.shape[0], -1, info.type.size)  # (N, G, size)
    scales = blocks[..., :SCALE_BYTES].contiguous().view(torch.float16)[..., 0]
    values = INTEGERS[info.type.name](blocks[..., SCALE_BYTES:])
    return Int8Blocks(values.reshape(info.shape).contiguous(), scales)
