"""Grade one submission or a class of them: structure, outputs, accuracy, agreement with reference
outputs.

    python grade.py SUBMISSION.zip|FOLDER...

A folder is a submission if it holds one of the files that are handed in, or code in only one of
its folders, else a class: each zip and each folder in it is a submission. Prediction files are
held against the data line by line, scored, and compared with the edition's figures (within 0.05
for SST, 0.15 for CFIMDB); gold labels that are all the same are placeholders and never scored.
Nothing that was handed in is run, unless --run is given.

Exit status: 0 every submission could be graded, whatever was found; 1 at least one was refused, or
a result could not be written; 2 wrong arguments, or data that cannot be graded by.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from config import DEFAULT_EDITION, EDITIONS
from mini_llama.bounds import check_bound
from mini_llama.command_line import OneLineParser, describe, one_line_errors
from mini_llama.submissions.classes import ResultFiles, find_submissions, grade_class
from mini_llama.submissions.report import table
from mini_llama.submissions.standard import read_standard
from mini_llama.submissions.student_code import Limits, make_plan
from mini_llama.submissions.untrusted_text import one_line

PROGRAM = "grade.py"
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
        help="whose files are asked for, and whose figures and outputs count (%(default)s)",
    )
    add("--data", metavar="DIR", type=Path, help="folder of the gold data (the project's data/)")
    add(
        "--reference",
        metavar="DIR",
        type=Path,
        help="folder of reference outputs, or of folders of them named by edition, that stand over "
        "those built in: prompting files are compared by lines, the text at temperature 0 by words",
    )
    add("--csv", metavar="FILE", type=Path, help="write a row for each submission")
    add("--json", metavar="FILE", type=Path, help="write everything that was found")
    add("--html", metavar="FILE", type=Path, help="write one page that needs nothing else")
    add("--jobs", metavar="N", type=int, default=-1, help="processes (all processors)")
    add("--run", action="store_true", help="run the code as well: three checks, one generation")
    seconds, memory = Limits.seconds, Limits.memory
    add("--seconds", type=float, default=seconds, help="time limit of each check (%(default)s)")
    add("--memory", type=float, default=memory, help="memory of each check in GiB (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; wrong arguments exit with 2."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    paths, jobs = options.paths, options.jobs
    with one_line_errors(PROGRAM), tempfile.TemporaryDirectory() as folder:
        try:
            processes = "a number of processes, or -1 for all processors"
            check_bound(f"--jobs {jobs}", jobs != 0, processes)
            limits = Limits(options.seconds, options.memory)
            files = ResultFiles(options.csv, options.json, options.html)
            files.check(paths)
            submissions = find_submissions(paths)
            standard = read_standard(options.edition, options.data, options.reference)
            plan = make_plan(options.edition, limits, Path(folder)) if options.run else None
        except (ValueError, OSError) as error:
            parser.exit(2, one_line(f"{PROGRAM}: error: {describe(error)}") + "\n")
        grades = grade_class(submissions, standard, plan, jobs)
        print(table(grades, standard), flush=True)
        title = f"Grades: {', '.join(path.name or str(path) for path in paths[:3])}"
        files.write(grades, standard, title)
    return int(any(grade.refusal is not None for grade in grades))


if __name__ == "__main__":
    sys.exit(main())
