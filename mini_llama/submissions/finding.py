"""Find a class's submissions: zips and folders, and those in a learning platform's download, which
is a folder or a zip itself.
"""

import io
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_llama.submissions.platforms import METADATA, Handin, is_handin, recognize
from mini_llama.submissions.requirements import (
    CLUTTER_FOLDERS,
    IDENTIFYING_NAMES,
    MACOS,
    MEBIBYTE,
    REQUIRED_NAMES,
)
from mini_llama.submissions.untrusted_text import quoted_list
from mini_llama.submissions.zip_files import (
    UNREADABLE,
    content_fault,
    is_archive,
    name_fault,
    open_archive,
    read_entry,
    stored_name,
    without_ending,
)

CODE = ("run_llama.py", "llama.py", "classifier.py", "optimizer.py")
MAX_CLASS_RECORDS = 200_000  # in a class's zip, the entries of zips in it included
MAX_METADATA_BYTES = 64 * MEBIBYTE
MAX_PROBED_BYTES = 64 * MEBIBYTE  # of a zip in a class's zip


@dataclass(frozen=True)
class Part:
    """A submission that is a part of a folder or zip: its files there, each with its name in the
    submission; all files if there are none. `is_late` is what the platform says.
    """

    path: Path
    files: tuple[tuple[str, str], ...] = ()
    is_late: bool = False

    def __str__(self) -> str:
        first = self.files[0][0].partition("/")[0] if self.files else ""
        return str(self.path / first)


Source = Path | Part
Named = tuple[str, str, Source]  # a submission's name, the platform's number for it


def find_submissions(paths: Sequence[Path]) -> dict[str, Source]:
    """Submissions by name: that of the student in a platform's download, else of the zip or folder.
    If two share a name, the platform's number is added, or the whole path is taken.

    Raises ValueError for a missing path and for a folder with nothing to grade.
    """
    found = [submission for path in paths for submission in _submissions_at(path)]
    if not found:
        raise ValueError(f"{quoted_list(map(str, paths))}: no zip and no folder to grade")
    found = list(dict.fromkeys(found))
    short = Counter(name for name, _, _ in found)
    numbered = [(f"{n} ({i})" if i and short[n] > 1 else n, s) for n, i, s in found]
    names = Counter(name for name, _ in numbered)
    return {name if names[name] == 1 else str(source): source for name, source in numbered}


def find_in_download(path: Path) -> dict[str, Source]:
    """`find_submissions` in a learning platform's download or another class's zip; empty for
    anything else.
    """
    if path.is_dir():
        names = _names_in(path)
        inner = path / names[0] if len(names) == 1 and names[0].endswith("/") else None
        if not recognize(names, _read_metadata(path)) and not (inner and _is_class(inner)):
            return {}
    found = find_submissions([path])
    return {} if list(found.values()) == [path] else found


def _submissions_at(path: Path) -> Iterator[Named]:
    if not path.exists():
        raise ValueError(f"{path} does not exist: check the path")
    if not path.is_dir():
        yield from _in_zip(path) or [_whole(path)]
        return
    is_one = is_handin(path.name) or any((path / name).exists() for name in IDENTIFYING_NAMES)
    if is_one or _is_repository(path):
        yield _whole(path)
        return
    yield from _in_folder(path)


def _whole(path: Path) -> Named:
    """A zip or folder that is one submission."""
    download = recognize([path.name]) if is_handin(path.name) else None
    name = without_ending(path.name) or str(path)
    return (download.handins[0].who if download else name), "", path


# --- folders ---


def _in_folder(path: Path) -> Iterator[Named]:
    entries = [entry for entry in sorted(path.iterdir()) if not _is_hidden(entry.name)]
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry.name for entry in entries if not entry.is_dir()]
    names = [*files, *(f"{folder.name}/" for folder in folders)]
    if download := recognize(names, _read_metadata(path)):
        yield from (_of_handin(path, handin) for handin in download.handins)
        _report_skipped([name.rstrip("/") for name in download.others if name != METADATA])
        return
    others = [name for name in files if not is_archive(name)]
    zips = [path / name for name in files if name not in others]
    whole = [*folders, *zips]
    if len(whole) == 1 and (inner := _inside(whole[0])):
        yield from inner
    else:
        yield from map(_whole, sorted(whole))
    _report_skipped(others)


def _inside(path: Path) -> list[Named]:
    """The submissions of a class whose folder or zip is the only thing in a folder."""
    if not path.is_dir():
        return _in_zip(path)
    return list(_in_folder(path)) if _is_class(path) else []


def _is_class(folder: Path) -> bool:
    """Whether it is a platform's download, or holds several zips with code."""
    names = _names_in(folder)
    if IDENTIFYING_NAMES & {*names}:
        return False
    zips = [folder / name for name in names if is_archive(name)]
    is_download = recognize(names, _read_metadata(folder)) is not None
    return is_download or sum(map(_file_has_code, zips)) > 1


def _names_in(folder: Path) -> list[str]:
    """What is not hidden in a folder; folders' names end in a slash."""
    return [e.name + "/" * e.is_dir() for e in folder.iterdir() if not _is_hidden(e.name)]


def _file_has_code(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            archive = open_archive(file, path.stat().st_size)
            return any(_is_code(stored_name(info)) for info in archive.infolist())
    except (ValueError, OSError):
        return False


def _of_handin(folder: Path, handin: Handin) -> Named:
    """A single folder or zip is read whole, loose files by their names."""
    paths = [folder / name for name in handin.files]
    if len(paths) == 1 and (paths[0].is_dir() or is_archive(paths[0].name)):
        return handin.who, handin.number, Part(paths[0], (), handin.is_late)
    files = []
    for path, new in zip(paths, handin.files.values(), strict=True):
        inner = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for p in inner:
            name = p.relative_to(path).as_posix() if path.is_dir() else new
            files.append((p.relative_to(folder).as_posix(), name))
    return handin.who, handin.number, Part(folder, tuple(files), handin.is_late)


def _read_metadata(folder: Path) -> str:
    path = folder / METADATA
    if not path.is_file() or path.stat().st_size > MAX_METADATA_BYTES:
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _report_skipped(names: Sequence[str]) -> None:
    if names:
        print(f"skipped, neither zips nor folders: {quoted_list(names)}", file=sys.stderr)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _is_repository(path: Path) -> bool:
    """Whether exactly one of several subfolders has code and there is no zip: src/ next to data/,
    for example, is one submission, not two.
    """
    folders = [entry for entry in path.iterdir() if entry.is_dir()]
    with_code = [
        folder
        for folder in folders
        if any((folder / name).is_file() or any(folder.glob(f"*/{name}")) for name in CODE)
    ]
    has_zips = any(is_archive(entry.name) for entry in path.iterdir())
    return len(with_code) == 1 and len(folders) > 1 and not has_zips


# --- zips ---


def _in_zip(path: Path) -> list[Named]:
    """The submissions of a class's zip; none if it is one submission, or cannot be read."""
    if not path.is_file():  # a pipe might never end
        return []
    with path.open("rb") as file:
        try:
            archive = open_archive(file, path.stat().st_size, MAX_CLASS_RECORDS)
            infos = {stored_name(info): info for info in archive.infolist()}
            if len(infos) < len(archive.infolist()) or any(map(name_fault, infos)):
                return []  # a damaged or hostile zip is refused as one submission
            names = [n for n in infos if not n.endswith("/") and not _is_clutter(n)]
            top = _common_top(names)
            info = infos.get(top + METADATA)
            is_small = info and not content_fault(info) and info.file_size <= MAX_METADATA_BYTES
            metadata = read_entry(archive, info) if info and is_small else b""
        except UNREADABLE:
            return []
        short = [name.removeprefix(top) for name in names]
        if download := recognize(short, metadata.decode("utf-8", errors="replace")):
            handins = download.handins
            _report_skipped([name for name in download.others if name != METADATA])
        else:
            handins = _handins_of(archive, short, top)
    return [_of_zip(path, handin, top) for handin in handins]


def _of_zip(path: Path, handin: Handin, top: str) -> Named:
    files = tuple((top + name, new) for name, new in handin.files.items())
    return handin.who, handin.number, Part(path, files, handin.is_late)


def _handins_of(archive: zipfile.ZipFile, names: Sequence[str], top: str) -> list[Handin]:
    """The submissions of a zip of zips or of folders: at least two hold code, and no folder holds
    neither code nor a zip. Else none.
    """
    units: dict[str, list[str]] = defaultdict(list)
    for name in names:
        units[name.partition("/")[0]].append(name)
    loose = [name for name in names if "/" not in name and not is_archive(name)]
    if any(name in REQUIRED_NAMES or name.endswith(".py") for name in loose):
        return []
    units = {unit: files for unit, files in units.items() if unit not in loose}
    if any(not any(is_archive(n) or _is_code(n) for n in files) for files in units.values()):
        return []
    n_code = 0
    for files in units.values():
        opened = (top + name for name in files if is_archive(name))
        n_code += any(map(_is_code, files)) or any(_zip_has_code(archive, n) for n in opened)
        if n_code == 2:
            break
    else:
        return []
    _report_skipped(loose)
    return [
        Handin(without_ending(unit), files={n: n.partition("/")[2] or n for n in files})
        for unit, files in units.items()
    ]


def _zip_has_code(archive: zipfile.ZipFile, name: str) -> bool:
    info = next(info for info in archive.infolist() if stored_name(info) == name)
    if content_fault(info) or info.file_size > MAX_PROBED_BYTES:
        return False
    try:
        return any(map(_is_code, parse_names(read_entry(archive, info))))
    except UNREADABLE:
        return False


def parse_names(data: bytes) -> list[str]:
    """The names in a zip. Raises ValueError for anything but a zip."""
    archive = open_archive(io.BytesIO(data), len(data))
    return [stored_name(info) for info in archive.infolist()]


def _is_code(name: str) -> bool:
    return name.rpartition("/")[2] in CODE


def _is_clutter(name: str) -> bool:
    return bool(MACOS.search(name)) or bool(CLUTTER_FOLDERS & {*name.split("/")[:-1]})


def _common_top(names: Sequence[str]) -> str:
    """The folder that all files are in, "" if there is none or it is one student's."""
    top = ""
    while names:
        tops = {name.removeprefix(top).partition("/")[0] for name in names}
        folder = tops.pop()
        is_own = is_handin(folder) or any(name == top + folder for name in names)
        if tops or is_own:
            break
        top += f"{folder}/"
    return top
