"""The linear layer, with float32 products on a CPU by oneDNN instead of MKL, and int8 weights.

PyTorch has both and multiplies float32 matrices with MKL. On AMD processors MKL leaves half of the
vector unit idle, and on all of them it is slow for a single row, which is what decoding multiplies.
The values are the same to float32's rounding, which is 1.4 to 1.7 times as large here at the 42M
shape: what is compared with other people's numbers is computed in `plain_products`.

Shapes: K inputs, N outputs, M rows of all leading dimensions.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mini_llama.eager import is_eager

_is_plain: ContextVar[bool] = ContextVar("_is_plain", default=False)


@contextlib.contextmanager
def plain_products() -> Iterator[None]:
    """In this context every product is F.linear's, the one that everybody else has."""
    token = _is_plain.set(True)
    try:
        yield
    finally:
        _is_plain.reset(token)


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (…, K) times weight (N, K) transposed: (…, N)."""
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, None, "none", [], "")


@cache
def has_onednn() -> bool:
    """Whether this PyTorch has the product above, a private function, and it is right."""
    numbers = torch.arange(12, dtype=torch.float32, device="cpu")
    x, weight = numbers[:6].view(2, 3), numbers.view(4, 3)
    try:
        return torch.equal(_product(x, weight), x @ weight.T)
    except (AttributeError, RuntimeError):
        return False


class _Linear(torch.autograd.Function):
    """_product with gradients; saves only what the needed gradients require.

    Where the gradients are themselves differentiated, or transformed, they are PyTorch's products.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wants_x, wants_weight = ctx.needs_input_grad
        ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None)
        return _product(x, weight)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        given = [t for t in (x, weight, upstream) if t is not None]
        if torch.is_grad_enabled() or not is_eager(*given):
            x_gradient = None if weight is None else upstream @ weight
            if x is None:
                return x_gradient, None
            rows = upstream.reshape(-1, upstream.shape[-1])  # (M, N)
            return x_gradient, rows.T @ x.reshape(-1, x.shape[-1])
        upstream = upstream.contiguous()
        x_gradient = None if weight is None else _product(upstream, weight.T)
        if x is None:
            return x_gradient, None
        x, upstream = x.flatten(0, -2).T, upstream.flatten(0, -2).T  # (K, M) and (N, M)
        if len(x) < len(upstream):  # oneDNN likes the smaller matrix on the left
            return x_gradient, _product(x, upstream).T
        return x_gradient, _product(upstream, x)


def _fits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether oneDNN has a product of these shapes; F.linear takes the others, or refuses them."""
    is_matrix = x.ndim > 1 and weight.ndim == 2 and x.shape[-1] == weight.shape[1]
    return is_matrix and x.numel() > 0 and weight.numel() > 0 and has_onednn()


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (…, K) times weight (N, K) transposed: (…, N), as F.linear, by the fastest product."""
    # The custom call has no rule for what looks on; F.linear has.
    if not is_eager(x, weight) or _is_plain.get():
        return F.linear(x, weight)
    is_plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    if not is_plain or torch.is_autocast_enabled("cpu") or not _fits(x, weight):
        return F.linear(x, weight)
    x = x.contiguous()  # oneDNN is up to a hundred times slower on rows with gaps between them
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x, weight)
    return _product(x, weight)


def add_bias(product: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """product (…, N) plus bias (N,), in the product's dtype; unchanged where there is no bias."""
    return product if bias is None else product + bias.type_as(product)


def inference_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`linear` for contiguous float32 without gradients; the caller has asked `can_pack`."""
    if _is_plain.get() or not is_eager():
        return F.linear(x, weight)
    return _product(x, weight)


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `packed_linear` supports this dtype and device."""
    if device.type != "cpu" or not has_onednn():
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def packed_linear(weight: torch.Tensor, rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """x (rows, K) → x times weight (N, K) transposed, from a copy laid out for that many rows.

    It has no gradients, and needs `can_pack`.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: _product(x, packed)


PANEL = 64  # outputs of a bag: their sums fit the processor's registers
PARTS = 4  # bags of a panel


def can_sum_columns(device: torch.device) -> bool:
    """Whether the embedding bags of `packed_row_linear` are the fast ones: FBGEMM's, on x86."""
    if device.type != "cpu" or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    return "fbgemm" in torch.backends.quantized.supported_engines


def packed_row_linear(
    weights: Sequence[torch.Tensor],
) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
    """x (1, K) → its product with each weight (N, K) transposed, from a copy of the weights.

    The product of a single row is the sum of the weight's columns, each times a number of x. That
    is what an embedding bag computes: it keeps the sums in registers and reads at the speed of
    memory, where MKL and oneDNN, made for matrices, reach a quarter and half of it. All float32,
    without gradients; needs `can_sum_columns`.
    """
    sizes, columns = [len(weight) for weight in weights], weights[0].shape[1]
    joined = torch.cat(tuple(weights)) if len(weights) > 1 else weights[0]  # (N, K)
    joined = joined.detach().float()
    if missing := -len(joined) % PANEL:
        joined = F.pad(joined, (0, 0, 0, missing))
    panels = joined.view(-1, PANEL, columns).transpose(1, 2).contiguous()
    table = panels.view(-1, PANEL)  # a panel's columns, then the next panel's
    rows = torch.arange(len(table), dtype=torch.int32)
    # Sums of a quarter each, whose rounding errors are half of those of a whole.
    parts = [part * columns // PARTS for part in range(PARTS)]
    starts = (rows[::columns, None] + torch.tensor(parts, dtype=torch.int32)).flatten()

    def multiply(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if _is_plain.get() or not is_eager():
            return tuple(F.linear(x, weight.float()) for weight in weights)
        factors = x.expand(len(panels), -1).reshape(-1)
        sums = torch.embedding_bag(table, rows, starts, False, 0, False, factors)[0]
        product = sums.view(-1, PARTS, PANEL).sum(1).view(1, -1)
        return product.split_with_sizes([*sizes, missing], dim=-1)[:-1]

    return multiply


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight (N, K) → int8 (N, K) and float32 scales (N,), whose product approximates it.

    The largest magnitude of each row becomes 127.
    """
    scales = weight.float().abs().amax(dim=1).clamp(min=1e-12) / 127
    return (weight / scales[:, None]).round().to(torch.int8), scales


class Linear(nn.Linear):
    """nn.Linear, by default without bias."""

    def __init__(self, in_features: int, out_features: int, has_bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=has_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return add_bias(linear(x, self.weight), self.bias)
