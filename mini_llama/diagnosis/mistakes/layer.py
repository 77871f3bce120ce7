"""Mistakes in the layer: norms and residual connections in the wrong places."""

from collections.abc import Callable
from typing import Any

import torch

from llama import LlamaLayer
from mini_llama.diagnosis.mistakes.replacing import Replacement, Variant, Variants


def block(formula: Callable[..., torch.Tensor]) -> Variant:
    """`formula` takes x, attention, feed_forward and their norms (x, a, f, an, fn); the correct one
    is h + f(fn(h)) with h = x + a(an(x)).
    """

    def forward(self: Any, x: torch.Tensor, *_: object) -> torch.Tensor:
        return formula(x, self.attention, self.feed_forward, self.attention_norm, self.ffn_norm)

    return (Replacement(LlamaLayer, "forward", forward),)


def halves(half: Callable[..., torch.Tensor]) -> Variant:
    """Attention, then feed-forward, each computed by half(x, function, its norm)."""
    return block(lambda x, a, f, an, fn: half(half(x, a, an), f, fn))


VARIANTS: Variants = {
    "post-norm": (
        halves(lambda x, function, norm: norm(x + function(x))),
        halves(lambda x, function, norm: x + norm(function(x))),
    ),
    "missing residual": (
        block(lambda x, a, f, an, fn: a(an(x)) + f(fn(a(an(x))))),
        block(lambda x, a, f, an, fn: f(fn(x + a(an(x))))),
        block(lambda x, a, f, an, fn: f(fn(a(an(x))))),
    ),
    "residual from the normalised input": (
        halves(lambda x, function, norm: norm(x) + function(norm(x))),
        block(lambda x, a, f, an, fn: (h := an(x) + a(an(x))) + f(fn(h))),
        block(lambda x, a, f, an, fn: fn(h := x + a(an(x))) + f(fn(h))),
    ),
    "residual from the layer's input twice": (
        block(lambda x, a, f, an, fn: x + f(fn(x + a(an(x))))),
    ),
    "ffn_norm is not used": (
        block(lambda x, a, f, an, fn: (h := x + a(an(x))) + f(h)),
        block(lambda x, a, f, an, fn: (h := x + a(an(x))) + f(an(h))),
    ),
    "attention_norm is not used": (
        block(lambda x, a, f, an, fn: (h := x + a(x)) + f(fn(h))),
        block(lambda x, a, f, an, fn: (h := x + a(fn(x))) + f(fn(h))),
    ),
    "no norm is used": (block(lambda x, a, f, an, fn: (h := x + a(x)) + f(h)),),
    "the two norms exchanged": (block(lambda x, a, f, an, fn: (h := x + a(fn(x))) + f(an(h))),),
    "the norm's gain and bias are skipped": (
        block(lambda x, a, f, an, fn: (h := x + a(an._norm(x))) + f(fn(h))),
        block(lambda x, a, f, an, fn: (h := x + a(an(x))) + f(fn._norm(h))),
        block(lambda x, a, f, an, fn: (h := x + a(an._norm(x))) + f(fn._norm(h))),
    ),
    "half of the layer left out": (
        block(lambda x, a, f, an, fn: x + a(an(x))),
        block(lambda x, a, f, an, fn: x + f(fn(x))),
    ),
    "ffn_norm on the wrong tensor": (
        block(lambda x, a, f, an, fn: x + a(an(x)) + f(fn(x))),
        block(lambda x, a, f, an, fn: x + a(an(x)) + f(fn(a(an(x))))),
    ),
}
