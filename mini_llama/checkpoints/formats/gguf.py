"""GGUF files of the architecture llama, whole or in parts (llama.cpp; ggml's docs/gguf.md).

Rows of the query and the key projection stand in interleaved pairs, as here. Tensors of plain
numbers are mapped; quantized ones are dequantized at each access, by the package gguf, or, where
they are int8 with scales, read as these.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import LlamaConfig
from mini_llama.checkpoints.formats.base import Format
from mini_llama.checkpoints.formats.gguf_blocks import is_int8_blocks, read_blocks
from mini_llama.checkpoints.formats.gguf_config import FACTORS, import_config
from mini_llama.checkpoints.formats.gguf_names import our_names
from mini_llama.checkpoints.formats.gguf_writing import TARGET
from mini_llama.checkpoints.lazy_tensors import LazyTensors
from mini_llama.checkpoints.mapped_pages import MappedPages
from mini_llama.checkpoints.record import Checkpoint, with_zero_biases
from mini_llama.checkpoints.sizes import gigabytes
from mini_llama.checkpoints.tensor_files import read_start
from mini_llama.gguf_file import (
    MAGIC,
    GGUFFile,
    TensorInfo,
    count_types,
    is_gguf,
    read_gguf,
    read_parts,
)
from mini_llama.layers.int8_blocks import Int8Blocks
from mini_llama.optional_imports import import_optional

OLD_TABLES = ".attn_rot_embd.weight"  # RoPE's frequencies in old files: computed here
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
UNREADABLE = ("I8", "I16", "I32", "I64", "Q8_1", "Q8_K")  # no weights, or not in files
SHOWN_BYTES = 60
# Metadata that the report has elsewhere.
LEFT_OUT = ("general.architecture", "general.type", "general.alignment")


def recognises(path: Path) -> bool:
    return is_gguf(read_start(path, len(MAGIC)))


def read(path: Path) -> Checkpoint:
    parts, pages = read_parts(path), MappedPages()
    first = parts[0]
    infos = {name: (part, info) for part in parts for name, info in part.tensors.items()}
    args = import_config(first, _read_factors(first), infos.keys())
    if args["n_layers"] > len(infos):  # before n_layers names are built from a damaged number
        raise first.error(f"it holds {len(infos)} tensors, too few for {args['n_layers']} layers")
    known = our_names(args["n_layers"])
    places = {}
    for name, (part, info) in infos.items():
        if name == FACTORS or name.endswith(OLD_TABLES):
            continue
        if name not in known:
            raise part.error(f"it holds {name[:64]!r}, which is not supported in a llama")
        if info.type.name in UNREADABLE:
            raise part.error(f"{name} is of the type {info.type.name}, which no weights have")
        places[known[name]] = (part, info)
    quantized = frozenset(k for k, (_, info) in places.items() if info.type.name not in PLAIN)
    if quantized:
        import_gguf()  # before anything is read
    tensors = with_zero_biases(_map_tensors(places, pages), LlamaConfig(**args))
    return Checkpoint(
        first.path,
        args,
        tensors,
        format=f"GGUF file, version {first.version}" + _in_parts(parts),
        pages=pages,
        made=quantized,
        files=tuple(part.path for part in parts),
        facts=tuple(describe(parts)),
    )


def import_gguf() -> Any:
    """The package. Raises ValueError naming the install command if it is not installed."""
    return import_optional("gguf", "a quantized GGUF file")


def _in_parts(parts: list[GGUFFile]) -> str:
    return f", in {len(parts)} parts" if len(parts) > 1 else ""


def _read_factors(file: GGUFFile) -> Any:
    """Llama 3's RoPE factors as NumPy's, if the file has them: float32."""
    info = file.tensors.get(FACTORS)
    if info is None:
        return None
    if info.type.name != "F32" or len(info.shape) != 1 or info.nbytes > 2**16:
        raise file.error(f"{FACTORS} is {info.type.name} {list(info.shape)}, not a few of F32")
    with open(file.path, "rb") as opened:
        opened.seek(info.start)
        data = bytearray(opened.read(info.nbytes))
    return torch.frombuffer(data, dtype=torch.float32).numpy()


def _map_tensors(places: Mapping[str, tuple[GGUFFile, TensorInfo]], pages: MappedPages) -> Any:
    files = dict.fromkeys(part.path for part, _ in places.values())
    data = {path: pages.map_file(path) for path in files}

    def raw_bytes(name: str) -> torch.Tensor:
        part, info = places[name]
        return data[part.path][info.start :][: info.nbytes]

    def make(name: str) -> torch.Tensor:
        raw, (_, info) = raw_bytes(name), places[name]
        if info.type.name in PLAIN:
            return raw.view(PLAIN[info.type.name]).view(info.shape)
        return dequantize(raw, info)

    def make_blocks(name: str) -> Int8Blocks:
        return read_blocks(raw_bytes(name), places[name][1])

    meta = {
        name: torch.empty(info.shape, dtype=PLAIN.get(info.type.name), device="meta")
        for name, (_, info) in places.items()
    }
    readers = {
        name: functools.partial(make_blocks, name)
        for name, (_, info) in places.items()
        if is_int8_blocks(info)
    }
    return LazyTensors(meta, make, readers)


def dequantize(raw: torch.Tensor, info: TensorInfo) -> torch.Tensor:
    """The bytes of a quantized tensor → float32. Raises ValueError for a type that the installed
    package does not know.
    """
    package = import_gguf()
    row_bytes = info.shape[-1] // info.type.block * info.type.size
    try:
        kind = package.GGMLQuantizationType[info.type.name]
        with np.errstate(all="ignore"):  # of scales that are not numbers, in a damaged file
            values = package.dequantize(raw.view(-1, row_bytes).numpy(), kind)
    except (KeyError, NotImplementedError):
        raise ValueError(
            f"the installed package gguf does not read the type {info.type.name}: pip install -U "
            "gguf"
        ) from None
    return torch.from_numpy(values).view(info.shape)


def describe(parts: list[GGUFFile]) -> list[tuple[str, str]]:
    """Lines of a report: the types of the tensors, and the metadata."""
    counted = [f"{n} {name} ({gigabytes(size)})" for name, n, size in count_types(parts)]
    rows = [("tensors", ", ".join(counted))]
    for key, value in parts[0].metadata.items():
        if key not in LEFT_OUT:
            rows.append((key, _shown(value)))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, str):
        text = " ".join(value.split())
        return text if len(text) <= SHOWN_BYTES else f"{text[:SHOWN_BYTES]}… ({len(value)} letters)"
    if not hasattr(value, "__len__"):
        return f"{value:.7g}" if isinstance(value, float) else str(value)
    if len(value) <= 4 and all(isinstance(item, str) for item in value):
        return ", ".join(item[:SHOWN_BYTES] for item in value)
    return f"{len(value)} values"


def _check(path: Path) -> None:
    """What import_config refuses, without looking for the other parts."""
    file = read_gguf(path)
    if file.part == (1, 1):
        import_config(file, _read_factors(file), file.tensors)


FORMAT = Format("a GGUF file", recognises, read, targets=(TARGET,), check=_check)
