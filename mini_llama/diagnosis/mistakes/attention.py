"""Mistakes in attention."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from llama import Attention
from mini_llama.diagnosis.mistakes.replacing import Replacement, Variant, Variants


def attended(
    scale: Callable[[int], float] = math.sqrt,
    dim: int = -1,
    is_causal: bool | None = None,
    masks_late: bool = False,
    drops: str = "probabilities",
    is_tiled: bool = False,
) -> Variant:
    """softmax(Q Kᵀ / scale(D)) V, by default as it should be; `drops` names what dropout is of."""

    def scores_of(
        self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: object = None
    ) -> torch.Tensor:
        repeats = query.shape[1] // key.shape[1]
        if is_tiled:
            key, value = (heads.repeat(1, repeats, 1, 1) for heads in (key, value))
        else:
            key, value = (heads.repeat_interleave(repeats, dim=1) for heads in (key, value))
        scores = query @ key.transpose(-2, -1) / scale(query.shape[-1])  # (B, H, T, T)
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        causal = self.is_causal if is_causal is None else is_causal
        if causal and not masks_late:
            scores = scores.masked_fill(~seen, -math.inf)
        if drops == "scores":
            scores = F.dropout(scores, self.dropout, self.training)
        probabilities = scores.softmax(dim)
        if masks_late:
            probabilities = probabilities * seen
        if drops == "probabilities":
            probabilities = F.dropout(probabilities, self.dropout, self.training)
        return probabilities @ value

    return (Replacement(Attention, "compute_query_key_value_scores", scores_of),)


def forward_without_rope(self: Any, x: torch.Tensor, *_: object) -> torch.Tensor:
    projections = self.compute_query, self.compute_key, self.compute_value
    heads = (layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in projections)
    mixed = self.compute_query_key_value_scores(*heads)  # (B, H, T, D)
    return self.compute_output(mixed.transpose(1, 2).flatten(2))


VARIANTS: Variants = {
    "no scale": (attended(scale=lambda dim: 1),),
    "scaled by d": (attended(scale=lambda dim: dim),),
    "softmax on the wrong axis": (attended(dim=-2), attended(dim=1), attended(dim=0)),
    "causal where the edition is not": (attended(is_causal=True),),
    "not causal where the edition is": (attended(is_causal=False),),
    "mask after softmax": (attended(masks_late=True),),
    "no dropout": (attended(drops=""), attended(drops="scores")),
    "GQA heads tiled instead of repeated": (attended(is_tiled=True),),
    "RoPE is not applied": ((Replacement(Attention, "forward", forward_without_rope),),),
}
