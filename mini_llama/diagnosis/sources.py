"""The part of a student's folder that is run: the course's modules, and what they import of it."""

import os
from collections.abc import Callable
from pathlib import Path

from mini_llama.diagnosis.limits import MAX_FILES, MAX_SOURCE_BYTES
from mini_llama.submissions.imports import follow_imports, paths_of

MODULES = ("config", "llama", "rope", "lora", "optimizer", "classifier")  # what the probes import

Files = dict[str, bytes]  # content by name, "package/module.py"


def copy_sources(folder: Path, target: Path) -> None:
    """Copy what is run into the new folder `target`.

    Raises ValueError if there are no Python files, or too many or too large ones.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name the one that llama.py is in")
    files = collect_sources(folder)
    if not files:
        raise ValueError(f"{folder} holds no Python files: name the folder that llama.py is in")
    target.mkdir()
    for name, content in files.items():
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)


def collect_sources(folder: Path) -> Files:
    """The course's modules and what they import; and, up to MAX_FILES, the other Python files that
    lie beside them, for an import by a computed name. Raises ValueError as copy_sources does.
    """
    files: Files = {}
    follow_imports([path for module in MODULES for path in paths_of(module)], reader(folder, files))
    for path in sorted(folder.glob("*.py")):
        is_small = is_own_file(path, folder) and path.stat().st_size <= MAX_SOURCE_BYTES
        if is_small and len(files) < MAX_FILES:
            files.setdefault(path.name, path.read_bytes())
    return files


def reader(folder: Path, files: Files) -> Callable[[str], bytes | None]:
    """What reads a file of the folder, None if it is not there, and keeps it in `files`."""

    def read(name: str) -> bytes | None:
        path = folder / name
        if not is_own_file(path, folder):
            return None
        if len(files) == MAX_FILES and name not in files:
            what = f"{folder}: its modules import more than {MAX_FILES} Python files of it"
            raise ValueError(f"{what}: at most {MAX_FILES} are run")
        if path.stat().st_size > MAX_SOURCE_BYTES:
            raise ValueError(f"{path} is larger than {MAX_SOURCE_BYTES} bytes: it is no source")
        files[name] = path.read_bytes()
        return files[name]

    return read


def is_own_file(path: Path, folder: Path) -> bool:
    """A file of the folder itself: no link, nor in a linked folder."""
    is_file = os.path.isfile(path) and not path.is_symlink()  # False for a name that is too long
    return is_file and path.resolve().is_relative_to(folder.resolve())
