"""Texts in CSV, TSV and JSON files, labelled or not: their columns, and what is refused.

The ending of a file's name says what it is; any other file has the assignment's lines.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_llama.assignment.reviews import UNLABELLED, Record, existing, read_labelled_lines
from mini_llama.command_line import visible
from mini_llama.text_files import read_text, split_lines

# Names of columns that are recognised, whatever their case.
TEXT_COLUMNS = ("text", "sentence", "review", "content", "comment", "tweet", "phrase")
LABEL_COLUMNS = ("label", "sentiment", "class", "target", "category", "polarity")
DELIMITERS = (",", ";", "\t")
LARGEST_CELL = 2**31 - 1  # csv's own bound of 131,072 characters is below a long review


@dataclass(frozen=True)
class Row:
    """A text as its file has it; `label` is None where the file has no column of labels."""

    label: str | None
    text: str
    place: str


@dataclass(frozen=True)
class Columns:
    """The columns that were asked for; None: one of those recognised."""

    text: str | None = None
    label: str | None = None
    needs_label: bool = True

    def find(self, names: Sequence[str], path: str | Path) -> tuple[str, str | None]:
        """The column of the texts and that of the labels among `names`. Raises ValueError."""
        text = _find(names, self.text, TEXT_COLUMNS, "text", path)
        others = [name for name in names if name != text]
        if not (self.needs_label or self.label or _known(others, LABEL_COLUMNS)):
            return text, None
        label = _find(names, self.label, LABEL_COLUMNS, "label", path)
        if text == label:
            raise ValueError(f"{path}: column {text!r} cannot be both text and label")
        return text, label


def _find(
    names: Sequence[str], asked: str | None, known: Sequence[str], kind: str, path: str | Path
) -> str:
    """The one column that was asked for, or else is recognised."""
    found = [name for name in names if name == asked]
    found = found or _known(names, known if asked is None else (asked,))
    if len(found) == 1:
        return found[0]
    there = ", ".join(visible(name[:40]) for name in names[:20]) or "none"
    if found:
        remedy = f"--{kind}_column must name one, and no name may come twice"
        raise ValueError(f"{path} has several {kind} columns ({there}): {remedy}")
    missing = f"no column {asked!r}" if asked else f"no {kind} column ({', '.join(known)})"
    remedy = f"name it with --{kind}_column{UNLABELLED if kind == 'label' else ''}"
    raise ValueError(f"{path} line 1 has {missing}, only {there}: {remedy}")


def _known(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Those of `names` that are known, whatever their case."""
    return [name for name in names if name.strip().lower() in {want.lower() for want in known}]


def is_table(path: str | Path) -> bool:
    """Whether the file's name says that it is CSV, TSV or JSON."""
    return Path(path).suffix.lower() in READERS


def read_records(path: str | Path, columns: Columns) -> list[Record]:
    """The labelled texts of a data file of any kind, in order; line breaks in a text become a
    space, since prediction files have one line for each.

    Raises OSError, and ValueError with the line's number.
    """
    if not is_table(path):
        return read_labelled_lines(path)
    records = [Record(row.label or "", row.text, row.place) for row in read_rows(path, columns)]
    if not records:
        raise ValueError(f"{path} is empty; a data file has a text and a label on each line")
    return records


def read_rows(path: str | Path, columns: Columns) -> Iterator[Row]:
    """The texts of a table, and their labels where there are any; as read_records."""
    content = read_text(existing(path))
    for row in READERS[Path(path).suffix.lower()](content, path, columns):
        yield _checked(row)


def _checked(row: Row) -> Row:
    text = one_line(row.text)
    label = None if row.label is None else row.label.strip()
    for kind, value in (("label", label), ("text", text)):
        if value == "":
            remedy = f"fill it in, or drop the line{UNLABELLED if kind == 'label' else ''}"
            raise ValueError(f"{row.place}: the {kind} is empty; {remedy}")
    if label is not None and ("\n" in label or "\r" in label):
        raise ValueError(f"{row.place}: label {label[:20]!r} has a line break")
    return Row(label, text, row.place)


def one_line(text: str) -> str:
    """The text, stripped, with a space for each line break."""
    return re.sub(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+\s*", " ", text.strip())


# CSV and TSV


def _read_csv(content: str, path: str | Path, columns: Columns) -> Iterator[Row]:
    return _read_separated(content, path, columns, DELIMITERS)


def _read_tsv(content: str, path: str | Path, columns: Columns) -> Iterator[Row]:
    """As CSV; but where every line has the same number of tabs, quotation marks that are not
    those of a whole cell belong to the text, as in GLUE's files.
    """
    lines = split_lines(content)
    tabs = {line.count("\t") for line in lines if line.strip()}
    if len(tabs) == 1:
        cells = ["\t".join(map(_quoted, line.split("\t"))) for line in lines]
        content = "\n".join(cells)
    return _read_separated(content, path, columns, ("\t",))


def _quoted(cell: str) -> str:
    """A cell in quotation marks, unless it is already."""
    if re.fullmatch(r'"(?:[^"]|"")*"', cell) or '"' not in cell:
        return cell
    return '"' + cell.replace('"', '""') + '"'


def _read_separated(
    content: str, path: str | Path, columns: Columns, delimiters: Sequence[str]
) -> Iterator[Row]:
    """Records under a header. The delimiter is the first of `delimiters` with which the header has
    both columns.
    """
    if not content.strip():
        return
    delimiter, header, names = _read_header(content, path, columns, delimiters)
    text = header.index(names[0])
    label = None if names[1] is None else header.index(names[1])
    rows = _rows(content, path, delimiter)
    next(rows)
    for number, row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"{path} line {number} has {len(row)} cells, the header {len(header)}; "
                f'a cell with {delimiter!r}, quotation marks or line breaks needs "…" around it'
            )
        yield Row(None if label is None else row[label], row[text], f"{path} line {number}")


def _read_header(
    content: str, path: str | Path, columns: Columns, delimiters: Sequence[str]
) -> tuple[str, list[str], tuple[str, str | None]]:
    """The delimiter, the header, and the columns of text and label in it. Raises ValueError, of
    the first delimiter, if none will do.
    """
    errors = []
    for delimiter in delimiters:
        try:
            _, header = next(_rows(content, path, delimiter))
            return delimiter, header, columns.find(header, path)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _rows(content: str, path: str | Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, each with the number of its first line."""
    limit = csv.field_size_limit(LARGEST_CELL)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        while True:
            number = reader.line_num + 1
            row = next(reader, None)
            if row is None:
                return
            if row:
                yield number, row
    except csv.Error as error:
        what = "a quotation mark is never closed" if "unexpected end" in str(error) else error
        remedy = 'write quotation marks within a cell in "…" twice'
        raise ValueError(f"{path} line {number} is not CSV ({what}); {remedy}") from None
    finally:
        csv.field_size_limit(limit)


# JSON


def _read_json(content: str, path: str | Path, columns: Columns) -> Iterator[Row]:
    """An object a line, or one list of objects."""
    names: tuple[str, str | None] | None = None
    for item, place in json_items(content, path):
        if not isinstance(item, dict):
            raise ValueError(f"{place} is not a JSON object with a text and a label")
        names = names or columns.find(list(item), path)
        for name in names:
            if name is not None and name not in item:
                raise ValueError(f"{place} has no {name!r}; every object needs one")
        text = item[names[0]]
        if not isinstance(text, str):
            raise ValueError(f"{place}: {names[0]!r} is {_shown(text)}, not a text")
        label = None if names[1] is None else _label(item[names[1]], f"{place}: {names[1]!r}")
        yield Row(label, valid_text(text, place), place)


def json_items(content: str, path: str | Path) -> Iterator[tuple[Any, str]]:
    """The values of a JSON list or of JSON lines, each with its place. Raises ValueError."""
    if content.lstrip().startswith("["):
        yield from (
            (item, f"{path} item {number}") for number, item in enumerate(_parse(content, path), 1)
        )
        return
    for number, line in enumerate(split_lines(content), 1):
        if line.strip():
            place = f"{path} line {number}"
            yield _parse(line, place), place


def _parse(text: str, place: str | Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON ({visible(str(error))})") from None


def _label(value: Any, place: str) -> str:
    if isinstance(value, str):
        return valid_text(value, place)
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)  # true, not True
    raise ValueError(f"{place} is {_shown(value)}, not a word or a number")


def _shown(value: Any) -> str:
    return json.dumps(value)[:40]


def valid_text(text: str, place: str) -> str:
    """The text, if it has a UTF-8 form: JSON can spell half a character (\\ud800)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place} has half a surrogate pair, which is no character") from None
    return text


Reader = Callable[[str, str | Path, Columns], Iterator[Row]]
READERS: Mapping[str, Reader] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
}
