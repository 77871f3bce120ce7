"""Rotary position embedding (RoFormer, Su et al. 2021, section 3.4.2).

Convention: a head's features are rotated in INTERLEAVED pairs (2i, 2i+1), not in split halves
(i, i + head_dim/2) as Hugging Face does; the two differ by a permutation of the weights' rows.
The rotation is counter-clockwise by position · theta^(-2i/head_dim), positions count from 0.
The file knows no attention and no model.

Shapes: B batch, T positions, H heads (query or key/value heads), D head_dim.
"""

from functools import lru_cache

import torch


@lru_cache(maxsize=16)
def rotary_tables(
    head_dim: int, length: int, theta: float = 10000.0, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every position's angles, float32, each (length, head_dim/2).

    Computed once for a set of arguments and shared by all layers and calls: do not change the
    returned tensors in place.
    """
    # Made outside inference mode, whoever asks first: autograd must be able to save them later.
    with torch.inference_mode(False):
        exponents = torch.arange(0, head_dim, 2, device=device).float() / head_dim  # (D/2,)
        positions = torch.arange(length, device=device).float()  # (T,)
        angles = torch.outer(positions, theta**-exponents)  # (T, D/2)
        return angles.cos(), angles.sin()


def tables_for(
    head_dim: int,
    max_seq_len: int,
    start: int,
    end: int,
    theta: float,
    device: torch.device | str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, each (end - start, head_dim/2), for positions start to end - 1.

    A batch may be longer than `max_seq_len` (reviews are); lengths are then rounded up to its
    next multiple, so that few different tables are ever made.
    """
    length = max_seq_len * max(1, -(-end // max_seq_len))
    cos, sin = rotary_tables(head_dim, length, theta, device)
    return cos[start:end], sin[start:end]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (B, T, H, D) rotated by the angles whose cos and sin are (T, D/2); in x's dtype.

    A pair (even, odd) becomes (even·cos - odd·sin, even·sin + odd·cos).
    """
    pairs = x.float().contiguous().unflatten(-1, (-1, 2))  # (B, T, H, D/2, 2)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # (T, 1, D/2): the same angles for every head
    if torch.compiler.is_compiling() or x.device.type == "mps":  # no complex numbers there
        even, odd = pairs.unbind(-1)
        rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    else:  # (even + i·odd)·(cos + i·sin): one operation instead of seven
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return rotated.flatten(-2).type_as(x)  # (B, T, H, D)


def apply_rotary_emb(
    query: torch.Tensor,
    key: torch.Tensor,
    head_dim: int,
    max_seq_len: int,
    theta: float = 10000.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate query (B, T, H, D) and key (B, T, H_kv, D), whose positions are 0 to T-1.

    `max_seq_len` only sizes the tables; a longer T is rotated as well.
    """
    length = query.shape[1]
    cos, sin = tables_for(head_dim, max_seq_len, 0, length, theta, query.device)
    return rotate(query, cos, sin), rotate(key, cos, sin)
