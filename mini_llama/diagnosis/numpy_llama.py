"""The small Llama once more, in float64 NumPy, slow and obvious.

The tests compare the torch code with this module, and sanity_check.py --explain a student's. It is
written from the assignment's formulas alone and imports nothing but NumPy, so that an error in the
model is not repeated here.

Shapes: B batch, T positions, H query heads, D head_dim, C width, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Tensors = Mapping[str, ArrayLike]
Record = dict[str, Array]


@dataclass(frozen=True)
class Arithmetic:
    """What is computed with the weights; `norm` is "layernorm" or "rmsnorm", `attention`
    "bidirectional" or "causal".
    """

    n_heads: int
    n_kv_heads: int
    norm: str
    attention: str
    eps: float = 1e-5
    rope_theta: float = 10000.0


def layer_norm(x: Array, weight: Array, bias: Array | float = 0.0, eps: float = 1e-5) -> Array:
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def rms_norm(x: Array, weight: Array, eps: float = 1e-5) -> Array:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def softmax(x: Array) -> Array:
    # exp overflows for large scores; the shift cancels in the quotient.
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def linear(x: Array, weight: Array, bias: Array | float = 0.0) -> Array:
    return np.einsum("...i,oi->...o", x, weight) + bias


def project(x: Array, weights: Mapping[str, Array], name: str) -> Array:
    """The linear layer `name`, with its bias if it has one."""
    return linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias", 0.0))


def rotate(x: ArrayLike, positions: ArrayLike, theta: float = 10000.0) -> Array:
    """Rotary embedding of x (B, T, heads, D), pairs (2i, 2i+1), at positions (T,)."""
    x = np.asarray(x, dtype=np.float64)
    positions = np.asarray(positions, dtype=np.float64)
    head_dim = x.shape[-1]
    rotated = np.empty_like(x)
    for i in range(head_dim // 2):
        angle = positions * theta ** (-2 * i / head_dim)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]  # (T, 1)
        even, odd = x[..., 2 * i], x[..., 2 * i + 1]  # (B, T, heads)
        rotated[..., 2 * i] = even * cos - odd * sin
        rotated[..., 2 * i + 1] = even * sin + odd * cos
    return rotated


def attend(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, visible: ArrayLike | None = None
) -> Array:
    """Attention of query (B, H, T, D) over key and value (B, n_kv_heads, S, D).

    visible (B, T, S), or anything that broadcasts to it, is true where a query sees a key.
    """
    query, key, value = (np.asarray(x, dtype=np.float64) for x in (query, key, value))
    n_heads, n_kv_heads, head_dim = query.shape[1], key.shape[1], query.shape[-1]
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot share {n_kv_heads} key/value heads evenly")
    mixed = np.empty(query.shape[:-1] + value.shape[-1:])  # (B, H, T, D)
    for head in range(n_heads):
        # Neighbouring query heads share one key/value head.
        kv_head = head // (n_heads // n_kv_heads)
        scores = np.einsum("btd,bsd->bts", query[:, head], key[:, kv_head]) / np.sqrt(head_dim)
        if visible is not None:
            scores = np.where(visible, scores, -np.inf)
        mixed[:, head] = np.einsum("bts,bsd->btd", softmax(scores), value[:, kv_head])
    return mixed


def feed_forward(
    x: Array, w1: Array, w2: Array, w3: Array, biases: Sequence[Array | float] = (0.0, 0.0, 0.0)
) -> Array:
    gate = linear(x, w1, biases[0])
    silu = gate / (1 + np.exp(-gate))
    return linear(silu * linear(x, w3, biases[2]), w2, biases[1])


def visible_keys(
    batch: int, length: int, attention: str, lengths: ArrayLike | None = None
) -> NDArray[np.bool_]:
    """Which key (last axis) each query (middle axis) of each row sees: (B, T, T)."""
    if attention not in ("bidirectional", "causal"):
        raise ValueError(f"unknown attention: {attention!r}")
    real = np.full(batch, length) if lengths is None else np.asarray(lengths)
    if real.shape != (batch,) or real.min() < 1 or real.max() > length:
        raise ValueError(f"lengths must be {batch} numbers from 1 to {length}, not {real}")
    visible = np.zeros((batch, length, length), dtype=bool)
    for row in range(batch):
        for query in range(length):
            for key in range(length):
                allowed = attention == "bidirectional" or key <= query
                visible[row, query, key] = allowed and key < real[row]
    return visible


def apply_norm(x: Array, weights: Mapping[str, Array], name: str, arithmetic: Arithmetic) -> Array:
    weight = weights[f"{name}.weight"]
    if arithmetic.norm == "layernorm":
        return layer_norm(x, weight, weights.get(f"{name}.bias", 0.0), arithmetic.eps)
    if arithmetic.norm == "rmsnorm":
        return rms_norm(x, weight, arithmetic.eps)
    raise ValueError(f"unknown norm: {arithmetic.norm!r}")


def attention_block(
    x: Array,
    weights: Mapping[str, Array],
    name: str,
    arithmetic: Arithmetic,
    visible: NDArray[np.bool_],
    positions: ArrayLike | None = None,
) -> Array:
    """x (B, T, C) → (B, T, C), with the weights under `name`; positions (T,) count from 0."""
    batch, length, _ = x.shape

    def split(kind: str, heads: int) -> Array:
        projected = project(x, weights, f"{name}.compute_{kind}")
        return projected.reshape(batch, length, heads, -1)  # (B, T, heads, D)

    positions = np.arange(length) if positions is None else positions
    query = rotate(split("query", arithmetic.n_heads), positions, arithmetic.rope_theta)
    key = rotate(split("key", arithmetic.n_kv_heads), positions, arithmetic.rope_theta)
    value = split("value", arithmetic.n_kv_heads)
    query, key, value = (np.einsum("bthd->bhtd", heads) for heads in (query, key, value))
    mixed = np.einsum("bhtd->bthd", attend(query, key, value, visible))
    return project(mixed.reshape(batch, length, -1), weights, f"{name}.compute_output")


def forward(
    tensors: Tensors,
    arithmetic: Arithmetic,
    tokens: ArrayLike,
    lengths: ArrayLike | None = None,
    record: Record | None = None,
) -> tuple[Array, Array]:
    """Logits (B, T, V) and hidden states (B, T, C) of all positions of tokens (B, T).

    lengths (B,) counts the real tokens of right-padded rows; no query sees a padding key.
    record, if given, is filled with the intermediate arrays by the name of their module.
    """
    weights = {name: np.asarray(tensor, dtype=np.float64) for name, tensor in tensors.items()}
    tokens = np.asarray(tokens)
    record = {} if record is None else record
    batch, length = tokens.shape
    visible = visible_keys(batch, length, arithmetic.attention, lengths)
    # Counting by the largest index makes a gap among the layers a KeyError, not a shorter model.
    layers = [int(name.split(".")[1]) for name in weights if name.startswith("layers.")]

    x = record["embedding"] = weights["tok_embeddings.weight"][tokens]  # (B, T, C)
    for layer in range(max(layers, default=-1) + 1):
        name = f"layers.{layer}"
        normed = apply_norm(x, weights, f"{name}.attention_norm", arithmetic)
        attended = attention_block(normed, weights, f"{name}.attention", arithmetic, visible)
        h = x + attended
        ffn_normed = apply_norm(h, weights, f"{name}.ffn_norm", arithmetic)
        parts = [f"{name}.feed_forward.w{i}" for i in (1, 2, 3)]
        w1, w2, w3 = (weights[f"{part}.weight"] for part in parts)
        biases = [weights.get(f"{part}.bias", 0.0) for part in parts]
        fed = feed_forward(ffn_normed, w1, w2, w3, biases)
        x = h + fed
        record[f"{name}.attention_norm"] = normed
        record[f"{name}.attention"] = attended
        record[f"{name}.ffn_norm"] = ffn_normed
        record[f"{name}.feed_forward"] = fed
        record[name] = x
    hidden_states = record["norm"] = apply_norm(x, weights, "norm", arithmetic)
    output = weights.get("output.weight", weights["tok_embeddings.weight"])
    return linear(hidden_states, output), hidden_states
