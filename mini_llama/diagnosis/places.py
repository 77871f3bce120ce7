"""Find submissions: a folder, a zip, a repository, or a folder of any of these."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mini_llama.diagnosis.limits import MAX_DEPTH

MODULES = (  # what the probes import
    *("config", "llama", "rope", "lora", "optimizer", "classifier"),
    *("addition_data_generation", "addition_run"),
)
IGNORED_FOLDERS = {"__pycache__", "__MACOSX", "node_modules", "site-packages", "venv", "env"}


@dataclass(frozen=True)
class Place:
    """A submission: a folder or a zip, and the folder inside it with llama.py ("" for the top)."""

    name: str
    path: Path
    inner: str = ""

    @property
    def is_zip(self) -> bool:
        return self.path.suffix.casefold() == ".zip"


def find_places(paths: Sequence[Path]) -> list[Place]:
    """The submissions in these paths, with unique names. Raises ValueError as `places_in` does."""
    found = list(dict.fromkeys(place for path in paths for place in places_in(path)))
    names = [place.name for place in found]
    return [
        place
        if names.count(place.name) == 1
        else Place(str(place.path / place.inner), place.path, place.inner)
        for place in found
    ]


def places_in(path: Path) -> list[Place]:
    """The submissions in a path: several if more than one of its folders or zips has the course's
    modules.

    Raises ValueError for a path that is neither a folder nor a zip.
    """
    if path.is_file() and path.suffix.casefold() == ".zip":
        return [Place(path.stem, path)]
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder: give the folder that contains llama.py")
    name = path.resolve().name
    inner = folders_of(path)
    zips = [entry for entry in sorted(path.glob("*.zip")) if entry.is_file()]
    if "" in inner or not (inner or zips):
        return [Place(name, path)]
    children = list(dict.fromkeys(PurePosixPath(folder).parts[0] for folder in inner))
    if len(inner) == 1 and not zips:
        return [Place(name, path, inner[0])]
    if len(children) == 1 and not zips:
        return places_in(path / children[0])
    of_children = (first_in(child, inner) for child in children)
    single = [Place(child, path / child, below) for child, below in of_children]
    return sorted([*single, *(Place(entry.stem, entry) for entry in zips)], key=lambda p: p.name)


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
