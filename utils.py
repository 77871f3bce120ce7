"""Small helpers for all modules: seeds, devices, reading JSON, atomic writes."""

import contextlib
import json
import os
import random
import shutil
import signal
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from mini_llama.bounds import UsageError
from mini_llama.text_files import check_file

if TYPE_CHECKING:
    import torch  # imported in the functions that use it: tools without it start at once

REMEDY = "check the path, or get the file again (bash setup.sh)"


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (CPU and every GPU)."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # seeds CUDA and MPS as well
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def choose_device(use_gpu: bool) -> "torch.device":
    """The CPU, or with `use_gpu` CUDA, or Apple's MPS where there is no CUDA.

    Raises ValueError if `use_gpu` and there is no GPU.
    """
    import torch

    if not use_gpu:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    raise ValueError(
        "--use_gpu: torch finds neither a CUDA nor an MPS device; "
        "run without --use_gpu, or install a torch build that matches your GPU driver"
    )


def available_bytes(device: "torch.device | str" = "cpu") -> int | None:
    """Memory that can still be allocated: on a CUDA device what it reports; on the CPU what is free
    or file cache, swap included. None where it is unknown on this system.
    """
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
        return 1024 * (sizes["MemAvailable"] + sizes["SwapFree"])
    except (OSError, ValueError, LookupError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def autocast(device: "torch.device", dtype: str) -> "torch.autocast":
    """Mixed precision for "bfloat16": matrix products in it, the rest in float32 where needed.

    Weights, gradients and accumulation stay float32 (Micikevicius et al. 2018, section 3).
    """
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=dtype != "float32")


def get_parameter_dtype(module: "torch.nn.Module") -> "torch.dtype":
    """dtype of the first parameter. Raises ValueError if the module has none."""
    for parameter in module.parameters():
        return parameter.dtype
    raise ValueError(f"{type(module).__name__} has no parameters, so it has no dtype")


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file next to `path`; rename it to `path` when the block succeeds.

    Even after a crash or a kill -9 there is the old file or the new one, never a part; the new one
    has the old one's permissions. Text is UTF-8 with "\\n" line endings on every platform. Raises
    OSError if the folder cannot be written.
    """
    path = Path(path).resolve()  # a link is kept, and its target is replaced
    _check_regular(path)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with open(temporary, mode, **text) as file:
            if path.exists():
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if (
            error.filename is None and error.errno is not None
        ):  # the error of a full disk does not name the file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder next to `path`, renamed to `path` when the block succeeds.

    Raises ValueError as check_new_folder does, OSError if the folder cannot be written.
    """
    path = Path(path).resolve()
    check_new_folder(path)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        if path.exists():
            path.rmdir()  # it is empty
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new_folder(path: Path) -> None:
    """Raise ValueError unless `path` can become a new folder: it does not exist, or is empty."""
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"{path} is a folder with files in it; give another name, or empty it")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is not a folder; give another name")
    _check_parent(path)


def require_free_disk(folder: Path, needed: int, use: str, remedy: str) -> None:
    """Raise ValueError unless `folder`'s disk has `needed` bytes free for `use`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder.resolve()} has {free / 1e6:.0f} MB free, {use} needs {needed / 1e6:.0f} MB; "
            f"free some, or {remedy}"
        )


def _check_regular(path: Path) -> None:
    """Raise ValueError for a folder, a pipe or a device: a rename would put a file in its place."""
    if path.is_dir():
        raise ValueError(f"{path} is a directory; give a file name")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file; give another name")


def _remove_leftovers(path: Path) -> None:
    """Delete temporary files and folders that a killed process left for the same target."""
    if os.name != "posix":  # on Windows os.kill(pid, 0) ends the process
        return
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        pid = leftover.name.split(".")[-2]
        if pid.isdigit() and not _is_running(int(pid)):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises FileNotFoundError, or ValueError for anything else."""
    check_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not JSON; {REMEDY}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object; {REMEDY}")
    return content


def check_outputs(
    outputs: Sequence[str | Path], inputs: Sequence[str | Path], overwrite: bool = True
) -> None:
    """Raise ValueError unless every output can be written, differs from the other outputs, and
    replaces no input, nor without `overwrite` any file. Leaves no trace.

    Call it before long work, so that the result is not lost to a wrong path.
    """
    check_distinct(outputs, inputs)
    for path in map(Path, outputs):
        _check_writable(path)
        check_not_there(path, overwrite)


def check_distinct(outputs: Sequence[str | Path], inputs: Sequence[str | Path]) -> None:
    """Raise UsageError unless every output differs from the other outputs and from the inputs."""
    taken = {Path(path).resolve(): f"the input {path}" for path in inputs}
    for path in map(Path, outputs):
        if path.resolve() in taken:
            raise UsageError(f"{path} is {taken[path.resolve()]} as well; give two names")
        taken[path.resolve()] = f"the output {path}"


def _check_writable(path: Path) -> None:
    _check_regular(path)
    target = path.resolve()
    if path.is_symlink() and not target.parent.is_dir():
        raise ValueError(
            f"cannot write {path}: it is a link to {target}, whose folder does not exist; create "
            "that, or give another name"
        )
    _check_parent(target if path.is_symlink() else path)


def check_not_there(path: str | Path, overwrite: bool) -> None:
    """Raise ValueError for a file that exists, unless it may be replaced."""
    path = Path(path)
    if not overwrite and (path.exists() or path.is_symlink()):
        raise ValueError(f"{path} is there already: --overwrite replaces it; or give another name")


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: folder {path.parent} does not exist; create it")
    probe = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; choose another folder") from error


def raise_on_sigterm() -> None:
    """Turn SIGTERM into SystemExit(143), so that `finally` blocks clean up as for Ctrl-C."""

    def stop(signum: int, _frame: object) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, stop)
