"""Mistakes in RoPE."""

from collections.abc import Callable
from itertools import combinations_with_replacement

import torch

import rope
from mini_llama.diagnosis.mistakes.replacing import Family, Replacement, Variant, Variants
from rope import apply_rotary_emb, rotate


def rotated_by(function: Callable[..., torch.Tensor]) -> Variant:
    """Replace rope.rotate by `function`: x (B, T, H, D), cos and sin of the angles (T, D/2)."""
    return (Replacement(rope, "rotate", function),)


def rotate_in_own_type(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    cos, sin = cos.unsqueeze(1).to(x.dtype), sin.unsqueeze(1).to(x.dtype)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def angles_in_own_type(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Compute the angles in x's dtype; the frequencies are the angles of position 1."""
    frequencies = torch.atan2(sin[1], cos[1]).to(x.dtype)
    angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * frequencies
    return rotate_in_own_type(x, angles.cos(), angles.sin())


Terms = tuple[tuple[int, str, str], tuple[int, str, str]]  # sign, feature, function; twice
FIRST: Terms = ((1, "even", "cos"), (-1, "odd", "sin"))
SECOND: Terms = ((1, "even", "sin"), (1, "odd", "cos"))


def lines(first: Terms = FIRST, second: Terms = SECOND) -> Variant:
    """The two lines of the rotation, correct by default."""

    def rotate_by_lines(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        values = {"even": even, "odd": odd, "cos": cos.unsqueeze(1), "sin": sin.unsqueeze(1)}
        out = (sum(s * values[f] * values[g] for s, f, g in line) for line in (first, second))
        return torch.stack(tuple(out), dim=-1).flatten(-2).type_as(x)

    return rotated_by(rotate_by_lines)


ALL_TERMS = [(s, f, g) for s in (1, -1) for f in ("even", "odd") for g in ("cos", "sin")]
ALL_LINES = list(combinations_with_replacement(ALL_TERMS, 2))


def other_lines(right: Terms) -> list[Terms]:
    return [line for line in ALL_LINES if set(line) != set(right) and line[0][0] >= line[1][0]]


def rotate_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), -1).type_as(x)


def rotate_into_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return rotate(x, cos, sin).unflatten(-1, (-1, 2)).transpose(-2, -1).flatten(-2)


def rotate_backwards(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return rotate(x, cos, -sin)


def paired(pair: Callable[..., tuple]) -> Variant:
    """apply_rotary_emb as pair(query, key, the correct function)."""

    def apply(
        query: torch.Tensor, key: torch.Tensor, head_dim: int, length: int, theta: float = 10000.0
    ) -> tuple:
        return pair(query, key, lambda q, k: apply_rotary_emb(q, k, head_dim, length, theta))

    return (Replacement(rope, "apply_rotary_emb", apply),)


def rotated_only(query: bool, key: bool) -> Variant:
    def rotate_one(q: torch.Tensor, k: torch.Tensor, right: Callable[..., tuple]) -> tuple:
        rotated = right(q, k)
        return rotated[0] if query else q, rotated[1] if key else k

    return paired(rotate_one)


def theta_ignored() -> Variant:
    def apply(
        query: torch.Tensor, key: torch.Tensor, head_dim: int, length: int, theta: float = 10000.0
    ) -> tuple:
        return apply_rotary_emb(query, key, head_dim, length)

    return (Replacement(rope, "apply_rotary_emb", apply),)


def as_wide_as_the_query(q: torch.Tensor, k: torch.Tensor, right: Callable[..., tuple]) -> tuple:
    query, key = right(q, k)
    return query, key + torch.zeros(q.shape)


def shaped_as_the_query(q: torch.Tensor, k: torch.Tensor, right: Callable[..., tuple]) -> tuple:
    query, key = right(q, k)
    return query, key.reshape(*q.shape[:-1], -1, 2).flatten(-2)


def viewed_as_the_query(q: torch.Tensor, k: torch.Tensor, right: Callable[..., tuple]) -> tuple:
    query, key = right(q, k)
    return query, key.reshape(q.shape)


def rotated_along_the_heads(q: torch.Tensor, k: torch.Tensor, right: Callable[..., tuple]) -> tuple:
    def rotated(x: torch.Tensor) -> torch.Tensor:
        return right(x.transpose(1, 2), x.transpose(1, 2))[0].transpose(1, 2)

    return rotated(q), rotated(k)


def tables(
    exponents: Callable[[int], torch.Tensor] = lambda dim: torch.arange(0, dim, 2) / dim,
    first: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Variant:
    """Angles of the positions from `first`, rounded to `dtype`; correct by default."""

    def rotary_tables(
        head_dim: int, length: int, theta: float, device: object, scaling: None = None
    ) -> tuple:
        angles = torch.arange(first, first + length).outer(theta ** -exponents(head_dim).float())
        return angles.to(dtype).cos().float(), angles.to(dtype).sin().float()

    return (Replacement(rope, "rotary_tables", rotary_tables),)


LINES = Family(
    lines,
    {
        "imaginary taken for real in the second line": (
            {"second": ((1, "odd", "sin"), (1, "odd", "cos"))},
        ),
        "real taken for imaginary in the second line": (
            {"second": ((1, "even", "sin"), (1, "even", "cos"))},
        ),
        "real taken for imaginary in the first line": (
            {"first": ((1, "even", "cos"), (-1, "even", "sin"))},
        ),
        "imaginary taken for real in the first line": (
            {"first": ((1, "odd", "cos"), (-1, "odd", "sin"))},
        ),
        "wrong sign in the first line": ({"first": ((1, "even", "cos"), (1, "odd", "sin"))},),
        "wrong sign in the second line": (
            {"second": ((1, "even", "sin"), (-1, "odd", "cos"))},
            {"second": ((1, "odd", "cos"), (-1, "even", "sin"))},
        ),
        "a wrong term in the first line": tuple({"first": line} for line in other_lines(FIRST)),
        "a wrong term in the second line": tuple({"second": line} for line in other_lines(SECOND)),
    },
    most=1,
)
ANGLES = Family(
    tables,
    {
        "positions from 1": ({"first": 1},),
        "exponent without the 2": ({"exponents": lambda dim: torch.arange(dim // 2) / dim},),
        "frequencies from 1": ({"exponents": lambda dim: torch.arange(2, dim + 2, 2) / dim},),
        "exponent without its sign": ({"exponents": lambda dim: -torch.arange(0, dim, 2) / dim},),
        "exponent without head_dim": ({"exponents": lambda dim: torch.arange(0, dim, 2)},),
        "not in float32": ({"dtype": torch.bfloat16}, {"dtype": torch.float16}),
    },
)
FAMILIES = (ANGLES,)
VARIANTS: Variants = {
    **LINES.variants,
    **ANGLES.variants,
    "split halves": (rotated_by(rotate_halves),),
    "pairs written back as halves": (rotated_by(rotate_into_halves),),
    "real and imaginary part exchanged": (
        lines(first=SECOND, second=FIRST),
        lines(((1, "odd", "cos"), (-1, "even", "sin")), ((1, "odd", "sin"), (1, "even", "cos"))),
    ),
    "wrong sign": (rotated_by(rotate_backwards),),
    "cos and sin exchanged": (
        lines(((1, "even", "sin"), (-1, "odd", "cos")), ((1, "even", "cos"), (1, "odd", "sin"))),
    ),
    "query only": (rotated_only(query=True, key=False),),
    "key only": (rotated_only(query=False, key=True),),
    "the key is computed from the query": (paired(lambda q, k, right: (right(q, k)[0],) * 2),),
    "query and key exchanged": (paired(lambda q, k, right: right(q, k)[::-1]),),
    "heads taken for positions": (paired(rotated_along_the_heads),),
    "theta is ignored": (theta_ignored(),),
    "the key takes the query's number of heads": (
        *(paired(f) for f in (as_wide_as_the_query, shaped_as_the_query, viewed_as_the_query)),
    ),
    "not in float32": (*ANGLES.variants["not in float32"], rotated_by(angles_in_own_type)),
}
