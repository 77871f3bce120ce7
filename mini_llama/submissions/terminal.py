"""The results of grading as a table for the terminal, no wider than it, and the findings below.

All student text, names included, is untrusted: only visible characters that the terminal's encoding
has are printed, others are escaped.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from mini_llama.submissions.answer_key import AnswerKey
from mini_llama.submissions.grading import Grade
from mini_llama.submissions.report import (
    LEGEND,
    SHORT,
    accuracy_cell,
    addition_cell,
    agreement_cells,
    checks_cell,
    counts,
    details,
    diagnosis_cell,
    extras,
    figure_notes,
    points_cell,
    scored_files,
    size_cell,
    split_name,
    summary,
)
from mini_llama.submissions.untrusted_text import encodable, one_line, shorten_to_width
from mini_llama.tables import align, text_width

NAME_WIDTH = 27
NARROW_NAMES = (20, 16, 12, 8)
NARROW_CELL = 16  # a longer cell is truncated before a column is left out
MIN_COLUMNS = 20
INDENT = "  "


@dataclass(frozen=True)
class Screen:
    """Where the table is printed: `columns` is None if a line may have any length."""

    columns: int | None = None
    encoding: str = "utf-8"


def screen_of_output() -> Screen:
    """That of standard output: a terminal's, or as wide as COLUMNS says; else any width will do.

    GNU readline, which Python's prompt loads, sets both COLUMNS and LINES for what it starts: that
    says nothing about a file or a pipe.
    """
    encoding = sys.stdout.encoding or "utf-8"
    given = os.environ.get("COLUMNS", "")
    is_given = given.isascii() and given.isdigit() and int(given) > 0 and "LINES" not in os.environ
    if not is_given and not sys.stdout.isatty():
        return Screen(None, encoding)
    return Screen(max(MIN_COLUMNS, shutil.get_terminal_size().columns), encoding)


@dataclass(frozen=True)
class Column:
    """A column of the table: its cells, its head, and the data set above it; columns of the highest
    `rank` are left out first, those of rank 0 never.
    """

    head: str
    cells: Sequence[str]
    rank: int = 0
    group: str = ""

    @property
    def title(self) -> str:
        return f"{self.group} {self.head}" if self.group else self.head


def table(grades: Sequence[Grade], answer_key: AnswerKey, screen: Screen | None = None) -> str:
    """A row for each submission, then the findings on each, then the totals."""
    screen = screen or Screen()
    columns = [_encodable(column, screen) for column in _columns(grades, answer_key)]
    lines, left_out = fit(columns, screen.columns)
    below: list[str] = []
    for grade in grades:
        findings = [f"{INDENT}{kind}: {text}" for kind, text in details(grade, len(grades) == 1)]
        if findings:
            below += ["", grade.name, *findings]
    notes = [LEGEND, *figure_notes(answer_key)]
    if left_out:
        names = ", ".join(column.title for column in left_out)
        notes.append(f"not shown in {screen.columns} columns: {names}; --csv and --html have them")
    lines += [encodable(one_line(line), screen.encoding) for line in below]
    return "\n".join([*lines, "", *wrap(notes, screen.columns), summary(grades)])


def _columns(grades: Sequence[Grade], answer_key: AnswerKey) -> Iterator[Column]:
    names = [shorten_to_width(one_line(grade.name), NAME_WIDTH) for grade in grades]
    yield Column("submission", names)
    yield Column("status", [grade.status for grade in grades])
    yield Column("size", [size_cell(grade) for grade in grades], 99)
    numbers = [("-", "-") if grade.refusal else counts(grade) for grade in grades]
    yield Column("err", [str(errors) for errors, _ in numbers], 97)
    yield Column("warn", [str(warnings) for _, warnings in numbers], 98)
    verdicts = [{output.file: accuracy_cell(output) for output in g.outputs} for g in grades]
    for rank, file in enumerate(scored_files(answer_key), 1):
        data_name, method = split_name(file, answer_key)
        cells = [verdict.get(file, "-") for verdict in verdicts]
        yield Column(SHORT.get(method, method), cells, rank, data_name)
    if answer_key.references:
        lines, texts = zip(*map(agreement_cells, grades), strict=True)
        yield Column("lines", [text for _, text in lines], 95)
        yield Column("temp 0", [text for _, text in texts], 96)
    if answer_key.has_addition:
        yield Column("addition", [addition_cell(grade) for grade in grades], 94)
    more = extras(grades, answer_key)
    if more.checks:
        yield Column("checks", [checks_cell(grade) for grade in grades])
    if more.diagnosis:
        yield Column("diagnosis", [diagnosis_cell(grade) for grade in grades])
    if more.points:
        yield Column("points", [points_cell(grade) for grade in grades])


def _encodable(column: Column, screen: Screen) -> Column:
    return replace(column, cells=[encodable(cell, screen.encoding) for cell in column.cells])


def fit(columns: Sequence[Column], width: int | None) -> tuple[list[str], list[Column]]:
    """The table's lines, none wider than `width` where that can be, and the columns left out."""
    lines = _lines(columns)
    if width is None or _widest(lines) <= width:
        return lines, []
    shown, left_out = [_narrow(column, NARROW_CELL) for column in columns], []
    shown[0] = columns[0]
    for size in NARROW_NAMES[:2]:
        shown[0] = _narrow(columns[0], size)
        if _widest(lines := _lines(shown, " ")) <= width:
            return lines, []
    while _widest(lines) > width and any(column.rank for column in shown):
        least = max(shown, key=lambda column: column.rank)
        shown.remove(least)
        left_out.append(least)
        lines = _lines(shown, " ")
    for size in NARROW_NAMES[2:]:
        if _widest(lines) > width:
            shown = [_narrow(column, size) for column in shown]
            lines = _lines(shown, " ")
    titles = [column.title for column in left_out]
    return lines, [column for column in columns if column.title in titles]


def _narrow(column: Column, width: int) -> Column:
    return replace(column, cells=[shorten_to_width(cell, width) for cell in column.cells])


def _lines(columns: Sequence[Column], gap: str = "  ") -> list[str]:
    """Two header rows, the data sets above their first column, and a row for each submission."""
    above: list[str] = []
    for group, members in groupby(columns, key=lambda column: column.group):
        above += [group, *[""] * (len(list(members)) - 1)]
    heads = [column.head for column in columns]
    rows = zip(*(column.cells for column in columns), strict=True)
    return align([above, heads, *map(list, rows)], left=2, gap=gap)


def _widest(lines: Sequence[str]) -> int:
    return max(map(text_width, lines))


def wrap(lines: Sequence[str], width: int | None) -> list[str]:
    """Break lines of ours between words."""
    if width is None:
        return list(lines)
    wrapper = textwrap.TextWrapper(width, subsequent_indent=INDENT, break_on_hyphens=False)
    return [part for line in lines for part in wrapper.wrap(line)]
