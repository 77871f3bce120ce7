"""What each component of a model should give, in float64, and what known mistakes make of it.

The formulas are numpy_llama.py's, with a checkpoint's weights.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from config import ATTENTIONS, NORMS, LlamaConfig
from mini_llama.diagnosis import numpy_llama
from mini_llama.diagnosis.numpy_llama import Array

OTHER_EPS = (1e-6, 1e-8, 1e-12)
OTHER_NORM = {  # by the one that is right
    "layernorm": "norm: RMSNorm in place of LayerNorm",
    "rmsnorm": "norm: LayerNorm in place of RMSNorm",
}
OTHER_ATTENTION = {
    "bidirectional": "attention: causal where the edition is not",
    "causal": "attention: not causal where the edition is",
}


class Form(NamedTuple):
    """The values that a mistake, by its id, leads to; `what` follows "it is"."""

    mistake: str
    what: str
    values: Array


@dataclass(frozen=True)
class Formulas:
    """A model of these float64 weights; the configuration says norm and attention."""

    weights: Mapping[str, Array]
    config: LlamaConfig

    @property
    def arithmetic(self) -> numpy_llama.Arithmetic:
        config = self.config
        return numpy_llama.Arithmetic(
            config.n_heads,
            config.n_kv_heads,
            config.norm,
            config.attention,
            config.layer_norm_eps,
            config.rope_theta,
        )

    def changed(self, weights: Mapping[str, Array] | None = None, **config: Any) -> "Formulas":
        return Formulas({**self.weights, **(weights or {})}, replace(self.config, **config))

    def forward(self, tokens: Array) -> tuple[Array, Array, dict[str, Array]]:
        """Logits and hidden states of all positions of tokens (B, T), and the arrays between by
        module.
        """
        record: numpy_llama.Record = {}
        logits, hidden_states = numpy_llama.forward(
            self.weights, self.arithmetic, tokens, record=record
        )
        return logits, hidden_states, record

    def norm(self, name: str, x: Array) -> Array:
        return numpy_llama.apply_norm(x, self.weights, name, self.arithmetic)

    def attention(self, name: str, x: Array, positions: Array | None = None) -> Array:
        batch, length, _ = x.shape
        visible = numpy_llama.visible_keys(batch, length, self.config.attention)
        return numpy_llama.attention_block(
            x, self.weights, name, self.arithmetic, visible, positions
        )

    def feed_forward(self, name: str, x: Array) -> Array:
        w1, w2, w3 = (self.weights[f"{name}.w{i}.weight"] for i in (1, 2, 3))
        return numpy_llama.feed_forward(x, w1, w2, w3)

    def component(self, name: str, x: Array) -> Array:
        """What the norm, attention or feed-forward of this name gives for x (B, T, C)."""
        return getattr(self, _kind(name))(name, x)

    def forms(self, name: str, x: Array) -> Iterator[Form]:
        """What known mistakes make of it."""
        return getattr(self, f"_{_kind(name)}_forms")(name, x)

    def _norm_forms(self, name: str, x: Array) -> Iterator[Form]:
        width, eps, weight = x.shape[-1], self.config.layer_norm_eps, f"{name}.weight"
        other = next(norm for norm in NORMS if norm != self.config.norm)
        values = self.changed(norm=other).norm(name, x)
        yield Form(OTHER_NORM[self.config.norm], f"what {other} gives", values)
        yield Form("norm: norm left out", "its input", x)
        values = self.changed({weight: np.ones(width)}).norm(name, x)
        yield Form("norm: no gain", "the norm without its weight", values)
        for other_eps in OTHER_EPS:
            values = self.changed(layer_norm_eps=other_eps).norm(name, x)
            yield Form("norm: another eps", f"what eps {other_eps:g} gives", values)
        # 1/sqrt(var/ratio + eps) = sqrt(ratio)/sqrt(var + eps·ratio)
        ratio = (width - 1) / width
        gain = {weight: self.weights[weight] * math.sqrt(ratio)}
        values = self.changed(gain, layer_norm_eps=eps * ratio).norm(name, x)
        yield Form("norm: unbiased variance", "what the unbiased variance gives", values)

    def _attention_forms(self, name: str, x: Array) -> Iterator[Form]:
        head_dim, dim = self.config.head_dim, self.config.dim
        query, key = f"{name}.compute_query.weight", f"{name}.compute_key.weight"

        def scaled(factor: float) -> Array:
            return self.changed({query: self.weights[query] * factor}).attention(name, x)

        def reordered(order: Callable[[int], int]) -> Array:
            # Scores are sums over a head's features: RoPE of other pairs is RoPE of other rows.
            rows = [order(i) for i in range(head_dim)]
            heads = {k: self.weights[k].reshape(-1, head_dim, dim)[:, rows] for k in (query, key)}
            changed = self.changed({k: w.reshape(-1, dim) for k, w in heads.items()})
            return changed.attention(name, x)

        other = next(attention for attention in ATTENTIONS if attention != self.config.attention)
        values = self.changed(attention=other).attention(name, x)
        yield Form(OTHER_ATTENTION[self.config.attention], f"what {other} attention gives", values)
        for mistake, what, factor in (
            ("no scale", "without 1/sqrt(head_dim)", math.sqrt(head_dim)),
            ("scaled by d", "over head_dim, not its root,", 1 / math.sqrt(head_dim)),
            ("scaled by the root of dim", "over sqrt(dim)", math.sqrt(head_dim / dim)),
        ):
            yield Form(f"attention: {mistake}", f"what scores {what} give", scaled(factor))
        values = self.attention(name, x, np.zeros(x.shape[1]))
        yield Form("attention: RoPE is not applied", "what attention without RoPE gives", values)
        halves = reordered(lambda i: i // 2 + i % 2 * (head_dim // 2))
        what = "what RoPE in split halves gives: the pairs are (2i, 2i+1)"
        yield Form("rope: split halves", what, halves)
        backwards = reordered(lambda i: i ^ 1)
        yield Form("rope: wrong sign", "what RoPE in the other direction gives", backwards)
        unmixed = self.changed({f"{name}.compute_output.weight": np.eye(dim)}).attention(name, x)
        what = "what attention without compute_output gives"
        yield Form("attention: compute_output left out", what, unmixed)

    def _feed_forward_forms(self, name: str, x: Array) -> Iterator[Form]:
        w1, w2, w3 = (self.weights[f"{name}.w{i}.weight"] for i in (1, 2, 3))
        gate, up = numpy_llama.linear(x, w1), numpy_llama.linear(x, w3)
        sigmoid = 1 / (1 + np.exp(-gate))
        swapped = numpy_llama.feed_forward(x, w3, w2, w1)
        yield Form("feed_forward: w1 and w3 swapped", "what w1 and w3 exchanged give", swapped)
        for mistake, what, hidden in (
            ("silu left out", "a gate without silu", gate * up),
            ("relu in place of silu", "relu for silu", np.maximum(gate, 0) * up),
            ("sigmoid in place of silu", "sigmoid for silu", sigmoid * up),
        ):
            values = numpy_llama.linear(hidden, w2)
            yield Form(f"feed_forward: {mistake}", f"what {what} gives", values)


def _kind(name: str) -> str:
    kind = name.rpartition(".")[2]
    return "norm" if kind.endswith("norm") else kind
