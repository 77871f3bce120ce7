"""Make untrusted text safe to read and print: strict UTF-8, truncated, quoted, printable."""

from collections.abc import Iterable


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


def quoted(text: str) -> str:
    """Quote, escape and truncate, so that untrusted text cannot pass for ours."""
    return ascii(shorten(text, 60))


def quoted_list(names: Iterable[str], limit: int = 5) -> str:
    """The first `limit` names, quoted, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(quoted, names[:limit])) + more


def one_line(text: str) -> str:
    """Escape to printable ASCII: no terminal control codes, and printable in every encoding."""
    return "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text)
