"""Files that users give, and text in them as other systems write it: one reader for all of it.

Lines end in "\\n", "\\r\\n" or "\\r", as Python reads text, and in nothing else: a form feed or a
U+2028 belongs to its line.
"""

import codecs
import io
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

BOM = codecs.BOM_UTF8  # some editors write a byte order mark
# The longer ones first: a mark of UTF-32 begins with that of UTF-16.
OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
LONGEST_LINE = 2**24  # a book has a million characters
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device"}
KINDS |= {stat.S_IFBLK: "a device"}


def check_file(path: str | Path) -> None:
    """Raise ValueError for a pipe, a socket or a device: it may never end, and gives its content
    only once, while files are read more than once. What does not exist is not this check's.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    kind = KINDS.get(stat.S_IFMT(mode))
    if kind is not None:
        raise ValueError(f"{path} is {kind}, and is read more than once: save it as a file first")


def read_text(path: str | Path) -> str:
    """A whole file of UTF-8 text, line ends as they are, without a byte order mark.

    Raises OSError, and ValueError as check_file and decode do.
    """
    check_file(path)
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a directory; give a file")
    return decode(Path(path).read_bytes(), path)


def decode(data: bytes, path: str | Path) -> str:
    """UTF-8 bytes of `path` as text, line ends as they are, without a byte order mark.

    Raises ValueError, naming the line, for another encoding and for NUL bytes.
    """
    check_start(data, path)
    data = data.removeprefix(BOM)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"{path} line {_line_number(data, error.start)}"
        wrong = f"byte 0x{data[error.start]:02x}"
        raise ValueError(f"{place} is not UTF-8 ({wrong}); save the file as UTF-8") from None
    if (nul := data.find(b"\0")) >= 0:
        place = f"{path} line {_line_number(data, nul)}"
        raise ValueError(f"{place} has a NUL byte: it is no text; save the file as UTF-8")
    return text


def check_start(data: bytes, path: str | Path) -> None:
    """Raise ValueError if a file's first bytes are the byte order mark of another encoding."""
    for mark, name in OTHER_ENCODINGS.items():
        if data.startswith(mark):
            raise ValueError(f"{path} is {name} by its byte order mark; save it as UTF-8")


def split_lines(text: str) -> list[str]:
    """The lines of a text, without their ends; the last one need not have an end."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def read_lines(path: str | Path) -> list[str]:
    """The lines of a file. Raises as read_text does."""
    return split_lines(read_text(path))


def read_chunks(path: str | Path, size: int) -> Iterator[str]:
    """The text of a file in parts of about `size` bytes, every line end as "\\n".

    Raises OSError, and ValueError, naming the byte's offset, as read_text does.
    """
    check_file(path)
    with open(path, "rb") as file:
        yield from decode_chunks(file, path, size)


def decode_chunks(file: io.BufferedReader, name: str | Path, size: int) -> Iterator[str]:
    """As read_chunks, of an open file or pipe: what a pipe has is given at once."""
    utf8 = codecs.getincrementaldecoder("utf-8")()
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    start = file.peek(4)
    check_start(start, name)
    offset = len(file.read(len(BOM))) if start.startswith(BOM) else 0
    chunk = b"-"
    while chunk:
        split = len(utf8.getstate()[0])  # bytes of a character split by a chunk
        chunk = file.read1(size)
        if (nul := chunk.find(b"\0")) >= 0:
            place = f"{name} has a NUL byte at offset {offset + nul}"
            raise ValueError(f"{place}: it is no text; save it as UTF-8, or leave it out")
        try:
            yield decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
                f"{offset - split + error.start}; save it as UTF-8, or leave it out"
            ) from None
        offset += len(chunk)


def lines_of(chunks: Iterable[str]) -> Iterator[str]:
    """The lines of text that comes in parts with line ends as "\\n"; the last one need not have an
    end. Raises ValueError for a line of more than LONGEST_LINE characters.
    """
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        yield from lines
        if len(rest) > LONGEST_LINE:
            raise ValueError(f"a line has more than {LONGEST_LINE} characters: break it")
    if rest:
        yield rest


def _line_number(data: bytes, offset: int) -> int:
    before = data[:offset].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return before.count(b"\n") + 1
