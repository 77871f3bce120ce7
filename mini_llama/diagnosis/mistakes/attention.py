"""Mistakes in attention."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from llama import Attention
from mini_llama.diagnosis.mistakes.replacing import Family, Replacement, Variant, Variants


def attended(
    scale: Callable[[int], float] = math.sqrt,
    dim: int | None = -1,
    is_causal: bool | None = None,
    mask: str = "before",
    drops: tuple[str, ...] = ("probabilities",),
    is_tiled: bool = False,
) -> Variant:
    """softmax(Q Kᵀ / scale(D)) V, by default as it should be; `drops` names what dropout is of,
    and `mask` where it is applied: before the softmax, after it, as a product with infinity, or
    before it with the diagonal ("shifted").
    """

    def scores_of(
        self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: object = None
    ) -> torch.Tensor:
        repeats = query.shape[1] // key.shape[1]
        if is_tiled:
            key, value = (heads.repeat(1, repeats, 1, 1) for heads in (key, value))
        else:
            key, value = (heads.repeat_interleave(repeats, dim=1) for heads in (key, value))
        scores = query @ key.transpose(-2, -1) / scale(query.shape[-1])  # (B, H, T, T)
        late = 1 if mask == "after" else 0
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(-(mask == "shifted"))
        causal = mask != "before" or (self.is_causal if is_causal is None else is_causal)
        if mask == "product":
            scores = scores + (~seen).float() * -math.inf
        elif causal and not late:
            scores = scores.masked_fill(~seen, -math.inf)
        scores = drop(self, scores, "scores" in drops)
        probabilities = scores.softmax(dim) if dim is not None else scores
        probabilities = probabilities * seen if late else probabilities
        mixed = drop(self, probabilities, "probabilities" in drops) @ value
        return drop(self, mixed, "output" in drops)

    return (Replacement(Attention, "compute_query_key_value_scores", scores_of),)


def drop(attention: Any, x: torch.Tensor, drops: bool) -> torch.Tensor:
    return F.dropout(x, attention.dropout, attention.training) if drops else x


def forward_without_rope(self: Any, x: torch.Tensor, *_: object) -> torch.Tensor:
    projections = self.compute_query, self.compute_key, self.compute_value
    heads = (layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in projections)
    mixed = self.compute_query_key_value_scores(*heads)  # (B, H, T, D)
    return self.compute_output(mixed.transpose(1, 2).flatten(2))


FAMILY = Family(
    attended,
    {
        "no scale": ({"scale": lambda dim: 1},),
        "scaled by d": ({"scale": lambda dim: dim},),
        "multiplied by the root of d": ({"scale": lambda dim: dim**-0.5},),
        "scaled by the root of dim": ({"scale": lambda dim: math.sqrt(32)},),
        "softmax on the wrong axis": ({"dim": -2}, {"dim": 1}, {"dim": 0}),
        "no softmax": ({"dim": None},),
        "causal where the edition is not": ({"is_causal": True},),
        "not causal where the edition is": ({"is_causal": False},),
        "mask after softmax": ({"mask": "after"},),
        "0 times infinity in the mask": ({"mask": "product"},),
        "the mask hides the position itself": ({"mask": "shifted"},),
        "no dropout": ({"drops": ()},),
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
