"""How many threads torch takes, chosen before it is imported.

torch takes one for each core, whether the core is free or not, and its threads spin at the barrier
after every product: where another process has a core, all of them wait for the one that shares it.
A variable that is set in the environment is left alone.
"""

import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

COUNT, REASON = "OMP_NUM_THREADS", "MINI_LLAMA_THREADS"
SPINS = "GOMP_SPINCOUNT"
# Rounds that a thread spins at a barrier before it sleeps; GNU's OpenMP spins 300,000. So few keep
# the speed of an idle machine, and on a busy one leave a core soon (docs/performance.md).
SPIN_ROUNDS = 10_000
SAMPLES, INTERVAL = 5, 0.004  # seconds
# Where others have a core, it looks again, since the choice holds for all of this process's life,
# and a process that merely passes would cost it a thread.
MORE_LOOKS, PAUSE = 2, 0.06
ROOT = Path("/")


def choose_threads(root: Path = ROOT) -> None:
    """Set the environment's threads to the cores that are free, and the rounds that they spin.

    Does nothing once torch is imported, and on systems without Linux's affinity. `root` is the
    folder that holds proc and sys.
    """
    if "torch" in sys.modules or not hasattr(os, "sched_getaffinity"):
        return
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(SPINS, str(SPIN_ROUNDS))
    if COUNT in os.environ and REASON not in os.environ:
        return  # the user's, or torchrun's; with REASON it is our parent process's
    os.environ.pop(COUNT, None)
    os.environ[REASON] = ""
    cores = physical_cores(os.sched_getaffinity(0), root)
    quota = min(quotas(root), default=float(cores))
    allowed = max(1, min(cores, int(quota)))
    busy = lasting_busy_cores((os.cpu_count() or 1) - allowed, root)
    free = max(1, (os.cpu_count() or 1) - busy)
    if min(allowed, free) == cores:
        machine = physical_cores(set(range(os.cpu_count() or 1)), root)
        if cores < machine:  # torch sees it, too; the user should
            os.environ[REASON] = f"this process may use {cores} of {machine} cores"
        return
    os.environ[COUNT] = str(min(allowed, free))
    os.environ[REASON] = (
        f"{busy} other {'process runs' if busy == 1 else 'processes run'} on {os.cpu_count()} cores"
        if free < allowed
        else f"the control group's quota is {quota:g} {'core' if quota == 1 else 'cores'}"
    )


def describe_threads() -> str:
    """ "2 threads", with the reason if they are fewer than the cores. It imports torch."""
    import torch

    count = torch.get_num_threads()
    reason = os.environ.get(REASON)
    said = f"{count} {'thread' if count == 1 else 'threads'}"
    is_so = os.environ.get(COUNT, str(count)) == str(count)
    return f"{said} ({reason})" if reason and is_so else said


def physical_cores(cpus: set[int], root: Path = ROOT) -> int:
    """How many cores these logical processors are."""
    topology = root / "sys/devices/system/cpu"
    siblings = {_read(topology / f"cpu{cpu}/topology/thread_siblings_list") for cpu in cpus}
    return len(siblings) if all(siblings) else len(cpus)


def quotas(root: Path = ROOT) -> Iterator[float]:
    """Cores that control groups allow this process: its own group's, and those above it."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        group = Path(path.lstrip("/"))
        for place in (group, *group.parents):
            if not controllers:  # version 2
                limit = (_read(root / "sys/fs/cgroup" / place / "cpu.max") or "").split()
            elif "cpu" in controllers.split(","):
                folder = root / "sys/fs/cgroup" / controllers / place
                names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                limit = [_read(folder / name) or "" for name in names]
            else:
                continue
            if len(limit) == 2 and all(number.isdecimal() for number in limit) and int(limit[1]):
                yield int(limit[0]) / int(limit[1])


def busy_cores(root: Path = ROOT) -> int:
    """Processes that run or wait for a core now, this one not counted: the median of a few looks.

    0 where the system does not say.
    """
    counts = []
    for _ in range(SAMPLES):
        lines = (_read(root / "proc/stat") or "").splitlines()
        counts += [int(line.split()[1]) for line in lines if line.startswith("procs_running")]
        time.sleep(INTERVAL)
    return max(0, int(statistics.median(counts)) - 1) if counts else 0


def lasting_busy_cores(spare: int, root: Path = ROOT) -> int:
    """busy_cores, the least of several looks while it is more than `spare`."""
    busy = busy_cores(root)
    for _ in range(MORE_LOOKS):
        if busy <= spare:
            break
        time.sleep(PAUSE)
        busy = min(busy, busy_cores(root))
    return busy


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
