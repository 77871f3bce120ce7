"""Folders of config.json and weights, in safetensors or torch files, whole or in shards: Hugging
Face's layout, in which pretrain.py keeps its models under the assignment's names.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from config import LlamaConfig
from mini_llama.checkpoints.formats.base import Format
from mini_llama.checkpoints.lazy_tensors import LazyTensors
from mini_llama.checkpoints.mapped_pages import MappedPages
from mini_llama.checkpoints.record import Checkpoint, check_can_be_saved, migrate_names
from mini_llama.checkpoints.tensor_files import (
    check_tensors,
    import_safetensors,
    load_plain,
    load_safetensors,
    save_safetensors,
    write_json,
)
from mini_llama.warning import warn
from utils import REMEDY, atomic_write, read_json

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
OWN_MODEL_TYPE = "mini-llama"
INDEX_SUFFIX = ".index.json"
Load = Callable[[Path, MappedPages], Any]
OTHER_WEIGHTS = ("consolidated.00.pth", "consolidated.safetensors")  # Meta's, and Mistral's
# The one file of a model; shards are named by an index beside them.
WEIGHT_FILES: dict[str, Load] = {WEIGHTS_FILE: load_safetensors, "pytorch_model.bin": load_plain}


def folder_of(path: Path) -> Path | None:
    """The folder with a config.json that a path is, or whose model.safetensors, pytorch_model.bin,
    index or config.json it is.
    """
    is_part = path.name in (CONFIG_FILE, *WEIGHT_FILES) or path.name.endswith(INDEX_SUFFIX)
    folder = path.parent if is_part and not path.is_dir() else path
    return folder if (folder / CONFIG_FILE).exists() else None


def recognises(path: Path) -> bool:
    folder = folder_of(path)
    if folder is None:
        return False
    return read_json(folder / CONFIG_FILE).get("model_type") == OWN_MODEL_TYPE


def read(path: Path) -> Checkpoint:
    folder, pages = folder_of(path) or path, MappedPages()
    content = read_json(folder / CONFIG_FILE)
    del content["model_type"]
    tensors = migrate_names(folder, read_weights(folder, pages))
    kind = f"folder of {OWN_MODEL_TYPE}"
    return Checkpoint(folder, content, tensors, format=kind, pages=pages)


def read_weights(folder: Path, pages: MappedPages) -> dict[str, torch.Tensor]:
    """All tensors of a folder: of its one weight file, or of the shards that its index names.
    They are mapped, and added to `pages`.

    Of several sets of weights the first of these is read, as transformers does, with a warning:
    model.safetensors, its index, pytorch_model.bin, its index. Raises ValueError for a folder
    without any, and for shards that are missing or do not hold exactly what the index says.
    """
    found = weight_sets(folder)
    if not found:
        raise ValueError(f"{folder} has {_lacking(folder)}; {REMEDY}")
    if others := found[1:] + [name for name in OTHER_WEIGHTS if (folder / name).exists()]:
        warn(
            f"{folder} holds several sets of weights: {found[0]} is read, as transformers does, "
            f"and {' and '.join(others)} not; move them elsewhere if that is wrong"
        )
    name = found[0].removesuffix(INDEX_SUFFIX)
    load = WEIGHT_FILES[name]
    if found[0] != name:
        return _read_shards(folder, found[0], load, pages)
    return check_tensors(folder / name, load(folder / name, pages))


def weight_sets(folder: Path) -> list[str]:
    """The files of a folder that are, or name, all of a model's weights, in order of precedence."""
    names = [name + suffix for name in WEIGHT_FILES for suffix in ("", INDEX_SUFFIX)]
    return [name for name in names if (folder / name).exists()]


def _lacking(folder: Path) -> str:
    shards = sorted(file.name for file in folder.glob("*-of-*.*"))
    if shards:
        return f"shards such as {shards[0]}, but not the index that names them"
    return f"none of {', '.join(WEIGHT_FILES)}, nor an index"


def _read_shards(
    folder: Path, index: str, load: Load, pages: MappedPages
) -> dict[str, torch.Tensor]:
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
        shard = check_tensors(path, load(path, pages))
        expected = {name for name, place in places.items() if place == file}
        if shard.keys() != expected:
            wrong = sorted(shard.keys() ^ expected)[0]
            has = "has, and its index puts elsewhere" if wrong in shard else "lacks"
            raise ValueError(f"{path}: {wrong} is what this shard {has}; {REMEDY}")
        tensors |= shard
    return tensors


def save_folder(folder: str | Path, config: LlamaConfig, tensors: dict[str, torch.Tensor]) -> None:
    """Write model.safetensors and config.json, under the assignment's names, each atomically.

    A tied output.weight is left out. Raises ValueError if safetensors is not installed, OSError.
    """
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if config.tie_word_embeddings:
        tensors.pop("output.weight", None)
    write_folder(folder, {"model_type": OWN_MODEL_TYPE, **dataclasses.asdict(config)}, tensors)


def write_folder(
    folder: str | Path, content: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    """Write model.safetensors and config.json, as they are given, each atomically.

    Raises ValueError if safetensors is not installed, for weights of 8 or 4 bits, and if the folder
    has an index, whose shards would be of another model; OSError.
    """
    check_can_be_saved(tensors)
    folder, data = Path(folder), import_safetensors().save(tensors, metadata={"format": "pt"})
    index = folder / (WEIGHTS_FILE + INDEX_SUFFIX)
    if index.exists():
        raise ValueError(f"{index} names shards of another model; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / WEIGHTS_FILE, "wb") as file:
        file.write(data)
    write_json(folder / CONFIG_FILE, content)


def save_shards(folder: Path, tensors: LazyTensors, max_shard_bytes: int) -> None:
    """Write model.safetensors, or shards of at most `max_shard_bytes` and their index.

    One shard at a time is in memory; a tensor that is larger than a shard has one of its own.
    Raises ValueError if safetensors is not installed, OSError.
    """
    shards = plan_shards(tensors, max_shard_bytes)
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        part = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        path = folder / f"model{part}.safetensors"
        save_safetensors(path, {name: tensors[name].contiguous() for name in names})
        places |= dict.fromkeys(names, path.name)
    if len(shards) > 1:
        size = sum(tensor.nbytes for tensor in tensors.meta.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        write_json(folder / (WEIGHTS_FILE + INDEX_SUFFIX), index)


def plan_shards(tensors: LazyTensors, max_shard_bytes: int) -> list[list[str]]:
    """Names in their order, parted so that each part's bytes are at most `max_shard_bytes`."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.meta.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


FORMAT = Format(CONFIG_FILE, recognises, read, is_folder=True)
