"""Zip files that are not to be trusted: opened, and their entries read, within fixed bounds."""

import stat
import struct
import zipfile
import zlib
from typing import BinaryIO

from mini_llama.submissions.requirements import MEBIBYTE
from mini_llama.submissions.tar_files import ENDINGS, is_tar, zip_of_tar

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


TOO_MANY = f"holds more than {MAX_ENTRIES} entries: zip only the required files"


def open_archive(
    file: BinaryIO, size: int, max_records: int | None = MAX_RECORDS
) -> zipfile.ZipFile:
    """A zip, or a tar made one. Raises ValueError for anything else, and for one beyond the bounds;
    `max_records` is None for a zip that has been checked before.
    """
    if size > MAX_ZIP_BYTES:
        raise ValueError(f"is larger than {MAX_ZIP_BYTES:,} bytes: zip only the required files")
    if is_tar(file):
        file = zip_of_tar(file, size)
    # Counted in the raw bytes: zipfile builds an object for every entry before it can count them,
    # and the number in the zip's header may be false.
    if max_records and count_occurrences(file, DIRECTORY_RECORD) > max_records:
        raise ValueError(TOO_MANY)
    try:
        return zipfile.ZipFile(file)
    except UNREADABLE as error:
        raise ValueError(
            f"is not a zip file, or it is damaged ({error}): make it or upload it again"
        ) from error


def is_archive(name: str) -> bool:
    """Whether a file is opened as an archive, by its name."""
    return name.casefold().endswith((".zip", *ENDINGS))


def without_ending(name: str) -> str:
    """The name of an archive without .zip, .tar.gz or the like."""
    endings = (ending for ending in (".zip", *ENDINGS) if name.casefold().endswith(ending))
    return name[: -len(next(endings, "")) or None]


def count_occurrences(file: BinaryIO, mark: bytes) -> int:
    """How often `mark` occurs in a file."""
    count, rest = 0, b""
    while chunk := file.read(CHUNK_BYTES):
        chunk = rest + chunk
        count += chunk.count(mark)
        rest = chunk[max(0, len(chunk) - len(mark) + 1) :]
    return count


def stored_name(info: zipfile.ZipInfo) -> str:
    """The name as stored in the zip, with U+FFFD for bytes that are not UTF-8."""
    name = info.orig_filename  # `filename` is cut at a NUL and has no backslash on Windows
    if info.flag_bits & UTF8_FLAG:
        return name
    # macOS writes UTF-8 without setting the flag; zipfile then decodes it as code page 437.
    return name.encode("cp437").decode("utf-8", errors="replace")


def name_fault(name: str) -> str | None:
    parts = name.removesuffix("/").split("/")
    return first_fault(
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


def first_fault(*checks: tuple[bool, str]) -> str | None:
    return next((fault for is_faulty, fault in checks if is_faulty), None)


def content_fault(info: zipfile.ZipInfo) -> str | None:
    """Bounds apply to the size that an entry claims, which `_read_entry` enforces."""
    largest = max(RATIO_FREE_BYTES, MAX_RATIO * info.compress_size)
    return first_fault(
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


def read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        # With a size, zipfile unpacks no more than that and compares the CRC at the claimed end;
        # without one it unpacks everything before it truncates.
        data = file.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise ValueError(f"{len(data):,} bytes where the directory claims {info.file_size:,}")
    return data
