"""Linear layers with a file's own integer weights, which have a scale for each block of a row.

GGUF's Q8_0, Q5_0 and Q4_0 are such (llama.cpp), and llama2.c's version 2; Q5_1 and Q4_1 have a
minimum besides. Quantizing them again, by whole rows, would lose what the file has; here integers
and scales stay, to the bit.

PyTorch multiplies no int8 blocks, but blocks of 4-bit integers u: (u - 8) · scale + zero. A byte is
two of these, 16 · high + low, so a row of K integers is multiplied as a row of 2K halves; what has
4 bits in the file is multiplied as it is.

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
    Product,
    QuantizedLinear,
    check_finite,
)

SIZES = (32, 64, 128, 256)  # those that PyTorch's product has
PANEL = 64  # rows whose packed weights lie together


class Int8Blocks(NamedTuple):
    """A matrix: int8 `values` (N, K), and `scales` (N, G) in the file's own dtype.

    With `minima` (N, G), which are added, values are not negative. `bits` are 4 where values are
    from 0 to 15, or without minima from -8 to 7.
    """

    values: torch.Tensor
    scales: torch.Tensor
    minima: torch.Tensor | None = None
    bits: int = 8

    @property
    def size(self) -> int:
        return self.values.shape[1] // self.scales.shape[1]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Value times scale, plus the minimum, computed in float32: (N, K)."""
        grouped = self.values.view(*self.scales.shape, self.size)
        weight = grouped * self.scales.float()[..., None]
        if self.minima is not None:
            weight += self.minima.float()[..., None]
        return weight.to(dtype).view(self.values.shape)


def _pack(nibbles: torch.Tensor) -> torch.Tensor:
    """Unsigned 4-bit integers (N, K), N whole panels → uint8 (N, K/2), in the product's layout."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles.int().contiguous(), 1)


@functools.cache
def _rows_together() -> int:
    """The rows whose bytes lie together: the first half of them in low nibbles, the other in high
    ones. 64 with AVX-512, 32 with AVX2; can_pack_blocks refuses what is otherwise.
    """
    packed = _pack(torch.arange(PANEL)[:, None].expand(PANEL, 2) // 16).flatten()
    return 32 if packed[:16].equal(packed[16:32]) else PANEL


def _unpack(packed: torch.Tensor, columns: int) -> torch.Tensor:
    """The inverse of _pack, of rows that lie together: int8 (N/rows, columns, rows)."""
    bytes_ = packed.view(torch.int8).view(-1, columns, _rows_together() // 2)
    return torch.cat((bytes_ & 15, bytes_ >> 4 & 15), dim=-1)


def _halves(values: torch.Tensor) -> torch.Tensor:
    """int8 (N, K) → (N, 2K) from 0 to 15: all high halves, raised by 8, before all low ones."""
    return torch.cat(((values >> 4) + 8, values & 15), dim=-1)


def _joined(halves: torch.Tensor) -> torch.Tensor:
    """The inverse of _halves, where columns are the second axis."""
    high, low = halves.chunk(2, dim=1)
    return ((high - 8) << 4) + low


class Packed(nn.Module):
    """Blocks in the layout in which PyTorch multiplies them; it takes bfloat16, and returns it."""

    nibbles: torch.Tensor
    factors: torch.Tensor

    def __init__(self, blocks: Int8Blocks) -> None:
        super().__init__()
        (self.out_features, self.columns), self.size = blocks.values.shape, blocks.size
        self.bits, self.lowest = blocks.bits, 0 if blocks.minima is not None else -8
        self.step = max(PANEL, BLOCK_WEIGHTS // self.columns // PANEL * PANEL)
        parts = [
            _pack(F.pad(self._nibbles(part), (0, 0, 0, -len(part) % PANEL)))
            for part in blocks.values.split(self.step)
        ]
        self.register_buffer("nibbles", torch.cat(parts))
        self.register_buffer("factors", self._factors(blocks))

    def _factors(self, blocks: Int8Blocks) -> torch.Tensor:
        """Scale and zero of each block: (G, N, 2), or (2G, N, 2) of halves."""
        missing = (0, 0, 0, -self.out_features % PANEL)
        scales = F.pad(blocks.scales.float(), missing).T.bfloat16()  # (G, N)
        zeros = (8 + self.lowest) * scales if self.bits == 4 else 8 * scales
        if blocks.minima is not None:
            zeros = (8 * scales.float() + F.pad(blocks.minima.float(), missing).T).bfloat16()
        factors = torch.stack((scales, zeros), dim=-1)
        if self.bits == 4:
            return factors
        return torch.cat((torch.stack((16 * scales, torch.zeros_like(scales)), dim=-1), factors))

    def _nibbles(self, values: torch.Tensor) -> torch.Tensor:
        return values - self.lowest if self.bits == 4 else _halves(values)

    def product(self) -> Product:
        """bfloat16 x (M, K) → (M, N), as a function that asks the module for nothing."""
        nibbles, factors, size = self.nibbles, self.factors, self.size
        out_features, is_whole = self.out_features, self.out_features % PANEL == 0
        has_halves = self.bits != 4

        def multiply(x: torch.Tensor) -> torch.Tensor:
            x = torch.cat((x, x), dim=-1) if has_halves else x
            product = torch._weight_int4pack_mm_for_cpu(x, nibbles, size, factors)
            return product if is_whole else product[:, :out_features]

        return multiply

    def values(self) -> torch.Tensor:
        """The int8 weights (N, K), as they were packed."""
        columns = self.columns if self.bits == 4 else 2 * self.columns
        values = []
        for part in self.nibbles.split(self.step):
            nibbles = _unpack(part, columns)
            joined = nibbles + self.lowest if self.bits == 4 else _joined(nibbles)
            values.append(joined.transpose(1, 2).reshape(-1, self.columns))
        return torch.cat(values)[: self.out_features]


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
            is_right = torch.equal(packed.product()(x).float(), blocks.dequantize()[:, :3].T)
            return is_right and torch.equal(packed.values(), values)
        except (AttributeError, RuntimeError):
            return False


def can_keep(blocks: Int8Blocks) -> bool:
    """Whether a layer of these blocks is as fast as one of quantized rows."""
    return blocks.size in SIZES and can_pack_blocks()


class Int8BlockLinear(QuantizedLinear):
    """A file's integer weights with its scales, multiplied in x's dtype, a part dequantized at a
    time.

    After `pack`, a few rows on a CPU are multiplied in bfloat16, scales included, by PyTorch's own
    product; the layout holds the same integers, in 4 bits where they have no more.
    """

    values: torch.Tensor | None
    scales: torch.Tensor
    minima: torch.Tensor | None
    packed: Packed | None

    def __init__(self, blocks: Int8Blocks) -> None:
        super().__init__(*blocks.values.shape)
        check_finite(blocks.scales)
        if blocks.minima is not None:
            check_finite(blocks.minima)
        self.step = max(1, BLOCK_WEIGHTS // self.in_features)
        self.register_buffer("values", blocks.values)
        self.register_buffer("scales", blocks.scales)
        self.register_buffer("minima", blocks.minima)
        self.bits = blocks.bits
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
        return Int8Blocks(self.weight, self.scales, self.minima, self.bits)

    def pack(self) -> None:
        """Change to the layout for a few rows on a CPU; needs `can_keep`."""
        if self.packed is None and self.scales.device.type == "cpu":
            self.packed, self.values = Packed(self.blocks), None

    def product(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        if self.packed is not None and len(rows) <= FEW_ROWS and is_eager(x):
            product = self.packed.product()(rows.bfloat16())
            return product.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return torch.cat([linear(x, part) for part in self._dequantized(x.dtype)], dim=-1)

    def few_rows_product(self) -> Product:
        return self.product if self.packed is None else self.packed.product()

    def _dequantized(self, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        values, scales, minima, _ = self.blocks
        for start in range(0, self.out_features, self.step):
            rows = slice(start, start + self.step)
            some = None if minima is None else minima[rows]
            yield Int8Blocks(values[rows], scales[rows], some).dequantize(dtype)


def describe_kept(model: nn.Module) -> str:
    """ "211 of 211 matrices as in the file, integers and scales", or nothing if none is."""
    layers: list[Any] = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    kept = sum(isinstance(layer, Int8BlockLinear) for layer in layers)
    total = len(layers)
    return f"{kept} of {total} matrices as in the file, integers and scales" if kept else ""
