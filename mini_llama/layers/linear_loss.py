"""Cross-entropy of a linear layer's output, without ever holding all of the output.

With a vocabulary of 32,000, the logits of 4,096 tokens and their gradient are a gigabyte that is
written and read several times. Here they are made a few rows at a time, and each chunk's gradients
are taken while it is still in the cache (Wijmans et al. 2024, section 3, without its filtering).

Shapes: N tokens, C the model's width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F

from mini_llama.bounds import check_bound
from mini_llama.eager import is_eager
from mini_llama.layers.linear import linear

CHUNK_ROWS = 256  # on a CPU; elsewhere as many as make MOST_LOGITS
MOST_LOGITS = 2**27
IGNORED = -100  # the target of a token that carries no loss, F.cross_entropy's default


def chunk_rows(weight: torch.Tensor) -> int:
    """Rows whose logits are made at a time: on a CPU few, which stay in its cache; a GPU takes half
    a gigabyte of them, as it is busy only with large products.
    """
    if weight.device.type == "cpu":
        return CHUNK_ROWS
    return max(CHUNK_ROWS, MOST_LOGITS // len(weight))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        kept = targets != IGNORED
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        total = hidden.new_zeros((), dtype=dtype)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight)
        step = chunk_rows(weight)
        for start in range(0, targets.numel(), step):
            rows = slice(start, start + step)
            is_ignored = ~kept[rows, None]
            chosen = targets[rows].masked_fill(is_ignored[:, 0], 0)
            logits = linear(hidden[rows], weight)  # (rows, V)
            log_probs = F.log_softmax(logits.to(dtype), dim=-1)
            total -= log_probs.gather(1, chosen[:, None]).masked_fill(is_ignored, 0).sum()
            gradient = log_probs.exp_()  # softmax - one_hot; the mean's 1/N is left to backward
            gradient[torch.arange(len(gradient), device=gradient.device), chosen] -= 1
            gradient = gradient.to(hidden.dtype)
            hidden_gradient[rows] = linear(gradient, weight.T).masked_fill(is_ignored, 0)
            # Zeros in the narrow matrix of the two: ignored rows add nothing to their product.
            inputs = hidden[rows].masked_fill(is_ignored, 0)  # (rows, C)
            if gradient.dtype == dtype:
                weight_gradient += linear(inputs.T, gradient.T).T
            else:
                weight_gradient.addmm_(gradient.T, inputs)
        count = kept.sum()
        ctx.save_for_backward(hidden_gradient, weight_gradient, count, hidden, weight, targets)
        return total / count

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple:
        hidden_gradient, weight_gradient, count, *inputs = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return *_differentiable_gradients(upstream, *inputs), None
        scale = upstream / count.clamp(min=1)
        return hidden_gradient * scale, weight_gradient * scale, None


def _plain_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss by PyTorch's own operations, which hold all logits."""
    logits = linear(hidden, weight)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(dtype), targets, ignore_index=IGNORED)


def _differentiable_gradients(
    upstream: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> list[torch.Tensor | None]:
    """The gradients by hidden and weight as functions of all three, None where not needed."""
    inputs = (hidden, weight)
    needed = [tensor for tensor in inputs if tensor.requires_grad]
    found = iter(
        torch.autograd.grad(_plain_loss(*inputs, targets), needed, upstream, create_graph=True)
    )
    return [next(found) if tensor.requires_grad else None for tensor in inputs]


def _check_targets(targets: torch.Tensor, vocab_size: int) -> None:
    """Raise ValueError for a target that is no token; on a GPU, the loss itself stops there."""
    if targets.device.type != "cpu" or targets.numel() == 0:
        return
    bound = f"from 0 to {vocab_size - 1}, or {IGNORED} to be ignored"
    wrong = targets[(targets != IGNORED) & ((targets < 0) | (targets >= vocab_size))]
    check_bound(f"target {wrong[0] if wrong.numel() else 0}", wrong.numel() == 0, bound)


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Mean of -log softmax(hidden @ weightᵀ)[target]: hidden (N, C), weight (V, C), targets (N,).

    Equal to F.cross_entropy(F.linear(hidden, weight), targets), derivatives of all orders included;
    targets of -100 are left out, of the mean too. In torch.func's transforms, and in whatever else
    is_eager names except the compiler, all logits are held at once. Raises ValueError for another
    target that is no token.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    is_compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    if not is_compiled and not is_eager(hidden, weight, targets):
        return _plain_loss(hidden, weight, targets)
    if not is_compiled:
        _check_targets(targets, len(weight))
    return _LinearCrossEntropy.apply(hidden, weight, targets)
