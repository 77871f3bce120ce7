"""Run an untrusted command with limits on time, memory and output.

It runs in the given folder, without the caller's environment, in its own process group, which is
killed at the end, and without a network where Linux lets an ordinary user create namespaces
(unshare). This is not a sandbox: the command runs as the current user, can read whatever that user
can, and can write outside its folder.
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
MAX_OUTPUT_BYTES = 64 * MEBIBYTE  # the last bytes of each stream
MAX_FILE_BYTES = 256 * MEBIBYTE
MAX_PROCESSES = 4096  # the user's total, as the system counts; root is exempt

# Limits are set in an intermediate process, not in preexec_fn, which is unsafe in a threaded
# caller. It waits for its child, because the first process of a namespace ignores signals from
# inside it, and stops the child in time even if the caller has been killed.
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
    """How a command ended: `returncode` is 128 + N for a command killed by signal N, as in a shell,
    and None after a timeout.

    `truncated`: a stream was longer than MAX_OUTPUT_BYTES, and its beginning was dropped.
    """

    returncode: int | None
    stdout: bytes
    stderr: bytes
    timed_out: bool
    truncated: bool


def run_limited(
    command: Sequence[str], folder: Path, seconds: float, memory_bytes: int, stdin: bytes = b""
) -> Outcome:
    """Run `command`, whose program is an absolute path, in `folder`, its HOME and TMPDIR.

    `memory_bytes` bounds the data segment of each process (not its address space, of which
    importing torch takes gigabytes), `seconds` the wall time, and the CPU time of each process.
    Raises ValueError on systems without POSIX, OSError if the command cannot be started.
    """
    if os.name != "posix":
        raise ValueError("limits on a process need Linux or macOS: run this there")
    folder = Path(folder).resolve()
    limits = (math.ceil(seconds) + 1, memory_bytes, MAX_FILE_BYTES, 0, MAX_PROCESSES)
    bootstrap = (sys.executable, "-I", "-S", "-c", BOOTSTRAP, *map(str, limits))
    # Files, not pipes: a surviving child could hold a pipe open forever.
    with (
        tempfile.TemporaryFile() as stdin_file,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        stdin_file.write(stdin)
        stdin_file.seek(0)
        process = subprocess.Popen(
            [*unshare_command(), *bootstrap, *command],
            cwd=folder,
            env=minimal_environment(folder),
            stdin=stdin_file,
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
    """No PATH, no variables of the caller, and one thread, so that CPU time is wall time."""
    home = dict.fromkeys(("HOME", "TMPDIR"), str(folder))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return home | threads | {"LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}


@functools.cache
def unshare_command() -> tuple[str, ...]:
    """The command prefix that removes the network and kills all children together; empty where it
    is not permitted or the system is not Linux.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    prefix = (str(Path(unshare).resolve()), *NAMESPACES)
    tried = subprocess.run([*prefix, sys.executable, "-S", "-c", ""], capture_output=True)
    return prefix if tried.returncode == 0 else ()


def _wait(process: subprocess.Popen, seconds: float) -> int | None:
    """The return code, None after a timeout; the whole group is killed in either case."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # macOS raises PermissionError for a group of zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(file: IO[bytes]) -> bytes:
    file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_OUTPUT_BYTES))
    return file.read(MAX_OUTPUT_BYTES)
