"""Grade one submission or a whole class: files and formats, accuracy, agreement with reference
outputs.

    python grade.py SUBMISSION.zip|FOLDER...

A folder that holds a required file, or code in just one of its subfolders, is one submission. Any
other folder is a class: each zip and each folder in it is a submission. Prediction files are
compared with the data line by line, scored, and compared with the edition's figures (within 0.05
for SST, 0.15 for CFIMDB). Gold labels that are all the same are placeholders and never scored.
No submitted code is run unless --run is given.

Exit status: 0 if every submission could be graded, whatever was found; 1 if one was refused or a
result could not be written; 2 for wrong arguments or unusable data.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from config import DEFAULT_EDITION, EDITIONS
from mini_llama.bounds import check_bound
from mini_llama.command_line import OneLineParser, describe, one_line_errors
from mini_llama.submissions.answer_key import read_answer_key
from mini_llama.submissions.classes import ResultFiles, find_submissions, grade_class
from mini_llama.submissions.report import table
from mini_llama.submissions.student_code import Limits, make_plan
from mini_llama.submissions.untrusted_text import one_line

PROGRAM = "grade.py"
LIMITS = """--run executes student code as your user on this machine. Each check gets its own
temporary copy, an empty environment, and limits on time and memory; its processes are killed at
the end. On Linux it has no network, where unshare works. This is not a sandbox: a determined
attacker can read and change your files. To be safe from one, use a virtual machine or an
unprivileged account."""


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
        help="whose required files, figures and reference outputs apply (%(default)s)",
    )
    add("--data", metavar="DIR", type=Path, help="folder of the data files (the project's data/)")
    add(
        "--reference",
        metavar="DIR",
        type=Path,
        help="folder of reference outputs that replace the built-in ones, or one such folder per "
        "edition; prompting outputs are compared by line, the text at temperature 0 by word",
    )
    add("--csv", metavar="FILE", type=Path, help="write one row per submission")
    add("--json", metavar="FILE", type=Path, help="write all findings")
    add("--html", metavar="FILE", type=Path, help="write one self-contained page")
    add("--overwrite", action="store_true", help="replace existing files of these names")
    add("--jobs", metavar="N", type=int, default=-1, help="parallel processes (all processors)")
    add("--run", action="store_true", help="also run the code: three checks and one generation")
    seconds, memory = Limits.seconds, Limits.memory
    add("--seconds", type=float, default=seconds, help="time limit of each check (%(default)s)")
    add("--memory", type=float, default=memory, help="GiB that each check may use (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; wrong arguments exit with 2."""
    options = (parser := build_parser()).parse_args(arguments)
    paths, jobs = options.paths, options.jobs
    with one_line_errors(PROGRAM), tempfile.TemporaryDirectory() as folder:
        try:
            processes = "a number of processes, or -1 for all processors"
            check_bound(f"--jobs {jobs}", jobs != 0, processes)
            limits = Limits(options.seconds, options.memory)
            files = ResultFiles(options.csv, options.json, options.html)
            files.check(paths, options.overwrite)
            submissions = find_submissions(paths)
            answer_key = read_answer_key(options.edition, options.data, options.reference)
            plan = make_plan(options.edition, limits, Path(folder)) if options.run else None
        except (ValueError, OSError) as error:
            parser.exit(2, one_line(f"{PROGRAM}: error: {describe(error)}") + "\n")
        grades = grade_class(submissions, answer_key, plan, jobs)
        print(table(grades, answer_key), flush=True)
        title = f"Grades: {', '.join(path.name or str(path) for path in paths[:3])}"
        files.write(grades, answer_key, title)
    return int(any(grade.refusal is not None for grade in grades))


if __name__ == "__main__":
    sys.exit(main())
