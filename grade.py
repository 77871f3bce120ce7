"""Grade one submission or a whole class: files and formats, accuracy, agreement with reference
outputs.

    python grade.py SUBMISSION.zip|FOLDER|DOWNLOAD.zip...

A folder that holds a required file, or code in just one of its subfolders, is one submission. Any
other folder is a class: each zip and each folder in it is a submission. The downloads of Moodle,
Canvas, Gradescope, Blackboard and Brightspace are classes too, as they are or unpacked. Prediction
files are compared with the data line by line, scored, and compared with the edition's figures
(within 0.05 for SST, 0.15 for CFIMDB). Gold labels that are all the same are placeholders and never
scored. No submitted code is run unless --run or --diagnose is given.

Exit status: 0 if every submission could be graded, whatever was found; 1 if one was refused, or a
file could not be read or written; 2 for wrong options.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if sys.flags.safe_path:  # python -P and PYTHONSAFEPATH leave a command's own folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from mini_llama.command_line import OneLineParser, add_flags, one_line_errors
from mini_llama.submissions.classes import grade_paths
from mini_llama.submissions.options import GradeOptions

PROGRAM = "grade.py"
LIMITS = """--run and --diagnose execute student code as your user on this machine. Each check gets
its own temporary copy, an empty environment, and limits on time and memory; its processes are
killed at the end. On Linux it has no network, where unshare works. This is not a sandbox: a
determined attacker can read and change your files. To be safe from one, use a virtual machine or
an unprivileged account."""


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        prog=PROGRAM,
        description=__doc__,
        epilog=LIMITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", type=Path, help="zips, folders, or folders of them"
    )
    add_flags(parser, GradeOptions)
    return parser


@one_line_errors(PROGRAM)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; wrong options exit with 2."""
    given = vars(build_parser().parse_args(arguments))
    paths = given.pop("paths")
    options = GradeOptions(**given)
    options.check_names(paths)
    return grade_paths(paths, options)


if __name__ == "__main__":
    sys.exit(main())
