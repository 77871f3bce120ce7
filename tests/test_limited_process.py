"""Commands that hang, fork, eat memory, write without end, or look around."""

import os
import sys
import time
from pathlib import Path

import limited_process
from limited_process import Outcome, run_limited


def run(folder: Path, code: str, seconds: float = 20.0, **options: object) -> Outcome:
    memory = options.pop("memory_bytes", 2**30)
    return run_limited([sys.executable, "-c", code], folder, seconds, memory, **options)


def test_it_runs_in_a_copy_with_its_own_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    (tmp_path / "here.txt").write_text("original")
    code = (
        "import os, sys\n"
        "print(open('here.txt').read(), sys.stdin.read(), 'SECRET' in os.environ)\n"
        "open('here.txt', 'w').write('changed'); print('oh', file=sys.stderr); sys.exit(3)"
    )
    outcome = run(tmp_path, code, stdin=b"question")
    assert outcome == Outcome(3, b"original question False\n", b"oh\n", False, False)
    assert (tmp_path / "here.txt").read_text() == "original"


def test_time_is_up_for_its_children_too(tmp_path):
    code = (
        "import os, time\n"
        "if os.fork() == 0: print(os.getpid(), flush=True)\n"
        "while True: time.sleep(0.1)"
    )
    started = time.monotonic()
    outcome = run(tmp_path, code, seconds=1.5)
    assert outcome.timed_out and outcome.returncode is None
    assert time.monotonic() - started < 10
    assert not is_alive(int(outcome.stdout))


def test_what_it_leaves_running_is_killed(tmp_path):
    code = "import os, time\npid = os.fork()\nprint(pid) if pid else time.sleep(60)"
    outcome = run(tmp_path, code)
    assert outcome.returncode == 0 and not outcome.timed_out
    assert not is_alive(int(outcome.stdout))


def is_alive(pid: int) -> bool:
    """A killed orphan may wait for init to take note of it."""
    time.sleep(0.2)
    status = Path(f"/proc/{pid}/stat")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not (status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def test_memory(tmp_path):
    outcome = run(tmp_path, "x = bytearray(2**30)", memory_bytes=2**28)
    assert outcome.returncode == 1 and b"MemoryError" in outcome.stderr


def test_output_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(limited_process, "MAX_OUTPUT", 1000)
    outcome = run(tmp_path, "print('x' * 5000)")
    assert outcome.truncated and len(outcome.stdout) == 1000


def test_a_signal_is_negative(tmp_path):
    outcome = run(tmp_path, "import os; os.abort()")
    assert outcome.returncode == -6 and not outcome.timed_out
