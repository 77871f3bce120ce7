"""Llama 2, top to bottom: norms, attention, feed-forward, layer, network (Touvron et al. 2023).

The network knows token ids and tensors; text, files and training loops are elsewhere. Which norm
and which attention mask are in force stands in the configuration (config.EDITIONS says why there
are several).

Shapes: B batch, T new positions, S positions that are attended to (S = T without a cache),
H query heads, H_kv key/value heads, D head_dim, C = H·D the model's width, V vocabulary.
Masks are boolean and True where attention is allowed.
"""

import functools
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from base_llama import LlamaPreTrainedModel
from config import (
    DEFAULT_EDITION,
    EDITIONS,
    Arithmetic,
    LlamaConfig,
    feed_forward_hidden_dim,
)
from mini_llama.checkpoints.loading import load_model
from mini_llama.inference import generation
from mini_llama.inference.compiled_decoding import CompiledDecoder, cache_capacity
from mini_llama.inference.decoding import PRECISIONS, Decoder, check_precision
from mini_llama.inference.sampling import Sampler
from mini_llama.layers.kv_cache import KVCache
from mini_llama.layers.linear import Linear
from rope import RotaryTables, rotate, tables_for


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) · weight + bias over the last dimension (Ba et al. 2016).

    The variance is the biased one. Computed in float32; `_norm` is the formula, and `forward` the
    same in one operation, which is 15 times faster.
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
    is that of the probabilities. It holds a T×S matrix per head.
    """
    repeats = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(repeats, dim=1)  # (B, H, S, D): neighbours share a head
    value = value.repeat_interleave(repeats, dim=1)
    scores = query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1)  # (B, H, T, S)
    if mask is not None:
        scores = scores + torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -math.inf)
    probabilities = F.dropout(scores.softmax(dim=-1), dropout)
    return probabilities @ value  # (B, H, T, D)


def is_faster_by_hand(query: torch.Tensor) -> bool:
    """Whether `attention_by_hand` beats PyTorch's blockwise attention for this query.

    It does on a CPU in bfloat16 with gradients, 2 to 6 times, as long as the T×S matrices are
    small: the blockwise kernel's backward pass does not use the CPU's bfloat16 units well.
    """
    in_bfloat16 = query.dtype == torch.bfloat16 and query.device.type == "cpu"
    return in_bfloat16 and query.requires_grad and query.shape[2] <= 512


class Attention(nn.Module):
    """Grouped-query attention with rotary positions (Ainslie et al. 2023; Llama 2, section 2.2)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.head_dim, self.max_seq_len = config.head_dim, config.max_seq_len
        self.rope_theta, self.rope_scaling = config.rope_theta, config.rope_scaling
        self.is_causal = config.is_causal
        kv_dim = config.n_kv_heads * config.head_dim
        self.compute_query = Linear(config.dim, config.dim)
        self.compute_key = Linear(config.dim, kv_dim)
        self.compute_value = Linear(config.dim, kv_dim)
        self.compute_output = Linear(config.dim, config.dim)
        self.dropout = config.dropout
        self.resid_dropout = nn.Dropout(config.dropout)

    def rotary_tables(self, start: int, end: int, device: torch.device) -> RotaryTables:
        """RoPE's tables, each (T, D/2), for positions start to end - 1."""
        theta, scaling = self.rope_theta, self.rope_scaling
        return tables_for(self.head_dim, self.max_seq_len, start, end, theta, device, scaling)

    def compute_query_key_value_scores(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attended values (B, H, T, D) of query (B, H, T, D), key and value (B, H or H_kv, S, D).

        The formula is `attention_by_hand`'s, with dropout on the probabilities while training;
        blockwise, so that no T×S matrix is held. Without a mask the configuration decides: every
        position sees every position, or, where attention is causal, itself and earlier ones.
        """
        length, dropout = query.shape[2], self.dropout if self.training else 0.0
        # A single query is the newest token: everything cached is in its past.
        is_causal = self.is_causal and mask is None and length > 1
        if is_faster_by_hand(query):
            if is_causal:
                mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
            return attention_by_hand(query, key, value, mask, dropout)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=is_causal,
            enable_gqa=key.shape[1] != query.shape[1],
        )

    def forward(
        self,
        x: torch.Tensor,
        tables: RotaryTables | None = None,
        mask: torch.Tensor | None = None,
        cache: KVCache | None = None,
        layer_id: int = 0,
    ) -> torch.Tensor:
        """x (B, T, C) → (B, T, C). `tables` are RoPE's for the T positions, by default 0 to T-1."""
        batch, length, _ = x.shape
        query = self.compute_query(x).view(batch, length, self.n_heads, self.head_dim)
        key = self.compute_key(x).view(batch, length, self.n_kv_heads, self.head_dim)
        value = self.compute_value(x).view(batch, length, self.n_kv_heads, self.head_dim)
        if tables is None:
            tables = self.rotary_tables(0, length, x.device)
        query, key = rotate(query, *tables), rotate(key, *tables)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))  # (B, H, T, D)
        if cache is not None:
            key, value = cache.update(layer_id, key, value)  # (B, H_kv, S, D)
        attended = self.compute_query_key_value_scores(query, key, value, mask)
        attended = attended.transpose(1, 2).reshape(batch, length, -1)  # (B, T, C)
        return self.resid_dropout(self.compute_output(attended))

    def read_last(
        self, x: torch.Tensor, tables: RotaryTables, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """forward's last column, or each row's last real token, and nothing else: (B, 1, C).

        That query sees every real key whatever the mask, since all of them are in its past.
        """
        batch, length, _ = x.shape
        query = self.compute_query(last_column(x, lengths)).view(1, batch, -1, self.head_dim)
        key = self.compute_key(x).view(batch, length, self.n_kv_heads, self.head_dim)
        value = self.compute_value(x).view(batch, length, self.n_kv_heads, self.head_dim)
        end = slice(-1, None) if lengths is None else lengths - 1
        query = rotate(query, *(table[end] for table in tables))  # rows take the place of T
        query, key = query.transpose(0, 1), rotate(key, *tables)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))  # (B, H, 1 or T, D)
        mask = None if lengths is None else padding_mask(lengths, length)
        attended = self.compute_query_key_value_scores(query, key, value, mask)
        return self.resid_dropout(self.compute_output(attended.reshape(batch, 1, -1)))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) · w3 x) (Shazeer 2020, eq. 6)."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int | None = None,
        multiple_of: int = LlamaConfig.multiple_of,
        dropout: float = LlamaConfig.dropout,
    ) -> None:
        super().__init__()
        if hidden_dim is None:
            hidden_dim = feed_forward_hidden_dim(dim, multiple_of)
        self.w1 = Linear(dim, hidden_dim)
        self.w2 = Linear(hidden_dim, dim)
        self.w3 = Linear(dim, hidden_dim)
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
            config.dim, config.hidden_dim, config.multiple_of, config.dropout
        )
        self.attention_norm = make_norm(config)
        self.ffn_norm = make_norm(config)

    def forward(
        self,
        x: torch.Tensor,
        tables: RotaryTables | None = None,
        mask: torch.Tensor | None = None,
        cache: KVCache | None = None,
    ) -> torch.Tensor:
        """x (B, T, C) → (B, T, C)."""
        h = x + self.attention(self.attention_norm(x), tables, mask, cache, self.layer_id)
        return h + self.feed_forward(self.ffn_norm(h))

    def read_last(
        self, x: torch.Tensor, tables: RotaryTables, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """forward's last column, or each row's last real token, and nothing else: (B, 1, C)."""
        attended = self.attention.read_last(self.attention_norm(x), tables, lengths)
        h = last_column(x, lengths) + attended
        return h + self.feed_forward(self.ffn_norm(h))


class Llama(LlamaPreTrainedModel):
    """The whole network, freshly initialised. `load_pretrained` gives one with trained weights."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.params = config  # the assignment's second name for it
        self.arithmetic: Arithmetic | None = None  # what load_pretrained decided, and why
        self.quantization: str | None = None  # and how its linear layers are rounded
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(LlamaLayer(i, config) for i in range(config.n_layers))
        self.norm = make_norm(config)
        self.output = Linear(config.dim, config.vocab_size)
        self.tie_weights()
        self.init_weights()

    def tie_weights(self) -> None:
        """Let input and output embedding be one parameter, where the configuration says so."""
        if self.config.tie_word_embeddings:
            self.output.weight = self.tok_embeddings.weight

    def forward(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        cache: KVCache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and hidden states (B, T, C), after the final norm, of token ids (B, T).

        Logits are (B, T, V) if `targets` are given, else (B, 1, V), of the last column; with
        `lengths` (B,), the number of real tokens in each right-padded row, padding is masked and
        the last real token of each row takes the last column's place. With `cache` the tokens
        follow those that it holds. Raises ValueError if a cache is used with bidirectional
        attention or with `lengths`.
        """
        h = self.hidden_states(tokens, lengths, cache)
        return self.output(h if targets is not None else last_column(h, lengths)), h

    def hidden_states(
        self,
        tokens: torch.Tensor,
        lengths: torch.Tensor | None = None,
        cache: KVCache | None = None,
    ) -> torch.Tensor:
        """(B, T, C) after the final norm; the arguments and ValueError are forward's."""
        if cache is not None and not (self.config.is_causal and lengths is None):
            raise ValueError("a key/value cache is exact only for causal attention, unpadded rows")
        start, length = cache.position if cache else 0, tokens.shape[1]
        tables = self.layers[0].attention.rotary_tables(start, start + length, tokens.device)
        mask = self._mask(start, length, lengths, tokens.device)
        h = self.dropout(self.tok_embeddings(tokens))
        for layer in self.layers:
            h = layer(h, tables, mask, cache)
        if cache is not None:
            cache.advance(length)
        return self.norm(h)

    def last_hidden_state(
        self, tokens: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """last_column(hidden_states(tokens, lengths), lengths), (B, 1, C), for less work.

        It is all that a classifier reads, so the last layer computes queries, output projection
        and feed-forward for that column alone.
        """
        length = tokens.shape[1]
        tables = self.layers[0].attention.rotary_tables(0, length, tokens.device)
        mask = self._mask(0, length, lengths, tokens.device)
        h = self.dropout(self.tok_embeddings(tokens))
        for layer in self.layers[:-1]:
            h = layer(h, tables, mask)
        return self.norm(self.layers[-1].read_last(h, tables, lengths))

    def next_token_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """forward's logits of the last column, (B, V), of token ids (B, T), for less work."""
        return self.output(self.last_hidden_state(tokens))[:, 0]

    def _mask(
        self, start: int, length: int, lengths: torch.Tensor | None, device: torch.device
    ) -> torch.Tensor | None:
        """(B, 1, 1, T) or (T, S), or None where the configuration's own mask is all there is."""
        if self.config.is_causal:
            # Padding is on the right, so no real token ever sees it: no mask for `lengths`.
            if start == 0 or length == 1:
                return None
            mask = torch.ones(length, start + length, dtype=torch.bool, device=device)
            return mask.tril(diagonal=start)
        if lengths is None:
            return None
        return padding_mask(lengths, length)

    def generate(
        self,
        idx: torch.Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        epsilon: float = EDITIONS[DEFAULT_EDITION].epsilon,
        top_p: float = EDITIONS[DEFAULT_EDITION].top_p,
        generator: torch.Generator | None = None,
        stop_id: int | None = None,
        use_cache: bool = True,
        precision: str | None = None,
        compiled: bool = False,
    ) -> torch.Tensor:
        """Token ids (B, T) continued: (B, T + max_new_tokens), without dropout.

        sampling.Sampler and generation.generate say what the arguments mean; `precision` is that
        of the weights behind the prompt (decoding.PRECISIONS), for causal attention only, by
        default what they are loaded in; `compiled` has single sequences read by
        compiled_decoding. Raises ValueError as these do.
        """
        sampler = Sampler(temperature, epsilon, top_p, generator)
        was_training = self.training
        self.eval()
        try:
            decode, capacity = None, None
            if use_cache:
                decode, capacity = self.decoding_step(len(idx), precision, compiled)
            return generation.generate(
                self, idx, max_new_tokens, sampler, stop_id, use_cache, decode, capacity
            )
        finally:
            self.train(was_training)

    def decoding_step(
        self, rows: int = 1, precision: str | None = None, compiled: bool = False
    ) -> tuple[generation.DecodeStep | None, int | None]:
        """What reads single tokens faster than forward does, and the capacity of the cache that it
        works with; None where there is no such thing, or no such bound. The arguments and
        ValueError are generate's.
        """
        own = str(self.dtype).removeprefix("torch.")
        if compiled and rows == 1:
            precision = precision or self.quantization or own
            return CompiledDecoder(self, precision), cache_capacity(self.config)
        precision = precision or own
        if precision == own and not (self.config.is_causal and own in PRECISIONS):
            return None, None
        check_precision(self, precision)
        # made when the first token comes, behind the prompt
        decoder = functools.cache(lambda: Decoder(self, rows, precision))
        return lambda token, cache: decoder()(token, cache), None


def padding_mask(lengths: torch.Tensor, length: int) -> torch.Tensor:
    """(B, 1, 1, T): True for the first `lengths` (B,) keys of each row."""
    return (torch.arange(length, device=lengths.device) < lengths[:, None])[:, None, None, :]


def last_column(h: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """(B, 1, C): the last column of h (B, T, C), or with `lengths` each row's last real token."""
    if lengths is None:
        return h[:, -1:]
    rows = torch.arange(h.shape[0], device=h.device)
    return h[rows, lengths.to(h.device) - 1].unsqueeze(1)


def load_pretrained(
    path: str | Path,
    edition: str | None = None,
    norm: str | None = None,
    attention: str | None = None,
    dtype: str = "float32",
    quantize: str | None = None,
) -> Llama:
    """The model of a checkpoint file; checkpoints.loading.load_model says how, and what it raises.

    Without `edition`, `norm` and `attention` the model has the arithmetic that the checkpoint
    records, else the default edition's ("mmia").
    """
    return load_model(Llama, path, edition, norm, attention, dtype, quantize)
