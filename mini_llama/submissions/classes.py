"""A class of submissions: found in folders, graded in parallel, and written to files."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_llama.submissions.grading import Grade, grade_submission, mark_equal_outputs
from mini_llama.submissions.handed_in import TELLING
from mini_llama.submissions.report import csv_text, json_text
from mini_llama.submissions.standard import Standard
from mini_llama.submissions.student_code import RunPlan
from mini_llama.submissions.untrusted_text import listed

CODE = ("run_llama.py", "llama.py", "classifier.py", "optimizer.py")

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
    is_one = not path.is_dir() or any((path / name).exists() for name in TELLING)
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
        print(f"neither zips nor folders, left out: {listed(others)}", file=sys.stderr)


def _is_repository(path: Path) -> bool:
    """Whether one of a folder's several folders has code, and no zip is there: src/ beside data/,
    say, which are no two submissions.
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
    standard: Standard,
    plan: RunPlan | None = None,
    jobs: int | None = None,
) -> list[Grade]:
    """The grades in the order given, computed by `jobs` processes.

    With None, joblib.parallel_config around the call decides, a cluster's backend included.
    """
    from concurrent.futures.process import BrokenProcessPool

    from joblib import Parallel, delayed  # scikit-learn brings it

    work = [delayed(grade_submission)(p, name, standard, plan) for name, p in submissions.items()]
    try:
        grades = Parallel(n_jobs=jobs)(work)
    except BrokenProcessPool:  # one of them ended the process that read it: which?
        grades = [_grade_alone(one, name) for one, name in zip(work, submissions, strict=True)]
    return mark_equal_outputs(grades)


def _grade_alone(work: tuple, name: str) -> Grade:
    """Grade in a process that nothing else is done in."""
    from concurrent.futures.process import BrokenProcessPool

    from joblib import Parallel

    try:
        return Parallel(n_jobs=2)([work])[0]
    except BrokenProcessPool:
        return Grade(name, refusal="cannot be graded: it ended the process that read it")


@dataclass(frozen=True)
class ResultFiles:
    """Where results are written, each where a path is given."""

    csv: Path | None = None
    json: Path | None = None
    html: Path | None = None

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.csv, self.json, self.html) if path is not None]

    def check(self, inputs: Sequence[Path]) -> None:
        """Raise ValueError for a file that cannot be written, or that is an input or another."""
        if self.paths:
            from utils import check_outputs  # numpy comes with it, which a table need not have

            check_outputs(self.paths, inputs)

    def write(self, grades: Sequence[Grade], standard: Standard, title: str) -> None:
        """Write what is asked for, each file whole or not at all; `title` is the page's."""
        if self.csv is not None:
            _write(self.csv, csv_text(grades, standard))
        if self.json is not None:
            _write(self.json, json_text(grades, standard))
        if self.html is not None:
            from mini_llama.submissions.page import html_page  # jinja2 comes with it

            _write(self.html, html_page(grades, standard, title))


def _write(path: Path, text: str) -> None:
    from utils import atomic_write  # numpy comes with it

    with atomic_write(path) as file:
        file.write(text)
