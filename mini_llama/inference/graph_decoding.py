"""Decoding on CUDA: the whole step recorded once as a CUDA graph, and replayed for each token.

A step is some hundred kernels of a few microseconds each, less than Python needs to launch one of
them. A recorded graph launches all with one call. It reads and writes fixed memory, so that keys
and values are attended in lengths of whole blocks, and a mask hides what is not filled yet. With
`compiled`, PyTorch's compiler first fuses each layer's kernels; all layers share one compilation.

Shapes: B batch, C the model's width, H query heads, H_kv key/value heads, D head_dim, V vocabulary,
N attended positions (whole blocks), S positions that the cache has memory for.
"""

import functools
import math
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from base_llama import LlamaPreTrainedModel
from config import LlamaConfig
from mini_llama.inference.compiled_decoding import COMPILER_FOLDER, Matrix, cache_folder
from mini_llama.inference.decoding import (
    COPIED_FRACTION,
    check_precision,
    make_projection,
    rotate_pairs,
)
from mini_llama.layers.kv_cache import KVCache
from rope import RotaryTables, config_tables, fixed_positions, rotate
from utils import available_bytes

BLOCK = 256  # a graph attends to a multiple of so many positions
COMPILATIONS = 64  # of a layer in a process: two for each shape and precision
WARM_UPS = 2  # runs before the recording, in which libraries choose kernels and take memory
Run = Callable[[], torch.Tensor]


def mark_any_length(tensor: torch.Tensor, axis: int) -> None:
    """Let the compiler make functions for any size of this axis, not for the one that it meets."""
    torch._dynamo.maybe_mark_dynamic(tensor, axis)


def whole_blocks(length: int) -> int:
    """The multiple of BLOCK that is at least `length`."""
    return -(-length // BLOCK) * BLOCK


def attend_by_sums(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """F.scaled_dot_product_attention in float32, written so that the compiler makes few loops."""
    keys, values = keys.unsqueeze(2).float(), values.unsqueeze(2).float()  # (B, H_kv, 1, N, D)
    scores = (query.float().unsqueeze(3) * keys).sum(-1) * query.shape[-1] ** -0.5 + mask
    return (F.softmax(scores, dim=-1).unsqueeze(-1) * values).sum(-2)


def attend_by_products(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """F.scaled_dot_product_attention in four kernels: for one float32 query, its only kernel that
    takes a mask is five times as slow.
    """
    shape, heads = query.shape, query.shape[:2].numel()
    query, keys, values = (t.flatten(0, 1) for t in (query, keys, values))  # (B · H_kv, …, D)
    mask = mask.expand(heads, shape[2], -1)
    scores = torch.baddbmm(mask, query, keys.mT, alpha=shape[-1] ** -0.5)
    return (scores.softmax(dim=-1) @ values).view(shape)


def best_attention(dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    """The fastest for keys and values of this dtype that sums in float32."""
    if torch.compiler.is_compiling():
        return attend_by_sums
    return attend_by_products if dtype == torch.float32 else F.scaled_dot_product_attention


class Matrices(nn.ModuleList):
    """compiled_decoding.Matrix for several layers of the same input."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x (1, K) → one (1, N) for each."""
        return tuple(matrix(x) for matrix in self)


class Norm(nn.Module):
    """llama.RMSNorm or llama.LayerNorm, in float32, by one kernel."""

    def __init__(self, norm: Any, config: LlamaConfig) -> None:
        super().__init__()
        self.norm, self.is_rms, self.eps = norm, config.norm == "rmsnorm", config.layer_norm_eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.is_rms:
            return self.norm(x)
        weight = self.norm.weight.float()
        return F.rms_norm(x, weight.shape, weight, self.eps)


class GraphLayer(nn.Module):
    """One llama.LlamaLayer, for one new position of each row, on memory that stays where it is.

    `project` makes one function of several linear layers of the same input.
    """

    def __init__(self, layer: Any, config: LlamaConfig, project: Callable[..., Any]) -> None:
        super().__init__()
        attention, feed_forward = layer.attention, layer.feed_forward
        self.kv_heads, self.head_dim = attention.n_kv_heads, attention.head_dim
        self.attention_norm = Norm(layer.attention_norm, config)
        self.ffn_norm = Norm(layer.ffn_norm, config)
        self.query_key_value = project(
            attention.compute_query, attention.compute_key, attention.compute_value
        )
        self.attention_output = project(attention.compute_output)
        self.gate_and_up = project(feed_forward.w1, feed_forward.w3)
        self.down = project(feed_forward.w2)

    def forward(
        self,
        h: torch.Tensor,
        position: torch.Tensor,
        rotation: torch.Tensor | RotaryTables,
        mask: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """h (B, C) → (B, C); keys and values (B, H_kv, N, D) get what `position` (1,) adds.

        `rotation` is the position's: complex numbers (D/2,), or RoPE's tables (1, D/2). `mask`
        (1, N) is added to scores: 0, or minus infinity.
        """
        query, key, value = self.query_key_value(self.attention_norm(h))
        rows, heads = len(h), (len(h), self.kv_heads, -1, self.head_dim)
        if isinstance(rotation, torch.Tensor):
            query, key = rotate_pairs(query, rotation), rotate_pairs(key, rotation)
        else:
            query = rotate(query.view(rows, 1, -1, self.head_dim), *rotation)
            key = rotate(key.view(rows, 1, -1, self.head_dim), *rotation)
        keys.index_copy_(2, position, key.reshape(heads).to(keys.dtype))
        values.index_copy_(2, position, value.reshape(heads).to(values.dtype))
        # Query heads that share keys and values are rows of one query: (B, H_kv, H/H_kv, D).
        attend = best_attention(keys.dtype)
        attended = attend(query.reshape(heads).to(keys.dtype), keys, values, mask)
        h = h + self.attention_output(attended.reshape(rows, -1).float())[0]
        gate, up = self.gate_and_up(self.ffn_norm(h))
        return h + self.down(F.silu(gate) * up)[0]


class GraphStep(nn.Module):
    """All layers: a token for each row → the logits of the next."""

    def __init__(
        self, llama: LlamaPreTrainedModel, rows: int, precision: str, compiled: bool
    ) -> None:
        super().__init__()
        config = self.config = llama.config
        size = sum(parameter.nbytes for parameter in llama.parameters())
        may_copy = size < COPIED_FRACTION * (available_bytes(llama.device) or math.inf)

        def project(*layers: nn.Module) -> Any:
            if compiled:
                return Matrices(Matrix(layer, precision) for layer in layers)
            return make_projection(layers, rows, precision, may_copy)

        self.embeddings = llama.tok_embeddings
        self.layers = nn.ModuleList(GraphLayer(layer, config, project) for layer in llama.layers)
        self.norm, self.output = Norm(llama.norm, config), project(llama.output)
        if compiled:
            for layer in self.layers:  # the same shapes: compiled once, for all of them
                layer.compile()
            self.norm.compile()
            self.output.compile()
        self.compiled = compiled

    def rotations(self, length: int) -> torch.Tensor | RotaryTables:
        """All positions' rotations (length, D/2), in the form that GraphLayer takes."""
        cos, sin = config_tables(self.config, 0, length, self.embeddings.weight.device)
        return (cos.clone(), sin.clone()) if self.compiled else torch.complex(cos, sin)

    def forward(
        self,
        token: torch.Tensor,
        position: torch.Tensor,
        rotations: torch.Tensor | RotaryTables,
        keys: Sequence[torch.Tensor],
        values: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """token (B,), position (1,), every layer's keys and values (B, H_kv, N, D): logits (B, V).

        `rotations` are those of all positions.
        """
        length = keys[0].shape[2]
        mask = torch.zeros(1, length, device=token.device, dtype=keys[0].dtype)
        mask = mask.masked_fill(torch.arange(length, device=token.device) > position, -math.inf)
        if self.compiled:
            mark_any_length(mask, 1)
        rotation: torch.Tensor | RotaryTables
        if isinstance(rotations, torch.Tensor):
            rotation = rotations.index_select(0, position)[0]
        else:
            cos, sin = (table.index_select(0, position) for table in rotations)
            rotation = cos, sin
        h = self.embeddings(token).float()
        for layer, layer_keys, layer_values in zip(self.layers, keys, values, strict=True):
            h = layer(h, position, rotation, mask, layer_keys, layer_values)
        return self.output(self.norm(h))[0]


class Memory:
    """Keys and values (layers, B, H_kv, S, D), and the steps recorded on them by N."""

    def __init__(self, llama: LlamaPreTrainedModel, rows: int, length: int) -> None:
        config, capacity = llama.config, whole_blocks(length)
        shape = (config.n_layers, rows, config.n_kv_heads, capacity, config.head_dim)
        with torch.inference_mode(False):  # zeros: what is masked must still be numbers
            self.keys = torch.zeros(shape, device=llama.device, dtype=llama.dtype)
            self.values = torch.zeros_like(self.keys)
        self.recorded: dict[int, Run] = {}


class StaticCache(KVCache):
    """A key/value cache in given memory, which stays where it is."""

    def __init__(self, memory: Memory, max_len: int) -> None:
        self.memory, self.keys, self.values = memory, memory.keys, memory.values
        self.max_len, self.position = max_len, 0


class Recorded:
    """What `run` does, as a CUDA graph: a call replays it. `run` must be repeatable.

    Its result is the same memory each time.
    """

    def __init__(self, run: Run) -> None:
        self.run = run  # kept: a graph has addresses, and does not keep what lies there
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.result = run()

    def __call__(self) -> torch.Tensor:
        self.graph.replay()
        return self.result


def can_record(llama: LlamaPreTrainedModel) -> bool:
    """Whether a model is on CUDA, causal, not in 4 bits, and its RoPE does not change with the
    length, as dynamic scaling does.
    """
    config = llama.config
    is_fixed = fixed_positions(config.max_seq_len, config.rope_scaling) >= config.max_seq_len
    return (
        llama.device.type == "cuda"
        and config.is_causal
        and is_fixed
        and llama.quantization != "nf4"
    )


class GraphDecoder:
    """The Decoder of a causal Llama on CUDA, in evaluation mode, for `rows` sequences.

    `compiled` fuses kernels first, for one row; then weights may be int8 as well. Steps are
    recorded when they are first needed, for each multiple of BLOCK positions, with `recorder`.
    Raises ValueError as check_precision does.
    """

    def __init__(
        self,
        llama: LlamaPreTrainedModel,
        rows: int = 1,
        precision: str = "float32",
        compiled: bool = False,
        recorder: Callable[[Run], Run] = Recorded,
    ) -> None:
        check_precision(llama, precision, compiled)
        if compiled and llama.device.type == "cuda":
            os.environ.setdefault(COMPILER_FOLDER, str(cache_folder() / "inductor"))
            print("compiling the decoding step: seconds, once for this shape …", file=sys.stderr)
        self.llama, self.recorder = llama, recorder
        self.step = functools.cache(lambda: GraphStep(llama, rows, precision, compiled))
        self.token = torch.zeros(rows, 1, dtype=torch.long, device=llama.device)
        self.position = torch.zeros(1, dtype=torch.long, device=llama.device)
        self.next_position = -1  # what self.position is set to
        self.memory: Memory | None = None
        self.holder: Callable[[], StaticCache | None] = lambda: None

    def make_cache(self, rows: int, length: int) -> StaticCache:
        """A cache in the memory of the last one, if that is long enough and no longer in use."""
        memory = self.memory
        if memory is None or self.holder() is not None or memory.keys.shape[3] < length:
            memory = self.memory = Memory(self.llama, rows, length)
        cache = StaticCache(memory, length)
        self.holder = weakref.ref(cache)
        return cache

    def _record(self, memory: Memory, length: int) -> Run:
        """The step on the first `length` positions of a cache's memory."""
        step = self.step()
        rotations = step.rotations(min(length, self.llama.config.max_seq_len))
        keys, values = (t[:, :, :, :length].unbind() for t in (memory.keys, memory.values))

        def run() -> torch.Tensor:
            return step(self.token[:, 0], self.position, rotations, keys, values)

        if not step.compiled:  # nor is the compiler imported, which takes seconds
            return self.recorder(run)
        for tensor in (*keys, *values):
            mark_any_length(tensor, 2)
        # A process may compile several models, and only warns where it reaches the limit; of what
        # it warns besides, nothing is a user's business.
        limit = torch._dynamo.config.patch(recompile_limit=COMPILATIONS)
        with limit, warnings.catch_warnings(action="ignore"):
            return self.recorder(run)

    @torch.inference_mode()
    def __call__(self, token: torch.Tensor, cache: StaticCache) -> torch.Tensor:
        """As the Decoder's. Raises ValueError where the cache is full."""
        if cache.position >= cache.max_len:
            raise ValueError(
                f"{cache.position + 1} positions do not fit a cache of {cache.max_len}"
            )
        self.token.copy_(token)
        if cache.position != self.next_position:
            self.position.fill_(cache.position)
        length, recorded = whole_blocks(cache.position + 1), cache.memory.recorded
        if length not in recorded:
            recorded[length] = self._record(cache.memory, length)
        logits = recorded[length]().clone()
        cache.advance(1)
        self.next_position = cache.position
        self.position.fill_(cache.position)  # now, while the GPU is busy with the step
        return logits
