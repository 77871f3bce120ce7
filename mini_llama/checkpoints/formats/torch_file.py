"""Torch files, dict(model=tensors, model_args=…): the assignment's stories42M.pt, our own, and
llama2.c's training checkpoints, whose other key names record.migrate_names turns into ours.
"""

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import numpy
import torch

from config import LlamaConfig
from mini_llama.checkpoints.course_file import as_our_own, is_course_file
from mini_llama.checkpoints.formats.base import Format, Plan, Target, own_bytes
from mini_llama.checkpoints.mapped_pages import MappedPages
from mini_llama.checkpoints.record import Checkpoint, check_can_be_saved, migrate_names
from mini_llama.checkpoints.tensor_files import (
    check_tensors,
    load_plain,
    read_start,
    save_plain,
    save_plain_lazily,
    truncated,
)
from utils import REMEDY

STARTS = (b"PK", b"\x80")  # of zip files, and of the older format's pickles


def recognises(path: Path) -> bool:
    return read_start(path, 2).startswith(STARTS)


def check(path: Path) -> None:
    """Raise ValueError for a zip file without its end, as an interrupted download leaves it."""
    if read_start(path, 2) == STARTS[0] and not zipfile.is_zipfile(path):
        raise truncated(path)


def read(path: Path) -> Checkpoint:
    pages = MappedPages()
    content = load_plain(path, pages)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"{path} holds a {kind}, not a checkpoint's dict; {REMEDY}")
    if is_course_file(content):
        content = as_our_own(path, content)
    for key in ("model", "model_args"):
        if not isinstance(content.get(key), dict):
            if "adapters" in content:
                raise ValueError(
                    f"{path} holds LoRA adapters, not a model: name the model itself, and give "
                    "this file to --adapters"
                )
            found = ", ".join(str(k) for k in list(content)[:5]) or "nothing"
            raise ValueError(
                f"{path} has no dict {key!r} (it holds: {found}); a checkpoint has "
                "'model' and 'model_args'"
            )
    tensors = migrate_names(path, check_tensors(path, content["model"]))
    rest = {k: v for k, v in content.items() if k not in ("model", "model_args")}
    args = {name: _plain(value) for name, value in content["model_args"].items()}
    return Checkpoint(path, args, tensors, rest, "torch file", pages)


def _plain(value: Any) -> Any:
    """A number of NumPy's as Python's."""
    return value.item() if isinstance(value, numpy.generic) else value


def save_checkpoint(
    path: str | Path,
    model_args: LlamaConfig | dict[str, Any],
    tensors: dict[str, torch.Tensor],
    **metadata: Any,
) -> None:
    """Write a torch checkpoint atomically: `tensors`, `model_args` and plain metadata.

    A LlamaConfig records its norm and attention, so the file needs no edition when it is loaded.
    Raises ValueError for weights of 8 or 4 bits, OSError.
    """
    if isinstance(model_args, LlamaConfig):
        model_args = dataclasses.asdict(model_args)
    check_can_be_saved(tensors)
    tensors = {name: _compact(tensor) for name, tensor in tensors.items()}
    save_plain(path, {"model": tensors, "model_args": model_args, **metadata})


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """torch.save writes a tensor's whole storage, and a view of a mapped file has the file's."""
    is_view = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if is_view else tensor


def _write(plan: Plan) -> None:
    save_plain_lazily(
        plan.destination, "model", plan.tensors, plan.shared, model_args=plan.model_args
    )


NO_TOKENIZER = "; it holds no tokenizer: name one with --tokenizer when it is read"
FORMAT = Format(
    "a torch checkpoint",
    recognises,
    read,
    targets=(Target("assignment", _write, own_bytes, is_llama=False, hint=NO_TOKENIZER),),
    check=check,
)
