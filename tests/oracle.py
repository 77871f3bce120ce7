"""A float64 NumPy oracle of the small Llama, its greedy decoding and its AdamW.

The tests compare the torch code with this module. It is written from the assignment's formulas
alone and shares no code with the model, so that an error in one is not repeated in the other.
Loops and einsum stand where faster forms exist: being plainly right matters more than speed.

Shape letters: B batch, T positions, H query heads, D head size, V vocabulary.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Tensors = Mapping[str, ArrayLike]
Record = dict[str, Array]


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


def log_softmax(x: Array) -> Array:
    # The log of softmax would be -inf where a probability underflows.
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def linear(x: Array, weight: Array) -> Array:
    return np.einsum("...i,oi->...o", x, weight)


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


def feed_forward(x: Array, w1: Array, w2: Array, w3: Array) -> Array:
    gate = linear(x, w1)
    silu = gate / (1 + np.exp(-gate))
    return linear(silu * linear(x, w3), w2)


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


def apply_norm(x: Array, weights: Mapping[str, Array], name: str, norm: str, eps: float) -> Array:
    weight = weights[f"{name}.weight"]
    if norm == "layernorm":
        return layer_norm(x, weight, weights.get(f"{name}.bias", 0.0), eps)
    if norm == "rmsnorm":
        return rms_norm(x, weight, eps)
    raise ValueError(f"unknown norm: {norm!r}")


def attention_block(
    x: Array,
    weights: Mapping[str, Array],
    name: str,
    visible: NDArray[np.bool_],
    n_heads: int,
    n_kv_heads: int,
    rope_theta: float,
) -> Array:
    batch, length, _ = x.shape

    def project(kind: str, heads: int) -> Array:
        projected = linear(x, weights[f"{name}.compute_{kind}.weight"])
        return projected.reshape(batch, length, heads, -1)  # (B, T, heads, D)

    positions = np.arange(length)
    query = rotate(project("query", n_heads), positions, rope_theta)
    key = rotate(project("key", n_kv_heads), positions, rope_theta)
    value = project("value", n_kv_heads)
    query, key, value = (np.einsum("bthd->bhtd", heads) for heads in (query, key, value))
    mixed = np.einsum("bhtd->bthd", attend(query, key, value, visible))
    return linear(mixed.reshape(batch, length, -1), weights[f"{name}.compute_output.weight"])


def forward(
    tensors: Tensors,
    *,
    n_heads: int,
    n_kv_heads: int,
    norm: str,
    attention: str,
    eps: float = 1e-5,
    rope_theta: float = 10000.0,
    tokens: ArrayLike,
    lengths: ArrayLike | None = None,
    record: Record | None = None,
) -> tuple[Array, Array]:
    """Logits (B, T, V) and hidden states (B, T, dim) of all positions of tokens (B, T).

    lengths (B,) counts the real tokens of right-padded rows; no query sees a padding key.
    record, if given, is filled with the intermediate arrays by the name of their module.
    """
    weights = {name: np.asarray(tensor, dtype=np.float64) for name, tensor in tensors.items()}
    tokens = np.asarray(tokens)
    record = {} if record is None else record
    visible = visible_keys(*tokens.shape, attention, lengths)
    # Counting by the largest index makes a gap among the layers a KeyError, not a shorter model.
    layers = [int(name.split(".")[1]) for name in weights if name.startswith("layers.")]

    x = record["embedding"] = weights["tok_embeddings.weight"][tokens]  # (B, T, dim)
    for layer in range(max(layers, default=-1) + 1):
        name = f"layers.{layer}"
        normed = apply_norm(x, weights, f"{name}.attention_norm", norm, eps)
        attended = attention_block(
            normed, weights, f"{name}.attention", visible, n_heads, n_kv_heads, rope_theta
        )
        h = x + attended
        ffn_normed = apply_norm(h, weights, f"{name}.ffn_norm", norm, eps)
        w1, w2, w3 = (weights[f"{name}.feed_forward.w{i}.weight"] for i in (1, 2, 3))
        fed = feed_forward(ffn_normed, w1, w2, w3)
        x = h + fed
        record[f"{name}.attention_norm"] = normed
        record[f"{name}.attention"] = attended
        record[f"{name}.ffn_norm"] = ffn_normed
        record[f"{name}.feed_forward"] = fed
        record[name] = x
    hidden_states = record["norm"] = apply_norm(x, weights, "norm", norm, eps)
    output = weights.get("output.weight", weights["tok_embeddings.weight"])
    return linear(hidden_states, output), hidden_states


def greedy(
    tensors: Tensors,
    *,
    n_heads: int,
    n_kv_heads: int,
    norm: str,
    attention: str,
    eps: float = 1e-5,
    rope_theta: float = 10000.0,
    tokens: ArrayLike,
    max_new_tokens: int,
    max_seq_len: int,
) -> NDArray[np.int64]:
    """tokens (B, T) followed by max_new_tokens argmax tokens, with no cache at all."""
    tokens = np.asarray(tokens, dtype=np.int64)
    for _ in range(max_new_tokens):
        logits, _ = forward(
            tensors,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            norm=norm,
            attention=attention,
            eps=eps,
            rope_theta=rope_theta,
            # Positions are counted from 0 in the cropped window.
            tokens=tokens[:, -max_seq_len:],
        )
        chosen = logits[:, -1].argmax(axis=-1)  # (B,)
        tokens = np.concatenate([tokens, chosen[:, None]], axis=1)
    return tokens


def clip(gradients: Sequence[Array], max_grad_norm: float) -> list[Array]:
    """Gradients scaled so that their joint norm is at most max_grad_norm."""
    total = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
    # torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm; its results include that.
    coefficient = min(1.0, max_grad_norm / (total + 1e-6))
    return [gradient * coefficient for gradient in gradients]


def adamw(
    weights: Sequence[ArrayLike],
    gradients: Sequence[Sequence[ArrayLike]],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    correct_bias: bool = True,
    max_grad_norm: float | None = None,
) -> list[Array]:
    """The weights after one step for each entry of gradients, itself one array a weight."""
    beta1, beta2 = betas
    params = [np.asarray(weight, dtype=np.float64) for weight in weights]
    m = [np.zeros_like(param) for param in params]
    v = [np.zeros_like(param) for param in params]
    for t, raw in enumerate(gradients, start=1):
        step_gradients = [np.asarray(gradient, dtype=np.float64) for gradient in raw]
        if max_grad_norm is not None:
            step_gradients = clip(step_gradients, max_grad_norm)
        step = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t) if correct_bias else lr
        for i, gradient in enumerate(step_gradients):
            m[i] = beta1 * m[i] + (1 - beta1) * gradient
            v[i] = beta2 * v[i] + (1 - beta2) * gradient**2
            params[i] = params[i] - step * m[i] / (np.sqrt(v[i]) + eps)
            # Decay acts on the weight that the gradient step has already moved.
            params[i] = params[i] - lr * weight_decay * params[i]
    return params
