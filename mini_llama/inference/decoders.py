"""Decoders, which run a model for one more token after those in a cache, and the choice of one.

There are four: the model itself, the same arithmetic in few operations (decoding.py), the same as
one compiled function (compiled_decoding.py), and on CUDA as one graph of kernels
(graph_decoding.py).

Shapes: B rows of a batch, V vocabulary.
"""

from typing import Any, Protocol

import torch

from base_llama import LlamaPreTrainedModel
from mini_llama.inference.compiled_decoding import CompiledDecoder
from mini_llama.inference.decoding import PRECISIONS, FastDecoder
from mini_llama.inference.graph_decoding import GraphDecoder, can_record
from mini_llama.layers.kv_cache import KVCache


class Decoder(Protocol):
    """Runs a causal model for one token at a time, on caches of its own making."""

    def make_cache(self, rows: int, length: int) -> KVCache:
        """An empty cache for B = `rows`, with room for at least `length` positions."""

    def __call__(self, token: torch.Tensor, cache: Any) -> torch.Tensor:
        """Token ids (B, 1) that follow what the cache holds → logits (B, V) of the next token.

        Their keys and values are added to the cache.
        """


class PlainDecoder:
    """The model's own forward pass as a Decoder: slow, in any dtype, and obviously correct."""

    def __init__(self, llama: LlamaPreTrainedModel) -> None:
        self.llama = llama

    def make_cache(self, rows: int, length: int) -> KVCache:
        return KVCache(self.llama.config, rows, length, self.llama.device, self.llama.dtype)

    def __call__(self, token: torch.Tensor, cache: KVCache) -> torch.Tensor:
        logits, _ = self.llama(token, cache=cache)
        return logits[:, -1]


def choose_decoder(
    llama: LlamaPreTrainedModel,
    rows: int = 1,
    precision: str | None = None,
    compiled: bool = False,
) -> Decoder:
    """The fastest decoder for B = `rows` that has the model's own weights.

    `precision` (decoding.PRECISIONS) converts the weights to another one; `compiled` decodes single
    sequences with a compiled step, which on a CPU is compiled or loaded immediately. Raises
    ValueError as FastDecoder, CompiledDecoder and GraphDecoder do.
    """
    own = str(llama.dtype).removeprefix("torch.")
    records = can_record(llama)
    if compiled and rows == 1:
        precision = precision or llama.quantization or own
        if records:
            return GraphDecoder(llama, 1, precision, compiled=True)
        return CompiledDecoder(llama, precision)
    precision = precision or own
    if precision == own and not (llama.config.is_causal and own in PRECISIONS):
        return PlainDecoder(llama)
    return (GraphDecoder if records else FastDecoder)(llama, rows, precision)
