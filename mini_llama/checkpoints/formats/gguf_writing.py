"""Writing GGUF files, version 3: metadata, then tensors one by one."""

import functools
import struct
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import torch

from config import LlamaConfig
from mini_llama.checkpoints.formats.base import Plan, Target
from mini_llama.checkpoints.formats.gguf_config import FACTORS, export_config, export_factors
from mini_llama.checkpoints.formats.gguf_names import their_name
from mini_llama.checkpoints.formats.huggingface_tokenizer import find_beside
from mini_llama.checkpoints.options import GGUF_TYPES
from mini_llama.gguf_file import (
    ALIGNMENT,
    ARRAY,
    HEADER,
    LENGTH,
    MAGIC,
    NUMBERS,
    STRING,
    TENSOR_TYPES,
    VERSIONS,
)
from mini_llama.optional_imports import import_optional
from mini_llama.tokenization.gguf_export import tokenizer_metadata
from utils import atomic_write

TYPE_NUMBERS = {kind.name: number for number, kind in TENSOR_TYPES.items()}
VALUE_NUMBERS = {np.dtype(name).str: number for number, name in NUMBERS.items()}
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()} | {torch.float64: "F32"}
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}  # general.file_type


def type_of(tensor: torch.Tensor, wanted: str | None) -> str:
    """The type that a tensor is written in; `wanted` is that of matrices, None for what they are.

    Norms are always float32, as llama.cpp needs them; rows that are not whole blocks, float16.
    """
    if tensor.ndim == 1:
        return "F32"
    wanted = wanted or NAMES[tensor.dtype]
    block = TENSOR_TYPES[TYPE_NUMBERS[wanted]].block
    return wanted if tensor.shape[-1] % block == 0 else "F16"


def bytes_of(tensor: torch.Tensor, _: LlamaConfig, wanted: str | None) -> float:
    kind = TENSOR_TYPES[TYPE_NUMBERS[type_of(tensor, wanted)]]
    return tensor.numel() / kind.block * kind.size


def write(plan: Plan, wanted: str | None) -> None:
    """Write the plan's model. Raises OSError; ValueError for RoPE scaling that the format lacks,
    and for weights that are infinite or not a number in the type wanted.
    """
    metadata = {**export_config(plan.config), **_tokenizer(plan)}
    meta = {name: t for name, t in plan.tensors.meta.items() if name not in plan.shared}
    types = {name: type_of(tensor, wanted) for name, tensor in meta.items()}
    most = max(
        (t for t in types.values() if t != "F32"), key=list(types.values()).count, default=""
    )
    metadata |= {"general.file_type": np.uint32(FILE_TYPES[most or "F32"])}
    metadata |= {"general.quantization_version": np.uint32(2)} if "Q8_0" in types.values() else {}
    rows = [(their_name(name), tuple(t.shape), types[name]) for name, t in meta.items()]
    factors = export_factors(plan.config)
    if factors is not None:
        rows.append((FACTORS, factors.shape, "F32"))
    errors = [(0.0, 0.0)]
    with atomic_write(plan.destination, "wb") as file:
        file.write(HEADER.pack(MAGIC, VERSIONS[-1], len(rows), len(metadata)))
        for key, value in metadata.items():
            file.write(_text(key) + b"".join(_value(value)))
        file.write(b"".join(_infos(rows)))
        for name in meta:
            _pad(file)
            data, error = encode(plan.tensors[name], types[name], name)
            errors.append(error)
            file.write(data)
        if factors is not None:
            _pad(file)
            file.write(factors.astype("<f4").tobytes())
    _note(plan, types, errors)


def _note(plan: Plan, types: dict[str, str], errors: list[tuple[float, float]]) -> None:
    meta = plan.tensors.meta
    rounded = {(meta[k].dtype, DTYPES[kind]) for k, kind in types.items() if kind in DTYPES}
    for before, after in sorted(rounded, key=str):
        if torch.promote_types(before, after) != after:
            names = (str(dtype).removeprefix("torch.") for dtype in (before, after))
            plan.notes.append("{} weights are rounded to {}".format(*names))
    if "Q8_0" in types.values():
        absolute, relative = (max(column) for column in zip(*errors, strict=True))
        plan.notes.append(
            f"8 bits, in blocks of 32: the largest error of a weight is {absolute:.3g}, or "
            f"{relative:.3f} of its block's scale"
        )
        others = [name for name, kind in types.items() if kind == "F16"]
        if others:
            plan.notes.append(
                f"float16 where rows are not whole blocks of 32: {len(others)} tensors"
            )


def _tokenizer(plan: Plan) -> dict[str, Any]:
    tokenizer = find_beside(plan.source, plan.config.vocab_size)
    reason = f"no tokenizer of this model is beside {plan.source}"
    if tokenizer is not None:
        try:
            return tokenizer_metadata(tokenizer, plan.config.vocab_size)
        except ValueError as error:
            reason = f"{tokenizer.model_path}: {error}"
    plan.notes.append(f"{reason}: the file has no tokenizer, which llama.cpp needs")
    return {"tokenizer.ggml.model": "none"}


def encode(tensor: torch.Tensor, kind: str, name: str) -> tuple[memoryview, tuple[float, float]]:
    """A tensor's bytes, and of 8 bits the largest error, absolute and in scales. Raises ValueError
    for a number that the type does not have.
    """
    tensor = tensor.detach()
    if kind != "Q8_0":
        converted = tensor.to(DTYPES[kind]).contiguous()
        is_changed = converted.dtype != tensor.dtype
        if is_changed and not converted.isfinite().equal(tensor.isfinite()):
            raise ValueError(f"{name} has numbers too large for {kind}: choose another --type")
        return converted.reshape(-1).view(torch.uint8).numpy().data, (0.0, 0.0)
    if not tensor.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinity, which 8 bits cannot")
    package = import_optional("gguf", "8 bits in a GGUF file")
    values = tensor.float().contiguous().numpy()
    data = package.quantize(values, package.GGMLQuantizationType.Q8_0)
    blocks = data.reshape(-1, 34)
    scales = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    if not np.isfinite(scales).all():
        raise ValueError(f"{name} has numbers too large for Q8_0: choose another --type")
    wrong = np.abs(blocks[:, 2:].view(np.int8) * scales - values.reshape(-1, 32)).max(axis=1)
    relative = (wrong / np.maximum(scales[:, 0], 1e-30)).max(where=scales[:, 0] > 0, initial=0.0)
    return np.ascontiguousarray(data).data, (float(wrong.max()), float(relative))


def _pad(file: IO[bytes]) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def _infos(rows: list[tuple[str, tuple[int, ...], str]]) -> Iterator[bytes]:
    start = 0
    for name, shape, kind in rows:
        number = TYPE_NUMBERS[kind]
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        yield _text(name) + sizes + struct.pack("<IQ", number, start)
        block = TENSOR_TYPES[number]
        size = int(np.prod(shape)) // block.block * block.size
        start += -(-size // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    encoded = text.encode()
    return LENGTH.pack(len(encoded)) + encoded


def _value(value: Any) -> Iterator[bytes]:
    """A metadata value, after its type: texts, NumPy's numbers and arrays, bool, lists."""
    if isinstance(value, str):
        yield struct.pack("<I", STRING) + _text(value)
        return
    if isinstance(value, list) and (not value or isinstance(value[0], str)):
        yield struct.pack("<IIQ", ARRAY, STRING, len(value))
        yield from map(_text, value)
        return
    array = np.asarray(value)
    if isinstance(value, list):
        array = array.astype(np.int32 if array.dtype.kind == "i" else np.float32)
    elif isinstance(value, float):
        array = array.astype(np.float32)
    array = array.astype(array.dtype.newbyteorder("<"))
    number = VALUE_NUMBERS[array.dtype.str]
    if array.ndim:
        yield struct.pack("<IIQ", ARRAY, number, array.size) + array.tobytes()
    else:
        yield struct.pack("<I", number) + array.tobytes()


def _target(name: str, wanted: str | None) -> Target:
    return Target(
        name,
        functools.partial(write, wanted=wanted),
        functools.partial(bytes_of, wanted=wanted),
    )


TARGET = _target("gguf", None)
VARIANTS = {f"gguf-{kind}": _target(f"gguf-{kind}", kind.upper()) for kind in GGUF_TYPES}
