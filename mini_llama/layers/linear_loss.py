"""Cross-entropy of a linear layer's output, without ever holding all of the output.

With a vocabulary of 32,000, the logits of 4,096 tokens and their gradient are a gigabyte that is
written and read several times. Here they are made a few rows at a time, and each chunk's gradients
are taken while it is still in the cache (Wijmans et al. 2024, section 3, without its filtering).

Shapes: N tokens, C the model's width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F

from mini_llama.layers.linear import linear

CHUNK_ROWS = 256


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        count = targets.numel()
        total = hidden.new_zeros((), dtype=torch.float32)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight)
        for start in range(0, count, CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            logits = linear(hidden[rows], weight)  # (rows, V)
            log_probs = F.log_softmax(logits.float(), dim=-1)
            total -= log_probs.gather(1, targets[rows, None]).sum()
            gradient = log_probs.exp_()  # softmax - one_hot; the mean's 1/N is left to backward
            gradient[torch.arange(len(gradient), device=gradient.device), targets[rows]] -= 1
            gradient = gradient.to(hidden.dtype)
            hidden_gradient[rows] = linear(gradient, weight.T)
            if gradient.dtype == torch.float32:
                weight_gradient += linear(hidden[rows].T, gradient.T).T
            else:
                weight_gradient.addmm_(gradient.T, hidden[rows])
        ctx.count = count
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total / count

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = upstream / ctx.count
        return hidden_gradient * scale, weight_gradient * scale, None


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Mean of -log softmax(hidden @ weightᵀ)[target]: hidden (N, C), weight (V, C), targets (N,).

    Equal to F.cross_entropy(F.linear(hidden, weight), targets); gradients once only.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    return _LinearCrossEntropy.apply(hidden, weight, targets)
