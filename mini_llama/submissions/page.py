"""The results of grading as one HTML page, from templates/grades.html."""

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mini_llama.assignment.figures import BANDS
from mini_llama.command_line import visible
from mini_llama.html_page import TEMPLATES, render
from mini_llama.submissions.answer_key import AnswerKey
from mini_llama.submissions.grading import Grade, Output
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

# CSS classes; good values have no color, so that the others stand out.
KINDS = {"within": "", "no figure": "", "below": "low", "above": "high"}
KINDS |= {"missing": "warn", "faulty": "warn", "no gold": "none"}
KINDS |= {"ok": "", "errors": "warn", "refused": "low"}
KINDS |= {"equal": "", "drift": "", "differs": "warn", "-": "none"}


@dataclass(frozen=True)
class Cell:
    """A table cell; `kind` is its CSS class and `hint` its tooltip."""

    text: str
    kind: str = ""
    hint: str = ""
    span: int = 1


@dataclass(frozen=True)
class Row:
    """One submission: the cells after its name, and its findings, each a kind and a text."""

    index: int
    name: str
    cells: Sequence[Cell]
    section: Sequence[tuple[str, str]]


def html_page(grades: Sequence[Grade], answer_key: AnswerKey, title: str) -> str:
    """A self-contained page; its only script, which sorts the table, is allowed by its hash."""
    pairs = [split_name(file, answer_key) for file in scored_files(answer_key)]
    groups = list(Counter(data for data, _ in pairs).items())
    columns = ["submission", "status", "size", "errors", "warnings"]
    columns += [SHORT.get(method, method) for _, method in pairs]
    if answer_key.references:
        groups.append(("reference", 2))
        columns += ["lines", "temp 0"]
    if answer_key.has_addition:
        groups.append(("", 1))
        columns.append("addition")
    more = extras(grades, answer_key)
    added = {"checks": more.checks, "diagnosis": more.diagnosis, "points": bool(more.points)}
    for name in (name for name, is_there in added.items() if is_there):
        groups.append(("", 1))
        columns.append(name)
    script = (TEMPLATES / "sort.js").read_text(encoding="utf-8")
    return render(
        "grades.html",
        visible,
        title=title,
        summary=summary(grades),
        edition=answer_key.edition,
        bands=", ".join(f"{band} for {name.upper()}" for name, band in BANDS.items()),
        legend=". ".join([LEGEND, *figure_notes(answer_key)]),
        groups=groups,
        columns=columns,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        rows=[
            _row(i, grade, answer_key, columns, len(grades) == 1) for i, grade in enumerate(grades)
        ],
    )


def _row(
    index: int, grade: Grade, answer_key: AnswerKey, columns: Sequence[str], is_alone: bool
) -> Row:
    cells = [Cell(grade.status, KINDS[grade.status])]
    if grade.refusal is not None:  # spans all other columns
        cells.append(Cell(grade.refusal, "reason", span=len(columns) - 2))
        return Row(index, grade.name, cells, ())
    cells += [Cell(size_cell(grade)), *(Cell(str(count)) for count in counts(grade))]
    outputs = {output.file: output for output in grade.outputs}
    cells += [_output_cell(outputs[file]) for file in scored_files(answer_key)]
    if answer_key.references:
        cells += [Cell(text, KINDS[verdict]) for verdict, text in agreement_cells(grade)]
    if answer_key.has_addition:
        cells.append(Cell(addition_cell(grade)))
    if "checks" in columns:
        is_good = all(check.verdict == "pass" for check in grade.checks)
        cells.append(Cell(checks_cell(grade), "" if is_good else "low"))
    if "diagnosis" in columns:
        is_good = all(verdict.is_accepted for verdict in grade.examination.verdicts)
        cells.append(Cell(diagnosis_cell(grade), "" if is_good else "low"))
    if "points" in columns:
        cells.append(Cell(points_cell(grade)))
    return Row(index, grade.name, cells, tuple(details(grade, is_alone)))


def _output_cell(output: Output) -> Cell:
    hint = ""
    if output.accuracy is not None:
        figure = "none" if output.figure is None else f"{output.figure:.3f}"
        figure += f" ({output.measured:.3f} by independent runs)" if output.measured else ""
        hint = f"{output.verdict}; figure {figure}, macro F1 {output.macro_f1:.3f}"
    kind = "warn" if output.one_class else KINDS[output.verdict]
    return Cell(accuracy_cell(output), kind, hint)
