"""Make the submission zip from a folder, or check an existing one.

    python prepare_submit.py FOLDER ID      writes ID.zip
    python prepare_submit.py FILE.zip [ID]  checks it

It checks names, formats and line counts, not accuracies, and runs no submitted code.
Exit status: 0 no errors; 1 errors, or a file that cannot be read or written; 2 wrong usage.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if sys.flags.safe_path:  # python -P and PYTHONSAFEPATH leave a command's own folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from config import DEFAULT_EDITION, EDITIONS
from mini_llama.bounds import UsageError, as_usage
from mini_llama.command_line import OneLineParser, one_line_errors
from mini_llama.places import DATA
from mini_llama.submissions.archive import has_errors, read_submission
from mini_llama.submissions.packing import make_submission, validate_id
from mini_llama.submissions.prediction_files import N_LINES, read_data
from mini_llama.submissions.rules import check_submission, expect
from mini_llama.submissions.untrusted_text import one_line

PROGRAM = "prepare_submit.py"


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        prog=PROGRAM,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="PATH", help="a folder: make ID.zip; a zip: check it")
    parser.add_argument(
        "id", metavar="ID", nargs="?", help="student id(s): the top folder's name; needed to make"
    )
    parser.add_argument(
        "--edition",
        choices=tuple(EDITIONS),
        default=DEFAULT_EDITION,
        help="whose files are required (%(default)s)",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        default=DATA,
        help="folder of the data files that predictions are compared with (%(default)s); "
        "if a data file is missing, only the number of lines is checked",
    )
    parser.add_argument(
        "--with-imports",
        action="store_true",
        help="when making a zip, add your own modules that the required files import",
    )
    return parser


@one_line_errors(PROGRAM)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; wrong usage exits with 2."""
    options = build_parser().parse_args(arguments)
    path = Path(options.path)
    with as_usage():
        student_id = None if options.id is None else validate_id(options.id)
    if path.is_dir() and student_id is None:
        raise UsageError(f"{path} is a folder: ID, the student id(s), is needed to make a zip")
    return _run(path, student_id, options)


def _run(path: Path, student_id: str | None, options: argparse.Namespace) -> int:
    expected = expect(options.edition, read_data(options.data))
    if absent := ", ".join(name for name in N_LINES if name not in expected.sentences):
        note = f"no data for {absent} in {options.data}: lines are counted, sentences not compared"
        print(one_line(note))
    if student_id is None or not path.is_dir():
        submission = read_submission(path)
        problems = check_submission(submission, student_id or submission.top, expected).problems
        verdict = f"{path} checked"
    else:
        problems = make_submission(path, student_id, expected, options.with_imports)
        verdict = f"{student_id}.zip {'not ' if has_errors(problems) else ''}written"
    for problem in problems:
        print(problem)
    n_errors = sum(problem.severity == "error" for problem in problems)
    print(one_line(f"{verdict}, errors: {n_errors}, warnings: {len(problems) - n_errors}"))
    return int(has_errors(problems))


if __name__ == "__main__":
    sys.exit(main())
