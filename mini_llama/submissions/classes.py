"""Grade one submission or a class of them: structure, outputs, accuracy, agreement with reference
outputs.

    python grade.py SUBMISSION.zip|FOLDER...

A folder is a submission if it holds one of the files that are handed in, else a class: each zip
and each folder in it is a submission. Prediction files are held against the data line by line,
scored, and compared with the edition's figures (within 0.05 for SST, 0.15 for CFIMDB); gold labels
that are all the same are placeholders and never scored. Nothing that was handed in is run, unless
--run is given.

Exit status: 0 every submission could be graded, whatever was found; 1 at least one was refused, or
a result could not be written; 2 wrong words, or data that cannot be graded by.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from mini_llama.submissions.archive import listed
from mini_llama.submissions.grading import (
    Grade,
    Standard,
    grade_submission,
    mark_equal_outputs,
)
from mini_llama.submissions.report import csv_text, html_page, json_text
from mini_llama.submissions.rules import REQUIRED_FILES
from mini_llama.submissions.student_code import RunPlan

# --- finding submissions ---


def find_submissions(paths: Sequence[Path]) -> dict[str, Path]:
    """Submissions by name: the zip's or the folder's, and the whole path where that is taken.

    Raises ValueError for a path that is not there and for a folder with nothing to grade.
    """
    found = [submission for path in paths for submission in _submissions_in(path)]
    if not found:
        raise ValueError(f"{listed(map(str, paths))}: holds neither a zip nor a folder to grade")
    found = list(dict.fromkeys(found))
    names = Counter(_short_name(path) for path in found)
    unique = {path: _short_name(path) for path in found if names[_short_name(path)] == 1}
    return {unique.get(path, str(path)): path for path in found}


def _short_name(path: Path) -> str:
    return path.name.removesuffix(".zip") or str(path)


def _submissions_in(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise ValueError(f"{path} does not exist: check the path")
    if not path.is_dir() or any((path / name).exists() for name in REQUIRED_FILES):
        yield path
        return
    others = []
    for entry in sorted(path.iterdir()):
        if entry.is_dir() or entry.suffix.casefold() == ".zip":
            if not entry.name.startswith((".", "__")):
                yield entry
        elif not entry.name.startswith("."):
            others.append(entry.name)
    if others:
        print(f"neither zips nor folders, left out: {listed(others)}", file=sys.stderr)


# --- grading a class ---


def grade_class(
    submissions: dict[str, Path],
    standard: Standard,
    plan: RunPlan | None = None,
    jobs: int | None = None,
) -> list[Grade]:
    """The grades in the order given, computed by `jobs` processes.

    With None, joblib.parallel_config around the call decides, a cluster's backend included.
    """
    from joblib import Parallel, delayed  # scikit-learn brings it

    work = [delayed(grade_submission)(p, name, standard, plan) for name, p in submissions.items()]
    try:
        grades = Parallel(n_jobs=jobs)(work)
    except BrokenProcessPool:  # one of them ended the process that read it: which?
        grades = [_grade_alone(one, name) for one, name in zip(work, submissions, strict=True)]
    return mark_equal_outputs(grades)


def _grade_alone(work: tuple, name: str) -> Grade:
    """Grade in a process that nothing else is done in."""
    from joblib import Parallel

    try:
        return Parallel(n_jobs=2)([work])[0]
    except BrokenProcessPool:
        return Grade(name, refusal="cannot be graded: it ended the process that read it")


def write_results(options: argparse.Namespace, grades: Sequence[Grade], standard: Standard) -> None:
    """Write what was asked for, each file whole or not at all."""
    title = f"Grades: {', '.join(path.name or str(path) for path in options.paths[:3])}"
    texts = (
        (options.csv, lambda: csv_text(grades, standard)),
        (options.json, lambda: json_text(grades, standard)),
        (options.html, lambda: html_page(grades, standard, title)),
    )
    for path, text in texts:
        if path is not None:
            from utils import atomic_write

            with atomic_write(path) as file:
                file.write(text())
