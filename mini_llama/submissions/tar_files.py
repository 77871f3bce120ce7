"""Tar archives that are not to be trusted, plain or gzipped: made zips in memory, within bounds,
to which the rules for zips then apply.
"""

import gzip
import io
import stat
import tarfile
import zipfile
import zlib
from typing import BinaryIO

from mini_llama.submissions.requirements import MEBIBYTE

ENDINGS = (".tar", ".tar.gz", ".tgz")
GZIP_MARK, TAR_MARK, TAR_MARK_AT = b"\x1f\x8b", b"ustar", 257
MAX_BYTES = 256 * MEBIBYTE  # unpacked, headers included; it is all in memory
MAX_RATIO = 100  # text reaches 3 to 10; deflate ends at 1032
RATIO_FREE_BYTES = MEBIBYTE
MAX_MEMBERS = 50_000
TOO_MANY = f"holds more than {MAX_MEMBERS} entries: zip only the required files"
EPOCH = (1980, 1, 1, 0, 0, 0)
UNREADABLE = (tarfile.TarError, zlib.error, EOFError, OSError, OverflowError, RuntimeError)


class _Bounded(io.RawIOBase):
    """A stream of which at most `bound` bytes can be read. Raises ValueError for more."""

    def __init__(self, file: BinaryIO | gzip.GzipFile, bound: int) -> None:
        self.file, self.bound, self.left = file, bound, bound

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(self.left + 1 if size < 0 else min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(
                f"unpacks to more than {self.bound:,} bytes, like a bomb: submit only the required "
                "files, zipped"
            )
        return data


def is_tar(file: BinaryIO) -> bool:
    """Whether a file begins as a tar or as something gzipped; it is left at its start."""
    start = file.read(TAR_MARK_AT + len(TAR_MARK))
    file.seek(0)
    return start.startswith(GZIP_MARK) or start[TAR_MARK_AT:] == TAR_MARK


def zip_of_tar(file: BinaryIO, size: int) -> BinaryIO:
    """A zip in memory with the tar's entries, whose links and special files are marked as such.

    Raises ValueError for a file that is no tar, or is beyond the bounds.
    """
    is_packed = file.read(len(GZIP_MARK)) == GZIP_MARK
    file.seek(0)
    bound = min(MAX_BYTES, max(RATIO_FREE_BYTES, MAX_RATIO * size))
    stream = _Bounded(gzip.GzipFile(fileobj=file) if is_packed else file, bound)
    found = io.BytesIO()
    try:
        with (
            zipfile.ZipFile(found, "w") as target,
            tarfile.open(fileobj=stream, mode="r|", errors="replace") as source,
        ):
            for count, member in enumerate(source):
                if count == MAX_MEMBERS:
                    raise ValueError(TOO_MANY)
                _copy(source, member, target)
    except UNREADABLE as error:
        raise ValueError(
            f"is not a tar archive, or it is damaged ({error}): submit a zip"
        ) from error
    found.seek(0)
    return found


def _copy(source: tarfile.TarFile, member: tarfile.TarInfo, target: zipfile.ZipFile) -> None:
    name = member.name.replace("\0", "\ufffd").removeprefix("./")
    if name in ("", "."):
        return
    if name in target.NameToInfo:
        raise ValueError("holds a file more than once: submit a zip, made again")
    info = zipfile.ZipInfo(f"{name}/" if member.isdir() else name, EPOCH)
    is_plain = member.isreg() and not member.issparse()  # a sparse file claims any size
    kind = stat.S_IFDIR if member.isdir() else stat.S_IFREG if is_plain else stat.S_IFLNK
    info.external_attr = kind << 16
    content = source.extractfile(member) if is_plain else None
    target.writestr(info, content.read() if content else b"")
