"""Read an untrusted zip or folder in memory, within fixed bounds; nothing is written or run."""

import io
import os
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from mini_llama.submissions.layout import Layout, find_layout
from mini_llama.submissions.requirements import (
    CLUTTER_FOLDERS,
    ENVIRONMENT_MARKS,
    MACOS,
    MEBIBYTE,
    REQUIRED_NAMES,
    find_clutter,
)
from mini_llama.submissions.untrusted_text import one_line, quoted, quoted_list, shorten

MAX_ZIP_BYTES = 4096 * MEBIBYTE  # read in chunks; an edition's own limit is smaller
MAX_RECORDS = 50_000  # generous, for zips that contain a virtual environment
MAX_ENTRIES = 1000
CHUNK_BYTES = MEBIBYTE
MAX_FILE_BYTES = 10 * MEBIBYTE
MAX_TOTAL_BYTES = 50 * MEBIBYTE
MAX_RATIO = 100  # text reaches 3 to 10; deflate ends at 1032
RATIO_FREE_BYTES = MEBIBYTE  # below this size a high ratio is repetitive text, not a bomb

DIRECTORY_RECORD = b"PK\x01\x02"
LOCAL_HEADER_BYTES = 30  # without the name, whose length may differ from the directory's
ENCRYPTED_FLAG = 0x1
UTF8_FLAG = 0x800
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile unpacks the others without a bound
PLAIN_KINDS = (0, stat.S_IFREG, stat.S_IFDIR)  # 0: made on a system without file modes
# All that zipfile raises on damaged input, found by fuzzing.
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OverflowError,
    RuntimeError,
    ValueError,
)


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
    be read, and the `problems` of the zip itself. `size` is the zip's, in bytes.
    """

    top: str
    names: tuple[str, ...]
    files: Mapping[str, bytes]
    problems: tuple[Problem, ...]
    size: int = field(default=0, compare=False)


def has_errors(problems: Iterable[Problem]) -> bool:
    """Whether any problem is an error rather than a warning."""
    return any(problem.severity == "error" for problem in problems)


def read_submission(path: str | Path) -> Submission:
    """`parse_submission` of a file. Raises OSError if `path` is no file or cannot be read."""
    path = Path(path)
    if not path.is_file():  # a pipe or a device might never end
        raise FileNotFoundError(f"{path} is not a file: check the path")
    with path.open("rb") as file:
        return _parse(file, path.stat().st_size)


def parse_submission(data: bytes) -> Submission:
    """Read the files of a zip. Never raises for bad content, which is listed in `problems`."""
    return _parse(io.BytesIO(data), len(data))


def _parse(file: BinaryIO, size: int) -> Submission:
    try:
        archive = _open_archive(file, size)
    except ValueError as error:
        return Submission("", (), {}, (_fatal("zip", str(error)),), size)
    problems = list(_check_overlaps(archive))
    entries = _named_entries(archive, problems)
    if len(entries) > MAX_ENTRIES:
        problems.append(_fatal("zip", TOO_MANY))
        return Submission("", (), {}, tuple(problems), size)
    names = [name for name, _ in entries]
    problems += _check_collisions(names)
    infos = {name: info for name, info in entries if not name.endswith("/")}
    if not infos:
        problems.append(_fatal("zip", "holds no usable file"))
    layout = find_layout(infos)
    problems += _check_layout(layout, names)
    chosen = {name: infos[path] for name, path in layout.paths.items()}
    files = _read_files(archive, chosen, problems)
    return Submission(layout.top, tuple(chosen), files, tuple(problems), size)


TOO_MANY = f"holds more than {MAX_ENTRIES} entries: zip only the required files"


def _open_archive(file: BinaryIO, size: int) -> zipfile.ZipFile:
    """Raises ValueError for anything but a zip, and for one beyond the bounds."""
    if size > MAX_ZIP_BYTES:
        raise ValueError(f"is larger than {MAX_ZIP_BYTES:,} bytes: zip only the required files")
    # Counted in the raw bytes: zipfile builds an object for every entry before it can count them,
    # and the number in the zip's header may be false.
    if count_occurrences(file, DIRECTORY_RECORD) > MAX_RECORDS:
        raise ValueError(TOO_MANY)
    try:
        return zipfile.ZipFile(file)
    except UNREADABLE as error:
        raise ValueError(
            f"is not a zip file, or it is damaged ({error}): make it or upload it again"
        ) from error


def count_occurrences(file: BinaryIO, mark: bytes) -> int:
    """How often `mark` occurs in a file."""
    count, rest = 0, b""
    while chunk := file.read(CHUNK_BYTES):
        chunk = rest + chunk
        count += chunk.count(mark)
        rest = chunk[max(0, len(chunk) - len(mark) + 1) :]
    return count


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


# --- folders ---


def read_folder(path: str | Path) -> Submission:
    """Read an unpacked submission, within the bounds of a zip. Links are not followed; hidden
    files, caches and virtual environments are skipped.

    Raises OSError if the folder itself cannot be read.
    """
    path = Path(path)
    problems: list[Problem] = []
    entries: dict[str, os.DirEntry[str]] = {}
    for entry in _walk(path):
        if len(entries) == MAX_ENTRIES:
            message = f"holds more than {MAX_ENTRIES} files: name the folder of one submission"
            problems.append(_fatal("folder", message))
            break
        entries[Path(entry.path).relative_to(path).as_posix()] = entry
    clutter = find_clutter(entries)
    layout = find_layout([name for name in entries if name not in clutter])
    problems += _check_misplaced(layout)
    files: dict[str, bytes] = {}
    left = MAX_TOTAL_BYTES
    for name in sorted(layout.paths, key=_reading_order):
        entry = entries[layout.paths[name]]
        size = entry.stat(follow_symlinks=False).st_size
        if fault := _entry_fault(name, entry, size, left):
            problems.append(fault)
        else:
            files[name] = Path(entry.path).read_bytes()
            left -= len(files[name])
    return Submission("", tuple(layout.paths), files, tuple(problems))


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


def _entry_fault(name: str, entry: os.DirEntry[str], size: int, left: int) -> Problem | None:
    if fault := _name_fault(os.fsencode(name).decode("utf-8", errors="replace")):
        return _fatal(name, fault)
    if not entry.is_file(follow_symlinks=False):
        return _fatal(name, "is a symbolic link or a special file: put the file itself there")
    bound = min(MAX_FILE_BYTES, left)
    if size > bound:  # not fatal: the other files can be read
        message = f"has {size:,} bytes, more than the {bound:,} allowed: it was not read"
        return Problem("warning", name, message)
    return None


# --- names ---


def _named_entries(
    archive: zipfile.ZipFile, problems: list[Problem]
) -> list[tuple[str, zipfile.ZipInfo]]:
    """The entries with safe names, without clutter."""
    entries = []
    n_macos = 0
    for info in archive.infolist():
        name = _stored_name(info)
        if MACOS.search(name) and ".." not in name.split("/"):
            n_macos += 1
        elif fault := _name_fault(name):
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


def _stored_name(info: zipfile.ZipInfo) -> str:
    """The name as stored in the zip, with U+FFFD for bytes that are not UTF-8."""
    name = info.orig_filename  # `filename` is cut at a NUL and has no backslash on Windows
    if info.flag_bits & UTF8_FLAG:
        return name
    # macOS writes UTF-8 without setting the flag; zipfile then decodes it as code page 437.
    return name.encode("cp437").decode("utf-8", errors="replace")


def _name_fault(name: str) -> str | None:
    parts = name.removesuffix("/").split("/")
    return _first_fault(
        ("\ufffd" in name, "its name is not UTF-8: rename the file"),
        (not name.isprintable(), "its name has control characters: rename the file"),
        ("\\" in name, "its name has a backslash: paths in a zip use /"),
        (":" in name, "its name has a colon, like a drive letter: zip the folder itself"),
        (name.startswith("/"), "its path is absolute: zip the folder itself"),
        (
            any(part in ("", ".", "..") for part in parts),
            "its path has an empty, '.' or '..' part: paths must be TOP/FILE",
        ),
    )


def _first_fault(*checks: tuple[bool, str]) -> str | None:
    return next((fault for is_faulty, fault in checks if is_faulty), None)


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
        if fault := _content_fault(info):
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
            files[path] = _read_entry(archive, info)
        except UNREADABLE as error:
            message = f"cannot be unpacked ({error}): make the zip again"
            problems.append(_fatal(path, message))
    return files


def _content_fault(info: zipfile.ZipInfo) -> str | None:
    """Bounds apply to the size that an entry claims, which `_read_entry` enforces."""
    largest = max(RATIO_FREE_BYTES, MAX_RATIO * info.compress_size)
    return _first_fault(
        (
            stat.S_IFMT(info.external_attr >> 16) not in PLAIN_KINDS,
            "is a symbolic link or a special file: put the file itself into the zip",
        ),
        (
            bool(info.flag_bits & ENCRYPTED_FLAG),
            "is encrypted: make the zip without a password",
        ),
        (
            info.compress_type not in METHODS,
            f"is compressed with method {info.compress_type}: only stored (0) and deflate (8)",
        ),
        (
            info.file_size > largest,
            f"unpacks to more than {MAX_RATIO} times its size in the zip, like a zip bomb",
        ),
    )


def _read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        # With a size, zipfile unpacks no more than that and compares the CRC at the claimed end;
        # without one it unpacks everything before it truncates.
        data = file.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise ValueError(f"{len(data):,} bytes where the directory claims {info.file_size:,}")
    return data
