"""Autoregressive generation over a causal or bidirectional model that is passed in.

Causal models decode with a key/value cache; bidirectional ones recompute the whole context for
each token, because there every position's keys and values change with every new token. Past
`max_seq_len` the context slides: its last `max_seq_len` tokens are read again from position 0,
cached or not. The file knows no tokenizer and no files.

Shapes: B batch, T tokens so far, V vocabulary.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import torch

from mini_llama.inference.sampling import Sampler
from mini_llama.layers.kv_cache import KVCache

# Token ids (B, 1) that follow what the cache holds → logits (B, V) of the next.
DecodeStep = Callable[[torch.Tensor, KVCache], torch.Tensor]


class LanguageModel(Protocol):
    """What generation needs of a model."""

    config: object

    def __call__(self, tokens: torch.Tensor, *, cache: KVCache | None) -> tuple: ...

    def next_token_logits(self, tokens: torch.Tensor) -> torch.Tensor: ...


def prefill(
    model: LanguageModel, tokens: torch.Tensor, cache: KVCache | None = None
) -> torch.Tensor:
    """Read tokens (B, T) into the cache, but for those at the beginning that it holds already;
    logits (B, V) of the last one.
    """
    if cache is None:
        return model.next_token_logits(tokens)
    logits, _ = model(tokens[:, cache.position :], cache=cache)
    return logits[:, -1]


def decode_one_token(model: LanguageModel, token: torch.Tensor, cache: KVCache) -> torch.Tensor:
    """Read one more token (B, 1) behind what the cache holds; its logits (B, V)."""
    logits, _ = model(token, cache=cache)
    return logits[:, -1]


def make_cache(
    model: LanguageModel, tokens: torch.Tensor, max_new_tokens: int, capacity: int | None = None
) -> KVCache:
    """A cache for as much of prompt (B, T) and new tokens as the context can hold, or with room for
    `capacity` positions.
    """
    config = model.config
    max_len = capacity or min(tokens.shape[1] + max_new_tokens, config.max_seq_len)
    return KVCache(
        config.n_layers,
        tokens.shape[0],
        config.n_kv_heads,
        max_len,
        config.head_dim,
        device=tokens.device,
        dtype=model.dtype,
    )


@torch.inference_mode()
def stream(
    model: LanguageModel,
    tokens: torch.Tensor,
    max_new_tokens: int,
    sampler: Sampler,
    use_cache: bool = True,
    decode: DecodeStep | None = None,
    capacity: int | None = None,
    cache: KVCache | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the next token (B, 1) of tokens (B, T) again and again, `max_new_tokens` times.

    `use_cache=False` recomputes the context for every token: slow, obvious, and the oracle of the
    cached path (but for dynamic RoPE scaling: rope.tables_for). A bidirectional model always does.
    `decode` reads single tokens with the cache, by default the model itself; `capacity` is
    make_cache's. A `cache` that is given takes the place of a new one: what it holds must be the
    beginning of tokens, and at the end it holds all but the last token that was yielded. Raises
    ValueError for an empty prompt, and for one that leaves nothing to read behind a given cache.
    """
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        shape = tuple(tokens.shape)
        raise ValueError(f"the prompt has shape {shape}: it must be (batch, 1 token or more)")
    max_seq_len = model.config.max_seq_len
    use_cache = use_cache and model.config.is_causal
    if cache is not None and not cache.position < tokens.shape[1] <= max_seq_len:
        raise ValueError(
            f"a prompt of {tokens.shape[1]} tokens cannot go on from {cache.position} in a cache: "
            f"it must be longer, and at most {max_seq_len}"
        )
    if not use_cache:
        cache = None
    elif cache is None:
        cache = make_cache(model, tokens, max_new_tokens, capacity)
    decode = decode or partial(decode_one_token, model)
    context = tokens[:, -max_seq_len:]
    for step in range(max_new_tokens):
        if cache is not None and cache.position == max_seq_len:
            cache.reset()
        if step == 0 or cache is None or cache.position == 0:
            logits = prefill(model, context, cache)
        else:
            logits = decode(context[:, -1:], cache)
        token = sampler(logits)
        yield token
        context = torch.cat((context, token), dim=1)[:, -max_seq_len:]


@torch.inference_mode()
def generate(
    model: LanguageModel,
    tokens: torch.Tensor,
    max_new_tokens: int,
    sampler: Sampler,
    stop_id: int | None = None,
    use_cache: bool = True,
    decode: DecodeStep | None = None,
    capacity: int | None = None,
) -> torch.Tensor:
    """Prompt (B, T) followed by up to `max_new_tokens` tokens: (B, T + new).

    With `stop_id` a row that has produced it goes on with `stop_id` only, and generation ends
    early once every row has. The other arguments are stream's. Raises ValueError for an empty
    prompt.
    """
    stopped = torch.zeros(tokens.shape[0], 1, dtype=torch.bool, device=tokens.device)
    pieces = [tokens]
    for token in stream(model, tokens, max_new_tokens, sampler, use_cache, decode, capacity):
        if stop_id is not None:
            token = token.masked_fill(stopped, stop_id)
            stopped |= token == stop_id
        pieces.append(token)
        if stop_id is not None and stopped.all():
            break
    return torch.cat(pieces, dim=1)
