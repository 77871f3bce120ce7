"""Grade submissions by gold labels, reference figures and reference outputs.

Nothing is written, and submitted code is run only with a RunPlan (student_code.py).
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from config import EDITIONS
from mini_llama.assignment.agreement import Agreement
from mini_llama.assignment.figures import MEASURED, REFERENCE, is_placeholder, verdict
from mini_llama.assignment.options import OUTPUT_ENDINGS
from mini_llama.submissions.addition import Experiment
from mini_llama.submissions.agreement import compare_with_references
from mini_llama.submissions.answer_key import AnswerKey, normal_text
from mini_llama.submissions.archive import (
    Problem,
    Submission,
    has_errors,
)
from mini_llama.submissions.examining import NOT_EXAMINED, Examination
from mini_llama.submissions.finding import Part, Source
from mini_llama.submissions.reading import read_source
from mini_llama.submissions.rules import GREEDY_TEXT, check_submission
from mini_llama.submissions.student_code import Check, RunPlan, run_checks
from mini_llama.submissions.untrusted_text import one_line, quoted_list, shorten

INDEPENDENT_RUNS = "independent runs differ in 83 to 391 of 1,101 lines"
# Two runs differ in at least 83 lines of SST dev, where 812 labels are outside the most common
# class: the differences to expect for each prediction outside that class.
DIFFERENT_PER_MINORITY = 83 / 812
# With 7 differences expected, two runs are equal with probability e^-7, once in a thousand times.
MIN_EXPECTED_DIFFERENCES = 7.0
LATE = "handed in late, says the file's name"
MAX_PROBLEMS = 50  # of one submission; a zip can have a thousand


@dataclass(frozen=True)
class Output:
    """The grade of one prediction file. `verdict`: "within", "below" or "above" the band, "no
    figure" to compare with, "placeholder" labels (never scored), "no gold" labels, "missing" or
    "faulty".

    `figure` is the center of the band, `measured` the accuracy of independent runs if it differs.
    `minority` counts the lines outside the most common class; files with the same `digest` have
    equal predictions.
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
class Points:
    """What a rubric gives for one thing: `awarded` of the `possible` points."""

    name: str
    awarded: float
    possible: float


@dataclass(frozen=True)
class Grade:
    """The findings on one submission; `refusal` is the reason if it could not be graded.

    `remarks` are its own; `shared` are those that name other submissions. `missing` are the
    required files that are not there.
    """

    name: str
    size: int = 0
    refusal: str | None = None
    problems: tuple[Problem, ...] = ()
    outputs: tuple[Output, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    checks: tuple[Check, ...] = ()
    remarks: tuple[str, ...] = ()
    experiments: tuple[Experiment, ...] = ()
    shared: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    examination: Examination = NOT_EXAMINED
    points: tuple[Points, ...] = ()

    @property
    def status(self) -> str:
        if self.refusal is not None:
            return "refused"
        return "errors" if has_errors(self.problems) else "ok"


def grade_submission(
    source: Source, name: str, answer_key: AnswerKey, plan: RunPlan | None = None
) -> Grade:
    """Grade a submission; with a `plan`, also run its code. Never raises."""
    path = source.path if isinstance(source, Part) else source
    try:
        submission = read_source(source)
        size = submission.size or sum(map(len, submission.files.values()))
        if refusal := find_refusal(submission):
            return Grade(name, size, refusal)
        grade = grade_files(submission, name, size, answer_key)
        if isinstance(source, Part) and source.is_late:
            grade = replace(grade, remarks=(*grade.remarks, LATE))
        return replace(grade, checks=run_checks(submission, plan)) if plan else grade
    except Exception as error:  # one bad submission must not stop the class
        message = f"{type(error).__name__}: {error}".replace(f"{path.parent}{os.sep}", "")
        return Grade(name, refusal=one_line(shorten(f"cannot be graded: {message}", 300)))


def find_refusal(submission: Submission) -> str | None:
    """Why a submission cannot be graded, None if it can."""
    faults = [problem for problem in submission.problems if problem.is_fatal]
    if not faults and not submission.names:
        return "holds no files"
    if not faults:
        return None
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return one_line(f"{shorten(faults[0].where)}: {faults[0].message}{more}")


def grade_files(submission: Submission, name: str, size: int, answer_key: AnswerKey) -> Grade:
    """Grade the files of a submission, without running its code."""
    checked = check_submission(submission, submission.top, answer_key.expected)
    problems = checked.problems
    if len(problems) > MAX_PROBLEMS:
        more = f"{len(problems) - MAX_PROBLEMS} more problems are left out"
        problems = [*problems[:MAX_PROBLEMS], Problem("warning", "zip", more)]
    outputs = tuple(
        grade_output(file, file in submission.names, checked.labels.get(file), answer_key)
        for file in answer_key.expected.predictions
    )
    text = read_text(submission)
    agreements = tuple(compare_with_references(checked.comparable, text, answer_key))
    remarks = tuple(_check_prompt(text, answer_key))
    experiments = tuple(checked.addition.experiments.values()) if checked.addition else ()
    missing = tuple(n for n in answer_key.expected.names if n not in submission.names)
    return Grade(
        name,
        size,
        problems=tuple(problems),
        outputs=outputs,
        agreements=agreements,
        remarks=remarks,
        experiments=experiments,
        missing=missing,
    )


def read_text(submission: Submission) -> str:
    """The text at temperature 0, or "" if it is missing or not UTF-8."""
    try:
        return normal_text(submission.files.get(GREEDY_TEXT, b""))
    except ValueError:
        return ""


def grade_output(
    file: str, is_there: bool, labels: Sequence[int] | None, answer_key: AnswerKey
) -> Output:
    """Grade one prediction file; `labels` is None if it is missing or faulty."""
    if labels is None:
        return Output(file, "faulty" if is_there else "missing")
    known = answer_key.expected.predictions[file]
    digest = hashlib.sha256(bytes(labels)).hexdigest()
    minority = len(labels) - max(Counter(labels).values())
    output = Output(file, "no gold", one_class=not minority, minority=minority, digest=digest)
    gold = answer_key.gold.get(known.data_name)
    if gold is None:
        return output
    if is_placeholder(gold):
        return replace(output, verdict="placeholder")
    from sklearn.metrics import f1_score  # takes a second to import

    accuracy = sum(a == b for a, b in zip(labels, gold, strict=True)) / len(gold)
    macro_f1 = float(f1_score(gold, labels, average="macro", zero_division=0))
    method = file.removeprefix(f"{known.data_name}-").removesuffix("-output.txt")
    figure, measured = find_figures(answer_key.edition, known.data_name, method)
    outcome = "no figure"
    if figure is not None:
        outcome = verdict(accuracy, figure, known.data_name.rpartition("-")[0])
    scored = replace(output, accuracy=accuracy, macro_f1=macro_f1)
    return replace(scored, verdict=outcome, figure=figure, measured=measured)


def find_figures(edition: str, data_name: str, method: str) -> tuple[float | None, float | None]:
    """The courses' mean accuracy for a prediction file, and that of independent runs if it differs,
    by the parts of the file's name.
    """
    dataset, _, split = data_name.rpartition("-")
    option = next((name for name, ending in OUTPUT_ENDINGS.items() if ending == method), method)
    key = (edition, option, dataset, split)
    return REFERENCE.get(key, (None, None))[0], MEASURED.get(key)


def _check_prompt(text: str, answer_key: AnswerKey) -> list[str]:
    if text.startswith(EDITIONS[answer_key.edition].prompt_text):
        return []
    others = [name for name, e in EDITIONS.items() if text.startswith(e.prompt_text)]
    if not others:
        return []
    return [
        f"{GREEDY_TEXT} starts with the prompt of {', '.join(others)}, not {answer_key.edition}"
    ]


def flag_identical_outputs(grades: Sequence[Grade]) -> list[Grade]:
    """Add a remark to submissions with identical trained outputs, unless chance explains them:
    training often ends near one class, and then unrelated runs give equal outputs.
    """
    owners: dict[tuple[str, str], list[str]] = defaultdict(list)
    for grade in grades:
        for output in grade.outputs:
            if output.digest and "-prompting-" not in output.file and is_distinctive(output):
                owners[output.file, output.digest].append(grade.name)
    shared: dict[str, dict[tuple[str, ...], list[str]]] = defaultdict(lambda: defaultdict(list))
    for (file, _), names in owners.items():
        for name in names:
            if others := tuple(other for other in names if other != name):
                shared[name][others].append(file)
    return [
        replace(grade, shared=tuple(_identical_remarks(shared[grade.name], grade.outputs)))
        for grade in grades
    ]


def is_distinctive(output: Output) -> bool:
    """Whether two independent runs are unlikely to give these same predictions."""
    return output.minority * DIFFERENT_PER_MINORITY >= MIN_EXPECTED_DIFFERENCES


def _identical_remarks(
    shared: Mapping[tuple[str, ...], Sequence[str]], outputs: Sequence[Output]
) -> Iterator[str]:
    minority = {output.file: output.minority for output in outputs}
    for others, files in shared.items():
        message = f"the same trained predictions as {quoted_list(others)} in {_files(files)}"
        if any(file.startswith("sst-") for file in files):
            why = INDEPENDENT_RUNS
        else:
            least = min(minority[file] for file in files)
            why = f"at least {least} lines are outside the most common class, too many for chance"
        yield f"{message}: {why}, but the same code and seed on similar machines give equal outputs"


def _files(files: Sequence[str]) -> str:
    names = ", ".join(file.removesuffix("-output.txt") for file in files)
    return f"{len(files)} file{'s' * (len(files) > 1)} ({names})"
