"""Every step of one forward pass of the model, and of a generation, as tensors.

Linear layers, norms and layers are read with PyTorch's hooks, so these numbers are the model's own.
What has no module of its own (rotated heads, scores, probabilities) is computed again from them, by
the formula of llama.attention_by_hand.

Shapes: T positions, S attended positions (S = T), C width, H query heads, K key/value heads,
D head_dim, F width of the feed-forward, V vocabulary, N layers.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle

from config import LlamaConfig
from llama import Llama
from mini_llama.layers.linear import plain_products
from rope import attention_factor, config_tables, inverse_frequencies, rotate

LENS_TOKENS = 5


@dataclass(frozen=True)
class LayerTrace:
    """One layer, in the order of its computation. `residual` enters it, `middle` is the residual
    stream after attention, `output` leaves it; `heads` is what compute_output reads.
    """

    residual: torch.Tensor  # (T, C)
    attention_norm: torch.Tensor  # (T, C)
    query: torch.Tensor  # (T, H, D), before RoPE
    key: torch.Tensor  # (T, K, D), before RoPE
    value: torch.Tensor  # (T, K, D)
    rotated_query: torch.Tensor  # (T, H, D)
    rotated_key: torch.Tensor  # (T, K, D)
    scores: torch.Tensor  # (H, T, S), before the mask
    probabilities: torch.Tensor  # (H, T, S)
    heads: torch.Tensor  # (T, H, D)
    attention: torch.Tensor  # (T, C)
    middle: torch.Tensor  # (T, C)
    ffn_norm: torch.Tensor  # (T, C)
    gate: torch.Tensor  # (T, F), w1 x
    up: torch.Tensor  # (T, F), w3 x
    feed_forward: torch.Tensor  # (T, C)
    output: torch.Tensor  # (T, C)


@dataclass(frozen=True)
class Lens:
    """The most probable tokens if each layer's output were the last (the logit lens, nostalgebraist
    2020): after the embedding and after each layer, (N + 1, T, LENS_TOKENS).
    """

    ids: torch.Tensor
    probabilities: torch.Tensor


@dataclass(frozen=True)
class Trace:
    """One forward pass over tokens (T,). `visible` (T, S) is the mask in force, `last` the column
    that the assignment reads; angle and factor of RoPE: position · frequencies (D/2,).
    """

    tokens: torch.Tensor
    length: int  # of the text, without padding
    last: int
    visible: torch.Tensor
    frequencies: torch.Tensor
    rope_factor: float
    embedding: torch.Tensor  # (T, C)
    layers: list[LayerTrace]
    hidden: torch.Tensor  # (T, C), after the final norm
    logits: torch.Tensor  # (T, V)
    lens: Lens


@dataclass(frozen=True)
class Step:
    """One step of a generation: what the last column sees and gives, and the token chosen."""

    trace: Trace
    chosen: int


class _Seen(dict[str, torch.Tensor]):
    """What hooks saw, by the module's name, in float32."""

    def hook(self, name: str, module: nn.Module, takes_input: bool) -> RemovableHandle:
        def before(_module: nn.Module, args: tuple[Any, ...]) -> None:
            self[f"{name} input"] = args[0].detach().float()

        def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            self[name] = output.detach().float()

        if takes_input:
            return module.register_forward_pre_hook(before)
        return module.register_forward_hook(after)


class _Mask:
    """The mask that the first layer's attention is given: (1, 1, 1, T), (T, T) or None."""

    def __init__(self) -> None:
        self.mask: torch.Tensor | None = None

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.mask = kwargs.get("mask", args[2] if len(args) > 2 else None)


@contextmanager
def _watched(llama: Llama) -> Iterator[tuple[_Seen, _Mask]]:
    """Hooks on every module whose output, or input, a trace has."""
    seen, mask = _Seen(), _Mask()
    first = llama.get_submodule("layers.0.attention")
    handles = [first.register_forward_pre_hook(mask, with_kwargs=True)]
    for name, module in llama.named_modules(remove_duplicate=False):
        if name and not isinstance(module, nn.ModuleList):
            handles.append(seen.hook(name, module, takes_input=False))
        if name.endswith(("attention.compute_output", "ffn_norm")) or name.count(".") == 1:
            handles.append(seen.hook(name, module, takes_input=True))
    try:
        yield seen, mask
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def trace_tokens(
    llama: Llama, tokens: torch.Tensor, length: int | None = None, masks_padding: bool = False
) -> Trace:
    """Trace one forward pass over tokens (T,), in evaluation mode.

    With `length` the columns from there on are padding. The last column is read, padding or not,
    as in the assignment; with `masks_padding` the last real token is, and padding is masked.
    Raises ValueError where there is no token.
    """
    if tokens.ndim != 1 or not len(tokens):
        raise ValueError(f"a trace is of one row of tokens, not of shape {list(tokens.shape)}")
    length = len(tokens) if length is None else length
    lengths = torch.tensor([length], device=tokens.device) if masks_padding else None
    with plain_products(), _watched(llama) as (seen, given):
        hidden = llama.hidden_states(tokens[None], lengths)
        logits = vocabulary_logits(llama, hidden)
        config, n = llama.config, len(tokens)
        visible = _visible(config, n, given.mask)
        layers = [_layer(config, seen, i, visible) for i in range(config.n_layers)]
        stream = [seen["tok_embeddings"][0], *(layer.output for layer in layers)]
    return Trace(
        tokens=tokens.cpu(),
        length=length,
        last=(length if masks_padding else n) - 1,
        visible=visible.cpu(),
        frequencies=inverse_frequencies(
            config.head_dim, n, config.rope_theta, "cpu", config.rope_scaling
        ),
        rope_factor=attention_factor(config.rope_scaling),
        embedding=seen["tok_embeddings"][0].cpu(),
        layers=layers,
        hidden=hidden[0].float().cpu(),
        logits=logits[0].float().cpu(),
        lens=_lens(llama, stream),
    )


def vocabulary_logits(llama: Llama, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states (…, C) → (…, V); by the embedding where a classifier has no output layer."""
    if llama.output is None:
        return F.linear(hidden, llama.tok_embeddings.weight)
    return llama.output(hidden)


def _visible(config: LlamaConfig, length: int, mask: torch.Tensor | None) -> torch.Tensor:
    """(T, S), True where a query sees a key; without a mask the configuration decides."""
    if mask is None:
        every = torch.ones(length, length, dtype=torch.bool)
        return every.tril() if config.is_causal else every
    return mask.detach().expand(1, 1, length, length)[0, 0].cpu()


def _layer(config: LlamaConfig, seen: _Seen, i: int, visible: torch.Tensor) -> LayerTrace:
    parts = {name: tensor[0] for name, tensor in seen.items() if name.startswith(f"layers.{i}")}
    here = {name.removeprefix(f"layers.{i}").strip(". "): x for name, x in parts.items()}
    heads = (-1, config.head_dim)
    query, key, value = (
        here[f"attention.compute_{kind}"].unflatten(-1, heads) for kind in ("query", "key", "value")
    )
    tables = config_tables(config, 0, len(query), query.device)
    rotated_query, rotated_key = (rotate(x[None], *tables)[0] for x in (query, key))
    scores = attention_scores(rotated_query, rotated_key)
    trace = LayerTrace(
        residual=here["input"],
        attention_norm=here["attention_norm"],
        query=query,
        key=key,
        value=value,
        rotated_query=rotated_query,
        rotated_key=rotated_key,
        scores=scores,
        probabilities=attention_probabilities(scores, visible.to(scores.device)),
        heads=here["attention.compute_output input"].unflatten(-1, heads),
        attention=here["attention"],
        middle=here["ffn_norm input"],
        ffn_norm=here["ffn_norm"],
        gate=here["feed_forward.w1"],
        up=here["feed_forward.w3"],
        feed_forward=here["feed_forward"],
        output=here[""],
    )
    return LayerTrace(**{name: tensor.cpu() for name, tensor in vars(trace).items()})


def attention_scores(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Q Kᵀ / sqrt(D) of query (T, H, D) and key (S, K, D): (H, T, S). Neighbouring query heads
    share a key head.
    """
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)  # (S, H, D)
    query, key = query.transpose(0, 1), key.transpose(0, 1)
    return query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1)


def attention_probabilities(scores: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Softmax of scores (H, T, S) over what is visible (T, S)."""
    return scores.masked_fill(~visible, -math.inf).softmax(dim=-1)


def _lens(llama: Llama, stream: Sequence[torch.Tensor]) -> Lens:
    count = min(LENS_TOKENS, llama.config.vocab_size)
    ids, probabilities = [], []
    with plain_products():
        for x in stream:
            logits = vocabulary_logits(llama, llama.norm(x.to(llama.device, llama.dtype))).float()
            top = F.softmax(logits, dim=-1).topk(count, dim=-1)
            ids.append(top.indices.cpu())
            probabilities.append(top.values.cpu())
    return Lens(torch.stack(ids), torch.stack(probabilities))


def trace_generation(
    llama: Llama,
    tokens: torch.Tensor,
    max_new_tokens: int,
    sample: Any,
    stop_ids: Sequence[int] = (),
) -> list[Step]:
    """Trace each step of a generation after tokens (T,): the whole context is run for each token,
    the slow and obvious way, until one of `stop_ids` is chosen.

    `sample` is a sampling.Sampler. Raises ValueError as it and trace_tokens do.
    """
    steps: list[Step] = []
    for _ in range(max_new_tokens):
        trace = trace_tokens(llama, tokens)
        chosen = int(sample(trace.logits[-1:].to(llama.device)))
        steps.append(Step(trace, chosen))
        if chosen in stop_ids:
            break
        tokens = torch.cat((tokens, tokens.new_tensor([chosen])))
    return steps
