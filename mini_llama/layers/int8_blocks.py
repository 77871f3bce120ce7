"""Linear layers with a file's own int8 weights, which have a scale for each block of a row.

GGUF's Q8_0, Q4_0 and Q5_0 are such (llama.cpp), and llama2.c's version 2. Quantizing them again, by
whole rows, would lose what the file has; here the integers and the scales stay, to the bit.

PyTorch multiplies no int8 blocks, but blocks of 4-bit integers u: (u - 8) · scale + zero. A byte is
two of these, 16 · high + low, so a row of K integers is multiplied as a row of 2K halves.

Shapes: K inputs, N outputs, G blocks of a row (K = G · size), M rows of x.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from mini_llama.eager import is_eager
from mini_llama.layers.linear import linear
from mini_llama.layers.quantized_linear import (
    BLOCK_WEIGHTS,
    FEW_ROWS,
    QuantizedLinear,
    check_finite,
)

SIZES = (32, 64, 128, 256)  # those that PyTorch's product has
PANEL = 64  # rows whose packed weights lie together


class Int8Blocks(NamedTuple):
    """A matrix: int8 `values` (N, K), and `scales` (N, G) in the file's own dtype."""

    values: torch.Tensor
    scales: torch.Tensor

    @property
    def size(self) -> int:
        return self.values.shape[1] // self.scales.shape[1]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Value times scale, computed in float32: (N, K)."""
        grouped = self.values.view(*self.scales.shape, self.size)
        return (grouped * self.scales.float()[..., None]).to(dtype).view(self.values.shape)


def _pack(nibbles: torch.Tensor) -> torch.Tensor:
    """Unsigned 4-bit integers (N, K), N whole panels → uint8 (N, K/2), in the product's layout."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles.int().contiguous(), 1)


@functools.cache
def _layout() -> tuple[int, torch.Tensor]:
    """How this processor's layout has a panel: the rows whose halves share a column of bytes, and
    in which of its nibbles, all low ones before all high ones, each row stands.
    """
    rows = torch.arange(PANEL)[:, None].expand(PANEL, 2)
    ones, sixteens = (_pack(digit).flatten() for digit in (rows % 16, rows // 16))
    low, high = ((ones >> bits & 15) + 16 * (sixteens >> bits & 15) for bits in (0, 4))
    count = 32 if low[:16].equal(low[16:32]) else PANEL
    return count, torch.cat((low[: count // 2], high[: count // 2])).argsort()


def _unpack(packed: torch.Tensor, columns: int) -> torch.Tensor:
    """The inverse of _pack: uint8 (N, columns)."""
    count, order = _layout()
    bytes_ = packed.view(-1, columns, count // 2)  # (N/count, columns, count/2)
    nibbles = torch.cat((bytes_ & 15, bytes_ >> 4), dim=-1)[..., order]
    return nibbles.transpose(1, 2).reshape(-1, columns)


def _halves(values: torch.Tensor) -> torch.Tensor:
    """int8 (N, K) → (N, 2K) from 0 to 15: all high halves, raised by 8, before all low ones."""
    return torch.cat(((values >> 4) + 8, values & 15), dim=-1)


def _joined(halves: torch.Tensor) -> torch.Tensor:
    """The inverse of _halves."""
    high, low = halves.to(torch.int8).chunk(2, dim=-1)
    return ((high - 8) << 4) + low


class Packed(nn.Module):
    """Blocks in the layout in which PyTorch multiplies them; it takes bfloat16, and returns it."""

    nibbles: torch.Tensor
    factors: torch.Tensor

    def __init__(self, blocks: Int8Blocks) -> None:
        super().__init__()
        (self.out_features, self.columns), self.size = blocks.values.shape, blocks.size
        self.step = max(PANEL, BLOCK_WEIGHTS // self.columns // PANEL * PANEL)
        missing = -self.out_features % PANEL
        parts = [
            _pack(F.pad(_halves(part), (0, 0, 0, -len(part) % PANEL)))
            for part in blocks.values.split(self.step)
        ]
        self.register_buffer("nibbles", torch.cat(parts))
        scales = F.pad(blocks.scales.float(), (0, 0, 0, missing)).T.bfloat16()  # (G, N)
        high = torch.stack((16 * scales, torch.zeros_like(scales)), dim=-1)
        low = torch.stack((scales, 8 * scales), dim=-1)
        self.register_buffer("factors", torch.cat((high, low)))  # (2G, N, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (M, K) → (M, N)."""
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(
            torch.cat((x, x), dim=-1), self.nibbles, self.size, self.factors
        )
        return product[:, : self.out_features]

    def values(self) -> torch.Tensor:
        """The int8 weights (N, K), as they were packed."""
        parts = [_joined(_unpack(part, 2 * self.columns)) for part in self.nibbles.split(self.step)]
        return torch.cat(parts)[: self.out_features]


@functools.cache
def can_pack_blocks() -> bool:
    """Whether this processor has the product above, a private function, and it is right."""
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        return False  # there it is hundreds of times slower
    with torch.inference_mode(False), torch.device("cpu"):
        values = (torch.arange(70 * 64) % 255 - 127).to(torch.int8).view(70, 64)
        scales = 2.0 ** -(torch.arange(140) % 5).view(70, 2)
        blocks, x = Int8Blocks(values, scales), torch.eye(64)[:3].bfloat16()
        try:
            packed = Packed(blocks)
            is_right = torch.equal(packed(x).float(), blocks.dequantize()[:, :3].T)
            return is_right and torch.equal(packed.values(), values)
        except (AttributeError, RuntimeError):
            return False


def can_keep(blocks: Int8Blocks) -> bool:
    """Whether a layer of these blocks is as fast as one of quantized rows."""
    return blocks.size in SIZES and can_pack_blocks()


class Int8BlockLinear(QuantizedLinear):
    """A file's int8 weights with its scales, multiplied in x's dtype, a part dequantized at a time.

    After `pack`, a few rows on a CPU are multiplied in bfloat16, scales included, by PyTorch's own
    product; the layout holds the same integers, a quarter of their bytes larger.
    """

    values: torch.Tensor | None
    scales: torch.Tensor
    packed: Packed | None

    def __init__(self, blocks: Int8Blocks) -> None:
        super().__init__(*blocks.values.shape)
        check_finite(blocks.scales)
        self.step = max(1, BLOCK_WEIGHTS // self.in_features)
        self.register_buffer("values", blocks.values)
        self.register_buffer("scales", blocks.scales)
        self.packed = None

    @property
    def weight(self) -> torch.Tensor:
        """int8 (N, K)."""
        if self.packed is not None:
            return self.packed.values()
        assert self.values is not None
        return self.values

    @property
    def blocks(self) -> Int8Blocks:
        return Int8Blocks(self.weight, self.scales)

    def pack(self) -> None:
        """Change to the layout for a few rows on a CPU; needs `can_keep`."""
        if self.packed is None and self.scales.device.type == "cpu":
            self.packed, self.values = Packed(self.blocks), None

    def product(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        if self.packed is not None and len(rows) <= FEW_ROWS and is_eager(x):
            product = self.packed(rows.bfloat16())
            return product.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return torch.cat([linear(x, part) for part in self._dequantized(x.dtype)], dim=-1)

    def few_rows(self, x: torch.Tensor) -> torch.Tensor:
        return self.packed(x) if self.packed is not None and is_eager() else self.product(x)

    def _dequantized(self, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        values, scales = self.blocks
        for parts in zip(values.split(self.step), scales.split(self.step), strict=True):
            yield Int8Blocks(*parts).dequantize(dtype)


def describe_kept(model: nn.Module) -> str:
    """ "211 of 211 matrices as in the file, integers and scales", or nothing if none is."""
    layers: list[Any] = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    kept = sum(isinstance(layer, Int8BlockLinear) for layer in layers)
    total = len(layers)
    return f"{kept} of {total} matrices as in the file, integers and scales" if kept else ""
