"""Mistakes in the feed-forward network."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from llama import FeedForward
from mini_llama.diagnosis.mistakes.replacing import Replacement, Variant, Variants


def gated(formula: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Variant:
    """w2(formula(w1 x, w3 x)); the correct formula is silu(w1 x) · w3 x."""

    def gate(self: FeedForward, x: torch.Tensor) -> torch.Tensor:
        return formula(self.w1(x), self.w3(x))

    return (Replacement(FeedForward, "SwiGLU", gate),)


VARIANTS: Variants = {
    "w1 and w3 swapped": (gated(lambda one, three: F.silu(three) * one),),
    "sigmoid in place of silu": (gated(lambda one, three: one.sigmoid() * three),),
    "silu left out": (gated(lambda one, three: one * three),),
    "relu in place of silu": (gated(lambda one, three: F.relu(one) * three),),
    "gelu in place of silu": (
        gated(lambda one, three: F.gelu(one) * three),
        gated(lambda one, three: F.gelu(one, approximate="tanh") * three),
    ),
    "added instead of multiplied": (gated(lambda one, three: F.silu(one) + three),),
}
