"""Tables for a terminal: columns as wide as their widest cell."""

import unicodedata
from collections.abc import Sequence

# Korean vowels and final consonants, which are drawn into the block of the consonant before them.
JOINING = (range(0x1160, 0x1200), range(0xD7B0, 0xD800))


def align(rows: Sequence[Sequence[str]], left: int = 1, gap: str = "  ") -> list[str]:
    """One line a row; the first `left` columns are aligned at the left, the others at the right.

    Every row has as many cells as the first; no line ends in spaces.
    """
    widths = [max(map(text_width, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(
            pad(cell, width if i < left else -width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def pad(text: str, width: int) -> str:
    """Fill up to `width` columns at the right, or at the left if it is negative."""
    spaces = " " * (abs(width) - text_width(text))
    return text + spaces if width > 0 else spaces + text


def text_width(text: str) -> int:
    """The columns that a text takes in a terminal."""
    return len(text) if text.isascii() else sum(map(char_width, text))


def char_width(char: str) -> int:
    """Two columns for East Asian wide characters, none for marks on another character."""
    if unicodedata.category(char) in ("Mn", "Me", "Cf") or any(ord(char) in r for r in JOINING):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1
