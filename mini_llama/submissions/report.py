"""The results of grading in the words that all reports share, and as CSV and JSON.

All student text, names included, is untrusted: spreadsheets get no formulas.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from mini_llama.assignment.agreement import Agreement
from mini_llama.assignment.figures import BANDS, is_placeholder, two_figures
from mini_llama.assignment.options import OUTPUT_ENDINGS
from mini_llama.command_line import visible
from mini_llama.submissions.answer_key import AnswerKey
from mini_llama.submissions.examining import NOT_EXAMINED
from mini_llama.submissions.grading import Grade, Output, Points
from mini_llama.submissions.rules import GREEDY_TEXT

MARKS = {"below": "-", "above": "+", "no figure": "?"}
LEGEND = (
    "accuracy: - below the edition's band, + above it, ? no figure to compare with, "
    "! one class on every line"
)
SHORT = {"prompting": "prompt", "finetuning": "tune", "lora": "lora"}
SHORT_CHECKS = {"rope_test": "rope", "optimizer_test": "optimizer", "sanity_check": "sanity"}
VERDICT_ORDER = ("equal", "drift", "differs")
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
    """How many of the checks passed, and the names of the others; "-" if none was run."""
    if not grade.checks:
        return "-"
    failed = [check.name for check in grade.checks if check.verdict != "pass"]
    count = f"{len(grade.checks) - len(failed)} of {len(grade.checks)}"
    names = ", ".join(SHORT_CHECKS.get(name, name) for name in failed)
    return f"{count}: {names}" if failed else count


def diagnosis_cell(grade: Grade) -> str:
    """The components that diagnose.py finds wrong, "-" if nothing was examined."""
    if not grade.examination.verdicts:
        return "-"
    wrong = [v.component for v in grade.examination.verdicts if not v.is_accepted]
    return f"{len(wrong)} wrong: {', '.join(wrong)}" if wrong else "all right"


def points_cell(grade: Grade) -> str:
    """The sum of the points, "7.5 of 10"."""
    awarded, possible = total(grade)
    return f"{awarded:.10g} of {possible:.10g}"


def total(grade: Grade) -> tuple[float, float]:
    """The points awarded and the points possible."""
    return sum(p.awarded for p in grade.points), sum(p.possible for p in grade.points)


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
    if grade.examination.refusal:
        yield "error", f"diagnosis: {grade.examination.refusal}"
    for found in grade.examination.verdicts:
        if not found.is_correct:
            yield "remark" if found.is_accepted else "wrong", str(found)
    for remark in (*grade.remarks, *grade.shared):
        yield "remark", remark


def own_details(grade: Grade) -> Iterator[tuple[str, str]]:
    """All findings that name no other submission."""
    yield from details(replace(grade, shared=()), is_alone=True)


def summary(grades: Sequence[Grade]) -> str:
    """How many submissions there are of each status."""
    found = Counter(grade.status for grade in grades)
    parts = (("ok", "without errors"), ("errors", "with errors"), ("refused", "refused"))
    by_status = ", ".join(f"{words} {found[key]}" for key, words in parts)
    return f"submissions: {len(grades)}; {by_status}"


# --- CSV and JSON ---


Value = str | float | None


@dataclass(frozen=True)
class Extras:
    """The columns that only some reports have."""

    addition: bool
    checks: bool
    diagnosis: bool
    points: tuple[Points, ...]


def extras(grades: Sequence[Grade], answer_key: AnswerKey) -> Extras:
    return Extras(
        answer_key.has_addition,
        any(grade.checks for grade in grades),
        any(grade.examination != NOT_EXAMINED for grade in grades),
        next((grade.points for grade in grades if grade.points), ()),
    )


def csv_text(grades: Sequence[Grade], answer_key: AnswerKey) -> str:
    """A row for each submission; text that would be a formula is prefixed with a '."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    more = extras(grades, answer_key)
    writer.writerow(_csv_header(answer_key, more))
    for grade in grades:
        writer.writerow([_cell(value) for value in _csv_row(grade, answer_key, more)])
    return buffer.getvalue()


def _csv_row(grade: Grade, answer_key: AnswerKey, more: Extras) -> list[Value]:
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
    row += [addition_cell(grade)] if more.addition else []
    row += [checks_cell(grade)] if more.checks else []
    row += [diagnosis_cell(grade)] if more.diagnosis else []
    if more.points:
        row += [*total(grade), *(points.awarded for points in grade.points)]
    row.append(" | ".join(f"{kind}: {text}" for kind, text in details(grade)))
    return row


def _csv_header(answer_key: AnswerKey, more: Extras) -> list[str]:
    header = ["submission", "status", "refusal", "bytes", "errors", "warnings"]
    for file in answer_key.expected.predictions:
        header += [
            f"{'-'.join(split_name(file, answer_key))} {value}"
            for value in ("verdict", "accuracy", "macro F1")
        ]
    for file in _compared_files(answer_key):
        header += [f"{file} against reference", f"{file} share equal", f"{file} cause"]
    header += ["addition"] * more.addition + ["checks"] * more.checks
    header += ["diagnosis"] * more.diagnosis
    if more.points:
        header += ["points", "points possible"]
        header += [f"{points.name} (of {points.possible:.10g})" for points in more.points]
    return [*header, "details"]


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
        "submissions": [_as_dict(grade) for grade in grades],
    }
    return json.dumps(_plain_json(content), indent=1) + "\n"


def _as_dict(grade: Grade) -> dict[str, object]:
    """Without what only some options give where they are not used."""
    content = {"status": grade.status} | asdict(grade)
    content["remarks"] = [*grade.remarks, *content.pop("shared")]
    if grade.examination == NOT_EXAMINED:
        del content["examination"]
    if not grade.points:
        del content["points"]
    return content


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
