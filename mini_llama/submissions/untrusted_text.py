"""Make untrusted text safe to read and print: strict UTF-8, truncated, quoted, printable."""

import re
import unicodedata
from collections.abc import Iterable

from mini_llama.tables import char_width, text_width

# Printable by Unicode's categories, yet invisible: fillers, variation selectors, a blank pattern.
INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0000-\U000e0fff]"
)
MAX_MARKS = 4  # on one letter; more would be drawn over other lines


def decode_text(data: bytes) -> str:
    """Decode UTF-8 strictly. Raises ValueError that names the line of the first invalid byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{data[error.start]:02x}"
        raise ValueError(f"line {line}: {byte} is not UTF-8: save the file as UTF-8") from error


def shorten(text: str, length: int = 100) -> str:
    """Truncate to `length` characters and add "..."."""
    return text if len(text) <= length else f"{text[:length]}..."


def shorten_to_width(text: str, columns: int) -> str:
    """Truncate to the columns of a terminal, "..." included."""
    if text_width(text) <= columns:
        return text
    kept, left = [], columns - 3
    for char in text:
        left -= char_width(char)
        if left < 0:
            break
        kept.append(char)
    return "".join(kept) + "..."[: max(0, columns)]


def quoted(text: str) -> str:
    """Quote, escape and truncate, so that untrusted text cannot pass for ours."""
    return one_line(repr(shorten(text, 60)))


def quoted_list(names: Iterable[str], limit: int = 5) -> str:
    """The first `limit` names, quoted, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(quoted, names[:limit])) + more


def one_line(text: str) -> str:
    """Escape what a reader cannot see or what moves the text around it: control, direction and
    invisible characters, and marks that stand on no letter.
    """
    shown: list[str] = []
    marks = MAX_MARKS  # at the start there is no letter to stand on
    for char in text:
        is_mark = unicodedata.category(char) in ("Mn", "Me")
        marks = marks + 1 if is_mark else MAX_MARKS if char in " '\"" else 0
        is_shown = char.isprintable() and marks <= MAX_MARKS and not INVISIBLE.match(char)
        shown.append(char if is_shown else ascii(char)[1:-1])
    return "".join(shown)


def encodable(text: str, encoding: str) -> str:
    """Escape the characters that an encoding lacks."""
    return text.encode(encoding, "backslashreplace").decode(encoding)
