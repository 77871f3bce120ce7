"""What each component of a model should give, in float64, and what usual mistakes make of it.

The formulas are numpy_llama.py's, with a checkpoint's weights. The file knows no network.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from config import ATTENTIONS, NORMS, LlamaConfig
from mini_llama.diagnosis import numpy_llama
from mini_llama.diagnosis.numpy_llama import Array

Variants = Iterator[tuple[str, Array]]  # "it is …", and the values
OTHER_EPS = (1e-6, 1e-8, 1e-12)


@dataclass(frozen=True)
class Formulas:
    """A model of these float64 weights; the configuration says norm and attention."""

    weights: Mapping[str, Array]
    config: LlamaConfig

    def changed(self, weights: Mapping[str, Array] | None = None, **config: Any) -> "Formulas":
        return Formulas({**self.weights, **(weights or {})}, replace(self.config, **config))

    def forward(self, tokens: Array) -> tuple[Array, Array, dict[str, Array]]:
        """Logits and hidden states of all positions, and the arrays between by module."""
        config, record = self.config, {}
        logits, hidden_states = numpy_llama.forward(
            self.weights,
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
            norm=config.norm,
            attention=config.attention,
            eps=config.layer_norm_eps,
            rope_theta=config.rope_theta,
            tokens=tokens,
            record=record,
        )
        return logits, hidden_states, record

    def norm(self, name: str, x: Array) -> Array:
        eps = self.config.layer_norm_eps
        return numpy_llama.apply_norm(x, self.weights, name, self.config.norm, eps)

    def attention(self, name: str, x: Array, positions: Array | None = None) -> Array:
        config = self.config
        visible = numpy_llama.visible_keys(*x.shape[:2], config.attention)
        return numpy_llama.attention_block(
            x,
            self.weights,
            name,
            visible,
            config.n_heads,
            config.n_kv_heads,
            config.rope_theta,
            positions,
        )

    def feed_forward(self, name: str, x: Array) -> Array:
        return numpy_llama.feed_forward(
            x, *(self.weights[f"{name}.w{i}.weight"] for i in (1, 2, 3))
        )

    def component(self, name: str, x: Array) -> Array:
        """What the norm, attention or feed-forward of this name gives for x (B, T, C)."""
        return getattr(self, _kind(name))(name, x)

    def variants(self, name: str, x: Array) -> Variants:
        """What usual mistakes make of it."""
        return getattr(self, f"_{_kind(name)}_variants")(name, x)

    def _norm_variants(self, name: str, x: Array) -> Variants:
        width, eps, weight = x.shape[-1], self.config.layer_norm_eps, f"{name}.weight"
        other = next(norm for norm in NORMS if norm != self.config.norm)
        yield f"what {other} gives", self.changed(norm=other).norm(name, x)
        yield "its input", x
        yield "the norm without its weight", self.changed({weight: np.ones(width)}).norm(name, x)
        for other_eps in OTHER_EPS:
            yield (
                f"what eps {other_eps:g} gives",
                self.changed(layer_norm_eps=other_eps).norm(name, x),
            )
        # 1/sqrt(var/ratio + eps) = sqrt(ratio)/sqrt(var + eps·ratio)
        ratio = (width - 1) / width
        gain = {weight: self.weights[weight] * math.sqrt(ratio)}
        unbiased = self.changed(gain, layer_norm_eps=eps * ratio)
        yield "what the unbiased variance gives", unbiased.norm(name, x)

    def _attention_variants(self, name: str, x: Array) -> Variants:
        head_dim, dim = self.config.head_dim, self.config.dim
        query, key = f"{name}.compute_query.weight", f"{name}.compute_key.weight"

        def scaled(factor: float) -> Array:
            return self.changed({query: self.weights[query] * factor}).attention(name, x)

        def reordered(order: Callable[[int], int]) -> Array:
            # Scores are sums over a head's features: RoPE of other pairs is RoPE of other rows.
            rows = [order(i) for i in range(head_dim)]
            heads = {k: self.weights[k].reshape(-1, head_dim, dim)[:, rows] for k in (query, key)}
            return self.changed({k: w.reshape(-1, dim) for k, w in heads.items()}).attention(
                name, x
            )

        other = next(attention for attention in ATTENTIONS if attention != self.config.attention)
        yield f"what {other} attention gives", self.changed(attention=other).attention(name, x)
        yield "what scores without 1/sqrt(head_dim) give", scaled(math.sqrt(head_dim))
        yield "what scores over head_dim, not its root, give", scaled(1 / math.sqrt(head_dim))
        yield "what scores over sqrt(dim) give", scaled(math.sqrt(head_dim / dim))
        yield "what attention without RoPE gives", self.attention(name, x, np.zeros(x.shape[1]))
        halves = reordered(lambda i: i // 2 + i % 2 * (head_dim // 2))
        yield "what RoPE in split halves gives: the pairs are (2i, 2i+1)", halves
        yield "what RoPE in the other direction gives", reordered(lambda i: i ^ 1)
        unmixed = self.changed({f"{name}.compute_output.weight": np.eye(dim)})
        yield "what attention without compute_output gives", unmixed.attention(name, x)

    def _feed_forward_variants(self, name: str, x: Array) -> Variants:
        w1, w2, w3 = (self.weights[f"{name}.w{i}.weight"] for i in (1, 2, 3))
        gate, up = numpy_llama.linear(x, w1), numpy_llama.linear(x, w3)
        yield "what w1 and w3 exchanged give", numpy_llama.feed_forward(x, w3, w2, w1)
        yield "what a gate without silu gives", numpy_llama.linear(gate * up, w2)
        yield "what relu for silu gives", numpy_llama.linear(np.maximum(gate, 0) * up, w2)
        yield "what sigmoid for silu gives", numpy_llama.linear(up / (1 + np.exp(-gate)), w2)


def _kind(name: str) -> str:
    kind = name.rpartition(".")[2]
    return "norm" if kind.endswith("norm") else kind
