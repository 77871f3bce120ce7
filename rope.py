"""Rotary position embedding (RoFormer, Su et al. 2021, section 3.4.2).

Convention: a head's features are rotated in INTERLEAVED pairs (2i, 2i+1), not in split halves
(i, i + head_dim/2) as Hugging Face does; the two differ by a permutation of the weights' rows.
The rotation is counter-clockwise by position · theta^(-2i/head_dim), positions count from 0.
For contexts longer than a model was trained on the angles can be scaled (config.RopeScaling).

Shapes: B batch, T positions, H heads (query or key/value heads), D head_dim.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F

from config import LlamaConfig, RopeScaling
from mini_llama.eager import is_eager

RotaryTables = tuple[torch.Tensor, torch.Tensor]
TABLE_POSITIONS = 2**14  # tables of up to so many positions are made at once


def position_interpolation(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """frequency / factor, as if every position were divided by it (Chen et al. 2023)."""
    return frequencies / scaling.factor


def dynamic_ntk_theta(theta: float, head_dim: int, length: int, scaling: RopeScaling) -> float:
    """theta · (factor · L/L₀ - (factor - 1))^(D/(D-2)): the base for a sequence of L positions.

    L₀ is the original length; up to it theta is unchanged. The slowest pair is interpolated, the
    fastest is not (NTK-aware: bloc97 2023; dynamic: emozilla 2023; both in YaRN, Peng et al. 2023;
    the factor is applied as in transformers).
    """
    original = scaling.original_max_seq_len
    assert original is not None  # config.RopeScaling has checked it
    stretch = max(length, original) / original
    return theta * (scaling.factor * (stretch - 1) + 1) ** (head_dim / (head_dim - 2))


def llama3_frequencies(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Keep high frequencies (many rotations in the original length), divide low ones by factor.

    Between `low_freq_factor` and `high_freq_factor` rotations, interpolate linearly between the two
    (Llama 3.1, Meta's reference implementation).
    """
    original = scaling.original_max_seq_len
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    assert original is not None and low is not None and high is not None  # also checked there
    rotations = original * frequencies / (2 * math.pi)
    kept = ((rotations - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def yarn_frequencies(
    frequencies: torch.Tensor, theta: float, head_dim: int, scaling: RopeScaling
) -> torch.Tensor:
    """Keep the fast pairs, divide the slow ones by factor, and between the two go over linearly in
    the pair's number (YaRN, Peng et al. 2023, section 3.2: "NTK-by-parts").

    Fast is what rotates more than `beta_fast` times in the original length, slow what rotates less
    than `beta_slow` times. `truncate` rounds the numbers of these two pairs outwards.
    """
    original, fast, slow = scaling.original_max_seq_len, scaling.beta_fast, scaling.beta_slow
    assert original is not None and fast is not None and slow is not None

    def pair_with(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_with(fast), pair_with(slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = 0.001 if first == last else last - first
    pairs = torch.arange(head_dim // 2, device=frequencies.device).float()
    kept = 1 - ((pairs - first) / width).clamp(0, 1)
    return frequencies / scaling.factor * (1 - kept) + frequencies * kept


def longrope_frequencies(
    frequencies: torch.Tensor, length: int, scaling: RopeScaling
) -> torch.Tensor:
    """Divide each pair's frequency by a factor of its own, found by search: one list of them up to
    the original length, another past it (LongRoPE, Ding et al. 2024).
    """
    original = scaling.original_max_seq_len
    assert original is not None
    factors = scaling.long_factor if length > original else scaling.short_factor
    return frequencies / torch.tensor(factors, device=frequencies.device)


def attention_factor(scaling: RopeScaling | None) -> float:
    """What cos and sin are multiplied by, and so attention's scores by its square: YaRN's
    temperature (its section 3.3), and LongRoPE's counterpart. 1 for the other rules.
    """
    if scaling is None or scaling.rope_type not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    stretch = math.log(scaling.factor)
    if scaling.rope_type == "yarn":
        return 0.1 * stretch + 1
    assert scaling.original_max_seq_len is not None
    return math.sqrt(1 + stretch / math.log(scaling.original_max_seq_len))


def inverse_frequencies(
    head_dim: int,
    length: int,
    theta: float = 10000.0,
    device: torch.device | str = "cpu",
    scaling: RopeScaling | None = None,
) -> torch.Tensor:
    """Each pair's angle per position, theta^(-2i/head_dim), scaled: (D/2,) in float32.

    `length`, the number of positions in the sequence, matters only for dynamic NTK and LongRoPE.
    """
    if scaling is not None and scaling.rope_type == "dynamic":
        theta = dynamic_ntk_theta(theta, head_dim, length, scaling)
    exponents = torch.arange(0, head_dim, 2, device=device).float() / head_dim  # (D/2,)
    frequencies = 1 / theta**exponents
    if scaling is not None and scaling.rope_type == "linear":
        return position_interpolation(frequencies, scaling)
    if scaling is not None and scaling.rope_type == "llama3":
        return llama3_frequencies(frequencies, scaling)
    if scaling is not None and scaling.rope_type == "yarn":
        return yarn_frequencies(frequencies, theta, head_dim, scaling)
    if scaling is not None and scaling.rope_type == "longrope":
        return longrope_frequencies(frequencies, length, scaling)
    return frequencies


def make_tables(
    frequencies: torch.Tensor, start: int, end: int, factor: float = 1.0
) -> RotaryTables:
    """factor times cos and sin of the angles of positions start to end - 1, each
    (end - start, D/2).
    """
    positions = torch.arange(start, end, device=frequencies.device).float()  # (T,)
    angles = torch.outer(positions, frequencies)  # (T, D/2)
    return factor * angles.cos(), factor * angles.sin()


@lru_cache(maxsize=16)
def rotary_tables(
    head_dim: int,
    length: int,
    theta: float = 10000.0,
    device: torch.device | str = "cpu",
    scaling: RopeScaling | None = None,
) -> RotaryTables:
    """cos and sin of every angle in a sequence of `length` positions: float32, (length, D/2) each.

    Cached by its arguments and shared by all layers and calls: do not change the returned tensors
    in place.
    """
    # Not inference tensors, even if the first call is in inference mode: autograd saves them.
    with torch.inference_mode(False):
        frequencies = inverse_frequencies(head_dim, length, theta, device, scaling)
        return make_tables(frequencies, 0, length, attention_factor(scaling))


def fixed_positions(max_seq_len: int, scaling: RopeScaling | None) -> int:
    """How many of `max_seq_len` positions have angles independent of the sequence's length."""
    if scaling is None or scaling.rope_type not in ("dynamic", "longrope"):
        return max_seq_len
    assert scaling.original_max_seq_len is not None
    return scaling.original_max_seq_len


def tables_for(
    head_dim: int,
    max_seq_len: int,
    start: int,
    end: int,
    theta: float,
    device: torch.device | str,
    scaling: RopeScaling | None = None,
) -> RotaryTables:
    """cos and sin, each (end - start, head_dim/2), for positions start to end - 1.

    A batch may be longer than `max_seq_len` (some reviews are); its length is then rounded up to
    the next multiple, so that only a few different tables are cached. Of a very long window only
    the part that is needed is made.

    Dynamic NTK and LongRoPE take `end` as the sequence's length, padding included. Past the
    original length the frequencies change, with dynamic NTK at each new position, while cached keys
    keep their old rotation, as in transformers: decoding then differs from a forward pass over the
    whole sequence.
    """
    fixed = fixed_positions(max_seq_len, scaling)
    is_dynamic = scaling is not None and scaling.rope_type in ("dynamic", "longrope")
    is_stretched = is_dynamic and end > fixed
    if scaling is not None and scaling.rope_type == "dynamic" and not is_stretched:
        scaling = None
    if not is_eager():  # a part of what is compiled, traced or transformed: nothing to keep
        frequencies = inverse_frequencies(head_dim, end, theta, device, scaling)
        return make_tables(frequencies, start, end, attention_factor(scaling))
    if is_stretched:  # only valid for this length: not cached
        with torch.inference_mode(False):
            frequencies = inverse_frequencies(head_dim, end, theta, device, scaling)
            return make_tables(frequencies, start, end, attention_factor(scaling))
    length = fixed * max(1, -(-end // fixed))
    if length > TABLE_POSITIONS:  # as long as needed, in powers of 2
        length = min(length, max(TABLE_POSITIONS, 1 << (end - 1).bit_length()))
    cos, sin = rotary_tables(head_dim, length, theta, device, scaling)
    return cos[start:end], sin[start:end]


def config_tables(
    config: LlamaConfig, start: int, end: int, device: torch.device | str
) -> RotaryTables:
    """tables_for, with head_dim, max_seq_len, theta and scaling from a configuration."""
    theta, scaling = config.rope_theta, config.rope_scaling
    return tables_for(config.head_dim, config.max_seq_len, start, end, theta, device, scaling)


def restart(tables: RotaryTables, documents: torch.Tensor) -> RotaryTables:
    """Tables (T, D/2) of positions 0 to T-1 as (B, T, D/2), for positions that begin again where
    documents (B, T), numbers that are equal within a text, change.
    """
    places = torch.arange(documents.shape[1], device=documents.device)
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    positions = places - torch.where(begins, places, 0).cummax(dim=1).values  # (B, T)
    cos, sin = tables
    return cos[positions], sin[positions]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (B, T, H, D) rotated by the angles whose cos and sin are (T, D/2); in x's dtype.

    cos and sin may also be (B, T, D/2), where rows have different positions. A pair
    (even, odd) becomes (even·cos - odd·sin, even·sin + odd·cos).
    """
    pairs = x.float().contiguous().unflatten(-1, (-1, 2))  # (B, T, H, D/2, 2)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)  # (T, 1, D/2): broadcast over heads
    if torch.compiler.is_compiling() or x.device.type == "mps":  # neither has complex numbers
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
    scaling: RopeScaling | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate query (B, T, H, D) and key (B, T, H_kv, D), whose positions are 0 to T-1.

    `max_seq_len` only sizes the tables; a longer T is rotated too.
    """
    length = query.shape[1]
    cos, sin = tables_for(head_dim, max_seq_len, 0, length, theta, query.device, scaling)
    return rotate(query, cos, sin), rotate(key, cos, sin)
