"""The decoding step as one compiled function: decoding.py's arithmetic, in few large loops.

What `FastDecoder` does in some two hundred operations, PyTorch's ahead-of-time compiler
(AOTInductor) turns into C++ loops over the weights, which run at the speed of memory. That takes a
C++ compiler and about half a minute, once: the result is kept in the user's cache folder and loads
in milliseconds. Weights are not part of it. For one sequence on a CPU.

Shapes: C the model's width, H query heads, H_kv key/value heads, D head_dim, V vocabulary, N
positions so far with the new one, S positions that the cache has room for.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from base_llama import LlamaPreTrainedModel
from config import LlamaConfig
from mini_llama.bounds import UsageError
from mini_llama.inference.decoding import check_precision
from mini_llama.layers.int8_blocks import Int8BlockLinear
from mini_llama.layers.kv_cache import KVCache
from mini_llama.layers.quantized_linear import Int8Linear
from rope import RotaryTables, config_tables, rotate

# Raise it with every change of the function that `Step` describes: its arithmetic (the norms are
# llama.py's, the rotation is rope.py's), its arguments, the names of its weights. The key of a
# cached function has it, so that a function of another version is never loaded.
STEP_VERSION = 5
COMPILER_FOLDER = "TORCHINDUCTOR_CACHE_DIR"  # an environment variable
ROWS_TOGETHER = 4  # of an int8 weight: as many sums at once
# For int8 weights, where computing is the bound: a product and a sum in one instruction, and what
# several rows are multiplied with (a norm's result, say) computed once, not for each.
INT8_OPTIONS = {"cpp.enable_floating_point_contract_flag": "fast", "realize_reads_threshold": 0}
SHORTEST_CONTEXT = 3  # the exporter needs dynamic lengths of at least 2


class Matrix(nn.Module):
    """A layer's weight (N, K), in `precision`, times a vector (1, K), plus its bias: (1, N).

    Written as a sum: the compiler makes one loop of it that reads the weight once and multiplies
    in float32. A weight already in that precision is not copied. `scales` are one a row, or one a
    block of it (N, G), which may have `minima`.
    """

    weight: torch.Tensor
    scales: torch.Tensor | None
    minima: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(self, layer: Any, precision: str) -> None:
        super().__init__()
        scales, bias = None, None if layer.bias is None else layer.bias.detach().float()
        minima = None
        if isinstance(layer, Int8BlockLinear):
            weight, scales = layer.weight, layer.scales.float()  # float16 would be converted slowly
            minima = None if layer.minima is None else layer.minima.float()
        elif precision == "int8":
            layer = layer if isinstance(layer, Int8Linear) else Int8Linear(layer.weight)
            weight, scales = layer.weight.contiguous(), layer.scales
        else:
            weight = layer.weight.detach().to(getattr(torch, precision))
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales)
        self.register_buffer("minima", minima)
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = ROWS_TOGETHER if is_split(self.weight) else 1
        scales = [None] * count if self.scales is None else self.scales.chunk(count)
        parts = zip(self.weight.chunk(count), scales, strict=True)
        product = torch.cat([scaled_product(x, *part) for part in parts])
        if self.minima is not None:
            groups = x.view(self.minima.shape[1], -1)
            product = product + (self.minima * groups.sum(-1)).sum(-1)
        return (product if self.bias is None else product + self.bias).unsqueeze(0)


def is_split(weight: torch.Tensor) -> bool:
    """Whether a product is computed in parts, ROWS_TOGETHER rows at a time.

    Of int8 weights, which memory brings faster than one row's sum, each term after the other, can
    be computed. The compiler makes one loop of the parts.
    """
    is_int8 = weight.dtype == torch.int8 and weight.device.type == "cpu"
    return is_int8 and len(weight) % ROWS_TOGETHER == 0


def scaled_product(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor | None
) -> torch.Tensor:
    """x (1, K) times weight (N, K) transposed, times scales (N,) or, of its blocks, (N, G): (N,)"""
    if scales is None or scales.ndim == 1:
        product = (weight.float() * x).sum(-1)
        return product if scales is None else product * scales
    rows, groups = scales.shape
    products = weight.view(rows, groups, -1).float() * x.view(groups, -1)
    return (products * scales[..., None]).sum((-1, -2))


class CompiledLayer(nn.Module):
    """One llama.LlamaLayer, for one new position of one sequence."""

    def __init__(self, layer: Any, precision: str) -> None:
        super().__init__()
        attention, feed_forward = layer.attention, layer.feed_forward
        self.kv_heads, self.head_dim = attention.n_kv_heads, attention.head_dim
        self.attention_norm, self.ffn_norm = layer.attention_norm, layer.ffn_norm
        self.query = Matrix(attention.compute_query, precision)
        self.key = Matrix(attention.compute_key, precision)
        self.value = Matrix(attention.compute_value, precision)
        self.attention_output = Matrix(attention.compute_output, precision)
        self.gate = Matrix(feed_forward.w1, precision)
        self.up = Matrix(feed_forward.w3, precision)
        self.down = Matrix(feed_forward.w2, precision)

    def forward(
        self,
        h: torch.Tensor,
        positions: torch.Tensor,
        tables: RotaryTables,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """h (1, C) → (1, C); keys and values (1, H_kv, S, D) get what the last position adds."""
        x, newest, length = self.attention_norm(h), positions[-1:], positions.shape[0]
        heads = (1, 1, -1, self.head_dim)
        query = rotate(self.query(x).view(heads), *tables)
        key = rotate(self.key(x).view(heads), *tables).transpose(1, 2)
        value = self.value(x).view(heads).transpose(1, 2)
        keys.index_copy_(2, newest, key.to(keys.dtype))
        values.index_copy_(2, newest, value.to(values.dtype))
        # Neighbouring query heads share a key/value head: (H_kv, H/H_kv, 1, D).
        query = query.view(self.kv_heads, -1, 1, self.head_dim)
        keys, values = keys[0, :, None, :length], values[0, :, None, :length]  # (H_kv, 1, N, D)
        scores = (query * keys).sum(-1) * self.head_dim**-0.5  # (H_kv, H/H_kv, N)
        attended = (F.softmax(scores, dim=-1).unsqueeze(-1) * values).sum(-2)
        h = h + self.attention_output(attended.view(1, -1))
        x = self.ffn_norm(h)
        return h + self.down(F.silu(self.gate(x)) * self.up(x))


class Step(nn.Module):
    """All layers: a token → the logits of the next."""

    def __init__(self, llama: LlamaPreTrainedModel, precision: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CompiledLayer(layer, precision) for layer in llama.layers)
        self.embeddings, self.norm = llama.tok_embeddings, llama.norm
        self.output = Matrix(llama.output, precision)

    def forward(
        self,
        token: torch.Tensor,
        positions: torch.Tensor,
        tables: RotaryTables,
        keys: Sequence[torch.Tensor],
        values: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """token (1,), positions (N,) from 0, RoPE's tables (1, D/2) of the last one, every layer's
        keys and values (1, H_kv, S, D) → logits (1, V).
        """
        h = self.embeddings(token).float()
        for layer, layer_keys, layer_values in zip(self.layers, keys, values, strict=True):
            h = layer(h, positions, tables, layer_keys, layer_values)
        return self.output(self.norm(h))


def cache_capacity(config: LlamaConfig) -> int:
    """S: the compiled function is made for a cache of this many positions.

    One more than the context: the exporter insists that the positions so far are fewer.
    """
    return config.max_seq_len + 1


class CompiledDecoder:
    """The Decoder of a causal Llama on a CPU, in evaluation mode, for a single sequence.

    The function is compiled or loaded at once. Weights that already have the precision are not
    copied. Raises ValueError as check_precision does, for 4-bit weights, and where the step cannot
    be compiled.
    """

    def __init__(self, llama: LlamaPreTrainedModel, precision: str = "float32") -> None:
        if llama.quantization == "nf4":
            raise UsageError(
                "the compiled step has no nf4 weights: leave --compile out, or choose "
                "--quantize int8"
            )
        precision = llama.quantization or precision  # quantized weights stay as they are
        self.config = config = llama.config
        if not config.is_causal:
            raise UsageError(
                "--compile needs a key/value cache, and that causal attention: choose --edition "
                "llama2 or spring2026, or leave it out"
            )
        check_precision(llama, precision)
        device = llama.device.type
        if device != "cpu":
            raise UsageError(
                f"the compiled step is for CPU and CUDA, not {device}: leave --compile out"
            )
        if config.max_seq_len < SHORTEST_CONTEXT:
            raise UsageError(
                f"a context of {config.max_seq_len} is not allowed with --compile: it must be at "
                f"least {SHORTEST_CONTEXT}"
            )
        self.dtype = llama.dtype
        self.positions = torch.arange(config.max_seq_len)
        step = Step(llama, precision).eval()
        self.function = load_or_compile(step, config, precision)
        names = set(self.function.get_constant_fqns())
        self.weights = {name: t for name, t in step.state_dict().items() if name in names}
        # All of them, in use at once, and not copied.
        self.function.load_constants(self.weights, False, True, True)

    def make_cache(self, rows: int, length: int) -> KVCache:
        """The function is compiled for one capacity, whatever the length. Raises ValueError where
        the system does not grant it.
        """
        length = cache_capacity(self.config)
        cache = KVCache(self.config, rows, length, dtype=self.dtype)
        if cache.capacity < length:
            raise ValueError(
                f"a cache of {length} positions, which the compiled step needs at once, is more "
                "than this system grants: leave --compile out"
            )
        return cache

    def __call__(self, token: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """As the Decoder's, but the cache must not be empty: the function needs 2 positions."""
        position = cache.position
        tables = config_tables(self.config, position, position + 1, token.device)
        positions = self.positions[: position + 1]
        logits = self.function.run([token[0], positions, *tables, *cache.keys, *cache.values])[0]
        cache.advance(1)
        return logits


def load_or_compile(step: Step, config: LlamaConfig, precision: str) -> Any:
    """The compiled function, from the cache folder if a valid one is there."""
    path = package_path(step, config, precision)
    if path.is_file() and zipfile.is_zipfile(path):
        try:
            return load_function(path)
        except RuntimeError:
            pass  # damaged: compiled again
    print("compiling the decoding step, once for this shape and machine …", file=sys.stderr)
    try:
        compile_step(step, config, path)
        return load_function(path)
    except Exception as error:  # exporter and compilers raise many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the decoding step cannot be compiled ({reason[:200]}); --compile needs a C++ "
            "compiler such as g++: install one, or leave --compile out"
        ) from error


def load_function(path: Path) -> Any:
    """The function of a package, by the class that torch._inductor.aoti_load_package wraps: without
    what else that imports, for 1.5 seconds, and does at each call. Raises RuntimeError if the
    package is damaged.
    """
    is_single_threaded, runners, device = False, 1, -1  # aoti_load_package's defaults
    return torch._C._aoti.AOTIModelPackageLoader(
        str(path), "model", is_single_threaded, runners, device
    )


def package_path(step: Step, config: LlamaConfig, precision: str) -> Path:
    """The path of this step's compiled function in the cache folder."""
    names: dict[int, list[str]] = {}
    for name, tensor in step.state_dict().items():
        names.setdefault(tensor.data_ptr(), []).append(name)
    shared = [group for group in names.values() if len(group) > 1]  # the compiler merges them
    parts = ((name, t) for name, t in step.named_buffers() if name.endswith(("scales", "minima")))
    blocks = {name: t.shape[1] for name, t in parts if t.ndim == 2}
    dtype = step.embeddings.weight.dtype
    return cache_folder() / f"step-{fingerprint(config, precision, dtype, shared, blocks)}.pt2"


def compile_step(step: Step, config: LlamaConfig, path: Path) -> None:
    """Compile one configuration's package and write it atomically."""
    shape = (1, config.n_kv_heads, cache_capacity(config), config.head_dim)
    dtype = step.embeddings.weight.dtype
    cache = [torch.zeros(shape, dtype=dtype) for _ in range(config.n_layers)]
    tables = torch.zeros(1, config.head_dim // 2), torch.zeros(1, config.head_dim // 2)
    example = (torch.tensor([0]), torch.arange(3), tables, cache, [t.clone() for t in cache])
    length = torch.export.Dim("length", min=2, max=config.max_seq_len)
    fixed = [None] * config.n_layers
    is_int8 = step.output.weight.dtype == torch.int8
    options = {"aot_inductor.package_constants_in_so": False} | (INT8_OPTIONS if is_int8 else {})
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        program = torch.export.export(
            step, example, dynamic_shapes=(None, {0: length}, (None, None), fixed, fixed)
        )
        with (
            tempfile.TemporaryDirectory(dir=path.parent, prefix=".compiling-") as folder,
            compiler_folder(folder),
        ):
            package = Path(folder, path.name)
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(package), inductor_configs=options
            )
            os.replace(package, path)


@contextlib.contextmanager
def compiler_folder(folder: str) -> Iterator[None]:
    """Let the compiler use this folder, not its predictable one shared by all users."""
    before = os.environ.get(COMPILER_FOLDER)
    os.environ[COMPILER_FOLDER] = folder
    try:
        yield
    finally:
        del os.environ[COMPILER_FOLDER]
        if before is not None:
            os.environ[COMPILER_FOLDER] = before


def home() -> Path:
    """The user's home folder. Raises ValueError in a container whose user has none."""
    try:
        return Path.home()
    except RuntimeError:
        raise ValueError(
            "compiled code is kept in the home folder, and this user has none: set XDG_CACHE_HOME "
            "(or HOME) to a folder of your own"
        ) from None


def cache_folder() -> Path:
    """The user's own cache folder. Its files are run as code, so nobody else may write to it.

    Raises ValueError if others can, and if it cannot be made.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or home() / ".cache", "mini-llama")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"compiled code cannot be kept in {folder} ({error.strerror}): set XDG_CACHE_HOME to a "
            "folder of your own"
        ) from None
    status = folder.stat()
    if os.name == "posix" and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise ValueError(
            f"compiled code is kept in {folder}, which others can write to: "
            f"chmod 700 it, or set XDG_CACHE_HOME to a folder of your own"
        )
    return folder


def fingerprint(
    config: LlamaConfig,
    precision: str,
    dtype: torch.dtype = torch.float32,
    shared: Sequence[Sequence[str]] = (),
    blocks: Mapping[str, int] | None = None,
) -> str:
    """A hash of everything the compiled function depends on; `dtype` is that of embeddings, norms
    and cache, `shared` the names of weights that are one tensor, `blocks` how many of a row have
    scales of their own.
    """
    digest = hashlib.sha256(_processor().encode())
    versions = [STEP_VERSION, torch.__version__, torch.get_num_threads()]
    known = [*versions, precision, str(dtype), dataclasses.asdict(config), shared, blocks or {}]
    digest.update(json.dumps(known, sort_keys=True).encode())
    return digest.hexdigest()[:24]


def _processor() -> str:
    """The CPU and its instruction sets: code compiled for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{os.uname().machine if hasattr(os, 'uname') else os.name} {flags}"
