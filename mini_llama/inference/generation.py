"""Autoregressive generation: prefill, then one token at a time.

Causal models decode with a key/value cache; bidirectional ones recompute the whole context for
each token, because every new token changes the keys and values of all positions. Past
`max_seq_len` the context slides: its last `max_seq_len` tokens are run again from position 0,
cached or not.

Shapes: B batch, T tokens so far, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterator

import torch

from base_llama import LlamaPreTrainedModel
from mini_llama.inference.decoders import Decoder, choose_decoder
from mini_llama.layers.kv_cache import KVCache

# Logits (B, V) → next token ids (B, 1): a sampling.Sampler.
Sample = Callable[[torch.Tensor], torch.Tensor]


def prefill(
    llama: LlamaPreTrainedModel, tokens: torch.Tensor, cache: KVCache | None = None
) -> torch.Tensor:
    """Run tokens (B, T), skipping the prefix that is already cached; logits (B, V) of the last."""
    if cache is None:
        logits, _ = llama(tokens, last_only=True)
    else:
        logits, _ = llama(tokens[:, cache.position :], cache=cache)
    return logits[:, -1]


@torch.inference_mode()
def stream(
    llama: LlamaPreTrainedModel,
    tokens: torch.Tensor,
    max_new_tokens: int,
    sample: Sample,
    use_cache: bool = True,
    decoder: Decoder | None = None,
    cache: KVCache | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the next token (B, 1) of tokens (B, T) again and again, `max_new_tokens` times.

    `use_cache=False` recomputes the context for every token: slow, obvious, and the oracle of the
    cached path (but for dynamic RoPE scaling and LongRoPE: rope.tables_for). A bidirectional model
    always does.
    `decoder` is by default choose_decoder's. A `cache` made by it is used instead of a new
    one: it must hold a prefix of tokens, and at the end it holds all but the last yielded token.
    Raises ValueError for an empty prompt, and for one without a token after the cached prefix.
    """
    max_seq_len = llama.config.max_seq_len
    check_prompt(tokens, max_seq_len, cache)
    if not (use_cache and llama.config.is_causal):
        cache = None
    else:
        decoder = decoder or choose_decoder(llama, len(tokens))
        length = min(tokens.shape[1] + max_new_tokens, max_seq_len)
        cache = cache or decoder.make_cache(len(tokens), length)
    context, token = tokens[:, -max_seq_len:], tokens[:, -1:]
    later: list[torch.Tensor] = []  # than the context
    for step in range(max_new_tokens):
        if cache is not None and cache.position == max_seq_len:
            cache.reset()
        if decoder is None or cache is None or cache.position == 0 or step == 0:
            context = torch.cat((context, *later), dim=1)[:, -max_seq_len:]
            later = []
            logits = prefill(llama, context, cache)
        else:
            logits = decoder(token, cache)
        token = sample(logits)
        yield token
        later.append(token)


def check_prompt(tokens: torch.Tensor, max_seq_len: int, cache: KVCache | None) -> None:
    """Raise the ValueError of `stream`."""
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        shape = tuple(tokens.shape)
        raise ValueError(f"the prompt has shape {shape}: it must be (batch, 1 token or more)")
    if cache is not None and not cache.position < tokens.shape[1] <= max_seq_len:
        raise ValueError(
            f"a prompt of {tokens.shape[1]} tokens cannot go on from {cache.position} in a cache: "
            f"it must be longer, and at most {max_seq_len}"
        )


@torch.inference_mode()
def generate(
    llama: LlamaPreTrainedModel,
    tokens: torch.Tensor,
    max_new_tokens: int,
    sample: Sample,
    stop_id: int | Collection[int] | None = None,
    use_cache: bool = True,
    decoder: Decoder | None = None,
) -> torch.Tensor:
    """Prompt (B, T) followed by up to `max_new_tokens` tokens: (B, T + new).

    With `stop_id`, an id or several, a row that has produced one continues with the first of them
    only, and generation ends early once every row has. The other arguments are stream's. Raises
    ValueError for an empty prompt, and as choose_decoder does.
    """
    stopped = torch.zeros(tokens.shape[0], 1, dtype=torch.bool, device=tokens.device)
    stop_ids = [stop_id] if isinstance(stop_id, int) else list(stop_id or ())
    stops = torch.tensor(stop_ids, dtype=torch.long, device=tokens.device)
    pieces = [tokens]
    for token in stream(llama, tokens, max_new_tokens, sample, use_cache, decoder):
        if stop_ids:
            token = token.masked_fill(stopped, stop_ids[0])
            stopped |= torch.isin(token, stops)
        pieces.append(token)
        if stop_ids and stopped.all():
            break
    return torch.cat(pieces, dim=1)
