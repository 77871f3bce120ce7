"""Tables for a terminal: columns as wide as their widest cell."""

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]], left: int = 1, gap: str = "  ") -> list[str]:
    """One line a row; the first `left` columns are aligned at the left, the others at the right.

    Every row has as many cells as the first; no line ends in spaces.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
