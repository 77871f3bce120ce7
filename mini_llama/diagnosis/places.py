"""Find submissions: a folder, a zip, a repository, a folder of any of these, or the download of a
learning platform.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mini_llama.diagnosis.limits import MAX_DEPTH
from mini_llama.submissions.finding import Part, Source, find_in_download
from mini_llama.submissions.zip_files import is_archive, without_ending

MODULES = (  # what the probes import
    *("config", "llama", "rope", "lora", "optimizer", "classifier"),
    *("addition_data_generation", "addition_run"),
)
IGNORED_FOLDERS = {"__pycache__", "__MACOSX", "node_modules", "site-packages", "venv", "env"}


@dataclass(frozen=True)
class Place:
    """A submission: a folder or a zip, and the folder inside it with llama.py ("" for the top); or
    the `part` of a download that grade.py's finder found, which is read as a zip is.
    """

    name: str
    path: Path
    inner: str = ""
    part: Source | None = None

    @property
    def is_zip(self) -> bool:
        return self.part is not None or is_archive(self.path.name)


def find_places(paths: Sequence[Path]) -> list[Place]:
    """The submissions in these paths, with unique names. Raises ValueError as `places_in` does."""
    found = list(dict.fromkeys(place for path in paths for place in places_in(path)))
    names = [place.name for place in found]
    return [
        place
        if names.count(place.name) == 1
        else replace(place, name=str(place.part or place.path / place.inner))
        for place in found
    ]


def places_in(path: Path) -> list[Place]:
    """The submissions in a path: several if more than one of its folders or zips has the course's
    modules.

    Raises ValueError for a path that is neither a folder nor a zip.
    """
    if path.exists() and (parts := find_in_download(path)):
        return [Place(name, _path_of(part), part=part) for name, part in parts.items()]
    if path.is_file() and is_archive(path.name):
        return [Place(without_ending(path.name), path)]
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder: give the folder that contains llama.py")
    name = path.resolve().name
    inner = folders_of(path)
    zips = [e for e in sorted(path.iterdir()) if is_archive(e.name) and e.is_file()]
    boxed = _folders_of_zips(path, inner)
    if "" in inner or not (inner or zips or boxed):
        return [Place(name, path)]
    children = list(dict.fromkeys(PurePosixPath(folder).parts[0] for folder in inner))
    if len(inner) == 1 and not (zips or boxed):
        return [Place(name, path, inner[0])]
    if len(children) == 1 and not (zips or boxed):
        return places_in(path / children[0])
    of_children = (first_in(child, inner) for child in children)
    single = [Place(child, path / child, below) for child, below in of_children]
    zipped = (Place(without_ending(entry.name), entry) for entry in zips)
    return sorted([*single, *boxed, *zipped], key=lambda place: place.name)


def _path_of(source: Source) -> Path:
    return source.path if isinstance(source, Part) else source


def _folders_of_zips(path: Path, inner: Sequence[str]) -> list[Place]:
    """The folders in `path` whose code is in a zip; those with code of their own, the `inner`, are
    read as they are.
    """
    with_code = {PurePosixPath(folder).parts[:1] for folder in inner}
    folders = [e for e in sorted(path.iterdir()) if e.is_dir() and not is_environment(e)]
    return [
        Place(entry.name, entry, part=Part(entry))
        for entry in folders
        if (entry.name,) not in with_code and not entry.name.startswith((".", "__"))
        if any(is_archive(file.name) for file in entry.iterdir())
    ]


def first_in(child: str, inner: Sequence[str]) -> tuple[str, str]:
    """The child, and the path inside it of the first of these folders."""
    first = next(
        PurePosixPath(folder) for folder in inner if PurePosixPath(folder).parts[0] == child
    )
    below = first.relative_to(child).as_posix()
    return child, "" if below == "." else below


def folders_of(path: Path) -> list[str]:
    """The folders with llama.py, or else with any of MODULES; see `course_folders`."""
    return course_folders(python_files(path))


def course_folders(names: Iterable[str]) -> list[str]:
    """For files a/b/llama.py, the folders a/b: nearest the top first, none inside another.

    Without any llama.py, another module of the course counts; empty if there is none.
    """
    names = list(names)
    for modules in (("llama",), MODULES):
        wanted = {f"{module}.py" for module in modules}
        paths = sorted({PurePosixPath(n).parent for n in names if PurePosixPath(n).name in wanted})
        chosen: list[PurePosixPath] = []
        for folder in sorted(paths, key=lambda path: len(path.parts)):
            if not any(folder.is_relative_to(other) for other in chosen):
                chosen.append(folder)
        if chosen:
            return ["" if folder == PurePosixPath() else folder.as_posix() for folder in chosen]
    return []


def python_files(path: Path) -> Iterator[str]:
    """Names of Python files, up to MAX_DEPTH deep, without links, environments, hidden folders."""
    for folder, below, files in os.walk(path):
        inner = Path(folder).relative_to(path)
        kept = [n for n in sorted(below) if not n.startswith(".") and n not in IGNORED_FOLDERS]
        deep = len(inner.parts) >= MAX_DEPTH
        below[:] = [] if deep else [n for n in kept if not is_environment(Path(folder, n))]
        yield from ((inner / name).as_posix() for name in files if name.endswith(".py"))


def is_environment(folder: Path) -> bool:
    return folder.is_symlink() or (folder / "pyvenv.cfg").is_file()
