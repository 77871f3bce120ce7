"""Grade submissions: their outputs against gold labels, reference figures and reference outputs.

Nothing is written, and nothing of what was handed in is run unless a plan says how
(student_code.py).
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from config import EDITIONS
from mini_llama.assignment.figures import REFERENCE, is_placeholder, verdict
from mini_llama.assignment.options import OUTPUT_ENDINGS
from mini_llama.submissions.agreement import Agreement, compare_all
from mini_llama.submissions.archive import (
    Problem,
    Submission,
    has_errors,
    read_folder,
    read_submission,
)
from mini_llama.submissions.rules import GREEDY_TEXT, check_submission
from mini_llama.submissions.standard import Standard, normal_text
from mini_llama.submissions.student_code import Check, RunPlan, run_checks
from mini_llama.submissions.untrusted_text import listed, one_line, shorten

INDEPENDENT_RUNS = "independent runs differ in 83 to 391 of 1,101 lines"
MAX_PROBLEMS = 50  # of one submission; a zip can have a thousand


@dataclass(frozen=True)
class Output:
    """One prediction file. `verdict`: "within", "below", "above", "no figure" (to compare with),
    "placeholder" (labels, never scored), "no gold" (labels here), "missing" or "faulty".

    `figure` is the mean that the band is around; files of one `digest` have equal predictions.
    """

    file: str
    verdict: str
    accuracy: float | None = None
    macro_f1: float | None = None
    figure: float | None = None
    one_class: bool = False
    digest: str | None = None


@dataclass(frozen=True)
class Grade:
    """What there is to say of one submission; if `refusal` says why not, nothing else is."""

    name: str
    size: int = 0
    refusal: str | None = None
    problems: tuple[Problem, ...] = ()
    outputs: tuple[Output, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    checks: tuple[Check, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        if self.refusal is not None:
            return "refused"
        return "errors" if has_errors(self.problems) else "ok"


def grade_submission(
    path: Path, name: str, standard: Standard, plan: RunPlan | None = None
) -> Grade:
    """Grade a zip or a folder; with `plan` its code is run as well. Never raises."""
    try:
        submission = read_folder(path) if path.is_dir() else read_submission(path)
        size = path.stat().st_size if path.is_file() else sum(map(len, submission.files.values()))
        if refusal := _refusal(submission):
            return Grade(name, size, refusal)
        grade = grade_files(submission, name, size, standard)
        return replace(grade, checks=run_checks(submission, plan)) if plan else grade
    except Exception as error:  # whatever one submission brings about, the class goes on
        what = f"{type(error).__name__}: {error}"
        return Grade(name, refusal=one_line(shorten(f"cannot be graded: {what}", 300)))


def _refusal(submission: Submission) -> str | None:
    faults = [problem for problem in submission.problems if problem.is_fatal]
    if not faults and not submission.names:
        return "holds no files"
    if not faults:
        return None
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return one_line(f"{shorten(faults[0].where)}: {faults[0].message}{more}")


def grade_files(submission: Submission, name: str, size: int, standard: Standard) -> Grade:
    """The part of `grade_submission` that is about what a submission holds."""
    checked = check_submission(submission, submission.top, standard.expected)
    problems = checked.problems
    if len(problems) > MAX_PROBLEMS:
        more = f"{len(problems) - MAX_PROBLEMS} more problems are left out"
        problems = [*problems[:MAX_PROBLEMS], Problem("warning", "zip", more)]
    outputs = tuple(
        grade_output(file, file in submission.names, checked.labels.get(file), standard)
        for file in standard.expected.predictions
    )
    text = read_text(submission)
    agreements = tuple(compare_all(checked.comparable, text, standard))
    remarks = tuple(_check_prompt(text, standard))
    return Grade(name, size, None, tuple(problems), outputs, agreements, (), remarks)


def read_text(submission: Submission) -> str:
    """The text at temperature 0, empty if it is missing or faulty."""
    try:
        return normal_text(submission.files.get(GREEDY_TEXT, b""))
    except ValueError:
        return ""


def grade_output(
    file: str, is_there: bool, labels: Sequence[int] | None, standard: Standard
) -> Output:
    """`labels` are None for a file that is missing or faulty."""
    if labels is None:
        return Output(file, "faulty" if is_there else "missing")
    known = standard.expected.predictions[file]
    digest = hashlib.sha256(bytes(labels)).hexdigest()
    output = Output(file, "no gold", one_class=len(set(labels)) == 1, digest=digest)
    gold = standard.gold.get(known.data_name)
    if gold is None:
        return output
    if is_placeholder(gold):
        return replace(output, verdict="placeholder")
    from sklearn.metrics import f1_score  # a second of import time, needed only here

    accuracy = sum(a == b for a, b in zip(labels, gold, strict=True)) / len(gold)
    macro_f1 = float(f1_score(gold, labels, average="macro", zero_division=0))
    method = file.removeprefix(f"{known.data_name}-").removesuffix("-output.txt")
    figure = find_figure(standard.edition, known.data_name, method)
    outcome = "no figure"
    if figure is not None:
        outcome = verdict(accuracy, figure, known.data_name.rpartition("-")[0])
    return replace(output, verdict=outcome, accuracy=accuracy, macro_f1=macro_f1, figure=figure)


def find_figure(edition: str, data_name: str, method: str) -> float | None:
    """The courses' mean accuracy, by the parts of a prediction file's name."""
    dataset, _, split = data_name.rpartition("-")
    option = next((name for name, ending in OUTPUT_ENDINGS.items() if ending == method), method)
    return REFERENCE.get((edition, option, dataset, split), (None, None))[0]


def _check_prompt(text: str, standard: Standard) -> list[str]:
    if text.startswith(EDITIONS[standard.edition].prompt_text):
        return []
    others = [name for name, e in EDITIONS.items() if text.startswith(e.prompt_text)]
    if not others:
        return []
    return [f"{GREEDY_TEXT} starts with the prompt of {', '.join(others)}, not {standard.edition}"]


def mark_equal_outputs(grades: Sequence[Grade]) -> list[Grade]:
    """The grades, with a remark where two submissions have identical trained outputs, unless all
    their lines are of one class.
    """
    owners: dict[tuple[str, str], list[str]] = defaultdict(list)
    for grade in grades:
        for output in grade.outputs:
            if output.digest and not output.one_class and "-prompting-" not in output.file:
                owners[output.file, output.digest].append(grade.name)
    shared: dict[str, dict[tuple[str, ...], list[str]]] = defaultdict(lambda: defaultdict(list))
    for (file, _), names in owners.items():
        for name in names:
            if others := tuple(other for other in names if other != name):
                shared[name][others].append(file)
    return [
        replace(grade, remarks=(*grade.remarks, *_equal_remarks(shared[grade.name])))
        for grade in grades
    ]


def _equal_remarks(shared: Mapping[tuple[str, ...], Sequence[str]]) -> list[str]:
    return [
        f"the same trained predictions as {listed(others)} in {_files(files)}: {INDEPENDENT_RUNS}, "
        "but the same seed on like machines gives equal ones"
        for others, files in shared.items()
    ]


def _files(files: Sequence[str]) -> str:
    names = ", ".join(file.removesuffix("-output.txt") for file in files)
    return f"{len(files)} file{'s' * (len(files) > 1)} ({names})"
