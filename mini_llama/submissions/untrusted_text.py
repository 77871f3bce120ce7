"""What a stranger wrote, made safe to read and to show: strict UTF-8, cut, quoted, printable."""

from collections.abc import Iterable


def decode_text(data: bytes) -> str:
    """UTF-8 text, strictly. Raises ValueError that names the line of the first other byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{data[error.start]:02x}"
        raise ValueError(f"line {line}: {byte} is not UTF-8: save the file as UTF-8") from error


def shorten(text: str, length: int = 100) -> str:
    """At most `length` characters, "..." for the others."""
    return text if len(text) <= length else f"{text[:length]}..."


def shown(text: str) -> str:
    """Quoted, escaped and cut, so that a stranger's text cannot pass for ours."""
    return ascii(shorten(text, 60))


def listed(names: Iterable[str], limit: int = 5) -> str:
    """The first `limit` names, each as by `shown`, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(shown, names[:limit])) + more


def one_line(text: str) -> str:
    """Printable ASCII: no terminal takes it for commands, and every encoding can print it."""
    return "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text)
