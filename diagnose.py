"""Say what is wrong with a student's modules, component by component, and how to mend it.

    python diagnose.py STUDENT_FOLDER [--edition mmia] [--json FILE]

The modules of the folder are run on small fixed inputs in a limited process, and what they give
is compared with what ours give, and with what ours would give with each known mistake
(mistakes.py). Exit status: 0 every component is correct, 1 one is not, 2 wrong usage.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from config import DEFAULT_EDITION, EDITIONS
from mini_llama.command_line import OneLineParser, describe, one_line_errors
from mini_llama.diagnosis.limits import SECONDS


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="STUDENT_FOLDER", type=Path, help="where llama.py is")
    parser.add_argument(
        "--edition",
        default=DEFAULT_EDITION,
        choices=EDITIONS,
        help="whose norm, attention and sampling are right (%(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the report as JSON, too")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="limit for each component (%(default)s)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; a usage error exits with 2 by itself."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not 0 < options.seconds <= 3600:
        parser.error(
            f"--seconds {options.seconds} is not allowed: it must be above 0, at most 3600"
        )
    # torch comes with these, which --help need not have
    from mini_llama.diagnosis.diagnosis import diagnose
    from mini_llama.diagnosis.findings import as_json
    from utils import atomic_write, check_outputs

    try:
        if options.json is not None:
            check_outputs([options.json], inputs=[])
        (findings,) = diagnose([options.folder], options.edition, options.seconds)
        if options.json is not None:
            with atomic_write(options.json) as file:
                file.write(as_json(options.folder, options.edition, findings))
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {describe(error)}\n")
    for finding in findings:
        print(finding)
    n_correct = sum(finding.is_correct for finding in findings)
    print(f"{n_correct} of {len(findings)} components are correct (edition {options.edition})")
    return int(n_correct < len(findings))


if __name__ == "__main__":
    with one_line_errors("diagnose.py"):
        sys.exit(main())
