"""Find a class's submissions, grade them in parallel and write the results."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_llama.submissions.answer_key import AnswerKey
from mini_llama.submissions.grading import Grade, flag_identical_outputs, grade_submission
from mini_llama.submissions.report import csv_text, json_text
from mini_llama.submissions.requirements import IDENTIFYING_NAMES
from mini_llama.submissions.student_code import RunPlan
from mini_llama.submissions.untrusted_text import quoted_list

CODE = ("run_llama.py", "llama.py", "classifier.py", "optimizer.py")

# --- finding submissions ---


def find_submissions(paths: Sequence[Path]) -> dict[str, Path]:
    """Submissions by name: that of the zip or folder, or the whole path if two share a name.

    Raises ValueError for a missing path and for a folder with nothing to grade.
    """
    found = [submission for path in paths for submission in _submissions_in(path)]
    if not found:
        raise ValueError(f"{quoted_list(map(str, paths))}: no zip and no folder to grade")
    found = list(dict.fromkeys(found))
    names = Counter(_short_name(path) for path in found)
    unique = {path: _short_name(path) for path in found if names[_short_name(path)] == 1}
    return {unique.get(path, str(path)): path for path in found}


def _short_name(path: Path) -> str:
    return path.name.removesuffix(".zip") or str(path)


def _submissions_in(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise ValueError(f"{path} does not exist: check the path")
    is_one = not path.is_dir() or any((path / name).exists() for name in IDENTIFYING_NAMES)
    if is_one or _is_repository(path):
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
        print(f"skipped, neither zips nor folders: {quoted_list(others)}", file=sys.stderr)


def _is_repository(path: Path) -> bool:
    """Whether exactly one of several subfolders has code and there is no zip: src/ next to data/,
    for example, is one submission, not two.
    """
    folders = [entry for entry in path.iterdir() if entry.is_dir()]
    with_code = [
        folder
        for folder in folders
        if any((folder / name).is_file() or any(folder.glob(f"*/{name}")) for name in CODE)
    ]
    has_zips = any(entry.suffix.casefold() == ".zip" for entry in path.iterdir())
    return len(with_code) == 1 and len(folders) > 1 and not has_zips


# --- grading a class ---


def grade_class(
    submissions: dict[str, Path],
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


@dataclass(frozen=True)
class ResultFiles:
    """The files that results are written to; None for those not wanted."""

    csv: Path | None = None
    json: Path | None = None
    html: Path | None = None

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.csv, self.json, self.html) if path is not None]

    def check(self, inputs: Sequence[Path], overwrite: bool = False) -> None:
        """Raise ValueError for a file that cannot be written, is an input, is given twice or,
        without `overwrite`, exists.
        """
        if self.paths:
            from utils import check_outputs  # imports numpy, which the table does not need

            check_outputs(self.paths, inputs, overwrite)

    def write(self, grades: Sequence[Grade], answer_key: AnswerKey, title: str) -> None:
        """Write the results, each file atomically; `title` is the page's."""
        if self.csv is not None:
            _write(self.csv, csv_text(grades, answer_key))
        if self.json is not None:
            _write(self.json, json_text(grades, answer_key))
        if self.html is not None:
            from mini_llama.submissions.page import html_page  # imports jinja2

            _write(self.html, html_page(grades, answer_key, title))


def _write(path: Path, text: str) -> None:
    from utils import atomic_write  # imports numpy

    with atomic_write(path) as file:
        file.write(text)
