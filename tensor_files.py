"""Files of tensors, read and written without ever executing anything: torch's and safetensors'.

Tensors are mapped from the file, not copied. The file knows no models and no names of tensors.
"""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from utils import REMEDY, atomic_write, read_json

INDEX_SUFFIX = ".index.json"


def load_plain(path: str | Path) -> Any:
    """The tensors and plain data of a torch file. Raises ValueError where there is anything else.

    Tensors are mapped from the file, copy on write, where its format (zip) allows.
    """
    with open(path, "rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        with warnings.catch_warnings(action="ignore"):  # of unusual pickles; the errors say enough
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is damaged, or holds objects other than tensors and plain data; "
            "nothing in a checkpoint is ever executed, so it is refused: get it from its source"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError):
        # torch has no error of its own for a file that is cut short or is another kind of zip
        raise ValueError(f"{path} is truncated or not a torch checkpoint; {REMEDY}") from None


def save_plain(path: str | Path, content: dict[str, Any]) -> None:
    """Write tensors and plain data as a torch file, atomically. Raises OSError."""
    with atomic_write(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # how torch says that a write came to less than asked for
            raise OSError(
                f"{path} could not be written whole: is the disk full? What was there is untouched"
            ) from error


def import_safetensors() -> Any:
    """safetensors.torch. Raises ValueError naming the install command if it is not installed."""
    try:
        import safetensors.torch
    except ImportError:
        raise ValueError("safetensors files need a package: pip install safetensors") from None
    return safetensors.torch


def load_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Raises FileNotFoundError, ValueError for a damaged file."""
    try:
        return import_safetensors().load_file(path)
    except Exception as error:  # safetensors has its own exception, which cannot be named here
        if type(error).__name__ != "SafetensorError":
            raise
        raise ValueError(f"{path} is damaged ({error}); {REMEDY}") from None


# How Hugging Face names the one file of a model; shards are named by an index beside them.
WEIGHT_FILES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "model.safetensors": load_safetensors,
    "pytorch_model.bin": load_plain,
}


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder: of its one weight file, or of the shards that its index names.

    Raises ValueError for a folder without either, and for shards that are missing or do not hold
    exactly what the index says.
    """
    for name, load in WEIGHT_FILES.items():
        if (folder / (name + INDEX_SUFFIX)).exists():
            return _read_shards(folder, name + INDEX_SUFFIX, load)
        if (folder / name).exists():
            return check_tensors(folder / name, load(folder / name))
    raise ValueError(f"{folder} has none of {', '.join(WEIGHT_FILES)}, nor an index; {REMEDY}")


def _read_shards(folder: Path, index: str, load: Callable) -> dict[str, torch.Tensor]:
    places = read_json(folder / index).get("weight_map")
    is_map = isinstance(places, dict) and all(isinstance(file, str) for file in places.values())
    if not is_map or not places:
        raise ValueError(f"{folder / index} has no weight_map of names and files; {REMEDY}")
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(set(places.values())):
        path = folder / file
        if Path(file).name != file:
            raise ValueError(f"{folder / index} names {file!r}, which is not in its folder")
        if not path.is_file():
            raise ValueError(f"{folder / index} names {file}, which is not there; {REMEDY}")
        shard = check_tensors(path, load(path))
        expected = {name for name, place in places.items() if place == file}
        if shard.keys() != expected:
            wrong = sorted(shard.keys() ^ expected)[0]
            has = "has, and its index puts elsewhere" if wrong in shard else "lacks"
            raise ValueError(f"{path}: {wrong} is what this shard {has}; {REMEDY}")
        tensors |= shard
    return tensors


def check_tensors(path: Path, content: Any) -> dict[str, torch.Tensor]:
    """The content of a file, which must be tensors by name. Raises ValueError otherwise."""
    is_plain = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in content.items()
    )
    if not is_plain:
        raise ValueError(f"{path} is not a dict of tensors; {REMEDY}")
    return content
