"""Grade a class's submissions in parallel and write the results."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mini_llama.bounds import UsageError
from mini_llama.diagnosis.limits import SECONDS
from mini_llama.submissions.answer_key import AnswerKey, read_answer_key
from mini_llama.submissions.feedback import FeedbackFolder
from mini_llama.submissions.finding import Source, find_submissions
from mini_llama.submissions.grading import (
    Grade,
    flag_identical_outputs,
    grade_submission,
)
from mini_llama.submissions.options import GradeOptions
from mini_llama.submissions.reading import read_source
from mini_llama.submissions.report import csv_text, json_text
from mini_llama.submissions.rubric import Rubric, award, read_rubric
from mini_llama.submissions.student_code import RunPlan, make_plan
from mini_llama.submissions.terminal import screen_of_output, table

BYTE_ORDER_MARK = "\ufeff"  # Excel takes a CSV file without one for the system's old code page


# --- grading a class ---


def grade_class(
    submissions: Mapping[str, Source],
    answer_key: AnswerKey,
    plan: RunPlan | None = None,
    jobs: int | None = None,
) -> list[Grade]:
    """Grade all submissions in `jobs` processes, in the order given.

    With None, the surrounding joblib.parallel_config decides, including a cluster's backend.
    """
    from concurrent.futures.process import BrokenProcessPool

    from joblib import Parallel, delayed  # scikit-learn brings it

    work = [delayed(grade_submission)(p, name, answer_key, plan) for name, p in submissions.items()]
    try:
        grades = Parallel(n_jobs=jobs)(work)
    except BrokenProcessPool:  # one submission crashed its process: find out which
        grades = [_grade_alone(one, name) for one, name in zip(work, submissions, strict=True)]
    return flag_identical_outputs(grades)


def _grade_alone(work: tuple, name: str) -> Grade:
    """Grade one submission in a process of its own."""
    from concurrent.futures.process import BrokenProcessPool

    from joblib import Parallel

    try:
        return Parallel(n_jobs=2)([work])[0]
    except BrokenProcessPool:
        return Grade(name, refusal="cannot be graded: it crashed the process that read it")


def diagnose_class(
    grades: Sequence[Grade],
    submissions: Mapping[str, Source],
    edition: str,
    seconds: float,
    jobs: int | None = None,
) -> list[Grade]:
    """Add what diagnose.py finds in each submission that could be graded."""
    from mini_llama.submissions.examining import examine

    found = list(grades)
    places = [i for i, grade in enumerate(grades) if grade.refusal is None]
    read = (read_source(submissions[grades[i].name]) for i in places)
    for i, examination in zip(places, examine(read, edition, seconds, jobs), strict=True):
        found[i] = replace(found[i], examination=examination)
    return found


# --- the command ---


def grade_paths(paths: Sequence[Path], options: GradeOptions) -> int:
    """Grade what is at these paths, print the table and write the results; the exit status is 1 if
    a submission was refused.

    Raises ValueError or OSError for data or files that cannot be used, UsageError for a rubric
    that needs another option.
    """
    from utils import check_outputs  # imports numpy

    check_outputs(options.result_files, paths, options.overwrite)
    submissions = find_submissions(paths)
    answer_key = read_answer_key(options.edition, options.data, options.reference)
    rubric = read_rubric(options.rubric, answer_key) if options.rubric else None
    if rubric:
        check_needs(rubric, options)
    feedback = FeedbackFolder(options.feedback, options.overwrite) if options.feedback else None
    if feedback:
        feedback.check(submissions, paths)
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(options.edition, options.limits, Path(folder)) if options.run else None
        grades = grade_class(submissions, answer_key, plan, options.jobs)
    if options.diagnose:
        seconds, jobs = min(options.seconds, SECONDS), options.jobs
        grades = diagnose_class(grades, submissions, options.edition, seconds, jobs)
    if rubric:
        grades = [replace(grade, points=award(rubric, grade)) for grade in grades]
    print(table(grades, answer_key, screen_of_output()), flush=True)
    title = f"Grades: {', '.join(path.name or str(path) for path in paths[:3])}"
    write_results(options, grades, answer_key, title)
    if feedback:
        feedback.write(grades, answer_key)
    return int(any(grade.refusal is not None for grade in grades))


def check_needs(rubric: Rubric, options: GradeOptions) -> None:
    """Raise UsageError for a section whose points no submission could get."""
    given = {"--run": options.run, "--diagnose": options.diagnose}
    for section, flag in rubric.needs.items():
        if not given[flag]:
            raise UsageError(f"--rubric {options.rubric}: [{section}] needs {flag}")


def write_results(
    options: GradeOptions, grades: Sequence[Grade], answer_key: AnswerKey, title: str
) -> None:
    """Write the results, each file atomically; `title` is the page's."""
    if options.csv is not None:
        _write(options.csv, BYTE_ORDER_MARK + csv_text(grades, answer_key))
    if options.json is not None:
        _write(options.json, json_text(grades, answer_key))
    if options.html is not None:
        from mini_llama.submissions.page import html_page  # imports jinja2

        _write(options.html, html_page(grades, answer_key, title))


def _write(path: Path, text: str) -> None:
    from utils import atomic_write  # imports numpy

    with atomic_write(path) as file:
        file.write(text)
