"""Check a student's modules, component by component: report each mistake and how to fix it.

    python diagnose.py SUBMISSION... [--edition mmia] [--jobs N] [--json FILE] [--html FILE]

A submission is a folder or a zip that contains llama.py, at any depth; a folder of several
submissions is a class, and so is a learning platform's download, as in grade.py. The modules run on
small fixed inputs in a process with limits, and their outputs are compared with ours and with those
of each known mistake. A package that is not installed is no problem unless a component uses it;
missing course files are replaced by ours.

Exit status: 0 every component is correct or passes the course's own test; 1 one does not, or a
submission could not be examined, or a file not read or written; 2 usage error.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if sys.flags.safe_path:  # python -P and PYTHONSAFEPATH leave a command's own folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from config import DEFAULT_EDITION, EDITIONS
from mini_llama.bounds import check_usage
from mini_llama.command_line import OneLineParser, one_line_errors
from mini_llama.diagnosis.limits import SECONDS

PROGRAM = "diagnose.py"


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "paths",
        metavar="SUBMISSION",
        nargs="+",
        type=Path,
        help="a folder, a zip, or a folder of several",
    )
    add(
        "--edition",
        default=DEFAULT_EDITION,
        choices=EDITIONS,
        help="whose norm, attention and sampling are correct (%(default)s)",
    )
    add("--json", metavar="FILE", type=Path, help="also write the report as JSON")
    add(
        "--html", metavar="FILE", type=Path, help="also write the report as one self-contained page"
    )
    add("--overwrite", action="store_true", help="replace existing JSON and HTML files")
    add(
        "--jobs",
        metavar="N",
        type=int,
        default=1,
        help="parallel processes for a class (%(default)s)",
    )
    add(
        "--seconds", type=float, default=SECONDS, help="time limit for each component (%(default)s)"
    )
    return parser


@one_line_errors(PROGRAM)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; a usage error exits with status 2."""
    options = build_parser().parse_args(arguments)
    seconds = options.seconds
    check_usage(f"--jobs {options.jobs}", 1 <= options.jobs <= 1024, "from 1 to 1024")
    check_usage(f"--seconds {seconds}", 0 < seconds <= 3600, "above 0, at most 3600")
    # these import torch, which --help does not need
    from mini_llama.diagnosis.diagnosis import diagnose_all
    from mini_llama.diagnosis.page import check_files, write_files
    from mini_llama.diagnosis.places import find_places

    check_files(options.json, options.html, options.paths, options.overwrite)
    places = find_places(options.paths)
    reports = []
    for report in diagnose_all(places, options.edition, seconds, options.jobs):
        if report.refusal and len(places) == 1:
            raise ValueError(report.refusal)
        title = f"== {report.name}\n" if len(places) > 1 else ""
        print(f"{title}{report.text}", flush=True)
        reports.append(report)
    write_files(reports, options.json, options.html)
    n_accepted = sum(report.is_accepted for report in reports)
    if len(reports) > 1:
        print(f"{n_accepted} of {len(reports)} submissions have no mistake")
    return int(n_accepted < len(reports))


if __name__ == "__main__":
    sys.exit(main())
