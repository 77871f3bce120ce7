"""Threads are chosen from what Linux says of cores, quotas and running processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mini_llama import threads
from tests.helpers import ROOT

VARIABLES = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "MINI_LLAMA_THREADS")


class Machine:
    """A folder with the files of proc and sys that a machine of 8 cores has."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.running(1)
        self.write("proc/self/cgroup", "0::/\n")

    def write(self, path: str, text: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")

    def running(self, count: int) -> None:
        self.write("proc/stat", f"cpu  1 2 3\nctxt 4\nprocs_running {count}\nprocs_blocked 0\n")

    def quota(self, text: str, group: str = "/a/b", at: str = "/a") -> None:
        self.write("proc/self/cgroup", f"0::{group}\n")
        self.write(f"sys/fs/cgroup{at}/cpu.max", text)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what the test sets is taken back
        monkeypatch.delenv(name)
    return Machine(tmp_path)


def choice(machine: Machine) -> tuple[str | None, str]:
    threads.choose_threads(machine.root)
    return os.environ.get("OMP_NUM_THREADS"), os.environ.get("MINI_LLAMA_THREADS", "")


def test_an_idle_machine_keeps_torchs_own_choice(machine: Machine):
    assert choice(machine) == (None, "")
    assert os.environ["GOMP_SPINCOUNT"] == "10000"


@pytest.mark.parametrize(
    ("others", "expected"), [(1, "7"), (3, "5"), (7, "1"), (8, "1"), (50, "1")]
)
def test_cores_that_others_use_are_left_to_them(machine: Machine, others: int, expected: str):
    machine.running(others + 1)
    count, reason = choice(machine)
    assert count == expected
    assert reason == f"{others} other process{'es run' if others > 1 else ' runs'} on 8 cores"


@pytest.mark.parametrize(
    ("counts", "expected", "pauses"),
    [
        ([1], None, 0),
        ([3, 1], None, 1),  # it was gone at the second look
        ([3, 3, 1], None, 2),
        ([3, 2, 4], "7", 2),  # the least that was seen
        ([3, 3, 3, 1], "6", 2),  # after the last look
    ],
)
def test_a_process_that_passes_costs_no_thread(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    counts: list[int],
    expected: str | None,
    pauses: int,
):
    later = counts[1:]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if seconds == threads.PAUSE:
            machine.running(later.pop(0))

    monkeypatch.setattr(time, "sleep", sleep)
    machine.running(counts[0])
    assert choice(machine)[0] == expected
    assert slept.count(threads.PAUSE) == pauses


def test_others_on_a_machine_with_more_cores_than_are_allowed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
):
    """Two cores of 64, of which 40 are busy: both may well be free."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    machine.running(41)
    assert choice(machine) == (None, "this process may use 2 of 64 cores")
    machine.running(64)
    assert choice(machine)[0] == "1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", None),
        ("400000 100000\n", "4"),
        ("250000 100000\n", "2"),
        ("20000 100000\n", "1"),
        ("1600000 100000\n", None),
        ("broken\n", None),
        ("400000 0\n", None),
    ],
)
@pytest.mark.parametrize("at", ["/a/b", "/a", ""])
def test_the_quota_of_a_control_group(machine: Machine, text: str, expected: str | None, at: str):
    """Its own, or that of a group above it."""
    machine.quota(text, at=at)
    count, reason = choice(machine)
    assert count == expected
    assert expected is None or "quota" in reason


def test_the_quota_of_a_control_group_of_version_1(machine: Machine):
    machine.write("proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/x\n")
    machine.write("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "300000\n")
    machine.write("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us", "100000\n")
    assert choice(machine) == ("3", "the control group's quota is 3 cores")


def test_two_threads_of_a_core_count_once(machine: Machine):
    for cpu in range(8):
        path = f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        machine.write(path, f"{cpu % 4},{cpu % 4 + 4}\n")
    assert threads.physical_cores(set(range(8)), machine.root) == 4
    machine.quota("600000 100000\n")
    assert choice(machine) == (None, "")


@pytest.mark.parametrize(("variable", "value"), [("OMP_NUM_THREADS", "3"), ("GOMP_SPINCOUNT", "5")])
def test_what_the_user_set_stays(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
):
    machine.running(5)
    monkeypatch.setenv(variable, value)
    threads.choose_threads(machine.root)
    assert os.environ[variable] == value


def test_a_wait_policy_of_the_user_decides_the_spins(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    threads.choose_threads(machine.root)
    assert "GOMP_SPINCOUNT" not in os.environ


def test_a_child_process_chooses_again(machine: Machine):
    """It inherits its parent's choice, which is not the user's."""
    machine.running(8)
    assert choice(machine)[0] == "1"
    machine.running(3)
    assert choice(machine)[0] == "6"
    machine.running(1)
    assert choice(machine) == (None, "")


def test_fewer_cores_by_affinity_are_said(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    """torch counts them itself."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 5, 7})
    assert choice(machine) == (None, "this process may use 3 of 8 cores")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert choice(machine) == (None, "")  # a child process that may use all


def test_nothing_is_chosen_once_torch_is_there(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", object())
    machine.running(8)
    assert choice(machine) == (None, "")
    assert "GOMP_SPINCOUNT" not in os.environ


def test_a_system_that_says_nothing(tmp_path: Path):
    assert threads.busy_cores(tmp_path) == 0
    assert list(threads.quotas(tmp_path)) == []
    assert threads.physical_cores({0, 1, 2}, tmp_path) == 3


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OMP_NUM_THREADS": "1"}, "1 thread\n"),
        ({"OMP_NUM_THREADS": "2"}, "2 threads\n"),
        ({"OMP_NUM_THREADS": "1", "MINI_LLAMA_THREADS": "busy"}, "1 thread (busy)\n"),
        ({"OMP_NUM_THREADS": "1", "MINI_LLAMA_THREADS": ""}, "1 thread\n"),
    ],
)
def test_what_is_said_is_what_torch_has(variables: dict, said: str):
    code = "from mini_llama.threads import describe_threads; print(describe_threads())"
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES} | variables
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout == said
