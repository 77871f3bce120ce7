"""Linear layers whose weights are quantized to 8 or 4 bits, for inference only.

`Int8Linear` is ours: a scale for each row, weights only (LLM.int8, Dettmers et al. 2022, section
2.1). `NF4Linear` is bitsandbytes' layer: 4 bits on the quantiles of a normal distribution, a scale
for 64 weights (QLoRA, Dettmers et al. 2023, section 3). Both work on a CPU and on CUDA.

Shapes: K inputs, N outputs.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mini_llama.eager import has_tangent, is_eager
from mini_llama.layers.linear import add_bias, linear, quantize_rows
from mini_llama.optional_imports import import_optional

BLOCK_WEIGHTS = 2**22  # quantized or dequantized at a time
FEW_ROWS = 64  # up to this many, PyTorch's int8 product is faster than dequantizing
# In bitsandbytes: the weights that share a scale, and the rows in a block of its layout for a CPU.
NF4_GROUP, NF4_ROWS = 64, 32
Product = Callable[[torch.Tensor], torch.Tensor]
LOGGER = "bitsandbytes.backends.cpu.ops"


def _pad(x: torch.Tensor, columns: int) -> torch.Tensor:
    return F.pad(x, (0, columns)) if columns else x  # F.pad copies in any case


def check_finite(weight: torch.Tensor) -> None:
    """Raise ValueError for weights that are infinite or not a number."""
    if not torch.stack(torch.aminmax(weight.detach())).float().isfinite().all():
        raise ValueError("it holds NaN or infinity, which quantized weights cannot")


class QuantizedLinear(nn.Module):
    """x (…, K) times a quantized weight (N, K) transposed, plus a bias: (…, N), in x's dtype.

    The bias, None unless it is set, is not quantized. There are no gradients.
    """

    bias: nn.Parameter | None

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Raises ValueError if x needs a gradient, or has a forward-mode tangent."""
        if (torch.is_grad_enabled() and x.requires_grad) or has_tangent(x):
            raise ValueError(
                "quantized weights cannot be trained through: load the model without quantize"
            )
        return add_bias(self.product(x), self.bias)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """What `forward` returns, without its check and the bias."""
        raise NotImplementedError

    def few_rows_product(self) -> Product:
        """`product` of rows (M, K) in bfloat16, at most FEW_ROWS, as a function that asks nothing.

        It is valid as long as the layer is neither changed nor moved.
        """
        return self.product


class Int8Linear(QuantizedLinear):
    """int8 weights with a float32 scale for each row (linear.quantize_rows).

    A few rows on a CPU are multiplied in bfloat16, by PyTorch's own int8 product; many, or on
    another device, in x's dtype, with the weights dequantized one block at a time. `weight` itself
    is not kept. Raises ValueError as check_finite does.
    """

    padded: torch.Tensor
    scales: torch.Tensor
    bfloat16_scales: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(*weight.shape)
        check_finite(weight)
        # PyTorch's product reads 32 columns at a time without a check, so past the end of a row.
        columns = -(-self.in_features // 32) * 32
        padded = weight.new_zeros(self.out_features, columns, dtype=torch.int8)
        scales = weight.new_empty(self.out_features, dtype=torch.float32)
        self.block = max(1, BLOCK_WEIGHTS // columns)
        for start in range(0, self.out_features, self.block):
            rows = slice(start, start + self.block)
            padded[rows, : self.in_features], scales[rows] = quantize_rows(weight.detach()[rows])
        self.register_buffer("padded", padded)
        self.register_buffer("scales", scales)
        self.register_buffer("bfloat16_scales", scales.bfloat16())

    @property
    def weight(self) -> torch.Tensor:
        """int8 (N, K), a view."""
        return self.padded[:, : self.in_features]

    def product(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        # An exporter would fix the number of rows, and FlopCounterMode counts what it knows.
        is_open = not is_eager(x) and (
            not torch.compiler.is_compiling() or torch.compiler.is_exporting()
        )
        if is_open or x.device.type != "cpu" or len(rows) > FEW_ROWS:
            blocks = zip(self.weight.split(self.block), self.scales.split(self.block), strict=True)
            parts = [linear(x, (values * scales[:, None]).to(x.dtype)) for values, scales in blocks]
            return torch.cat(parts, dim=-1)
        product = self._packed_product()(rows.bfloat16())
        return product.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _packed_product(self) -> Product:
        missing = self.padded.shape[1] - self.in_features
        padded, scales = self.padded, self.bfloat16_scales
        return lambda x: torch._weight_int8pack_mm(_pad(x, missing), padded, scales)

    def few_rows_product(self) -> Product:
        return self._packed_product() if self.padded.device.type == "cpu" else self.product


class NF4Linear(QuantizedLinear):
    """bitsandbytes' Linear4bit, NF4, its scales in 8 bits, multiplied in bfloat16.

    On a CPU with AVX-512 and bfloat16, bitsandbytes changes the weight's layout at the first
    product. Rows are padded to whole groups: on a CPU its product is wrong if a group continues in
    the next row. Raises ValueError as check_finite does, and if bitsandbytes is not installed.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(*weight.shape)
        check_finite(weight)
        layers = import_bitsandbytes().nn
        self.missing = -self.in_features % NF4_GROUP
        self.linear = layers.Linear4bit(
            self.in_features + self.missing,
            self.out_features,
            bias=False,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
            device="meta",
        )
        values = _pad(weight.detach().float(), self.missing).contiguous()
        quantized = layers.Params4bit(values, requires_grad=False, quant_type="nf4")
        self.linear.weight = quantized.to(weight.device)  # this `to` quantizes
        if self.out_features % NF4_ROWS:
            self.linear.support_avx512bf16_for_cpu = False

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(_pad(x, self.missing))


def import_bitsandbytes() -> Any:
    """bitsandbytes. Raises ValueError naming the install command if it is not installed."""
    # Importing it logs a warning about a kernel that it would download if it could.
    logging.getLogger(LOGGER).setLevel(logging.ERROR)
    return import_optional("bitsandbytes", "nf4 quantization")


KINDS = {"int8": Int8Linear, "nf4": NF4Linear}
