"""Run a command that is not trusted under limits of time, memory and output.

It runs in a folder that is given, in a process group of its own that is killed with all its
children, without the caller's environment, and, where Linux lets an ordinary user make namespaces
(unshare), without a network. This is no sandbox: the command acts as the user who starts it, reads
whatever that user may read, and can write outside its folder.
"""

import contextlib
import functools
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

MEBIBYTE = 1024 * 1024
MAX_OUTPUT_BYTES = 64 * MEBIBYTE  # of each stream, from its end
MAX_FILE_BYTES = 256 * MEBIBYTE
MAX_PROCESSES = 4096  # of the user in all, as the system counts; root is never held to it

# Limits are set in a process between, not in preexec_fn, which is unsafe in a threaded caller. It
# waits, because the first process of a namespace does not get the signals of those in it, and ends
# the others in time should the caller have been killed.
BOOTSTRAP = """
import contextlib, os, resource, signal, sys
def stop(*_):
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGKILL)
    os._exit(137)
signal.signal(signal.SIGALRM, stop)
signal.alarm(int(sys.argv[1]) + 1)
for name, bound in zip(("CPU", "DATA", "FSIZE", "CORE", "NPROC"), map(int, sys.argv[1:6])):
    kind = getattr(resource, "RLIMIT_" + name)
    hard = resource.getrlimit(kind)[1]
    bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
    with contextlib.suppress(ValueError):  # macOS refuses some
        resource.setrlimit(kind, (bound, bound))
pid = os.fork()
if pid == 0:
    signal.alarm(0)
    os.execv(sys.argv[6], sys.argv[6:])
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
sys.exit(status if status >= 0 else 128 - status)
"""
NAMESPACES = ("--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")


@dataclass(frozen=True)
class Outcome:
    """How a command ended: `returncode` is 128 + N for one ended by signal N, as in a shell, and
    None where the time was up.

    `truncated`: a stream was longer than MAX_OUTPUT_BYTES, and its beginning is left out.
    """

    returncode: int | None
    stdout: bytes
    stderr: bytes
    timed_out: bool
    truncated: bool


def run_limited(
    command: Sequence[str], folder: Path, seconds: float, memory_bytes: int, stdin: bytes = b""
) -> Outcome:
    """Run `command`, its program an absolute path, in `folder`, which is its HOME and TMPDIR.

    `memory_bytes` bounds the memory that each process may write to (not its addresses, of which
    importing torch takes gigabytes), `seconds` the time by the clock and the processor time of each
    process. Raises ValueError where there is no POSIX, OSError if nothing
    can be started.
    """
    if os.name != "posix":
        raise ValueError("limits on a process need Linux or macOS: run this there")
    folder = Path(folder).resolve()
    limits = (math.ceil(seconds) + 1, memory_bytes, MAX_FILE_BYTES, 0, MAX_PROCESSES)
    bootstrap = (sys.executable, "-I", "-S", "-c", BOOTSTRAP, *map(str, limits))
    # Files, not pipes: a child that outlives the rest could hold a pipe open for ever.
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        given.write(stdin)
        given.seek(0)
        process = subprocess.Popen(
            [*isolation(), *bootstrap, *command],
            cwd=folder,
            env=minimal_environment(folder),
            stdin=given,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        returncode = _wait(process, seconds)
        output, errors = _tail(stdout), _tail(stderr)
        sizes = [os.fstat(file.fileno()).st_size for file in (stdout, stderr)]
    truncated = max(sizes) > MAX_OUTPUT_BYTES
    return Outcome(returncode, output, errors, returncode is None, truncated)


def minimal_environment(folder: Path) -> dict[str, str]:
    """No PATH and nothing of the caller's; one thread, so that processor time is clock time."""
    home = dict.fromkeys(("HOME", "TMPDIR"), str(folder))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return home | threads | {"LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}


@functools.cache
def isolation() -> tuple[str, ...]:
    """The command that cuts the network and ends all children with the first; empty where Linux
    does not let us, or the system is another.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    prefix = (str(Path(unshare).resolve()), *NAMESPACES)
    tried = subprocess.run([*prefix, sys.executable, "-S", "-c", ""], capture_output=True)
    return prefix if tried.returncode == 0 else ()


def _wait(process: subprocess.Popen, seconds: float) -> int | None:
    """The return code, None if the time was up; in any case the whole group is killed."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # macOS says the latter of a group of zombies
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(file: IO[bytes]) -> bytes:
    file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_OUTPUT_BYTES))
    return file.read(MAX_OUTPUT_BYTES)
