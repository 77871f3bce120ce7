"""Quantized layers against float64 products with weights that were quantized by hand."""

import importlib.util
import logging
import sys

import numpy as np
import pytest
import torch

from config import QUANTIZATIONS
from lora import apply_lora
from mini_llama.layers.quantized_linear import (
    FEW_ROWS,
    KINDS,
    Int8Linear,
    NF4Linear,
    QuantizedLinear,
    import_bitsandbytes,
)
from tests.helpers import assert_relative, random_llama, tiny_config

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes"
)
# QLoRA, appendix E.
NF4 = """-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635
-0.18477343022823334 -0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725
0.24611230194568634 0.33791524171829224 0.44070982933044434 0.5626170039176941 0.7229568362236023
1.0"""
# bfloat16 has 8 bits; 4-bit scales are in 8 bits themselves, besides.
BFLOAT16, DOUBLE = 0.01, 0.03


def make(rows: int, columns: int, out: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=generator)
    return x, torch.randn(out, columns, generator=generator)


def int8_by_hand(weight: np.ndarray) -> np.ndarray:
    """Each row in steps of a 127th of its largest magnitude, in float64."""
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    return np.round(weight / step) * step


def nf4_by_hand(weight: np.ndarray) -> np.ndarray:
    """Each 64 values of a row to the nearest of 16, times their largest magnitude, in float64."""
    values = np.array([float(text) for text in NF4.split()])
    rounded = []
    for groups in np.split(weight, range(64, weight.shape[1], 64), axis=1):
        largest = np.abs(groups).max(axis=1, keepdims=True)
        nearest = np.abs((groups / largest)[..., None] - values).argmin(axis=-1)
        rounded.append(values[nearest] * largest)
    return np.concatenate(rounded, axis=1)


@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize(("columns", "out"), [(8, 1), (33, 5), (64, 64), (100, 7)])
def test_int8_products_of_any_shape(rows: int, columns: int, out: int):
    x, weight = make(rows, columns, out)
    expected = x.double().numpy() @ int8_by_hand(weight.double().numpy()).T
    layer = Int8Linear(weight)
    assert layer.weight.shape == (out, columns) and layer.weight.dtype == torch.int8
    assert layer(x).dtype == torch.float32
    assert_relative(layer(x), expected, BFLOAT16 if rows <= FEW_ROWS else 1e-5)
    assert_relative(layer(x.view(1, rows, columns))[0], layer(x), 0)


def test_int8_in_blocks_equals_int8_at_once(monkeypatch: pytest.MonkeyPatch):
    x, weight = make(100, 40, 30)
    whole = Int8Linear(weight)
    monkeypatch.setattr("mini_llama.layers.quantized_linear.BLOCK_WEIGHTS", 7 * 64)
    parts = Int8Linear(weight)
    assert parts.block == 7
    assert torch.equal(parts.weight, whole.weight) and torch.equal(parts.scales, whole.scales)
    assert_relative(parts(x), whole(x), 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_int8_keeps_the_inputs_dtype(dtype: torch.dtype):
    """What would overflow as a sum of whole numbers does not: 65504 is float16's largest."""
    x, weight = make(FEW_ROWS + 2, 64, 8)
    x = 20 * x.to(dtype)
    result = Int8Linear(weight.to(dtype))(x)
    assert result.dtype == dtype
    exact = x.double().numpy() @ int8_by_hand(weight.to(dtype).double().numpy()).T
    assert_relative(result, exact, 0.01)


@needs_bitsandbytes
@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize(("columns", "out"), [(64, 32), (256, 64), (64, 5), (16, 12), (100, 32)])
def test_nf4_products(rows: int, columns: int, out: int):
    x, weight = make(rows, columns, out)
    expected = x.double().numpy() @ nf4_by_hand(weight.double().numpy()).T
    layer = NF4Linear(weight).eval()
    assert layer(x).dtype == torch.float32
    assert_relative(layer(x), expected, DOUBLE)


@needs_bitsandbytes
def test_importing_bitsandbytes_is_quiet(capfd: pytest.CaptureFixture):
    import_bitsandbytes()
    assert logging.getLogger("bitsandbytes.backends.cpu.ops").level == logging.ERROR
    assert capfd.readouterr() == ("", "")


def test_without_bitsandbytes_it_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # importing it is then an ImportError
    message = (
        "nf4 quantization needs bitsandbytes, which is not installed: "
        "bash setup.sh --extra, or pip install bitsandbytes"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        NF4Linear(torch.ones(32, 64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_refused(bad: float):
    weight = torch.ones(4, 8)
    weight[2, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        Int8Linear(weight)


def test_no_gradient_passes_through():
    layer = Int8Linear(torch.ones(4, 8))
    assert isinstance(layer, QuantizedLinear) and not list(layer.parameters())
    x = torch.ones(2, 8, requires_grad=True)
    with pytest.raises(ValueError, match="cannot be trained through: load the model without quant"):
        layer(x)
    with torch.no_grad():
        assert layer(x).shape == (2, 4)


def test_the_command_line_knows_all_kinds():
    assert tuple(KINDS) == QUANTIZATIONS


def test_lora_says_why_it_finds_no_layer():
    llama = random_llama(tiny_config())
    for name, module in list(llama.named_modules()):
        if isinstance(module, torch.nn.Linear):
            llama.set_submodule(name, Int8Linear(module.weight))
    with pytest.raises(ValueError, match="are none, or quantized ones, which cannot be trained"):
        apply_lora(llama)
