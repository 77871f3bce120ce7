"""Mistakes in attention."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from llama import Attention
from mini_llama.diagnosis.mistakes.replacing import Family, Replacement, Variant, Variants

HIDDEN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "later": lambda seen: seen.tril(),
    "later, shifted": lambda seen: seen.tril(-1),
    "later but one": lambda seen: seen.tril(1),
    "earlier": lambda seen: seen.triu(),
}


@dataclass(frozen=True)
class Form:
    """softmax(Q Kᵀ / scale(shape)) V, correct by default; shape is (B, H, T, D).

    `drops` lists the tensors that dropout applies to, and "always" for evaluation; `hides` is a key
    of HIDDEN; `mask` says how it is applied: "-inf" or "0" before the softmax, "after" it, or
    "product" for 0 times infinity.
    """

    scale: Callable[[torch.Size], float] = lambda shape: math.sqrt(shape[-1])
    scales_after: bool = False
    dim: int | None = -1
    is_causal: bool | None = None
    hides: str = "later"
    mask: str = "-inf"
    drops: tuple[str, ...] = ("probabilities",)
    is_tiled: bool = False
    is_exchanged: bool = False

    def __call__(self, attention: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        k, v = self.repeated(q.shape[1], k), self.repeated(q.shape[1], v)
        q, k = (k, q) if self.is_exchanged else (q, k)
        scale = self.scale(q.shape)
        scores = q @ k.transpose(-2, -1) / (1 if self.scales_after else scale)  # (B, H, T, T)
        scores = self.masked(attention, scores)
        scores = self.dropped(attention, scores, "scores")
        probabilities = scores.softmax(self.dim) if self.dim is not None else scores
        probabilities = probabilities / (scale if self.scales_after else 1)
        if self.mask == "after":
            probabilities = probabilities * torch.ones_like(scores[0, 0]).tril()
        mixed = self.dropped(attention, probabilities, "probabilities") @ v
        return self.dropped(attention, mixed, "output")

    def repeated(self, n_heads: int, heads: torch.Tensor) -> torch.Tensor:
        repeats = n_heads // heads.shape[1]
        if self.is_tiled:
            return heads.repeat(1, repeats, 1, 1)
        return heads.repeat_interleave(repeats, dim=1)

    def masked(self, attention: Any, scores: torch.Tensor) -> torch.Tensor:
        seen = HIDDEN[self.hides](torch.ones(scores.shape[-2:], dtype=torch.bool))
        if self.mask == "product":
            return scores + (~seen).float() * -math.inf
        is_masked = attention.is_causal if self.is_causal is None else self.is_causal
        is_masked = is_masked or self.hides != "later" or self.mask == "0"
        if self.mask == "after" or not is_masked:
            return scores
        return scores.masked_fill(~seen, float(self.mask))

    def dropped(self, attention: Any, x: torch.Tensor, what: str) -> torch.Tensor:
        is_on = attention.training or "always" in self.drops
        return F.dropout(x, attention.dropout, is_on) if what in self.drops else x


def attended(**options: Any) -> Variant:
    """`options` are fields of Form."""
    form = Form(**options)

    def scores_of(
        self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: object = None
    ) -> torch.Tensor:
        return form(self, query, key, value)

    return (Replacement(Attention, "compute_query_key_value_scores", scores_of),)


def forward_without_rope(self: Any, x: torch.Tensor, *_: object) -> torch.Tensor:
    projections = self.compute_query, self.compute_key, self.compute_value
    heads = (layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in projections)
    mixed = self.compute_query_key_value_scores(*heads)  # (B, H, T, D)
    return self.compute_output(mixed.transpose(1, 2).flatten(2))


FAMILY = Family(
    attended,
    {
        "no scale": ({"scale": lambda shape: 1},),
        "scaled by d": ({"scale": lambda shape: shape[-1]},),
        "multiplied by the root of d": ({"scale": lambda shape: shape[-1] ** -0.5},),
        "scaled by the root of dim": ({"scale": lambda shape: math.sqrt(shape[1] * shape[3])},),
        "scaled by the root of another size": (
            {"scale": lambda shape: math.sqrt(shape[1])},
            {"scale": lambda shape: math.sqrt(shape[2])},
        ),
        "scaled after the softmax": ({"scales_after": True},),
        "query and key exchanged": ({"is_exchanged": True},),
        "softmax on the wrong axis": ({"dim": -2}, {"dim": 1}, {"dim": 0}),
        "no softmax": ({"dim": None},),
        "causal where the edition is not": ({"is_causal": True},),
        "not causal where the edition is": ({"is_causal": False},),
        "mask after softmax": ({"mask": "after"},),
        "later scores set to 0": ({"mask": "0"},),
        "0 times infinity in the mask": ({"mask": "product"},),
        "the mask hides the position itself": ({"hides": "later, shifted"},),
        "the mask shows the next position": ({"hides": "later but one"},),
        "the mask hides earlier positions": ({"hides": "earlier"},),
        "no dropout": ({"drops": ()},),
        "dropout in evaluation": ({"drops": ("probabilities", "always")},),
        "dropout before the softmax": ({"drops": ("scores",)},),
        "dropout on the output as well": ({"drops": ("probabilities", "output")},),
        "dropout on the output instead": ({"drops": ("output",)},),
        "GQA heads tiled instead of repeated": ({"is_tiled": True},),
    },
)
VARIANTS: Variants = {
    **FAMILY.variants,
    "RoPE is not applied": ((Replacement(Attention, "forward", forward_without_rope),),),
}
