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


def make_blocks(out: int, columns: int, size: int, dtype: torch.dtype) -> Int8Blocks:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-128, 128, (out, columns), generator=generator, dtype=torch.int8)
    scales = torch.rand(out, columns // size, generator=generator) + 0.1
    return Int8Blocks(values, scales.to(dtype))


def by_hand(blocks: Int8Blocks) -> torch.Tensor:
    scales = blocks.scales.double().repeat_interleave(blocks.size, dim=1)
    return blocks.values.double() * scales


SHAPES = [(64, 32, 32), (70, 96, 32), (5, 256, 128), (200, 64, 64), (130, 512, 256)]


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize(("out", "columns", "size"), SHAPES)
def test_products_before_and_after_packing(out: int, columns: int, size: int, rows: int):
    """In float32; a few rows in bfloat16, once the layer is packed."""
    dtype = torch.float16 if size == 32 else torch.float32
    blocks = make_blocks(out, columns, size, dtype)
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    layer, expected = Int8BlockLinear(blocks), x.double() @ by_hand(blocks).T
    assert_relative(layer(x), expected, 1e-6)
    assert torch.equal(layer.blocks.dequantize().double(), by_hand(blocks).float().double())
    if not can_keep(blocks):
        return
    layer.pack()
    assert layer.values is None and torch.equal(layer.weight, blocks.values)
    assert_relative(layer(x), expected, BFLOAT16 if rows <= FEW_ROWS else 1e-6)
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
def test_what_is_no_number_is_refused(bad: float):
    blocks = make_blocks(4, 64, 32, torch.float16)
    blocks.scales[2, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        Int8BlockLinear(blocks)


def test_no_gradient_passes_through():
    layer = Int8BlockLinear(make_blocks(4, 64, 32, torch.float16))
    assert not list(layer.parameters())
    with pytest.raises(ValueError, match="cannot be trained through"):
        layer(torch.ones(2, 64, requires_grad=True))
