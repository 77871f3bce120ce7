"""What fits a machine's memory: the forms a model can be loaded in, and the free memory.

Whether a form fits counts all of it, weights and a whole context's keys and values, since all of it
is read for every token. Whether loading is refused counts less: tensors that stay mapped from their
file take no memory of their own, and a model that is larger than memory still runs, at the
speed of the disk.
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from config import DTYPES, QUANTIZATIONS, LlamaConfig
from mini_llama.checkpoints.sizes import (
    ADAMW_MOMENTS,
    BYTES,
    OUTPUT,
    block_bytes,
    count_parameters,
    gigabytes,
    is_quantized,
    kv_cache_bytes,
    tensor_bytes,
    weight_bytes,
)
from utils import available_bytes

MARGIN = 1.05  # an allocator's and the activations' share
UNKNOWN = "unknown on this system"


class Form(NamedTuple):
    """How load_pretrained holds a model."""

    dtype: str
    quantize: str | None = None

    def __str__(self) -> str:
        flags = [f"--quantize {self.quantize}"] if self.quantize else []
        if self.dtype != "float32":
            flags.append(f"--dtype {self.dtype}")
        return " ".join(flags) or self.dtype

    def needs(self, config: LlamaConfig) -> int:
        """Bytes of the weights, and of the keys and values of a whole context."""
        cache = kv_cache_bytes(config, config.max_seq_len, self.dtype)
        return weight_bytes(config, *self) + cache


def token_bytes(config: LlamaConfig, form: Form, length: int) -> int:
    """What decoding reads for one token after `length` others: their keys and values, and all
    weights but the input embedding, where it reads one row.
    """
    embedding = config.vocab_size * config.dim * BYTES[form.dtype]
    is_shared = config.tie_word_embeddings and form.quantize is None
    looked_up = 0 if is_shared else embedding - embedding // config.vocab_size
    cache = kv_cache_bytes(config, length, form.dtype)
    return weight_bytes(config, *form) - looked_up + cache


# The most exact first.
FORMS = [Form(dtype, quantize) for quantize in (None, *QUANTIZATIONS) for dtype in DTYPES]


def memory_facts(config: LlamaConfig, device: torch.device | str = "cpu") -> list[tuple[str, str]]:
    """Lines of a report, name and text: what weights and cache take, and what is free."""
    weights = [
        f"{gigabytes(weight_bytes(config, *form))} {form.quantize or form.dtype}"
        for form in FORMS
        if form.quantize is None or form.dtype == "float32"
    ]
    length = config.max_seq_len
    cache = [f"{gigabytes(kv_cache_bytes(config, length, dtype))} {dtype}" for dtype in DTYPES]
    free = available_bytes(device)
    return [
        ("weights in memory", ", ".join(weights)),
        ("key/value cache", f"{', '.join(cache)} for {length} tokens"),
        (f"free on {torch.device(device).type}", UNKNOWN if free is None else gigabytes(free)),
    ]


def describe_fit(config: LlamaConfig, free: int | None) -> str:
    """One line: the forms that `free` bytes hold, cache included, and what the others take."""
    if free is None:
        return f"fits: {UNKNOWN}"
    fitting = [str(form) for form in FORMS if _fits(form.needs(config), free)]
    others = [
        f"{form} ({gigabytes(form.needs(config))} of {gigabytes(free)} free)"
        for form in FORMS
        if str(form) not in fitting
    ]
    line = f"fits: {', '.join(fitting) or 'nothing'}"
    return f"{line}; does not: {', '.join(others)}" if others else line


def _fits(needed: int, free: int) -> bool:
    return needed * MARGIN <= free


def is_converted(meta: Mapping[str, torch.Tensor], dtype: str, quantize: str | None = None) -> bool:
    """Whether loading changes any of these tensors, instead of mapping all of them."""
    return quantize is not None or any(t.dtype != getattr(torch, dtype) for t in meta.values())


def converted_bytes(
    config: LlamaConfig,
    meta: Mapping[str, torch.Tensor],
    dtype: str,
    quantize: str | None = None,
    blocks: Collection[str] = (),
) -> int:
    """What loading certainly allocates: tensors that are quantized or of another dtype in the file,
    and the largest of them in float32 while it is worked on. `meta` are the file's tensors, of
    which `blocks` are kept as they are by int8; the decoder's layout of these is counted.
    """
    is_shared = config.tie_word_embeddings and quantize is None
    made = {
        name: tensor
        for name, tensor in meta.items()
        if is_quantized(name, quantize) or tensor.dtype != getattr(torch, dtype)
        if not (is_shared and name == OUTPUT)
    }
    is_kept = {name for name in blocks if quantize == "int8" and is_quantized(name, quantize)}
    kept = sum(
        block_bytes(tuple(t.shape))
        if name in is_kept
        else tensor_bytes(name, tuple(t.shape), dtype, quantize)
        for name, t in made.items()
    )
    return kept + 4 * max((math.prod(t.shape) for t in made.values()), default=0)


def require_memory(
    path: Path,
    config: LlamaConfig,
    meta: Mapping[str, torch.Tensor],
    dtype: str,
    quantize: str | None = None,
    blocks: Collection[str] = (),
) -> None:
    """Raise ValueError where the machine has no room for what loading certainly allocates; the
    arguments are those of converted_bytes.
    """
    needed, free = converted_bytes(config, meta, dtype, quantize, blocks), available_bytes()
    if free is None or _fits(needed, free):
        return
    fitting = [
        str(form)
        for form in FORMS
        if _fits(converted_bytes(config, meta, *form, blocks=blocks), free)
    ]
    remedy = f"it fits with {', '.join(fitting)}" if fitting else "use a machine with more memory"
    raise ValueError(
        f"{path} needs {gigabytes(needed)} of memory as {Form(dtype, quantize)}, and "
        f"{gigabytes(free)} are free: {remedy}"
    )


def require_training_memory(
    config: LlamaConfig, device: torch.device, is_sharded: bool = False
) -> None:
    """Raise ValueError where the machine has no room for what training a fresh model certainly
    allocates: float32 weights, and on the CPU as many gradients and AdamW's moments.
    """
    weights = count_parameters(config) * BYTES["float32"]
    is_whole = device.type == "cpu" and not is_sharded
    needed, free = weights * (2 + ADAMW_MOMENTS if is_whole else 1), available_bytes()
    if free is not None and not _fits(needed, free):
        kept = "weights, gradients and moments" if is_whole else "weights"
        raise ValueError(
            f"a model of {count_parameters(config):,} parameters needs {gigabytes(needed)} of "
            f"memory for {kept}, and {gigabytes(free)} are free: choose a smaller shape"
        )


def require_device_memory(config: LlamaConfig, device: torch.device, form: Form) -> None:
    """Raise ValueError where a GPU has no room for weights that are moved to it."""
    if device.type != "cuda":
        return
    needed, free = weight_bytes(config, *form), available_bytes(device)
    if free is not None and not _fits(needed, free):
        raise ValueError(
            f"the weights need {gigabytes(needed)} as {form}, and the GPU has {gigabytes(free)} "
            f"free; with the cache {describe_fit(config, free)}"
        )
