"""Standard input, output and error as a program may find them: closed, full, or read to their end.

A closed stream counts as /dev/null, so that no file that is opened later takes its number, and
nothing meant for standard error is printed on standard output. What standard error cannot take (a
full disk, a reader that has gone) is lost, and the run goes on: results are not there.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, Literal, TextIO


def prepare_streams() -> None:
    """Open what is closed as /dev/null; show characters that a terminal lacks by their codes."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest number that is free
    if sys.stdin is None:
        sys.stdin = _nowhere("r")
    if sys.stdout is None:
        sys.stdout = _nowhere("w")
    if sys.stderr is None:
        sys.stderr = _nowhere("w")
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        encoding, number = sys.stderr.encoding, sys.stderr.fileno()
        kept = io.BufferedWriter(_Lossy(number, "wb", closefd=False))
        sys.stderr = io.TextIOWrapper(kept, encoding=encoding, line_buffering=True)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class _Lossy(io.FileIO):
    """A file that takes everything; what it cannot write is lost."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return memoryview(data).nbytes


def _nowhere(mode: Literal["r", "w"]) -> TextIO:
    return open(os.devnull, mode, encoding="utf-8")


@contextlib.contextmanager
def flushed_output() -> Iterator[None]:
    """Write out what was printed at the end of the block, so that a full disk or a closed pipe is
    an error there. Raises OSError naming standard output.
    """
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            silence(sys.stdout)
            raise OSError(error.errno, error.strerror, "standard output") from None
        except ValueError:  # closed by the program itself
            pass


def silence(stream: TextIO) -> None:
    """Let what is left in the stream's buffer go nowhere, also at the program's exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
