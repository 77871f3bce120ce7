"""Grade submissions: their outputs against gold labels, reference figures and reference outputs.

Nothing is written, and nothing of what was handed in is run unless a plan says how
(student_code.py).
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from config import EDITIONS
from mini_llama.assignment.agreement import Agreement
from mini_llama.assignment.figures import MEASURED, REFERENCE, is_placeholder, verdict
from mini_llama.assignment.options import OUTPUT_ENDINGS
from mini_llama.submissions.addition import Experiment
from mini_llama.submissions.agreement import compare_all
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
# The fewest of these for each line outside the commonest class, 812 in SST dev's labels: the lines
# that two runs are expected to differ in for each such line of their predictions.
DIFFERENT_PER_MINORITY = 83 / 812
RARE = 7.0  # e^-7: runs that are expected to differ in 7 lines are equal once in a thousand times
MAX_PROBLEMS = 50  # of one submission; a zip can have a thousand


@dataclass(frozen=True)
class Output:
    """One prediction file. `verdict`: "within", "below", "above", "no figure" (to compare with),
    "placeholder" (labels, never scored), "no gold" (labels here), "missing" or "faulty".

    `figure` is the mean that the band is around, `measured` what independent runs give where that
    is another; `minority` counts the lines outside the commonest class, and files of one `digest`
    have equal predictions.
    """

    file: str
    verdict: str
    accuracy: float | None = None
    macro_f1: float | None = None
    figure: float | None = None
    measured: float | None = None
    one_class: bool = False
    minority: int = 0
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
    experiments: tuple[Experiment, ...] = ()

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
    experiments = tuple(checked.addition.experiments.values()) if checked.addition else ()
    return Grade(name, size, None, tuple(problems), outputs, agreements, (), remarks, experiments)


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
    minority = len(labels) - max(Counter(labels).values())
    output = Output(file, "no gold", one_class=not minority, minority=minority, digest=digest)
    gold = standard.gold.get(known.data_name)
    if gold is None:
        return output
    if is_placeholder(gold):
        return replace(output, verdict="placeholder")
    from sklearn.metrics import f1_score  # a second of import time, needed only here

    accuracy = sum(a == b for a, b in zip(labels, gold, strict=True)) / len(gold)
    macro_f1 = float(f1_score(gold, labels, average="macro", zero_division=0))
    method = file.removeprefix(f"{known.data_name}-").removesuffix("-output.txt")
    figure, measured = find_figures(standard.edition, known.data_name, method)
    outcome = "no figure"
    if figure is not None:
        outcome = verdict(accuracy, figure, known.data_name.rpartition("-")[0])
    scored = replace(output, accuracy=accuracy, macro_f1=macro_f1)
    return replace(scored, verdict=outcome, figure=figure, measured=measured)


def find_figures(edition: str, data_name: str, method: str) -> tuple[float | None, float | None]:
    """The courses' mean accuracy, and what independent runs give where that is another; by the
    parts of a prediction file's name.
    """
    dataset, _, split = data_name.rpartition("-")
    option = next((name for name, ending in OUTPUT_ENDINGS.items() if ending == method), method)
    key = (edition, option, dataset, split)
    return REFERENCE.get(key, (None, None))[0], MEASURED.get(key)


def _check_prompt(text: str, standard: Standard) -> list[str]:
    if text.startswith(EDITIONS[standard.edition].prompt_text):
        return []
    others = [name for name, e in EDITIONS.items() if text.startswith(e.prompt_text)]
    if not others:
        return []
    return [f"{GREEDY_TEXT} starts with the prompt of {', '.join(others)}, not {standard.edition}"]


def mark_equal_outputs(grades: Sequence[Grade]) -> list[Grade]:
    """The grades, with a remark where two submissions have identical trained outputs that hardly
    come about by chance: training often ends near one class, and then unrelated runs are equal.
    """
    owners: dict[tuple[str, str], list[str]] = defaultdict(list)
    for grade in grades:
        for output in grade.outputs:
            if output.digest and "-prompting-" not in output.file and is_telling(output):
                owners[output.file, output.digest].append(grade.name)
    shared: dict[str, dict[tuple[str, ...], list[str]]] = defaultdict(lambda: defaultdict(list))
    for (file, _), names in owners.items():
        for name in names:
            if others := tuple(other for other in names if other != name):
                shared[name][others].append(file)
    return [
        replace(grade, remarks=(*grade.remarks, *_equal_remarks(shared[grade.name], grade.outputs)))
        for grade in grades
    ]


def is_telling(output: Output) -> bool:
    """Whether independent runs would hardly give these predictions twice."""
    return output.minority * DIFFERENT_PER_MINORITY >= RARE


def _equal_remarks(
    shared: Mapping[tuple[str, ...], Sequence[str]], outputs: Sequence[Output]
) -> Iterator[str]:
    minority = {output.file: output.minority for output in outputs}
    for others, files in shared.items():
        what = f"the same trained predictions as {listed(others)} in {_files(files)}"
        if any(file.startswith("sst-") for file in files):
            why = INDEPENDENT_RUNS
        else:
            least = min(minority[file] for file in files)
            why = f"{least} lines or more are outside the commonest class, too many for chance"
        yield f"{what}: {why}, but the same code and seed on like machines give equal ones"


def _files(files: Sequence[str]) -> str:
    names = ", ".join(file.removesuffix("-output.txt") for file in files)
    return f"{len(files)} file{'s' * (len(files) > 1)} ({names})"
