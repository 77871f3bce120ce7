"""Run a command that is not trusted, within limits of time, memory and output.

It works on a copy of its folder, with an environment of its own; when it ends or its time is up,
it and every process of its session are killed. That guards against mistakes: a program that sets
out to do harm can still read files and use the network. POSIX only. The file knows neither what
is run nor what its output means.
"""

import contextlib
import math
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

try:
    import resource
except ImportError:  # Windows
    resource = None

MAX_OUTPUT = 64 * 2**20  # bytes of each stream, and of any file that the command writes


@dataclass(frozen=True)
class Outcome:
    """How a command ended. `returncode` is None where its time was up, and negative where a signal
    ended it; `truncated` says that a stream had more than MAX_OUTPUT bytes.
    """

    returncode: int | None
    stdout: bytes
    stderr: bytes
    timed_out: bool
    truncated: bool


def run_limited(
    command: Sequence[str], folder: Path, seconds: float, memory_bytes: int, stdin: bytes = b""
) -> Outcome:
    """Run `command` in a copy of `folder` that is deleted afterwards.

    `memory_bytes` bounds each process's own writable memory. Raises OSError if the folder cannot
    be copied or the command cannot be started, ValueError where there are no such limits.
    """
    if resource is None:
        raise ValueError("this system cannot limit a process: use Linux, macOS or WSL")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) / "work"
        shutil.copytree(folder, work, symlinks=True)
        with (
            tempfile.TemporaryFile() as source,
            tempfile.TemporaryFile() as stdout,
            tempfile.TemporaryFile() as stderr,
        ):
            source.write(stdin)
            source.seek(0)
            process = subprocess.Popen(
                command,
                cwd=work,
                env=_environment(scratch),
                stdin=source,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=_limiter(seconds, memory_bytes),
            )
            try:
                returncode = process.wait(seconds)
            except subprocess.TimeoutExpired:
                returncode = None
            finally:
                _kill_session(process)
            texts = [_read(stdout), _read(stderr)]
    truncated = any(len(text) >= MAX_OUTPUT for text in texts)
    return Outcome(returncode, *texts, returncode is None, truncated)


def _environment(home: str) -> dict[str, str]:
    return {
        "PATH": os.defpath,
        "HOME": home,
        "TMPDIR": home,
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
    }


def _limiter(seconds: float, memory_bytes: int) -> Callable[[], None]:
    def limit() -> None:
        cpu = math.ceil(seconds)
        # Writable memory, not address space: importing torch maps gigabytes of the latter.
        for name, value in (
            (resource.RLIMIT_CPU, cpu),
            (resource.RLIMIT_DATA, memory_bytes),
            (resource.RLIMIT_FSIZE, MAX_OUTPUT),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(name, (value, value))

    return limit


def _kill_session(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(stream: IO[bytes]) -> bytes:
    stream.seek(0)
    return stream.read(MAX_OUTPUT)
