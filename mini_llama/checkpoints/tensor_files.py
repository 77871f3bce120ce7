"""Files of tensors, read and written without ever executing anything: torch's and safetensors'.

Tensors are mapped from the file, not copied, and can be written one by one, so that neither needs
the memory of a model.
"""

import argparse
import contextlib
import json
import pickle
import struct
import sys
import tempfile
import types
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch

from mini_llama.checkpoints.lazy_tensors import LazyTensors
from mini_llama.checkpoints.mapped_pages import MappedPages
from mini_llama.checkpoints.quantized_elsewhere import method_by_names
from mini_llama.optional_imports import import_optional
from mini_llama.text_files import check_file
from utils import REMEDY, atomic_write

# What torch raises for a file that is cut short, changed, or another kind of zip.
DAMAGED = (
    *(RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError),
    *(AssertionError, struct.error),
)
# Classes that only hold data, and that training scripts often save beside tensors: arguments, and
# numbers and random states of NumPy. torch's unpickler makes these, and runs nothing.
PLAIN_CLASSES: list[Any] = [argparse.Namespace, types.SimpleNamespace, numpy.ndarray, numpy.dtype]
PLAIN_CLASSES += [type(numpy.dtype(code)) for code in "?bBhHiIlLqQefdSU"]
for maker, name in (
    (numpy.empty(0).__reduce__()[0], "_reconstruct"),
    (numpy.float64(0).__reduce__()[0], "scalar"),
):  # in files of NumPy 2 and of NumPy 1
    PLAIN_CLASSES += [(maker, f"numpy.{core}.multiarray.{name}") for core in ("_core", "core")]
SAFETENSORS_LENGTH_BYTES = 8  # of the header's length, in front of it
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
WEIGHT_DTYPES = tuple(SAFETENSORS_DTYPES.values())
RECORD_ALIGNMENT = 64
ZIP_HEADER_BYTES = 30 + 20  # an entry's, and its field for sizes above 4 GB
PADDING_FIELD = struct.Struct("<2sH")


def read_start(path: Path, count: int) -> bytes:
    """The first bytes of a file; none of a folder. Raises OSError."""
    if path.is_dir():
        return b""
    check_file(path)
    with open(path, "rb") as file:
        return file.read(count)


def load_plain(path: str | Path, pages: MappedPages | None = None) -> Any:
    """The tensors and plain data of a torch file. Raises ValueError where there is anything else.

    Tensors are mapped from the file, copy on write, where its format (zip) allows, and added to
    `pages`.
    """
    path, pages = Path(path), MappedPages() if pages is None else pages
    check_is_utf8(path)
    is_zip = read_start(path, 2) == b"PK"
    may_forget = is_zip and not _is_swapped(path)

    def stay_on_cpu(storage: Any, _: str) -> Any:
        if may_forget:
            pages.add(storage)
        return storage

    pages.watch(path)
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # of unusual pickles; the errors say enough
            torch.serialization.safe_globals(PLAIN_CLASSES),
        ):
            return torch.load(path, map_location=stay_on_cpu, weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is damaged, or holds objects other than tensors and plain data"
            f"{_others(path)}; nothing in a checkpoint is ever executed, so it is refused: get it "
            "from its source, or save it again without them where it was made"
        ) from None
    except DAMAGED:
        raise truncated(path) from None


def check_is_utf8(path: Path) -> None:
    """Raise ValueError for a path that torch cannot open, as it is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        reason = "is no path in UTF-8, and torch opens no other: rename it"
        raise ValueError(f"{path} {reason}") from None


def _others(path: Path) -> str:
    """ " (os.system)": the classes and functions in a file that are none of PLAIN_CLASSES."""
    try:
        with torch.serialization.safe_globals(PLAIN_CLASSES):
            found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not a zip file, or damaged
        return ""
    return f" ({', '.join(sorted(found)[:3])})" if found else ""


def truncated(path: Path) -> ValueError:
    return ValueError(f"{path} is truncated or not a torch checkpoint; {REMEDY}")


def _is_swapped(path: Path) -> bool:
    """Whether torch swaps the byte order of this zip file's numbers after mapping, which reading a
    page again would undo; True if unknown.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = [name for name in archive.namelist() if name.endswith("/byteorder")]
            orders = {archive.open(name).read(len(sys.byteorder)).decode() for name in records}
    except (zipfile.BadZipFile, NotImplementedError, *DAMAGED):
        return True
    return not orders <= {sys.byteorder}


def save_plain(path: str | Path, content: dict[str, Any]) -> None:
    """Write tensors and plain data as a torch file, atomically. Raises OSError."""
    with atomic_write(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's error for a short write
            raise OSError(
                f"{path} could not be written whole: is the disk full? What was there is untouched"
            ) from error


def save_plain_lazily(
    path: str | Path, key: str, tensors: LazyTensors, shared: Mapping[str, str], **rest: Any
) -> None:
    """save_plain(path, {key: tensors, **rest}), with one tensor at a time in memory.

    `shared` names tensors that are the same as another: {"output.weight": "tok_embeddings.weight"}.
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
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


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
    return import_optional("safetensors.torch", "a safetensors file")


def load_safetensors(path: str | Path, pages: MappedPages | None = None) -> dict[str, torch.Tensor]:
    """Tensors mapped from the file, copy on write, and not read; the file is added to `pages`.

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
    pages = MappedPages() if pages is None else pages
    storage = pages.map_file(Path(path)).untyped_storage()
    tensors = {}
    for name, entry in header.items():
        dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:
            raise _not_weights(path, name, entry["dtype"], header)
        start, end = (SAFETENSORS_LENGTH_BYTES + length + place for place in entry["data_offsets"])
        tensor = torch.empty(0, dtype=dtype).set_(storage[start:end])
        tensors[name] = tensor.view(entry["shape"])
    return tensors


def save_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write one file. Raises ValueError if safetensors is not installed, OSError."""
    with _safetensors_errors(
        lambda error: OSError(f"{path} could not be written ({error}): is the disk full?")
    ):
        path.touch()
        mode = path.stat().st_mode
        import_safetensors().save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(mode)  # its own would be readable by nobody else


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


def check_tensors(path: Path, content: Any) -> dict[str, torch.Tensor]:
    """The content of a file, which must be tensors by name, all of a dtype that weights have.
    Raises ValueError otherwise.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a dict of tensors; {REMEDY}")
    for name, tensor in content.items():
        if not (isinstance(name, str) and isinstance(tensor, torch.Tensor)):
            raise ValueError(f"{path} is not a dict of tensors: {name} is none; {REMEDY}")
        if tensor.dtype not in WEIGHT_DTYPES:
            raise _not_weights(path, name, str(tensor.dtype).removeprefix("torch."), content)
        if not is_plain(tensor):
            raise ValueError(f"{path}: {name} is not a tensor with all its numbers; {REMEDY}")
    return content


def _not_weights(path: str | Path, name: str, dtype: str, names: Iterable[str]) -> ValueError:
    """The error for a dtype that no weights here have: integers, 8 bits, complex numbers."""
    known = ", ".join(str(known).removeprefix("torch.") for known in WEIGHT_DTYPES)
    method = method_by_names(names)
    if method is not None:
        return ValueError(
            f"{path} is quantized by {method} ({name} has dtype {dtype}), which is not read: get "
            "the same model in float16, bfloat16 or float32"
        )
    return ValueError(
        f"{path}: {name} has dtype {dtype}, which is none of {known}; get the same model in one"
    )


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the file holds every number: nothing sparse or without numbers, and no small tensor
    that is expanded to a large one, whose copy might not fit into memory.
    """
    if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != "cpu":
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()
