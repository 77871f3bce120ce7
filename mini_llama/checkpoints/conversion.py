"""A checkpoint in another format, to the last bit where the format has the bits.

Tensors go from file to file one by one, so a model need not fit in memory. `prepare` checks
everything that can be checked before anything is written; the formats' own writers do the rest.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from config import EDITIONS, Arithmetic, resolve_arithmetic
from mini_llama.bounds import UsageError
from mini_llama.checkpoints.adapters import (
    add_to,
    check_fit,
    read_adapters,
    save_own,
    save_peft,
)
from mini_llama.checkpoints.formats.base import Plan, Target, own_bytes
from mini_llama.checkpoints.formats.gguf_writing import VARIANTS
from mini_llama.checkpoints.lazy_tensors import StreamedTensors
from mini_llama.checkpoints.options import MAX_SHARD_SIZE
from mini_llama.checkpoints.reading import FORMATS, read_checkpoint
from mini_llama.checkpoints.record import (
    Checkpoint,
    WrongNormError,
    check_is_pretrained,
    stored_tensors,
)
from utils import check_new_folder, check_outputs, require_free_disk

TARGETS = {target.name: target for form in FORMATS for target in form.targets}
TRUE_LLAMA = {name: getattr(EDITIONS["llama2"], name) for name in ("norm", "attention")}
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SMALL_FILES_BYTES = 10**7  # tokenizer, configuration, headers


def prepare(
    source: str | Path,
    destination: str | Path,
    to: str,
    edition: str | None = None,
    norm: str | None = None,
    attention: str | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> Plan:
    """Check everything that can be checked before writing.

    `to` is a key of TARGETS, or of gguf's VARIANTS; `edition`, `norm` and `attention` say what the
    source does not record of itself, or contradict it (config.resolve_arithmetic). Raises OSError
    or ValueError, each one line: for what read_checkpoint refuses, for a destination that is the
    source, lies in it or holds files, for a disk without room, for an arithmetic that the format
    cannot mean.
    """
    target, destination = (TARGETS | VARIANTS)[to], Path(destination)
    max_shard_bytes = parse_size(max_shard_size)
    checkpoint = read_checkpoint(source)
    check_is_pretrained(checkpoint)
    check_destination(checkpoint.path, destination, target)
    explicit = (edition, norm, attention)
    arithmetic = decide_arithmetic(checkpoint, target, *explicit)
    config = checkpoint.make_config(norm=arithmetic.norm, attention=arithmetic.attention)
    try:
        tensors = StreamedTensors(stored_tensors(checkpoint, config), checkpoint.pages)
    except WrongNormError:
        if not target.is_llama:
            raise
        raise ValueError(
            f"{checkpoint.path} has LayerNorm biases that are not 0, and {target.name} means "
            f"RMSNorm: convert it --to assignment"
        ) from None
    model_args = dataclasses.asdict(config)
    for name in TRUE_LLAMA:
        if not (name in checkpoint.recorded or _is_explicit(arithmetic, name)):
            del model_args[name]
    notes = describe_choices(checkpoint, target, arithmetic, tensors.meta)
    plan = Plan(
        checkpoint.path, destination, target, config, model_args, tensors, max_shard_bytes, notes
    )
    folder, needed = destination.absolute().parent, plan.bytes_to_write + SMALL_FILES_BYTES
    require_free_disk(folder, needed, str(destination), "choose another disk")
    return plan


def add_adapters(plan: Plan, path: str | Path | None) -> None:
    """LoRA adapters, of a file or of a folder of PEFT: merged into the plan's model, or what is
    written if that is what its target means. Raises OSError, ValueError.
    """
    if path is None:
        if plan.target.of_adapters:
            raise UsageError(f"--to {plan.target.name} writes adapters: name them with --adapters")
        return
    adapters = read_adapters(path, plan.config)
    try:
        if plan.target.of_adapters:
            check_fit(plan.tensors.meta, adapters)
            plan.adapters = adapters
            return
        if plan.config.tie_word_embeddings and "output" in adapters:
            raise ValueError("they adapt the output layer, which is tied to the embedding")
        plan.tensors = plan.tensors.changed(lambda tensors: add_to(tensors, adapters))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    plan.notes.append(f"the adapters of {path} are merged: {len(adapters)} layers")


def _write_peft(plan: Plan) -> None:
    assert plan.adapters is not None
    save_peft(plan.destination, dict(plan.adapters), plan.config, str(plan.source))


def _write_own_adapters(plan: Plan) -> None:
    assert plan.adapters is not None
    save_own(plan.destination, dict(plan.adapters))


ADAPTER_TARGETS = (
    Target("peft", _write_peft, own_bytes, is_folder=True, of_adapters=True),
    Target("adapters", _write_own_adapters, own_bytes, is_llama=False, of_adapters=True),
)
TARGETS |= {target.name: target for target in ADAPTER_TARGETS}


def parse_size(text: str) -> int:
    """A size such as 500MB or 5GB → bytes, in powers of 1000. Raises UsageError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?B)", text.strip().upper())
    size = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if size < 1:
        raise UsageError(f"a shard of {text!r} is not allowed: give a size such as 500MB or 5GB")
    return size


def check_destination(source: Path, destination: Path, target: Target) -> None:
    """Raise ValueError for a destination that is the source, lies in it, or cannot be written."""
    if destination.resolve() == source.resolve():
        raise UsageError(f"{destination} is the source as well; give another name")
    if source.is_dir() and source.resolve() in destination.resolve().parents:
        raise UsageError(f"{destination} lies in the source folder {source}; choose another folder")
    if target.is_folder:
        check_new_folder(destination)
    else:
        check_outputs([destination], [source])


def decide_arithmetic(checkpoint: Checkpoint, target: Target, *explicit: str | None) -> Arithmetic:
    """What the model is, or must be in that format. Raises ValueError where the two differ."""
    assumed = TRUE_LLAMA
    if not target.is_llama:  # which tensors there are decides which shapes to expect
        assumed = TRUE_LLAMA | {"norm": "layernorm" if checkpoint.has_biases else "rmsnorm"}
    arithmetic = resolve_arithmetic(assumed | checkpoint.recorded, *explicit)
    is_llama = {name: getattr(arithmetic, name) for name in TRUE_LLAMA} == TRUE_LLAMA
    if target.is_llama and not is_llama:
        raise ValueError(
            f"{checkpoint.path} is a model of {arithmetic}, and {target.name} means RMSNorm and "
            "causal attention: convert it --to assignment"
        )
    return arithmetic


def _is_explicit(arithmetic: Arithmetic, name: str) -> bool:
    return getattr(arithmetic, f"{name}_source").startswith("explicit")


def describe_choices(
    checkpoint: Checkpoint,
    target: Target,
    arithmetic: Arithmetic,
    meta: Mapping[str, torch.Tensor],
) -> list[str]:
    """What the user should know of the conversion: what is assumed, and what is converted."""
    notes = []
    unrecorded = [
        name
        for name in TRUE_LLAMA
        if name not in checkpoint.recorded and not _is_explicit(arithmetic, name)
    ]
    if unrecorded and target.is_llama:
        notes.append(
            f"{checkpoint.path} does not record its {' and '.join(unrecorded)}: taken for a true "
            f"Llama (RMSNorm, causal attention), which is all that {target.name} can mean"
        )
    elif unrecorded:
        notes.append(
            f"{checkpoint.path} does not record its {' and '.join(unrecorded)}, and so the new "
            "file does not; --edition, --norm and --attention record them"
        )
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in meta.values()} - {"float32"}
    if target.is_float32 and dtypes:
        exactly = "rounded to" if "float64" in dtypes else "written exactly as"
        notes.append(f"{', '.join(sorted(dtypes))} weights are {exactly} float32")
    return notes
