"""Layers of a file's own int8 blocks against float64 products, and the integers after packing."""

import pytest
import torch

from mini_llama.layers import int8_blocks
from mini_llama.layers.int8_blocks import Int8BlockLinear, Int8Blocks, can_keep, can_pack_blocks
from mini_llama.layers.quantized_linear import FEW_ROWS
from tests.helpers import assert_relative
from tests.layers.test_quantized_linear import BFLOAT16

needs_packing = pytest.mark.skipif(
    not can_pack_blocks(), reason="this processor has no product of 4-bit blocks"
)


# Lowest and highest integer, whether there are minima, bits.
RANGES = [(-128, 127, False, 8), (0, 31, True, 8), (-8, 7, False, 4), (0, 15, True, 4)]


def make_blocks(
    out: int, columns: int, size: int, dtype: torch.dtype, kind: tuple = RANGES[0]
) -> Int8Blocks:
    lowest, highest, has_minima, bits = kind
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(lowest, highest + 1, (out, columns), generator=generator)
    scales = torch.rand(out, columns // size, generator=generator) + 0.1
    minima = None
    if has_minima:
        middle = (lowest + highest) / 2
        minima = (-middle * scales + torch.randn(scales.shape, generator=generator)).to(dtype)
    return Int8Blocks(values.to(torch.int8), scales.to(dtype), minima, bits)


def by_hand(blocks: Int8Blocks) -> torch.Tensor:
    def widened(numbers: torch.Tensor) -> torch.Tensor:
        return numbers.double().repeat_interleave(blocks.size, dim=1)

    weight = blocks.values.double() * widened(blocks.scales)
    return weight if blocks.minima is None else weight + widened(blocks.minima)


SHAPES = [(64, 32, 32), (70, 96, 32), (5, 256, 128), (200, 64, 64), (130, 512, 256)]


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize(("out", "columns", "size"), SHAPES)
@pytest.mark.parametrize("kind", RANGES, ids=str)
def test_products_before_and_after_packing(
    out: int, columns: int, size: int, rows: int, kind: tuple
):
    """In float32; a few rows in bfloat16, once the layer is packed."""
    dtype = torch.float16 if size == 32 else torch.float32
    blocks = make_blocks(out, columns, size, dtype, kind)
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    layer, expected = Int8BlockLinear(blocks), x.double() @ by_hand(blocks).T
    assert_relative(layer(x), expected, 1e-6)
    assert_relative(layer.blocks.dequantize(), by_hand(blocks), 1e-6)
    if not can_keep(blocks):
        return
    layer.pack()
    assert layer.values is None and torch.equal(layer.weight, blocks.values)
    # Scales and minima are in bfloat16 as well.
    assert_relative(layer(x), expected, 2 * BFLOAT16 if rows <= FEW_ROWS else 1e-6)
    assert_relative(layer(x.view(1, rows, columns))[0], layer(x), 0)
    assert layer(x.bfloat16()).dtype == torch.bfloat16


@needs_packing
def test_a_large_matrix_is_packed_in_parts(monkeypatch: pytest.MonkeyPatch):
    blocks = make_blocks(300, 64, 32, torch.float16)
    whole = int8_blocks.Packed(blocks)
    monkeypatch.setattr(int8_blocks, "BLOCK_WEIGHTS", 70 * 64)
    parts, layer = int8_blocks.Packed(blocks), Int8BlockLinear(blocks)
    assert parts.step == 64 < whole.step and layer.step == 70
    assert torch.equal(parts.nibbles, whole.nibbles) and torch.equal(parts.factors, whole.factors)
    x = torch.randn(FEW_ROWS + 1, 64, generator=torch.Generator().manual_seed(1))
    assert_relative(layer(x), x.double() @ by_hand(blocks).T, 1e-6)
    layer.pack()
    assert torch.equal(layer.weight, blocks.values)


def test_other_sizes_of_blocks_are_not_kept():
    assert not can_keep(make_blocks(64, 64, 16, torch.float32))
    assert can_keep(make_blocks(64, 64, 32, torch.float32)) == can_pack_blocks()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["scales", "minima"])
def test_what_is_no_number_is_refused(bad: float, part: str):
    blocks = make_blocks(4, 64, 32, torch.float16, RANGES[-1])
    getattr(blocks, part)[2, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        Int8BlockLinear(blocks)


def test_no_gradient_passes_through():
    layer = Int8BlockLinear(make_blocks(4, 64, 32, torch.float16))
    assert not list(layer.parameters())
    with pytest.raises(ValueError, match="cannot be trained through"):
        layer(torch.ones(2, 64, requires_grad=True))
