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
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from command_line import OneLineParser, describe, one_line_errors
from config import DEFAULT_EDITION, EDITIONS
from grading import Grade, Standard, grade_submission, mark_equal_outputs, read_standard
from grading_report import csv_text, html_page, json_text, table
from limited_process import isolation
from prepare_submit import REQUIRED_FILES
from student_code import RunPlan, make_plan
from submission_zip import listed, one_line

PROGRAM = "grade.py"
GIBIBYTE = 1024**3
LIMITS = """--run executes what students wrote, as you, on this machine. Each check has its own
temporary copy, limits of time and memory and an empty environment, and its processes are killed at
its end; where Linux allows it (unshare), it has no network. This is no sandbox: a determined
attacker can read and change your files. Against one, use a virtual machine or an account without
rights."""


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=PROGRAM,
        description=__doc__,
        epilog=LIMITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("paths", metavar="PATH", nargs="+", type=Path, help="zips, folders, or folders of them")
    add(
        "--edition",
        choices=tuple(EDITIONS),
        default=DEFAULT_EDITION,
        help="whose figures and reference outputs count (%(default)s)",
    )
    add("--data", metavar="DIR", type=Path, help="folder of the gold data (the project's data/)")
    add(
        "--reference",
        metavar="DIR",
        type=Path,
        help="folder of reference outputs, or of folders of them named by edition: prompting files "
        "are compared line by line, the text at temperature 0 word by word",
    )
    add("--csv", metavar="FILE", type=Path, help="write a row for each submission")
    add("--json", metavar="FILE", type=Path, help="write everything that was found")
    add("--html", metavar="FILE", type=Path, help="write one page that needs nothing else")
    add("--jobs", metavar="N", type=int, default=-1, help="processes (all processors)")
    add("--run", action="store_true", help="run the code as well: three checks, one generation")
    add("--seconds", type=float, default=60.0, help="time limit of each check (%(default)s)")
    add("--memory", type=float, default=4.0, help="memory of each check in GiB (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; wrong words exit with 2."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    with one_line_errors(PROGRAM), tempfile.TemporaryDirectory() as folder:
        try:
            check_options(options)
            submissions = find_submissions(options.paths)
            standard = read_standard(options.edition, options.data, options.reference)
            plan = _plan(options, Path(folder)) if options.run else None
        except (ValueError, OSError) as error:
            parser.exit(2, one_line(f"{PROGRAM}: error: {describe(error)}") + "\n")
        grades = grade_class(submissions, standard, plan, options.jobs)
        print(table(grades, standard), flush=True)
        write_results(options, grades, standard)
    return int(any(grade.refusal is not None for grade in grades))


def check_options(options: argparse.Namespace) -> None:
    """Raise ValueError for a value out of bounds or a file that cannot be written."""
    for name, holds, bound in (
        ("jobs", options.jobs != 0, "a number of processes, or -1 for all processors"),
        ("seconds", 0 < options.seconds <= 86_400, "above 0 and at most 86400"),
        ("memory", 0 < options.memory <= 1024, "above 0 and at most 1024 GiB"),
    ):
        if not holds:
            value = getattr(options, name)
            raise ValueError(f"--{name} {value} is not allowed: it must be {bound}")
    outputs = [path for path in (options.csv, options.json, options.html) if path]
    if outputs:
        from utils import check_outputs  # torch comes with it, which a mere table need not have

        check_outputs(outputs, options.paths)


def _plan(options: argparse.Namespace, folder: Path) -> RunPlan:
    network = "without a network" if isolation() else "WITH the network, which cannot be cut here"
    print(f"running the submitted code, {network}", file=sys.stderr)
    return make_plan(options.edition, options.seconds, int(options.memory * GIBIBYTE), folder)


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


if __name__ == "__main__":
    sys.exit(main())
