"""The results of grading as a table for the terminal, as CSV and as JSON.

All student text, names included, is untrusted: the terminal gets printable ASCII only, and
spreadsheets no formulas.
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
from mini_llama.submissions.answer_key import AnswerKey
from mini_llama.submissions.grading import Grade, Output
from mini_llama.submissions.rules import GREEDY_TEXT
from mini_llama.submissions.untrusted_text import one_line, shorten
from mini_llama.tables import align

MARKS = {"below": "-", "above": "+", "no figure": "?"}
LEGEND = (
    "accuracy: - below the edition's band, + above it, ? no figure to compare with, "
    "! one class on every line"
)
SHORT = {"prompting": "prompt", "finetuning": "tune", "lora": "lora"}
VERDICT_ORDER = ("equal", "drift", "differs")
NAME_WIDTH = 24
# OWASP's list of characters that start a formula, and full-width forms that some programs accept.
FORMULA_STARTS = tuple("=+-@\t\r＝＋－＠")


# --- shared by all formats ---


def scored_files(answer_key: AnswerKey) -> list[str]:
    """The files whose labels are not placeholders, in the order of the columns."""
    gold = answer_key.gold
    return [
        name
        for name, file in answer_key.expected.predictions.items()
        if file.data_name not in gold or not is_placeholder(gold[file.data_name])
    ]


def split_name(file: str, answer_key: AnswerKey) -> tuple[str, str]:
    """sst-dev-lora-output.txt → sst-dev, lora."""
    data_name = answer_key.expected.predictions[file].data_name
    return data_name, file.removeprefix(f"{data_name}-").removesuffix("-output.txt")


def accuracy_cell(output: Output) -> str:
    """The accuracy with its marks (LEGEND), or the verdict if there is no accuracy."""
    if output.accuracy is None:
        return output.verdict
    mark = MARKS.get(output.verdict, "") + ("!" if output.one_class else "")
    return f"{output.accuracy:.3f}{mark}"


def agreement_cells(grade: Grade) -> tuple[tuple[str, str], tuple[str, str]]:
    """The worst verdict on the prompting outputs, and the verdict on the text, "-" for none; each
    with the cell's text, which is the cause of the differences if there is a single one.
    """
    text = [a for a in grade.agreements if a.file == GREEDY_TEXT]
    return _worst([a for a in grade.agreements if a.file != GREEDY_TEXT]), _worst(text)


def _worst(agreements: Sequence[Agreement]) -> tuple[str, str]:
    verdict = max((a.verdict for a in agreements), key=VERDICT_ORDER.index, default="-")
    causes = {a.cause for a in agreements if a.verdict == verdict}
    return verdict, (causes.pop() if len(causes) == 1 else "") or verdict


def figure_notes(answer_key: AnswerKey) -> list[str]:
    """A line for each figure whose value in the course's text differs from its predictions'."""
    files = [answer_key.expected.predictions[file].data_name for file in scored_files(answer_key)]
    pairs = [name.rpartition("-") for name in dict.fromkeys(files) if answer_key.gold.get(name)]
    keys = [(option, pair[0], pair[2]) for pair in pairs for option in OUTPUT_ENDINGS]
    return [note for key in keys if (note := two_figures(answer_key.edition, *key))]


def counts(grade: Grade) -> tuple[int, int]:
    """The numbers of errors and of warnings."""
    found = Counter(problem.severity for problem in grade.problems)
    return found["error"], found["warning"]


def size_cell(grade: Grade) -> str:
    """The size in megabytes, "-" for a submission that could not be read."""
    return f"{grade.size / 1e6:.1f} MB" if grade.size else "-"


def addition_cell(grade: Grade) -> str:
    """Accuracy and parameters of the best addition model, "?" after an accuracy that is only
    claimed, "-" if there is no model.
    """
    best = next((found for found in grade.experiments if found.is_best), None)
    if best is None or best.known_accuracy is None:
        return "-"
    mark = "?" if best.accuracy is None else ""
    size = f"{best.parameters:,}" if best.parameters else "?"
    return f"{100 * best.known_accuracy:.2f}%{mark} of {size}"


def checks_cell(grade: Grade) -> str:
    """How many of the checks passed, "-" if none was run."""
    passed = sum(check.verdict == "pass" for check in grade.checks)
    return f"{passed} of {len(grade.checks)}" if grade.checks else "-"


def details(grade: Grade, is_alone: bool = False) -> Iterator[tuple[str, str]]:
    """All findings, each a kind and a line; equal outputs are listed only with `is_alone`."""
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
    by_status = ", ".join(f"{words} {found[key]}" for key, words in parts)
    return f"submissions: {len(grades)}; {by_status}"


# --- terminal ---


def table(grades: Sequence[Grade], answer_key: AnswerKey) -> str:
    """A row for each submission, then the findings on each, then the totals."""
    lines = align(_grid(grades, answer_key), left=2)
    for grade in grades:
        findings = [_line(*pair) for pair in details(grade, len(grades) == 1)]
        if findings:
            lines += ["", one_line(grade.name), *findings]
    return "\n".join([*lines, "", LEGEND, *figure_notes(answer_key), summary(grades)])


def _grid(grades: Sequence[Grade], answer_key: AnswerKey) -> list[list[str]]:
    """Two header rows, the data sets above their first column, and a row for each submission."""
    files = scored_files(answer_key)
    pairs = [split_name(file, answer_key) for file in files]
    more = ["lines", "temp 0"] if answer_key.references else []
    has_checks = any(grade.checks for grade in grades)
    more += ["addition"] if answer_key.has_addition else []
    more += ["checks"] if has_checks else []
    groups = [
        data if i == 0 or pairs[i - 1][0] != data else "" for i, (data, _) in enumerate(pairs)
    ]
    above = [*[""] * 5, *groups, *[""] * len(more)]
    below = ["submission", "status", "size", "err", "warn"]
    below += [SHORT.get(method, method) for _, method in pairs]
    rows = [above, below + more]
    for grade in grades:
        cells = {output.file: accuracy_cell(output) for output in grade.outputs}
        row = [one_line(shorten(grade.name, NAME_WIDTH)), grade.status]
        row += [size_cell(grade), *(["-", "-"] if grade.refusal else map(str, counts(grade)))]
        row += [cells.get(file, "-") for file in files]
        row += [text for _, text in agreement_cells(grade)] if answer_key.references else []
        row += [addition_cell(grade)] if answer_key.has_addition else []
        row += [checks_cell(grade)] if has_checks else []
        rows.append(row)
    return rows


def _line(kind: str, text: str) -> str:
    return one_line(f"  {kind}: {text}")


# --- CSV and JSON ---


Value = str | float | None


def csv_text(grades: Sequence[Grade], answer_key: AnswerKey) -> str:
    """A row for each submission; text that would be a formula is prefixed with a '."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    has_checks = any(grade.checks for grade in grades)
    writer.writerow(_csv_header(answer_key, has_checks))
    for grade in grades:
        writer.writerow([_cell(value) for value in _csv_row(grade, answer_key, has_checks)])
    return buffer.getvalue()


def _csv_row(grade: Grade, answer_key: AnswerKey, has_checks: bool) -> list[Value]:
    outputs = {output.file: output for output in grade.outputs}
    agreements = {agreement.file: agreement for agreement in grade.agreements}
    row: list[Value] = [grade.name, grade.status, grade.refusal, grade.size, *counts(grade)]
    for file in answer_key.expected.predictions:
        output = outputs.get(file, Output(file, ""))
        row += [output.verdict, output.accuracy, output.macro_f1]
    for file in _compared_files(answer_key):
        agreement = agreements.get(file)
        if agreement is None:
            row += ["", None, ""]
        else:
            row += [agreement.verdict, agreement.share, agreement.cause]
    row += [addition_cell(grade)] if answer_key.has_addition else []
    row += [checks_cell(grade)] if has_checks else []
    row.append(" | ".join(f"{kind}: {text}" for kind, text in details(grade)))
    return row


def _csv_header(answer_key: AnswerKey, has_checks: bool) -> list[str]:
    header = ["submission", "status", "refusal", "bytes", "errors", "warnings"]
    for file in answer_key.expected.predictions:
        header += [
            f"{'-'.join(split_name(file, answer_key))} {value}"
            for value in ("verdict", "accuracy", "macro F1")
        ]
    for file in _compared_files(answer_key):
        header += [f"{file} against reference", f"{file} share equal", f"{file} cause"]
    header += ["addition"] * answer_key.has_addition
    return [*header, *["checks"] * has_checks, "details"]


def _compared_files(answer_key: AnswerKey) -> list[str]:
    references = answer_key.references.values()
    files = [
        file
        for file in answer_key.expected.predictions
        if any(file in r.labels for r in references)
    ]
    return files + ([GREEDY_TEXT] if any(r.text is not None for r in references) else [])


def _cell(value: Value) -> str | float:
    if value is None or value != value:
        return ""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA_STARTS) else text


def json_text(grades: Sequence[Grade], answer_key: AnswerKey) -> str:
    """All findings, in ASCII."""
    content = {
        "edition": answer_key.edition,
        "bands": BANDS,
        "references": list(answer_key.references),
        "submissions": [{"status": grade.status} | asdict(grade) for grade in grades],
    }
    return json.dumps(_plain_json(content), indent=1) + "\n"


def _plain_json(value: object) -> object:
    """Replace what JSON cannot hold: NaN, and names that are not UTF-8 on disk."""
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {key: _plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json(item) for item in value]
    return value
