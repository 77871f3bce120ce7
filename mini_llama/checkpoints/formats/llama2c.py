"""llama2.c's .bin files: versions 0, 1 and 2 are read, 0 and 2 written.

Every version has a header of int32 numbers and then the tensors, each kind for all layers at once:
- 0 ("legacy", what run.c reads): 28 bytes of header, a negative vocab_size where the output
  embedding is stored separately, float32 tensors with RoPE's tables among them;
- 1: a magic number, the version, the same seven numbers and a flag for a shared output embedding,
  padded to 256 bytes; float32 tensors, norms first;
- 2 ("q80", what runq.c reads): as 1, with the group size in the header; float32 norms, and each
  weight as int8 values and then a float32 scale for each group of consecutive values.

All numbers are little-endian. No version records the arithmetic: llama2.c's own is RMSNorm, causal
attention, rope_theta 10000 and an eps of 1e-5. Source: github.com/karpathy/llama2.c, its export.py
and runq.c.
"""

import dataclasses
import functools
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import torch

from config import LARGEST_DIMENSION, LlamaConfig, expected_shapes
from mini_llama.bounds import check_bound
from mini_llama.checkpoints.formats.base import Format, Plan, Target
from mini_llama.checkpoints.lazy_tensors import LazyTensors, meta_tensors
from mini_llama.checkpoints.mapped_pages import MappedPages
from mini_llama.checkpoints.record import Checkpoint
from mini_llama.checkpoints.tensor_files import read_start
from mini_llama.layers.int8_blocks import Int8Blocks
from mini_llama.layers.linear import quantize_rows
from rope import rotary_tables
from utils import REMEDY, atomic_write

NUMBERS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
LEGACY_HEADER = struct.Struct("<7i")
MAGIC = b"24ka"  # 0x616b3432, little-endian
HEADER = struct.Struct("<4si7iBi")  # magic, version, NUMBERS, flag, group size (in version 2)
HEADER_BYTES = 256
GROUP_SIZE = 64

# {} stands for the layer.
ATTENTION_NORM, FFN_NORM = "layers.{}.attention_norm.weight", "layers.{}.ffn_norm.weight"
ATTENTION = tuple(
    f"layers.{{}}.attention.compute_{part}.weight" for part in ("query", "key", "value", "output")
)
FEED_FORWARD = tuple(f"layers.{{}}.feed_forward.{part}.weight" for part in ("w1", "w2", "w3"))
EMBEDDING, NORM, OUTPUT = "tok_embeddings.weight", "norm.weight", "output.weight"
TABLES = ("freqs_cos", "freqs_sin")
LEGACY_ORDER = (EMBEDDING, ATTENTION_NORM, *ATTENTION, FFN_NORM, *FEED_FORWARD, NORM, *TABLES)
ORDER = (ATTENTION_NORM, FFN_NORM, NORM, EMBEDDING, *ATTENTION, *FEED_FORWARD)
GROUPS_AT_ONCE = 2**16  # quantized at a time, so that a large embedding needs little more memory
# What llama2.c always computes with, beside a head_dim of dim // n_heads.
FIXED = {"rope_theta": 10000.0, "rope_scaling": None, "layer_norm_eps": 1e-5}
FIXED |= {"attention_bias": False, "mlp_bias": False}


class QuantizationLoss(NamedTuple):
    """What 8 bits cost: the largest error of a weight, and the largest as a part of its scale.

    The latter is at most 1/2, but for float32's own loss.
    """

    group_size: int
    absolute: float
    relative: float


@dataclass(frozen=True)
class Header:
    """A file's header, which describes its tensors. Raises ValueError for impossible values."""

    version: int
    config: LlamaConfig
    group_size: int = 0

    def __post_init__(self) -> None:
        for name in NUMBERS:
            size = getattr(self.config, name)
            holds = 1 <= size <= LARGEST_DIMENSION
            check_bound(f"{name}={size}", holds, f"from 1 to {LARGEST_DIMENSION}")
        if self.version < 2:
            return
        for name, shape, _ in self.kinds():
            if len(shape) == 2 and (self.group_size < 1 or math.prod(shape) % self.group_size):
                raise ValueError(
                    f"group_size={self.group_size} is not allowed: it must divide the "
                    f"{math.prod(shape)} values of {name.format(0)}"
                )

    @property
    def nbytes(self) -> int:
        return LEGACY_HEADER.size if self.version == 0 else HEADER_BYTES

    def kinds(self) -> Iterator[tuple[str, tuple[int, ...], int]]:
        """Name, with {} for the layer, shape, and number of tensors of each kind, in order."""
        config = self.config
        one_layer = dataclasses.replace(config, norm="rmsnorm", n_layers=1)
        shapes = dict(expected_shapes(one_layer))
        shapes |= dict.fromkeys(TABLES, (config.max_seq_len, config.head_dim // 2))
        output = () if config.tie_word_embeddings else (OUTPUT,)
        for name in (*(ORDER if self.version else LEGACY_ORDER), *output):
            yield name, shapes[name.format(0)], config.n_layers if "{}" in name else 1

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        """Bytes that a tensor of this shape takes."""
        count = math.prod(shape)
        is_quantized = self.version == 2 and len(shape) == 2
        return count + 4 * (count // self.group_size) if is_quantized else 4 * count

    def pack(self) -> bytes:
        numbers = [getattr(self.config, name) for name in NUMBERS]
        is_tied = self.config.tie_word_embeddings
        if self.version == 0:
            numbers[NUMBERS.index("vocab_size")] *= 1 if is_tied else -1
            return LEGACY_HEADER.pack(*numbers)
        header = HEADER.pack(MAGIC, self.version, *numbers, is_tied, self.group_size)
        return header.ljust(HEADER_BYTES, b"\0")


def is_header(start: bytes) -> bool:
    """Whether a file that starts so is one of llama2.c's; version 0 is known by likely numbers."""
    if start.startswith(MAGIC):
        return True
    if len(start) < LEGACY_HEADER.size:
        return False
    *sizes, vocab_size, seq_len = LEGACY_HEADER.unpack_from(start)
    return all(0 < size <= LARGEST_DIMENSION for size in (*sizes, abs(vocab_size), seq_len))


def _read_header(path: Path) -> tuple[Header, dict[str, int]]:
    """The header, and its numbers as model_args."""
    with open(path, "rb") as file:
        start = file.read(HEADER_BYTES)
    version, group_size = 0, 0
    if not start.startswith(MAGIC):
        numbers = dict(zip(NUMBERS, LEGACY_HEADER.unpack_from(start), strict=True))
        is_tied = numbers["vocab_size"] > 0
        numbers["vocab_size"] = abs(numbers["vocab_size"])
    elif len(start) < HEADER_BYTES:
        raise ValueError(f"it has {len(start)} bytes, but its header needs {HEADER_BYTES}")
    else:
        _, version, *values, is_tied, group_size = HEADER.unpack_from(start)
        if version not in (1, 2):
            raise ValueError(f"it is of llama2.c's version {version}, and 0, 1 and 2 are supported")
        numbers = dict(zip(NUMBERS, values, strict=True))
        if is_tied not in (0, 1):
            raise ValueError(f"its flag for a shared output embedding is {is_tied}, not 0 or 1")
    try:
        config = LlamaConfig(**numbers, tie_word_embeddings=bool(is_tied))
        return Header(version, config, group_size), numbers
    except ValueError as error:
        raise ValueError(f"not a llama2.c .bin file: {error}") from None


def recognises(path: Path) -> bool:
    return is_header(read_start(path, LEGACY_HEADER.size))


def read(path: Path) -> Checkpoint:
    """Tensors in float32, without RoPE's tables: views of the mapped file, copy on write; those of
    version 2 are LazyTensors, made from their 8 bits at each access.
    """
    pages = MappedPages()
    try:
        header, model_args = _read_header(path)
        tensors = _map_tensors(path, header, pages)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {REMEDY}") from None
    kind = f"llama2.c .bin file, version {header.version}"
    return Checkpoint(path, model_args, tensors, format=kind, pages=pages)


def _map_tensors(path: Path, header: Header, pages: MappedPages) -> Mapping[str, torch.Tensor]:
    """Raises OSError, or ValueError that does not name the file."""
    kinds = list(header.kinds())
    needed = header.nbytes + sum(n * header.bytes_of(shape) for _, shape, n in kinds)
    actual = path.stat().st_size
    if actual != needed:
        raise ValueError(f"it has {actual} bytes, but its header needs {needed}")
    data = pages.map_file(path)
    starts, shapes, end = {}, {}, header.nbytes
    for kind, shape, count in kinds:
        for name in map(kind.format, range(count)):
            starts[name], shapes[name] = end, shape
            end += header.bytes_of(shape)
    shapes = {name: shape for name, shape in shapes.items() if name not in TABLES}

    def make(name: str) -> torch.Tensor:
        shape = shapes[name]
        part = data[starts[name] :][: header.bytes_of(shape)]
        if header.version < 2 or len(shape) == 1:
            return part.view(torch.float32).view(shape)
        values, scales = groups(name)
        return (values * scales[:, None]).view(shape)

    def groups(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        part = data[starts[name] :][: header.bytes_of(shapes[name])]
        try:
            return _split(part, header.group_size)
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from None

    def read_blocks(name: str) -> Int8Blocks:
        values, scales = groups(name)
        shape = shapes[name]
        return Int8Blocks(values.clone().view(shape), scales.view(shape[0], -1))

    meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    readers = {
        name: functools.partial(read_blocks, name)
        for name, shape in shapes.items()
        if header.version == 2 and len(shape) == 2 and shape[1] % header.group_size == 0
    }
    tensors = LazyTensors(meta, make, readers)
    return tensors if header.version == 2 else dict(tensors)


def _split(part: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes → int8 values in their groups (groups, group_size), and each group's float32 scale."""
    groups = len(part) // (group_size + 4)
    values, scales = part.split([groups * group_size, groups * 4])
    scales = scales.clone().view(torch.float32)  # cloned, since it may start at any byte
    if not ((scales >= 0) & scales.isfinite()).all():
        raise ValueError(
            "a scale is negative or no number: the file is damaged, or from before runq.c, when "
            "all scales stood at the end; export it again"
        )
    return values.view(torch.int8).view(groups, group_size), scales


def write_version0(
    path: str | Path, config: LlamaConfig, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write version 0, in float32, one tensor after another, atomically.

    `tensors` are by the assignment's names, output.weight only where it is not tied. Norm and
    attention are not recorded. Raises ValueError for what llama2.c cannot compute: another
    rope_theta or eps, biases that are not 0; and for tensors that do not fit; OSError.
    """
    _check_arithmetic(config, tensors)
    rotary = rotary_tables(config.head_dim, config.max_seq_len, config.rope_theta)
    tables = dict(zip(TABLES, rotary, strict=True))
    everything = LazyTensors(
        {**meta_tensors(tensors), **tables}, lambda k: tables[k] if k in tables else tensors[k]
    )
    header = Header(0, config)
    with atomic_write(path, "wb") as file:
        file.write(header.pack())
        for _, tensor in _in_order(header, everything):
            _write(file, tensor)


def fitting_group_size(config: LlamaConfig, group_size: int = GROUP_SIZE) -> int:
    """The group size, halved until it divides dim and hidden_dim."""
    while config.dim % group_size or config.hidden_dim % group_size:
        group_size //= 2
    return group_size


def write_q80(
    path: str | Path,
    config: LlamaConfig,
    tensors: Mapping[str, torch.Tensor],
    group_size: int = GROUP_SIZE,
) -> QuantizationLoss:
    """Write version 2, weights in 8 bits and norms in float32, as `write_version0` does.

    The group size is halved until it divides dim, as export.py does, and hidden_dim, which
    export.py forgets: runq.c multiplies whole groups of a row, and drops the rest of it (llama2.c's
    pull request 533). Raises ValueError as well for weights that are infinite or not a number.
    """
    _check_arithmetic(config, tensors)
    check_bound(f"group_size={group_size}", group_size >= 1, "at least 1")
    group_size = fitting_group_size(config, group_size)
    header = Header(2, config, group_size)
    errors = [(0.0, 0.0)]
    with atomic_write(path, "wb") as file:
        file.write(header.pack())
        for name, tensor in _in_order(header, tensors):
            if tensor.ndim == 1:
                _write(file, tensor)
            elif not tensor.isfinite().all():
                raise ValueError(f"{name} holds NaN or infinity, which 8 bits cannot")
            else:
                errors += _write_quantized(file, tensor, group_size)
    absolute, relative = (max(column) for column in zip(*errors, strict=True))
    return QuantizationLoss(group_size, absolute, relative)


def _write_quantized(
    file: IO[bytes], tensor: torch.Tensor, group_size: int
) -> list[tuple[float, float]]:
    """Write int8 values, then scales. Largest errors, absolute and relative, part by part."""
    all_scales, errors = [], []
    for groups in tensor.view(-1, group_size).split(GROUPS_AT_ONCE):
        values, scales = quantize_rows(groups)
        _write(file, values)
        all_scales.append(scales)
        wrong = (values * scales[:, None] - groups).abs().amax(dim=1)
        errors.append((wrong.max().item(), (wrong / scales).max().item()))
    _write(file, torch.cat(all_scales))
    return errors


def _check_arithmetic(config: LlamaConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError for a model that llama2.c would compute differently."""
    for name, value in {**FIXED, "head_dim": config.dim // config.n_heads}.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name} is {getattr(config, name)}, and llama2.c computes with {value} whatever "
                "the model; choose another format"
            )
    for name in tensors:
        if name.endswith("norm.bias") and tensors[name].count_nonzero():
            raise ValueError(f"{name} is not 0, and llama2.c has no biases; choose another format")


def _in_order(
    header: Header, tensors: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and float32 tensor, one at a time. Raises ValueError for one that does not fit."""
    for kind, shape, count in header.kinds():
        for name in map(kind.format, range(count)):
            if name not in tensors:
                raise ValueError(f"{name} is missing")
            tensor = tensors[name].detach()
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} is {list(tensor.shape)} instead of {list(shape)}")
            yield name, tensor.to("cpu", torch.float32).contiguous()


def _write(file: IO[bytes], tensor: torch.Tensor) -> None:
    array = tensor.numpy()
    file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).data)


def _write_plan(plan: Plan) -> None:
    write_version0(plan.destination, plan.config, plan.tensors)


def _write_plan_q80(plan: Plan) -> None:
    loss = write_q80(plan.destination, plan.config, plan.tensors)
    plan.notes.append(
        f"8 bits, in groups of {loss.group_size}: the largest error of a weight is "
        f"{loss.absolute:.3g}, or {loss.relative:.3f} of its group's scale"
    )


def _float32_bytes(tensor: torch.Tensor, _: LlamaConfig) -> float:
    return 4 * tensor.numel()


def _q80_bytes(tensor: torch.Tensor, config: LlamaConfig) -> float:
    """A byte a weight, and a float32 scale a group; norms stay float32."""
    scales = 4 / fitting_group_size(config)
    return tensor.numel() * (1 + scales if tensor.ndim > 1 else 4)


NO_RECORD = (
    "; it records neither arithmetic nor tokenizer: read it with --edition llama2 --tokenizer"
)
FORMAT = Format(
    "a llama2.c .bin file",
    recognises,
    read,
    targets=(
        Target("llama2c", _write_plan, _float32_bytes, is_float32=True, hint=NO_RECORD),
        Target("llama2c-q80", _write_plan_q80, _q80_bytes, hint=NO_RECORD),
    ),
)
