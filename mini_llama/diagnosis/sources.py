"""Copy the files of a submission that are run: the course's modules and their imports."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from mini_llama.diagnosis.limits import MAX_FILES, MAX_SOURCE_BYTES, MAX_TOKENIZER_BYTES
from mini_llama.diagnosis.places import MODULES, Place, course_folders
from mini_llama.places import DATA
from mini_llama.submissions.archive import has_errors
from mini_llama.submissions.given import GIVEN, given_files
from mini_llama.submissions.imports import follow_imports, paths_of
from mini_llama.submissions.reading import read_source

TOKENIZER = "tokenizer.model"
OUR_TOKENIZER = DATA / "demo" / "demo.model"

Files = dict[str, bytes]  # content by name, "package/module.py"
Read = Callable[[str], bytes | None]  # None if there is no such file


def copy_sources(place: Place, target: Path) -> Path:
    """Copy the files to run into the new folder `target`; returns the folder with llama.py.

    Files that the course provides are added if they are missing. Raises ValueError if there are no
    Python files, too many or too large ones, or if the zip cannot be read.
    """
    files, inner = collect_zip(place) if place.is_zip else collect_folder(place)
    if not files:
        raise ValueError(
            f"{place.path} contains no Python files: give the folder that contains llama.py"
        )
    target.mkdir()
    for name, content in files.items():
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
    home = target / inner
    names = [path.relative_to(home).as_posix() for path in home.rglob("*.py")]
    for name, content in given_files(names).items():
        (home / name).write_bytes(content)
    if not (home / TOKENIZER).exists():
        (home / TOKENIZER).write_bytes(OUR_TOKENIZER.read_bytes())
    return home


def collect_folder(place: Place) -> tuple[Files, str]:
    folder = place.path
    names = python_files_in(folder / place.inner)
    files = collect_sources(folder_reader(folder), str(folder), names, place.inner)
    model = folder / place.inner / TOKENIZER
    if files and is_own_file(model, folder) and model.stat().st_size <= MAX_TOKENIZER_BYTES:
        files[str(PurePosixPath(place.inner, TOKENIZER))] = model.read_bytes()
    return files, place.inner


def collect_zip(place: Place) -> tuple[Files, str]:
    """Also of a part of a download. Raises ValueError for what cannot be read reliably."""
    submission = read_source(place.part or place.path)
    fatal = [problem for problem in submission.problems if problem.is_fatal]
    if fatal and has_errors(fatal):
        raise ValueError(f"{place.path.name}: {fatal[0].message}")
    inner = next(iter(course_folders(n for n in submission.names if n.endswith(".py"))), "")
    names = [
        PurePosixPath(name).name
        for name in submission.files
        if name.endswith(".py") and PurePosixPath(name).parent == PurePosixPath(inner)
    ]
    files = collect_sources(zip_reader(submission.files), place.path.name, names, inner)
    return files, inner


def collect_sources(read: Read, what: str, others: Iterable[str], inner: str = "") -> Files:
    """The course's modules in the folder `inner` and the files that they import, from there and
    from the top; then, up to MAX_FILES, the `others` next to them, for imports by a computed name.

    Raises ValueError as copy_sources does.
    """
    files: Files = {}

    def keep(name: str) -> bytes | None:
        content = read(name)
        if content is not None:
            if len(files) == MAX_FILES and name not in files:
                many = f"{what}: its modules import more than {MAX_FILES} of its Python files"
                raise ValueError(f"{many}: at most {MAX_FILES} are run")
            files[name] = content
        return content

    prefix = f"{inner}/" if inner else ""
    start = [path for module in MODULES for path in paths_of(module)] + [*GIVEN]
    follow_imports(start, lambda name: keep(prefix + name))
    if inner:
        follow_imports([prefix + name for name in start], keep)
    for name in others:
        if len(files) < MAX_FILES and (prefix + name) not in files:
            content = read_small(read, prefix + name)
            if content is not None:
                files[prefix + name] = content
    return files


def read_small(read: Read, name: str) -> bytes | None:
    try:
        return read(name)
    except ValueError:  # too large, and not known to be imported
        return None


def python_files_in(folder: Path) -> list[str]:
    return [path.name for path in sorted(folder.glob("*.py"))]


def folder_reader(folder: Path) -> Read:
    """Return a function that reads a file of the folder; ValueError if the file is too large."""

    def read(name: str) -> bytes | None:
        path = folder / name
        if not is_own_file(path, folder):
            return None
        if path.stat().st_size > MAX_SOURCE_BYTES:
            raise ValueError(
                f"{path} is larger than {MAX_SOURCE_BYTES} bytes: it is not source code"
            )
        return path.read_bytes()

    return read


def zip_reader(files: Mapping[str, bytes]) -> Read:
    def read(name: str) -> bytes | None:
        content = files.get(name)
        if content is not None and len(content) > MAX_SOURCE_BYTES:
            raise ValueError(
                f"{name} is larger than {MAX_SOURCE_BYTES} bytes: it is not source code"
            )
        return content

    return read


def is_own_file(path: Path, folder: Path) -> bool:
    """True for a file inside the folder that is not a link and not in a linked folder."""
    # unlike Path.is_file, False for a name that is too long
    is_file = os.path.isfile(path) and not path.is_symlink()
    return is_file and path.resolve().is_relative_to(folder.resolve())
