"""What the command lines share: errors of one line, and exit statuses.

It needs no torch, so that help and refusals come at once.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """argparse, with errors of one line and exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Turn what a user can mend into one line on standard error and exit status 1, Ctrl-C into
    status 130. MINI_LLAMA_TRACEBACK in the environment shows tracebacks instead.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a character shows its code
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get("MINI_LLAMA_TRACEBACK"):
        yield
        return
    try:
        yield
    except BrokenPipeError:  # whoever read our output has enough: no message, and none at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (ValueError, OSError) as error:
        sys.exit(f"{program}: error: {visible(describe(error))}")
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error) and not isinstance(error, MemoryError):
            raise
        remedy = "lower --batch_size, or cut long texts (--max_sentence_len, --context)"
        sys.exit(f"{program}: error: out of memory: {remedy}")
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)


def describe(error: Exception) -> str:
    """One line, also for an OSError that the system raised."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def visible(text: str, kept: str = "") -> str:
    """Text in which nothing works unseen: control and direction characters are spelled out, all but
    those in `kept`.
    """
    return "".join(c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in text)
