"""Decoding one more token with few and fast operations: Llama.forward's arithmetic, flattened.

A decoding step is a few hundred small operations around products of one row with every weight, so
what counts is the bytes of the weights and the number of operations. `FastDecoder` keeps the
weights in the form that is read fastest and leaves out what a single position does not need. The
weights may be converted to bfloat16 or quantized to int8 here, or be so already; norms, rotation,
and the sums between layers are in float32, attention is in the cache's dtype.

Shapes: B batch, C the model's width, H query heads, H_kv key/value heads, D head_dim, V vocabulary.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from base_llama import LlamaPreTrainedModel
from config import LlamaConfig
from mini_llama.layers.int8_blocks import Int8BlockLinear
from mini_llama.layers.kv_cache import KVCache
from mini_llama.layers.linear import (
    can_pack,
    can_sum_columns,
    inference_linear,
    linear,
    packed_linear,
    packed_row_linear,
)
from mini_llama.layers.quantized_linear import FEW_ROWS, Int8Linear, QuantizedLinear
from rope import TABLE_POSITIONS, config_tables, fixed_positions
from utils import available_bytes

PRECISIONS = ("float32", "bfloat16", "int8")
COPIED_FRACTION = 0.5  # of the free memory, at most, for a faster layout of the same weights
Norm = Callable[[torch.Tensor], torch.Tensor]
Projection = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


def make_projection(
    layers: Sequence[Any], rows: int, precision: str, may_copy: bool = True
) -> Projection:
    """Several linear layers of the same input: x (rows, K) → one (rows, N) in float32 for each.

    Quantized layers stay as they are; the others are converted to `precision`. Weights that already
    have it are copied into a faster layout where `may_copy`, and where there is one. Biases, of all
    the layers or of none, are added in float32.
    """
    products = make_products(layers, rows, precision, may_copy)
    if layers[0].bias is None:
        return products
    biases = [layer.bias.float() for layer in layers]
    return lambda x: tuple(map(torch.add, products(x), biases))


def make_products(layers: Sequence[Any], rows: int, precision: str, may_copy: bool) -> Projection:
    """make_projection of the weights alone."""
    if any(isinstance(layer, QuantizedLinear) for layer in layers):
        for layer in layers:
            if isinstance(layer, Int8BlockLinear):
                layer.pack()
        is_few = rows <= FEW_ROWS
        products = [layer.few_rows_product() if is_few else layer.product for layer in layers]
        return lambda x: _bfloat16_products(x, products)
    weights = [layer.weight for layer in layers]
    sizes = [len(weight) for weight in weights]
    if precision == "int8":
        product = Int8Linear(torch.cat(weights))
        return lambda x: product(x).float().split(sizes, dim=-1)
    dtype, device = getattr(torch, precision), weights[0].device
    if rows == 1 and may_copy and dtype == torch.float32 and can_sum_columns(device):
        return packed_row_linear(weights)
    gains = rows > 1 or dtype == torch.bfloat16
    if (dtype != weights[0].dtype or (gains and may_copy)) and can_pack(dtype, device):
        packed = packed_linear(torch.cat(weights).to(dtype), rows)
        return lambda x: packed(x.to(dtype)).float().split(sizes, dim=-1)
    if device.type == "cuda" and may_copy and len(weights) > 1:
        joined = torch.cat(weights).to(dtype)
        return lambda x: linear(x.to(dtype), joined).float().split(sizes, dim=-1)
    weights = [weight.to(dtype) for weight in weights]  # no copy if they already have that dtype
    if dtype == torch.float32 and can_pack(dtype, device):
        return lambda x: tuple(inference_linear(x, weight) for weight in weights)
    return lambda x: tuple(linear(x.to(dtype), weight).float() for weight in weights)


def _bfloat16_products(
    x: torch.Tensor, products: Sequence[Callable[[torch.Tensor], torch.Tensor]]
) -> tuple[torch.Tensor, ...]:
    x = x.bfloat16()
    return tuple(product(x).float() for product in products)


def rotate_pairs(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """x (B, heads · D): each head's interleaved pairs, as complex numbers, times rotation."""
    pairs = torch.view_as_complex(x.reshape(x.shape[0], -1, len(rotation), 2))  # (B, heads, D/2)
    return torch.view_as_real(pairs * rotation)  # (B, heads, D/2, 2)


def make_norm(norm: nn.Module, rows: int, config: LlamaConfig) -> Norm:
    """llama.RMSNorm's arithmetic, with one row's scale as a number of Python's; LayerNorm as it is.

    Three operations in place of eight: at this size each costs as much as its numbers do.
    """
    weight, width = norm.weight, config.dim
    if rows > 1 or config.norm != "rmsnorm" or weight.device.type != "cpu":
        return norm

    def normalize(x: torch.Tensor) -> torch.Tensor:
        row = x[0]
        scale = (torch.dot(row, row).item() / width + config.layer_norm_eps) ** -0.5
        return torch.mul(x, weight).mul_(scale)

    return normalize


class LayerStep:
    """One llama.LlamaLayer, for one new position."""

    def __init__(
        self, layer: Any, rows: int, precision: str, may_copy: bool, config: LlamaConfig
    ) -> None:
        attention, feed_forward = layer.attention, layer.feed_forward
        self.attention_norm = make_norm(layer.attention_norm, rows, config)
        self.ffn_norm = make_norm(layer.ffn_norm, rows, config)
        self.heads = (rows, attention.n_heads, 1, attention.head_dim)
        self.kv_heads = (rows, attention.n_kv_heads, 1, attention.head_dim)
        self.enable_gqa = attention.n_heads != attention.n_kv_heads

        def projection(*layers: nn.Module) -> Projection:
            return make_projection(layers, rows, precision, may_copy)

        self.query_key_value = projection(
            attention.compute_query, attention.compute_key, attention.compute_value
        )
        self.attention_output = projection(attention.compute_output)
        self.gate_and_up = projection(feed_forward.w1, feed_forward.w3)
        self.down = projection(feed_forward.w2)

    def __call__(
        self, h: torch.Tensor, rotation: torch.Tensor, cached: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """h (B, C) → (B, C); `rotation` (D/2,) is the position's, as complex numbers.

        `cached`: keys and values (B, H_kv, N, D) with the new position, and where its own of each
        are stored, (B, H_kv, 1, D).
        """
        query, key, value = self.query_key_value(self.attention_norm(h))
        query, key = rotate_pairs(query, rotation), rotate_pairs(key, rotation)
        keys, values, new_key, new_value = cached
        new_key.copy_(key.view(self.kv_heads))
        new_value.copy_(value.view(self.kv_heads))
        query = query.view(self.heads).to(keys.dtype)
        attended = F.scaled_dot_product_attention(query, keys, values, enable_gqa=self.enable_gqa)
        h = h + self.attention_output(attended.flatten(1).float())[0]
        gate, up = self.gate_and_up(self.ffn_norm(h))
        return h + self.down(F.silu(gate) * up)[0]


class NetworkStep:
    """A whole network, for one new position: its weights are converted and laid out here."""

    def __init__(self, llama: LlamaPreTrainedModel, rows: int, precision: str) -> None:
        self.config, self.device = llama.config, llama.device
        fixed = fixed_positions(self.config.max_seq_len, self.config.rope_scaling)
        self.rotations = self._rotations(0, min(fixed, TABLE_POSITIONS))  # (positions, D/2)
        self.embeddings = llama.tok_embeddings
        self.norm = make_norm(llama.norm, rows, self.config)
        size = sum(parameter.nbytes for parameter in llama.parameters())
        may_copy = size < COPIED_FRACTION * (available_bytes(self.device) or math.inf)
        self.layers = [
            LayerStep(layer, rows, precision, may_copy, self.config) for layer in llama.layers
        ]
        self.output = make_projection([llama.output], rows, precision, may_copy)

    def _rotations(self, start: int, end: int) -> torch.Tensor:
        """The rotations (end - start, D/2) of positions, as complex numbers."""
        return torch.complex(*config_tables(self.config, start, end, self.device))

    def __call__(self, token: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Token ids (B, 1) that follow what the cache holds → logits (B, V) of the next."""
        position = cache.position
        is_known = position < len(self.rotations)
        if is_known:
            rotation = self.rotations[position]
        else:
            rotation = self._rotations(position, position + 1)[0]
        h = self.embeddings(token)[:, 0].float()  # (B, C)
        for layer, cached in zip(self.layers, cache.extended(), strict=True):
            h = layer(h, rotation, cached)
        cache.advance(1)
        return self.output(self.norm(h))[0]


def check_precision(llama: LlamaPreTrainedModel, precision: str, compiled: bool = False) -> None:
    """Raise ValueError for another precision, for attention that is not causal, or for int8 weights
    away from the CPU in a step that is not compiled.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
    if not llama.config.is_causal:
        raise ValueError(
            f"reading single tokens ({precision} weights) needs a key/value cache, and that causal "
            "attention: choose --edition llama2 or spring2026"
        )
    device = llama.device.type
    if precision == "int8" and device != "cpu" and not compiled:
        raise ValueError(f"int8 weights are for the CPU, not {device}: leave it out, or compile")


class FastDecoder:
    """The Decoder of a causal Llama in evaluation mode, for `rows` sequences.

    Quantized layers are used as they are. The others are copied for "int8" and for any precision
    that they do not have; and, if memory allows, into a layout that is read faster. Copies are
    made at the first token after the prompt.
    Raises ValueError as check_precision does.
    """

    def __init__(
        self, llama: LlamaPreTrainedModel, rows: int = 1, precision: str = "float32"
    ) -> None:
        check_precision(llama, precision)
        self.llama = llama
        self.step = functools.cache(lambda: NetworkStep(llama, rows, precision))

    def make_cache(self, rows: int, length: int) -> KVCache:
        return KVCache(self.llama.config, rows, length, self.llama.device, self.llama.dtype)

    def __call__(self, token: torch.Tensor, cache: KVCache) -> torch.Tensor:
        return self.step()(token, cache)
