"""Files of tensors, read and written without ever executing anything: torch's and safetensors'.

Tensors are mapped from the file, not copied, and can be written one by one, so that neither needs
the memory of a model. The file knows no models and no names of tensors.
"""

import contextlib
import json
import pickle
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mini_llama.checkpoints.lazy_tensors import LazyTensors
from utils import REMEDY, atomic_write, read_json

INDEX_SUFFIX = ".index.json"
# What torch raises for a file that is cut short, changed, or another kind of zip.
DAMAGED = (RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError)
DAMAGED += (AssertionError, struct.error)
SAFETENSORS_LENGTH_BYTES = 8  # of the header's length, in front of it
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
RECORD_ALIGNMENT = 64
ZIP_HEADER_BYTES = 30 + 20  # an entry's, and its field for sizes above 4 GB
PADDING_FIELD = struct.Struct("<2sH")


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
    except DAMAGED:
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


def save_plain_lazily(
    path: str | Path, key: str, tensors: LazyTensors, shared: Mapping[str, str], **rest: Any
) -> None:
    """save_plain(path, {key: tensors, **rest}), with one tensor at a time in memory.

    `shared` names tensors that are another one of them: {"output.weight": "tok_embeddings.weight"}.
    torch writes the file with holes in place of the numbers; it is copied, and they are filled in.
    Raises OSError.
    """
    names = [name for name in tensors if name not in shared]
    with atomic_write(path, "wb") as file, tempfile.TemporaryFile(dir=Path(path).parent) as holes:
        # Never touched, so no memory is taken for them.
        empty = {name: torch.empty_like(tensors.meta[name], device="cpu") for name in names}
        content = {name: empty[shared.get(name, name)] for name in tensors}
        with torch.serialization.skip_data():
            torch.save({key: content, **rest}, holes)
        with zipfile.ZipFile(holes) as source, zipfile.ZipFile(file, "w") as archive:
            for entry in source.infolist():
                folder, _, number = entry.filename.rpartition("/")
                # Records are numbered as they are met, and only `content` has tensors.
                is_tensor = folder.endswith("/data")
                record = _bytes_of(tensors[names[int(number)]]) if is_tensor else source.read(entry)
                _add_record(archive, file.tell(), entry.filename, record)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def _add_record(archive: zipfile.ZipFile, start: int, name: str, data: bytes | memoryview) -> None:
    """Add an entry at `start`, whose data begins at a multiple of RECORD_ALIGNMENT, as torch's do:
    a field of padding, named as torch names it, comes first.
    """
    entry = zipfile.ZipInfo(name)
    data_start = start + ZIP_HEADER_BYTES + len(name) + PADDING_FIELD.size
    padding = -data_start % RECORD_ALIGNMENT
    entry.extra = PADDING_FIELD.pack(b"FB", padding) + bytes(padding)
    with archive.open(entry, "w", force_zip64=True) as file:
        file.write(data)


def import_safetensors() -> Any:
    """safetensors.torch. Raises ValueError naming the install command if it is not installed."""
    try:
        import safetensors.torch
    except ImportError:
        raise ValueError("safetensors files need a package: pip install safetensors") from None
    return safetensors.torch


def load_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors mapped from the file, copy on write, and not read.

    safetensors checks the file; its own loader would read all of it at once into the page cache.
    Raises FileNotFoundError, ValueError for a damaged file or a dtype that no weights have.
    """
    with (
        _safetensors_errors(lambda error: ValueError(f"{path} is damaged ({error}); {REMEDY}")),
        import_safetensors().safe_open(path, "pt"),
        open(path, "rb") as file,
    ):
        length = int.from_bytes(file.read(SAFETENSORS_LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    storage = torch.UntypedStorage.from_file(str(path), False, Path(path).stat().st_size)
    tensors = {}
    for name, entry in header.items():
        dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:
            known = ", ".join(SAFETENSORS_DTYPES)
            raise ValueError(f"{path}: {name} has dtype {entry['dtype']}, which is none of {known}")
        start, end = (SAFETENSORS_LENGTH_BYTES + length + place for place in entry["data_offsets"])
        tensor = torch.empty(0, dtype=dtype).set_(storage[start:end])
        tensors[name] = tensor.view(entry["shape"])
    return tensors


def save_safetensors(folder: Path, tensors: LazyTensors, max_shard_bytes: int) -> None:
    """Write model.safetensors, or shards of at most `max_shard_bytes` and their index.

    One shard at a time is in memory; a tensor that is larger than a shard has one of its own.
    Raises ValueError if safetensors is not installed, OSError.
    """
    shards = plan_shards(tensors, max_shard_bytes)
    places = {}
    for number, names in enumerate(shards, 1):
        part = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        path = folder / f"model{part}.safetensors"
        with _safetensors_errors(
            lambda error, path=path: OSError(
                f"{path} could not be written ({error}): is the disk full?"
            )
        ):
            shard = {name: tensors[name].contiguous() for name in names}
            path.touch()
            mode = path.stat().st_mode
            import_safetensors().save_file(shard, path, metadata={"format": "pt"})
            path.chmod(mode)  # its own would be readable by nobody else
        places |= dict.fromkeys(names, path.name)
    if len(shards) > 1:
        size = sum(tensor.nbytes for tensor in tensors.meta.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        write_json(folder / f"model.safetensors{INDEX_SUFFIX}", index)


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


@contextlib.contextmanager
def _safetensors_errors(translate: Callable[[Exception], Exception]) -> Iterator[None]:
    """safetensors has its own exception, which cannot be named before it is imported."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise translate(error) from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object atomically. Raises OSError."""
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2) + "\n")


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
    is_dict = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) and is_plain(tensor)
        for name, tensor in content.items()
    )
    if not is_dict:
        raise ValueError(f"{path} is not a dict of tensors; {REMEDY}")
    return content


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the file holds every number: nothing sparse or without numbers, and no small tensor
    that is expanded to a large one, whose copy might not fit into memory.
    """
    if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != "cpu":
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()
