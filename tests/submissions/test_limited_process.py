"""limited_process.py: programs that exceed each limit."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mini_llama.submissions import limited_process
from mini_llama.submissions.limited_process import Outcome, run_limited
from tests.helpers import ROOT

GIBIBYTE = 1024**3


def run(folder, code, seconds=20.0, memory_bytes=GIBIBYTE, stdin=b"") -> Outcome:
    return run_limited([sys.executable, "-c", code], folder, seconds, memory_bytes, stdin)


def is_running(pid: int) -> bool:
    """Whether a process is running (a zombie is not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def test_streams_input_and_status(tmp_path):
    code = "import sys; print(input()[::-1]); print('e', file=sys.stderr); sys.exit(3)"
    assert run(tmp_path, code, stdin=b"abc\n") == Outcome(3, b"cba\n", b"e\n", False, False)
    assert run(tmp_path, "import os; os.kill(os.getpid(), 15)").returncode == 128 + 15


def test_environment_is_not_inherited(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    code = "import os; print(sorted(os.environ)); print(os.getcwd(), os.environ['HOME'])"
    names, places = run(tmp_path, code).stdout.decode().splitlines()
    assert "SECRET" not in names
    assert "'PATH'" not in names
    assert places == f"{tmp_path} {tmp_path}"


def test_time_is_bounded_and_children_are_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(limited_process, "unshare_command", lambda: ())  # where real pids are seen
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    start = time.monotonic()
    outcome = run(tmp_path, code, seconds=1)
    assert (outcome.returncode, outcome.timed_out) == (None, True)
    assert time.monotonic() - start < 5
    assert within(5, lambda: not is_running(int(outcome.stdout)))


def test_surviving_child_is_killed(tmp_path):
    """In its own session it leaves the process group, but not the namespace."""
    if not limited_process.unshare_command():
        pytest.skip("this system lets nobody make namespaces")
    # the child's own pid is of its namespace: it tells that it lives by writing
    child = "import time\nwhile True: open('alive', 'w').write(str(time.time())); time.sleep(.05)"
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        "time.sleep(0.5)"
    )
    assert run(tmp_path, code).returncode == 0
    last = (tmp_path / "alive").stat().st_mtime_ns
    time.sleep(0.3)
    assert (tmp_path / "alive").stat().st_mtime_ns == last


def test_command_ends_if_the_caller_is_killed(tmp_path):
    """The command then stops itself at the time limit, with and without namespaces."""
    child = "import time\nwhile True: open('alive', 'w').write(str(time.time())); time.sleep(.05)"
    folders = [tmp_path / "a", tmp_path / "b"]
    callers = []
    for folder, line in zip(
        folders, ("", "limited_process.unshare_command = lambda: ()\n"), strict=True
    ):
        folder.mkdir()
        code = "import sys\nfrom pathlib import Path\n"
        code += f"from mini_llama.submissions import limited_process\n{line}"
        command = f"[sys.executable, '-c', {child!r}]"
        code += f"limited_process.run_limited({command}, Path(sys.argv[1]), 1, 2**30)"
        callers.append(subprocess.Popen([sys.executable, "-c", code, folder], cwd=ROOT))
    marks = [folder / "alive" for folder in folders]
    assert within(20, lambda: all(mark.exists() for mark in marks))
    for caller in callers:
        caller.kill()
        caller.wait()
    time.sleep(4)
    last = [mark.stat().st_mtime_ns for mark in marks]
    time.sleep(0.3)
    assert [mark.stat().st_mtime_ns for mark in marks] == last


def test_cpu_time_is_bounded(tmp_path):
    outcome = run(tmp_path, "import resource; print(resource.getrlimit(resource.RLIMIT_CPU))", 7.5)
    assert outcome.stdout == b"(9, 9)\n"


def test_memory_is_bounded(tmp_path):
    outcome = run(tmp_path, "x = bytes(2 * 1024 ** 3)")
    assert outcome.returncode == 1
    assert outcome.stderr.endswith(b"MemoryError\n")


def test_files_and_output_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(limited_process, "MAX_FILE_BYTES", 10_000_000)
    outcome = run(tmp_path, "open('big', 'wb').write(bytes(20_000_000))")
    assert b"File too large" in outcome.stderr
    assert (tmp_path / "big").stat().st_size <= 10_000_000
    monkeypatch.setattr(limited_process, "MAX_OUTPUT_BYTES", 4_000_000)
    outcome = run(tmp_path, "print('a' * 8_000_000, 'end')")
    assert outcome.truncated
    assert outcome.stdout.endswith(b"a end\n")
    assert len(outcome.stdout) == 4_000_000


def test_network_is_blocked_where_possible(tmp_path):
    if not limited_process.unshare_command():
        pytest.skip("this system lets nobody make namespaces")
    code = "import socket; socket.create_connection(('127.0.0.1', 9), 2)"
    assert b"Network is unreachable" in run(tmp_path, code).stderr


def test_missing_program(tmp_path):
    outcome = run_limited(["/nowhere/python"], tmp_path, 5, GIBIBYTE)
    assert outcome.returncode == 1
    assert b"FileNotFoundError" in outcome.stderr
    with pytest.raises(OSError):
        run_limited([sys.executable], tmp_path / "none", 5, GIBIBYTE)


def test_other_systems_than_posix(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "name", "nt")
    with pytest.raises(ValueError, match="need Linux or macOS"):
        run_limited([sys.executable], tmp_path, 5, GIBIBYTE)
