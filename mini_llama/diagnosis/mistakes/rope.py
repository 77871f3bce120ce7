"""Mistakes in RoPE."""

from collections.abc import Callable
from typing import Any

import torch

import rope
from mini_llama.diagnosis.mistakes.replacing import Replacement, Variant, Variants
from rope import apply_rotary_emb, rotate


def rotated_by(function: Callable[..., torch.Tensor]) -> Variant:
    """`function` takes x (B, T, H, D) and the angles' cos and sin (T, D/2), as rope.rotate."""
    return (Replacement(rope, "rotate", function),)


def rotate_in_own_type(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    cos, sin = cos.unsqueeze(1).to(x.dtype), sin.unsqueeze(1).to(x.dtype)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def rotate_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), -1).type_as(x)


def rotate_into_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return rotate(x, cos, sin).unflatten(-1, (-1, 2)).transpose(-2, -1).flatten(-2)


def rotate_backwards(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return rotate(x, cos, -sin)


def rotated_only(query: bool, key: bool) -> Variant:
    def rotate_one(q: torch.Tensor, k: torch.Tensor, *sizes: Any) -> tuple:
        rotated = apply_rotary_emb(q, k, *sizes)
        return rotated[0] if query else q, rotated[1] if key else k

    return (Replacement(rope, "apply_rotary_emb", rotate_one),)


def tables(
    exponents: Callable[[int], torch.Tensor] = lambda dim: torch.arange(0, dim, 2) / dim,
    first: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Variant:
    """Angles of positions from `first`, rounded to `dtype`; by default as they should be."""

    def rotary_tables(
        head_dim: int, length: int, theta: float, device: object, scaling: None = None
    ) -> tuple:
        angles = torch.arange(first, first + length).outer(theta ** -exponents(head_dim).float())
        return angles.to(dtype).cos().float(), angles.to(dtype).sin().float()

    return (Replacement(rope, "rotary_tables", rotary_tables),)


VARIANTS: Variants = {
    "split halves": (rotated_by(rotate_halves),),
    "pairs written back as halves": (rotated_by(rotate_into_halves),),
    "wrong sign": (rotated_by(rotate_backwards),),
    "positions from 1": (tables(first=1),),
    "exponent without the 2": (tables(lambda dim: torch.arange(dim // 2) / dim),),
    "exponent without head_dim": (tables(lambda dim: torch.arange(0, dim, 2)),),
    "query only": (rotated_only(query=True, key=False),),
    "key only": (rotated_only(query=False, key=True),),
    "not in float32": (
        rotated_by(rotate_in_own_type),
        tables(dtype=torch.bfloat16),
        tables(dtype=torch.float16),
    ),
}
