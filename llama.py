"""Llama 2, top to bottom: norms, attention, feed-forward, layer, network (Touvron et al. 2023).

The configuration says which norm and which attention mask are used (config.EDITIONS has all
combinations).

Shapes: B batch, T new positions, S attended positions (S = T without a cache),
H query heads, H_kv key/value heads, D head_dim (C/H in most models), C the model's width,
V vocabulary.
Masks are boolean and True where attention is allowed.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from base_llama import LlamaPreTrainedModel
from config import DEFAULT_EDITION, EDITIONS, LlamaConfig, feed_forward_hidden_dim
from mini_llama.checkpoints.loading import load_model
from mini_llama.eager import has_fused_norm, is_transformed, with_own_heads
from mini_llama.inference import generation, sampling
from mini_llama.layers.kv_cache import KVCache
from mini_llama.layers.linear import Linear
from rope import RotaryTables, config_tables, restart, rotate


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) · weight + bias over the last dimension (Ba et al. 2016).

    The variance is the biased one. Computed in float32. `_norm` is the formula; `forward` computes
    the same in one fused operation, 15 times as fast.
    """

    def __init__(self, dim: int, eps: float = LlamaConfig.layer_norm_eps) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + self.eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_float, shape = x.float(), self.weight.shape
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x_float, shape, weight, bias, self.eps).type_as(x)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension (Zhang and Sennrich 2019, eq. 4).

    The mean square is computed in float32.
    """

    def __init__(self, dim: int, eps: float = LlamaConfig.layer_norm_eps) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if has_fused_norm(x, self.weight):  # one operation instead of seven
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return self._norm(x.float()).type_as(x) * self.weight


def make_norm(config: LlamaConfig) -> nn.Module:
    norm = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}[config.norm]
    return norm(config.dim, eps=config.layer_norm_eps)


def attention_by_hand(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(Q Kᵀ / sqrt(D)) V, written out (Vaswani et al. 2017, eq. 1).

    query (B, H, T, D), key and value (B, H_kv, S, D), mask broadcastable to (B, H, T, S); dropout
    is applied to the probabilities. It materializes a T×S matrix per head.
    """
    repeats = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(repeats, dim=1)  # (B, H, S, D): neighbours share a head
    value = value.repeat_interleave(repeats, dim=1)
    scores = query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1)  # (B, H, T, S)
    if mask is not None:
        scores = scores + torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -math.inf)
    probabilities = F.dropout(scores.softmax(dim=-1), dropout)
    return probabilities @ value  # (B, H, T, D)


def is_better_by_hand(query: torch.Tensor, *others: torch.Tensor) -> bool:
    """Whether `attention_by_hand` is to take the place of PyTorch's blockwise attention.

    It must where forward-mode derivatives are asked for, which that has not. On a CPU, in bfloat16
    with gradients, it is 2 to 6 times as fast while the T×S matrices are small: the blockwise
    kernel's backward pass does not use the CPU's bfloat16 units well.
    """
    if torch.compiler.is_compiling():  # neither is its business, nor may it fix the length
        return False
    if is_transformed(query, *others):
        return True
    in_bfloat16 = query.dtype == torch.bfloat16 and query.device.type == "cpu"
    return in_bfloat16 and query.requires_grad and query.shape[2] <= 512


class Attention(nn.Module):
    """Grouped-query attention with rotary positions (Ainslie et al. 2023; Llama 2, section 2.2)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.head_dim, self.is_causal = config.head_dim, config.is_causal
        has_bias = config.attention_bias
        self.compute_query = Linear(config.dim, config.query_dim, has_bias)
        self.compute_key = Linear(config.dim, config.kv_dim, has_bias)
        self.compute_value = Linear(config.dim, config.kv_dim, has_bias)
        self.compute_output = Linear(config.query_dim, config.dim, has_bias)
        self.dropout = config.dropout
        self.resid_dropout = nn.Dropout(config.dropout)

    def compute_query_key_value_scores(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attended values (B, H, T, D) of query (B, H, T, D), key and value (B, H or H_kv, S, D).

        The formula is `attention_by_hand`'s, with dropout on the probabilities while training,
        computed in blocks so that no T×S matrix is materialized. Without a mask the configuration
        decides: every position attends to all, or, if causal, to itself and earlier ones.
        """
        length, dropout = query.shape[2], self.dropout if self.training else 0.0
        is_causal = self.is_causal and mask is None
        # A single query is the last token's: every key is in its past. That the lengths are equal
        # is asked first, since an exporter knows it without knowing them.
        if is_causal and length != key.shape[2] and length == 1:
            is_causal = False
        if is_better_by_hand(query, key, value):
            if is_causal:
                shape = (length, key.shape[2])
                mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
            return attention_by_hand(query, key, value, mask, dropout)
        key, value = with_own_heads(query, key, value, mask)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=is_causal,
            enable_gqa=bool(key.shape[1] != query.shape[1]),
        )

    def forward(
        self,
        x: torch.Tensor,
        tables: RotaryTables | None = None,
        mask: torch.Tensor | None = None,
        cache: KVCache | None = None,
        layer_id: int = 0,
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x (B, T, C) → (B, T, C). `tables` are RoPE's for the T positions, by default 0 to T-1.

        With `last` (B,), the index of each row's last token, only the query of that column is
        computed: (B, 1, C). `mask` then only needs to hide padding.
        """
        cos, sin = tables or config_tables(self.config, 0, x.shape[1], x.device)  # (T, D/2)
        query_input, query_tables = x, (cos, sin)
        if last is not None:
            query_input = column(x, last)
            query_tables = cos[last].unsqueeze(1), sin[last].unsqueeze(1)
        heads = (-1, self.head_dim)
        query = self.compute_query(query_input).unflatten(-1, heads)  # (B, T, H, D), or T = 1
        key = self.compute_key(x).unflatten(-1, heads)  # (B, T, H_kv, D)
        value = self.compute_value(x).unflatten(-1, heads)
        query, key = rotate(query, *query_tables), rotate(key, cos, sin)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))  # (B, H, T, D)
        if cache is not None:
            key, value = cache.update(layer_id, key, value)  # (B, H_kv, S, D)
        attended = self.compute_query_key_value_scores(query, key, value, mask)
        attended = attended.transpose(1, 2).flatten(2)  # (B, T, H·D)
        return self.resid_dropout(self.compute_output(attended))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) · w3 x) (Shazeer 2020, eq. 6)."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int | None = None,
        multiple_of: int = LlamaConfig.multiple_of,
        dropout: float = LlamaConfig.dropout,
        has_bias: bool = LlamaConfig.mlp_bias,
    ) -> None:
        super().__init__()
        if hidden_dim is None:
            hidden_dim = feed_forward_hidden_dim(dim, multiple_of)
        self.w1 = Linear(dim, hidden_dim, has_bias)
        self.w2 = Linear(hidden_dim, dim, has_bias)
        self.w3 = Linear(dim, hidden_dim, has_bias)
        self.dropout = nn.Dropout(dropout)

    def SwiGLU(self, x: torch.Tensor) -> torch.Tensor:  # noqa: N802 (the assignment's name)
        return F.silu(self.w1(x)) * self.w3(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.w2(self.SwiGLU(x)))


class LlamaLayer(nn.Module):
    """Pre-norm Transformer block: attention, then feed-forward, each added to its input."""

    def __init__(self, layer_id: int, config: LlamaConfig) -> None:
        super().__init__()
        self.layer_id = layer_id
        self.attention = Attention(config)
        self.feed_forward = FeedForward(
            config.dim, config.hidden_dim, config.multiple_of, config.dropout, config.mlp_bias
        )
        self.attention_norm = make_norm(config)
        self.ffn_norm = make_norm(config)

    def forward(
        self,
        x: torch.Tensor,
        tables: RotaryTables | None = None,
        mask: torch.Tensor | None = None,
        cache: KVCache | None = None,
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x (B, T, C) → (B, T, C), or with `last` (B,) only that column of each row: (B, 1, C)."""
        attended = self.attention(self.attention_norm(x), tables, mask, cache, self.layer_id, last)
        h = (x if last is None else column(x, last)) + attended
        return h + self.feed_forward(self.ffn_norm(h))


class Llama(LlamaPreTrainedModel):
    """The whole network, freshly initialised. `load_pretrained` gives one with trained weights."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.params = config  # the assignment's second name for it
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(LlamaLayer(i, config) for i in range(config.n_layers))
        self.norm = make_norm(config)
        self.output = Linear(config.dim, config.vocab_size)
        self.tie_weights()
        self.init_weights()

    def forward(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and hidden states (B, T, C), after the final norm, of token ids (B, T).

        Logits are (B, T, V) if `targets` are given, else (B, 1, V), of the last column. With
        `lengths` (B,), the number of real tokens in each right-padded row, padding is masked and
        each row's last real token is used instead of the last column. With `cache` the tokens
        follow the cached ones. With `last_only` the hidden states too are only the last column's,
        (B, 1, C), which saves work. Raises ValueError if a cache is used with bidirectional
        attention or with `lengths`.
        """
        h = self.hidden_states(tokens, lengths, cache, last_only)
        if targets is not None or last_only:
            return self.output(h), h
        return self.output(last_column(h, lengths)), h

    def hidden_states(
        self,
        tokens: torch.Tensor,
        lengths: torch.Tensor | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
        documents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The hidden states of `forward`, without logits; same arguments and ValueError. Texts of a
        row that have different numbers in `documents` (B, T) do not see each other, and each
        begins at position 0.
        """
        if cache is not None and not (self.config.is_causal and lengths is None):
            raise ValueError("a key/value cache is exact only for causal attention, unpadded rows")
        start, length = cache.position if cache else 0, tokens.shape[1]
        tables = config_tables(self.config, start, start + length, tokens.device)
        mask, last = self._mask(start, length, lengths, tokens.device), None
        if documents is not None:
            tables, mask = restart(tables, documents), document_mask(documents, self.config)
        h = self.dropout(self.tok_embeddings(tokens))  # (B, T, C)
        *lower, top = self.layers
        for layer in lower:
            h = self.through(layer, h, tables, mask, cache)
        if last_only:  # lower layers need all columns: the next layer's keys and values
            last = last_index(tokens, lengths)
            mask = None if lengths is None else padding_mask(lengths, length)
        h = self.through(top, h, tables, mask, cache, last)
        if cache is not None:
            cache.advance(length)
        return self.norm(h)

    def last_hidden_state(
        self, tokens: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The hidden state (B, 1, C) of the last column, which is all a classifier needs."""
        return self.hidden_states(tokens, lengths, last_only=True)

    def _mask(
        self, start: int, length: int, lengths: torch.Tensor | None, device: torch.device
    ) -> torch.Tensor | None:
        """(B, 1, 1, T) or (T, S), or None where the configuration's own mask is enough."""
        if self.config.is_causal:
            # Padding is on the right, so no real token ever sees it: no mask for `lengths`.
            if start == 0 or length == 1:
                return None
            mask = torch.ones(length, start + length, dtype=torch.bool, device=device)
            return mask.tril(diagonal=start)
        return None if lengths is None else padding_mask(lengths, length)

    def generate(
        self,
        idx: torch.Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        epsilon: float = EDITIONS[DEFAULT_EDITION].epsilon,
        top_p: float = EDITIONS[DEFAULT_EDITION].top_p,
        generator: torch.Generator | None = None,
        stop_id: int | None = None,
    ) -> torch.Tensor:
        """Token ids (B, T) continued: (B, T + max_new_tokens), without dropout.

        The arguments and the ValueErrors are those of sampling.Sampler and generation.generate; the
        latter offers more ways to decode.
        """
        sampler = sampling.Sampler(temperature, epsilon, top_p, generator)
        was_training = self.training
        self.eval()
        try:
            return generation.generate(self, idx, max_new_tokens, sampler, stop_id)
        finally:
            self.train(was_training)


def padding_mask(lengths: torch.Tensor, length: int) -> torch.Tensor:
    """(B, 1, 1, T): True for the first `lengths` (B,) keys of each row."""
    return (torch.arange(length, device=lengths.device) < lengths[:, None])[:, None, None, :]


def document_mask(documents: torch.Tensor, config: LlamaConfig) -> torch.Tensor:
    """(B, 1, T, T): True within a document of documents (B, T), if causal for keys up to it."""
    mask = documents[:, None, :, None] == documents[:, None, None, :]
    return mask.tril() if config.is_causal else mask


def last_index(tokens: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """(B,): index of each row's last token, or with `lengths` of its last real one."""
    if lengths is None:
        return tokens.new_full(tokens.shape[:1], tokens.shape[1] - 1)
    return lengths.to(tokens.device) - 1


def column(h: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(B, 1, C): column `index` (B,) of each row of h (B, T, C)."""
    return h[torch.arange(len(h), device=h.device), index].unsqueeze(1)


def last_column(h: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """(B, 1, C): the last column of h (B, T, C), or with `lengths` each row's last real token."""
    return h[:, -1:] if lengths is None else column(h, lengths.to(h.device) - 1)


def load_pretrained(
    path: str | Path,
    edition: str | None = None,
    norm: str | None = None,
    attention: str | None = None,
    dtype: str = "float32",
    quantize: str | None = None,
) -> Llama:
    """Load the model of a checkpoint; see checkpoints.loading.load_model for details and errors.

    Without `edition`, `norm` and `attention` the model uses the arithmetic that the checkpoint
    records, else the default edition's ("mmia").
    """
    return load_model(Llama, path, edition, norm, attention, dtype, quantize)
