"""What grading found, as a table for the terminal, as CSV and as JSON.

Whatever a student wrote, names included, is taken for hostile: a terminal gets printable ASCII, a
spreadsheet no formula.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from mini_llama.assignment.agreement import Agreement
from mini_llama.assignment.figures import BANDS, is_placeholder, two_figures
from mini_llama.assignment.options import OUTPUT_ENDINGS
from mini_llama.command_line import visible
from mini_llama.submissions.grading import Grade, Output
from mini_llama.submissions.rules import GREEDY_TEXT
from mini_llama.submissions.standard import Standard
from mini_llama.submissions.untrusted_text import one_line, shorten
from mini_llama.tables import align

MARKS = {"below": "-", "above": "+", "no figure": "?"}
LEGEND = (
    "accuracy: - below, + above the edition's band, ? no figure to compare with, "
    "! one class on every line"
)
SHORT = {"prompting": "prompt", "finetuning": "tune", "lora": "lora"}
RANKS = ("equal", "drift", "differs")
NAME_WIDTH = 24
# OWASP's list of what makes a cell a formula, and the full-width forms that some programs take.
FORMULA_STARTS = tuple("=+-@\t\r＝＋－＠")


# --- what all forms show ---


def scored_files(standard: Standard) -> list[str]:
    """The files whose accuracy means something, in the order of the columns."""
    gold = standard.gold
    return [
        name
        for name, file in standard.expected.predictions.items()
        if file.data_name not in gold or not is_placeholder(gold[file.data_name])
    ]


def split_name(file: str, standard: Standard) -> tuple[str, str]:
    """sst-dev-lora-output.txt → sst-dev, lora."""
    data_name = standard.expected.predictions[file].data_name
    return data_name, file.removeprefix(f"{data_name}-").removesuffix("-output.txt")


def cell_of(output: Output) -> str:
    """The accuracy with its marks (LEGEND), or the verdict where there is none."""
    if output.accuracy is None:
        return output.verdict
    mark = MARKS.get(output.verdict, "") + ("!" if output.one_class else "")
    return f"{output.accuracy:.3f}{mark}"


def agreement_cells(grade: Grade) -> tuple[tuple[str, str], tuple[str, str]]:
    """The worst verdict on the prompting files, and the one on the text, "-" for none, each with
    the text that shows it: what made lines differ, if that is one thing.
    """
    text = [a for a in grade.agreements if a.file == GREEDY_TEXT]
    return _worst([a for a in grade.agreements if a.file != GREEDY_TEXT]), _worst(text)


def _worst(agreements: Sequence[Agreement]) -> tuple[str, str]:
    verdict = max((a.verdict for a in agreements), key=RANKS.index, default="-")
    causes = {a.cause for a in agreements if a.verdict == verdict}
    return verdict, (causes.pop() if len(causes) == 1 else "") or verdict


def figure_notes(standard: Standard) -> list[str]:
    """A line for every figure that is one in the course's text and another by its predictions."""
    files = [standard.expected.predictions[file].data_name for file in scored_files(standard)]
    pairs = [name.rpartition("-") for name in dict.fromkeys(files) if standard.gold.get(name)]
    keys = [(option, pair[0], pair[2]) for pair in pairs for option in OUTPUT_ENDINGS]
    return [note for key in keys if (note := two_figures(standard.edition, *key))]


def counts(grade: Grade) -> tuple[int, int]:
    """Errors and warnings."""
    found = Counter(problem.severity for problem in grade.problems)
    return found["error"], found["warning"]


def size_cell(grade: Grade) -> str:
    """Megabytes, "-" for a submission that could not be read."""
    return f"{grade.size / 1e6:.1f} MB" if grade.size else "-"


def addition_cell(grade: Grade) -> str:
    """The best addition model's share of right answers and its parameters, "?" after a share that
    is only claimed, "-" for no model.
    """
    best = next((found for found in grade.experiments if found.is_best), None)
    if best is None or best.known_accuracy is None:
        return "-"
    mark = "?" if best.accuracy is None else ""
    size = f"{best.parameters:,}" if best.parameters else "?"
    return f"{100 * best.known_accuracy:.2f}%{mark} of {size}"


def checks_cell(grade: Grade) -> str:
    """How many of the checks passed, "-" where none was run."""
    passed = sum(check.verdict == "pass" for check in grade.checks)
    return f"{passed} of {len(grade.checks)}" if grade.checks else "-"


def details(grade: Grade, is_alone: bool = False) -> Iterator[tuple[str, str]]:
    """A kind and a line for everything that the table has no room for; with `is_alone` also for
    what equals the reference.
    """
    if grade.refusal is not None:
        yield "refused", grade.refusal
    for problem in grade.problems:
        yield problem.severity, str(problem).removeprefix(f"{problem.severity}: ")
    for agreement in grade.agreements:
        if is_alone or agreement.verdict != "equal":
            yield agreement.verdict, f"{agreement.file}: {agreement.message}"
    for check in grade.checks:
        yield check.verdict, f"{check.name}: {check.message}"
    for remark in grade.remarks:
        yield "remark", remark


def summary(grades: Sequence[Grade]) -> str:
    """How many submissions there are of each status."""
    found = Counter(grade.status for grade in grades)
    parts = (("ok", "without errors"), ("errors", "with errors"), ("refused", "refused"))
    said = ", ".join(f"{words} {found[key]}" for key, words in parts)
    return f"submissions: {len(grades)}; {said}"


# --- terminal ---


def table(grades: Sequence[Grade], standard: Standard) -> str:
    """A line for each submission, then what is to be said of each, then the sum."""
    lines = align(_grid(grades, standard), left=2)
    for grade in grades:
        said = [_line(*pair) for pair in details(grade, len(grades) == 1)]
        if said:
            lines += ["", one_line(grade.name), *said]
    return "\n".join([*lines, "", LEGEND, *figure_notes(standard), summary(grades)])


def _grid(grades: Sequence[Grade], standard: Standard) -> list[list[str]]:
    """Two header rows, the data set above the first of its columns, and a row a submission."""
    files = scored_files(standard)
    pairs = [split_name(file, standard) for file in files]
    more = ["lines", "temp 0"] if standard.references else []
    has_checks = any(grade.checks for grade in grades)
    more += ["addition"] if standard.has_addition else []
    more += ["checks"] if has_checks else []
    groups = [
        data if i == 0 or pairs[i - 1][0] != data else "" for i, (data, _) in enumerate(pairs)
    ]
    above = [*[""] * 5, *groups, *[""] * len(more)]
    below = ["submission", "status", "size", "err", "warn"]
    below += [SHORT.get(method, method) for _, method in pairs]
    rows = [above, below + more]
    for grade in grades:
        cells = {output.file: cell_of(output) for output in grade.outputs}
        row = [one_line(shorten(grade.name, NAME_WIDTH)), grade.status]
        row += [size_cell(grade), *(["-", "-"] if grade.refusal else map(str, counts(grade)))]
        row += [cells.get(file, "-") for file in files]
        row += [text for _, text in agreement_cells(grade)] if standard.references else []
        row += [addition_cell(grade)] if standard.has_addition else []
        row += [checks_cell(grade)] if has_checks else []
        rows.append(row)
    return rows


def _line(kind: str, text: str) -> str:
    return one_line(f"  {kind}: {text}")


# --- CSV and JSON ---


Value = str | float | None


def csv_text(grades: Sequence[Grade], standard: Standard) -> str:
    """A row for each submission. Numbers are numbers; text that would be a formula gets a ' ."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    has_checks = any(grade.checks for grade in grades)
    writer.writerow(_csv_header(standard, has_checks))
    for grade in grades:
        writer.writerow([_cell(value) for value in _csv_row(grade, standard, has_checks)])
    return buffer.getvalue()


def _csv_row(grade: Grade, standard: Standard, has_checks: bool) -> list[Value]:
    outputs = {output.file: output for output in grade.outputs}
    agreements = {agreement.file: agreement for agreement in grade.agreements}
    row: list[Value] = [grade.name, grade.status, grade.refusal, grade.size, *counts(grade)]
    for file in standard.expected.predictions:
        output = outputs.get(file, Output(file, ""))
        row += [output.verdict, output.accuracy, output.macro_f1]
    for file in _compared_files(standard):
        agreement = agreements.get(file)
        if agreement is None:
            row += ["", None, ""]
        else:
            row += [agreement.verdict, agreement.share, agreement.cause]
    row += [addition_cell(grade)] if standard.has_addition else []
    row += [checks_cell(grade)] if has_checks else []
    row.append(" | ".join(f"{kind}: {text}" for kind, text in details(grade)))
    return row


def _csv_header(standard: Standard, has_checks: bool) -> list[str]:
    header = ["submission", "status", "refusal", "bytes", "errors", "warnings"]
    for file in standard.expected.predictions:
        header += [
            f"{'-'.join(split_name(file, standard))} {of}"
            for of in ("verdict", "accuracy", "macro F1")
        ]
    for file in _compared_files(standard):
        header += [f"{file} against reference", f"{file} share equal", f"{file} cause"]
    header += ["addition"] * standard.has_addition
    return [*header, *["checks"] * has_checks, "details"]


def _compared_files(standard: Standard) -> list[str]:
    references = standard.references.values()
    files = [
        file for file in standard.expected.predictions if any(file in r.labels for r in references)
    ]
    return files + ([GREEDY_TEXT] if any(r.text is not None for r in references) else [])


def _cell(value: Value) -> str | float:
    if value is None or value != value:
        return ""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA_STARTS) else text


def json_text(grades: Sequence[Grade], standard: Standard) -> str:
    """Everything that was found, in ASCII."""
    content = {
        "edition": standard.edition,
        "bands": BANDS,
        "references": list(standard.references),
        "submissions": [{"status": grade.status} | asdict(grade) for grade in grades],
    }
    return json.dumps(_finite(content), indent=1) + "\n"


def _finite(value: object) -> object:
    """JSON has no NaN, and a name that is not UTF-8 on disk no code points."""
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
