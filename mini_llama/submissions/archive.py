"""Read an untrusted zip or folder in memory, within fixed bounds; nothing is written or run."""

import io
import os
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from mini_llama.submissions.layout import Layout, find_layout
from mini_llama.submissions.requirements import (
    CLUTTER_FOLDERS,
    ENVIRONMENT_MARKS,
    IDENTIFYING_NAMES,
    MACOS,
    MEBIBYTE,
    REQUIRED_NAMES,
    find_clutter,
)
from mini_llama.submissions.untrusted_text import one_line, quoted, quoted_list, shorten
from mini_llama.submissions.zip_files import (
    LOCAL_HEADER_BYTES,
    MAX_ENTRIES,
    MAX_FILE_BYTES,
    MAX_RECORDS,
    MAX_TOTAL_BYTES,
    TOO_MANY,
    UNREADABLE,
    content_fault,
    is_archive,
    name_fault,
    open_archive,
    read_entry,
    stored_name,
)

MAX_DEPTH = 3  # of zips in zips
MAX_INNER_ZIPS = 20
MAX_INNER_BYTES = 256 * MEBIBYTE  # they are unpacked in memory
N_LARGEST = 3
Entry = tuple[str, zipfile.ZipInfo]  # with its name in the submission


@dataclass(frozen=True)
class Problem:
    """A problem of a submission; `where` is a file name or "zip".

    `is_fatal`: the rest of the submission is unreliable or unsafe, so it is not graded.
    """

    severity: Literal["error", "warning"]
    where: str
    message: str
    is_fatal: bool = False

    def __str__(self) -> str:
        return one_line(f"{self.severity}: {shorten(self.where)}: {self.message}")


@dataclass(frozen=True)
class Submission:
    """The contents of a zip or folder: `names` of all files, the contents of the `files` that could
    be read, and the `problems` of the zip itself. `size` is the zip's, in bytes, and `largest` are
    its largest entries, clutter included, each with its compressed size.
    """

    top: str
    names: tuple[str, ...]
    files: Mapping[str, bytes]
    problems: tuple[Problem, ...]
    size: int = field(default=0, compare=False)
    largest: tuple[tuple[str, int], ...] = field(default=(), compare=False)


def has_errors(problems: Iterable[Problem]) -> bool:
    """Whether any problem is an error rather than a warning."""
    return any(problem.severity == "error" for problem in problems)


def read_submission(path: str | Path, entries: Mapping[str, str] | None = None) -> Submission:
    """`parse_submission` of a file; `entries` are those of a class's zip that are one submission,
    each with its name there.

    Raises OSError if `path` is no file or cannot be read.
    """
    path = Path(path)
    if not path.is_file():  # a pipe or a device might never end
        raise FileNotFoundError(f"{path} is not a file: check the path")
    with path.open("rb") as file:
        return _parse(file, path.stat().st_size, Budget(), entries)


def parse_submission(data: bytes) -> Submission:
    """Read the files of a zip. Never raises for bad content, which is listed in `problems`."""
    return _parse(io.BytesIO(data), len(data), Budget())


@dataclass
class Budget:
    """What is left to unpack of the zips within a submission, at all depths together."""

    depth: int = 0
    zips: int = MAX_INNER_ZIPS
    size: int = MAX_INNER_BYTES


def _parse(
    file: BinaryIO, size: int, budget: Budget, chosen: Mapping[str, str] | None = None
) -> Submission:
    try:
        archive = open_archive(file, size, None if chosen else MAX_RECORDS)
    except ValueError as error:
        return Submission("", (), {}, (_fatal("zip", str(error)),), size)
    problems = list(_check_overlaps(archive))
    if archive.fp is not file:
        problems.append(Problem("error", "zip", "is a tar archive, which was read: submit a zip"))
    infos = archive.infolist()
    sizes = tuple((stored_name(info), info.compress_size) for info in infos)
    largest = tuple(sorted(sizes, key=lambda pair: -pair[1])[:N_LARGEST])
    named = [(stored_name(info), info) for info in infos]
    if chosen is not None:
        named = [(chosen[name], info) for name, info in named if name in chosen]
        size = 0  # of an unpacked submission's zip nothing is known
    names = [name for name, _ in named]
    inner = [] if any(map(name_fault, names)) else find_inner_zips(names)
    if inner and chosen is None:
        message = f"is a zip around {quoted_list(inner)}: submit what is in it"
        problems.append(Problem("warning", "zip", message))
    if inner:
        opened = {name: partial(_unpack, archive, info) for name, info in named if name in inner}
        return _parse_inner(opened, problems, size, budget)
    found = _parse_entries(archive, named, problems, is_unpacked=chosen is not None)
    return replace(found, size=size, largest=largest)


def _parse_entries(
    archive: zipfile.ZipFile,
    named: Sequence[Entry],
    problems: list[Problem],
    is_unpacked: bool = False,
) -> Submission:
    entries = _safe_entries(named, problems)
    if len(entries) > MAX_ENTRIES:
        problems.append(_fatal("zip", TOO_MANY))
        return Submission("", (), {}, tuple(problems))
    names = [name for name, _ in entries]
    problems += _check_collisions(names)
    infos = {name: info for name, info in entries if not name.endswith("/")}
    if not infos:
        problems.append(_nothing_in([name for name, _ in named]))
    layout = find_layout(infos)
    problems += _check_misplaced(layout) if is_unpacked else _check_layout(layout, names)
    chosen = {name: infos[path] for name, path in layout.paths.items()}
    files = _read_files(archive, chosen, problems)
    return Submission(layout.top, tuple(chosen), files, tuple(problems))


def _check_overlaps(archive: zipfile.ZipFile) -> Iterator[Problem]:
    """Small entries that overlap can unpack to petabytes (Fifield 2019)."""
    end, before = 0, ""
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if info.header_offset < end:
            message = f"its entries {quoted(before)} and {quoted(info.filename)} overlap"
            yield _fatal("zip", f"{message}, as in a zip bomb: make the zip again")
            return
        end = info.header_offset + LOCAL_HEADER_BYTES + info.compress_size
        before = info.filename


def _fatal(where: str, message: str) -> Problem:
    return Problem("error", where, message, is_fatal=True)


def _nothing_in(names: Iterable[str]) -> Problem:
    """Where all files are clutter, such as an archive that is no zip."""
    found = [name for name in names if not name.endswith("/") and not MACOS.search(name)]
    only = f", only {quoted_list(found)}: submit the files themselves, zipped" if found else ""
    return _fatal("zip", f"holds no usable file{only}")


# --- zips in a zip or folder ---


def find_inner_zips(names: Collection[str]) -> list[str]:
    """The zips among the files, if no file beside them shows that this is the submission."""
    clutter = {name for name in names if CLUTTER_FOLDERS & {*name.split("/")[:-1]}}
    files = [name for name in names if name not in clutter and not name.endswith("/")]
    if any(name.rpartition("/")[2] in IDENTIFYING_NAMES for name in files):
        return []
    bases = {name: name.rpartition("/")[2] for name in files}
    zips = [name for name, base in bases.items() if is_archive(base)]
    return [name for name in zips if not bases[name].startswith("._")]


Opener = Callable[[Budget], Submission]


def _parse_inner(
    openers: Mapping[str, Opener], problems: list[Problem], size: int, budget: Budget
) -> Submission:
    """Read the submission that is in one or several zips."""
    if budget.depth == MAX_DEPTH:
        message = f"holds zips nested more than {MAX_DEPTH} deep: submit the innermost"
        return Submission("", (), {}, (*problems, _fatal("zip", message)), size)
    found: dict[str, Submission] = {}
    for name, opener in openers.items():
        budget.zips -= 1
        if budget.zips < 0:
            message = f"holds more than {MAX_INNER_ZIPS} zips, which are not all opened"
            return Submission("", (), {}, (*problems, _fatal("zip", message)), size)
        budget.depth += 1
        found[name] = opener(budget)
        budget.depth -= 1
    return _joined(found, problems, size)


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: Budget) -> Submission:
    """The submission in a zip that is an entry of another."""
    fault = content_fault(info)
    if not fault and info.file_size > budget.size:
        fault = f"unpacks to {info.file_size:,} bytes, more than the {budget.size:,} allowed"
    if fault:
        return Submission("", (), {}, (_fatal(stored_name(info), fault),))
    budget.size -= info.file_size
    try:
        data = read_entry(archive, info)
    except UNREADABLE as error:
        message = f"cannot be unpacked ({error}): make the zip again"
        return Submission("", (), {}, (_fatal(stored_name(info), message),))
    return _parse(io.BytesIO(data), len(data), budget)


def _joined(found: Mapping[str, Submission], problems: list[Problem], size: int) -> Submission:
    """One submission of several zips: the one with most code, and what the others add to it."""

    def n_code(name: str) -> int:
        names = found[name].names
        return sum(n in REQUIRED_NAMES and n.endswith(".py") for n in names)

    first, *others = sorted(found, key=n_code, reverse=True)
    names, files = [*found[first].names], dict(found[first].files)
    problems += found[first].problems
    rivals = [name for name in others if n_code(name) and n_code(first)]
    if rivals:
        message = f"{len(rivals) + 1} zips in it hold code, {quoted_list([first, *rivals])}"
        problems.append(Problem("error", "zip", f"{message}: {quoted(first)} is read"))
    for other in others:
        problems += found[other].problems
        if other not in rivals:
            more = [name for name in found[other].names if name not in names]
            names += more
            files |= {n: data for n, data in found[other].files.items() if n in more}
    size = found[first].size if not others else size
    largest = found[first].largest
    return Submission(found[first].top, tuple(names), files, tuple(problems), size, largest)


# --- folders ---


def read_folder(path: str | Path, files: Mapping[str, str] | None = None) -> Submission:
    """Read an unpacked submission, within the bounds of a zip. Links are not followed; hidden
    files, caches and virtual environments are skipped. `files` are those of a class's folder that
    are one submission, each with its name there.

    Raises OSError if the folder itself cannot be read.
    """
    path = Path(path)
    problems: list[Problem] = []
    entries: dict[str, Path] = {}
    listed = ((path / name, new) for name, new in files.items()) if files else _listed(path)
    for entry, name in listed:
        if len(entries) == MAX_ENTRIES:
            message = f"holds more than {MAX_ENTRIES} files: name the folder of one submission"
            problems.append(_fatal("folder", message))
            break
        entries[name] = entry
    if inner := [n for n in find_inner_zips(entries) if _is_plain(entries[n])]:
        openers = {name: partial(_open_inner, entries[name]) for name in inner}
        return _parse_inner(openers, problems, 0, Budget())
    clutter = find_clutter(entries)
    layout = find_layout([name for name in entries if name not in clutter])
    if entries and not layout.paths:
        problems.append(_nothing_in(entries))
    problems += _check_misplaced(layout)
    contents: dict[str, bytes] = {}
    left = MAX_TOTAL_BYTES
    for name in sorted(layout.paths, key=_reading_order):
        entry = entries[layout.paths[name]]
        size = entry.lstat().st_size
        if fault := _entry_fault(name, entry, size, left):
            problems.append(fault)
        else:
            contents[name] = entry.read_bytes()
            left -= len(contents[name])
    return Submission("", tuple(layout.paths), contents, tuple(problems))


def _open_inner(path: Path, budget: Budget) -> Submission:
    with path.open("rb") as file:
        return _parse(file, path.stat().st_size, budget)


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _listed(path: Path) -> Iterator[tuple[Path, str]]:
    for entry in _walk(path):
        yield Path(entry.path), Path(entry.path).relative_to(path).as_posix()


def _walk(path: Path) -> Iterator[os.DirEntry[str]]:
    """All files below a folder, sorted by name."""
    with os.scandir(path) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith(".") or entry.name in CLUTTER_FOLDERS:
            continue
        if not entry.is_dir(follow_symlinks=False):
            yield entry
        elif not any(Path(entry.path, mark).exists() for mark in ENVIRONMENT_MARKS):
            yield from _walk(Path(entry.path))


def _reading_order(name: str) -> bool:
    """Sort key: required files and code first, the rest as far as the total bound allows."""
    return not (name in REQUIRED_NAMES or name.endswith(".py"))


def _entry_fault(name: str, entry: Path, size: int, left: int) -> Problem | None:
    if fault := name_fault(os.fsencode(name).decode("utf-8", errors="replace")):
        return _fatal(name, fault)
    if not _is_plain(entry):
        return _fatal(name, "is a symbolic link or a special file: put the file itself there")
    bound = min(MAX_FILE_BYTES, left)
    if size > bound:  # not fatal: the other files can be read
        message = f"has {size:,} bytes, more than the {bound:,} allowed: it was not read"
        return Problem("warning", name, message)
    return None


# --- names ---


def _safe_entries(named: Sequence[Entry], problems: list[Problem]) -> list[Entry]:
    """The entries with safe names, without clutter."""
    entries = []
    n_macos = 0
    for name, info in named:
        if MACOS.search(name) and ".." not in name.split("/"):
            n_macos += 1
        elif fault := name_fault(name):
            problems.append(_fatal(name, fault))
        else:
            entries.append((name, info))
    if n_macos:
        message = f"{n_macos} macOS files (__MACOSX, .DS_Store, ._*) are ignored: leave them out"
        problems.append(Problem("warning", "zip", message))
    clutter = find_clutter([name for name, _ in entries])
    if clutter:
        counts = Counter(clutter[name] for name in clutter if not name.endswith("/"))
        places = [f"{place} ({n} files)" if n > 1 else place for place, n in counts.items()]
        message = f"should not be submitted, leave out: {quoted_list(places)}"
        problems.append(Problem("warning", "zip", message))
    return [(name, info) for name, info in entries if name not in clutter]


def _check_collisions(names: Collection[str]) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for name in names:
        path = name.removesuffix("/")
        key = unicodedata.normalize("NFC", path).casefold()
        first = seen.get(key)
        if first is None:
            seen[key] = path
        elif first == path:
            message = "is in the zip more than once: make the zip again"
            yield Problem("error", name, message, is_fatal=not name.endswith("/"))
        else:
            message = f"differs from {quoted(first)} only in case: remove one of them"
            yield Problem("error", name, f"{message}, Windows and macOS keep only one")
    files = {name for name in names if not name.endswith("/")}
    folders = {str(folder) for name in names for folder in PurePosixPath(name).parents}
    for name in sorted(files & folders):
        yield _fatal(name, "is both a file and a folder: make the zip again")


def _check_layout(layout: Layout, names: Collection[str]) -> Iterator[Problem]:
    """A zip should hold one folder, with the files directly in it."""
    tops = dict.fromkeys(name.partition("/")[0] if "/" in name else "" for name in names)
    if "" in tops or len(tops) > 1:
        found = quoted_list(f"{top}/" if top else "files in no folder" for top in tops)
        message = f"must hold exactly one top folder, named after the students; it holds: {found}"
        if layout.root:
            message += f"; the files in {quoted(layout.root)} are read"
        is_clear = layout.root and not layout.duplicates
        yield Problem("warning" if is_clear else "error", "zip", message)
    if "/" in layout.root:
        message = f"its files are in {quoted(layout.root)}: they belong directly in the top folder"
        yield Problem("warning", "zip", message)
    yield from _check_misplaced(layout)


def _check_misplaced(layout: Layout) -> Iterator[Problem]:
    if layout.misplaced:
        message = f"misplaced files, move them next to the others: {quoted_list(layout.misplaced)}"
        yield Problem("warning", "zip", message)


# --- contents ---


def _read_files(
    archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], problems: list[Problem]
) -> dict[str, bytes]:
    files = {}
    left = MAX_TOTAL_BYTES
    for path in sorted(entries, key=_reading_order):
        info = entries[path]
        if fault := content_fault(info):
            problems.append(_fatal(path, fault))
            continue
        if info.file_size > MAX_FILE_BYTES:
            message = (
                f"unpacks to {info.file_size:,} bytes, more than the {MAX_FILE_BYTES:,} allowed"
            )
            problems.append(Problem("warning", path, f"{message}: it was not read"))
            continue
        left -= info.file_size
        if left < 0:
            message = (
                f"unpacks to more than {MAX_TOTAL_BYTES:,} bytes: {quoted(path)} and the files"
            )
            message += " after it were not read; submit only the required files"
            problems.append(Problem("error", "zip", message))
            break
        try:
            files[path] = read_entry(archive, info)
        except UNREADABLE as error:
            message = f"cannot be unpacked ({error}): make the zip again"
            problems.append(_fatal(path, message))
    return files
