"""The demonstration's runs: commands of align.py with what each needs, done as processes.

A stage that is done is recorded in demo.json; --resume does the others, and goes on with those that
were interrupted.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mini_llama.alignment.demo import data
from mini_llama.places import ROOT
from mini_llama.resume import check_same_run
from mini_llama.training.folder import PROGRESS
from utils import atomic_write, read_json

STATE = "demo.json"
DATA = "data"
MODEL, SAMPLES = "model.pt", "samples.jsonl"
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Command:
    """`align.py STAGE` with its flags, into FOLDER/name, once all of `needs` are done."""

    name: str
    stage: str
    needs: tuple[str, ...]
    flags: Mapping[str, object]

    def results(self, folder: Path) -> list[Path]:
        """The files that the measurements and other stages read."""
        names = (MODEL, SAMPLES) if self.stage == "ppo" else (MODEL,)
        return [folder / self.name / name for name in names]


def commands(folder: Path, seed: int, iterations: int, epochs: int) -> list[Command]:
    """All runs. What is said in flags is what differs from the paper: a small model learns with
    larger learning rates, and in smaller batches.
    """
    files, sft = folder / DATA, folder / "sft" / MODEL
    common: dict[str, object] = {"seed": seed, "max_length": 64}
    after_sft = common | {"pretrained-model-path": sft}
    pairs: dict[str, object] = {"data": files / data.PAIRS, "val_data": files / data.VAL_PAIRS}
    safety: dict[str, object] = {
        "data": files / data.SAFETY_PAIRS,
        "val_data": files / data.VAL_SAFETY_PAIRS,
    }
    reward = after_sft | {"lr": 4e-4, "min_lr": 3e-5, "batch_size": 32}
    sampling = after_sft | {"reward_model": folder / "reward" / MODEL}
    sampling |= {"max_new_tokens": data.MAX_NEW_TOKENS}
    ppo = sampling | {"data": files / data.PROMPTS, "val_data": files / data.VAL_PROMPTS}
    ppo |= {"lr": 1e-4, "value_lr_scale": 10, "batch_size": 256, "minibatch_size": 64}
    ppo |= {"epochs": epochs, "iterations": iterations, "beta": 0.1, "eval_every": 5}
    best = sampling | {"data": files / data.FEW_PROMPTS, "lr": 1e-4, "epochs": 2, "samples": 0}
    # With the usual beta of 0.1 the answers of so small a model fall apart.
    dpo = {"lr": 1e-4, "batch_size": 16, "epochs": 1, "beta": 1}
    start = common | {"data": files / data.REVIEWS, "lr": 3e-4, "epochs": 1, "val_fraction": 0.01}
    ready = ("comparisons", "reward")
    with_safety = ppo | {"safety_model": folder / "safety-reward" / MODEL}
    return [
        Command("sft", "sft", ("data",), start),
        Command("reward", "reward", ("comparisons",), reward | pairs),
        Command(
            "safety-reward",
            "reward",
            ("comparisons",),
            reward | safety | {"safety_weight": 1, "batch_size": 16, "epochs": 2},
        ),
        Command("ppo", "ppo", ready, ppo),
        Command("ppo-safety", "ppo", (*ready, "safety-reward"), with_safety),
        Command("ppo-beta-0", "ppo", ready, ppo | {"beta": 0}),
        Command("dpo", "dpo", ("comparisons",), after_sft | pairs | dpo),
        Command("rejection", "rejection", ready, best),
    ]


@dataclass
class Progress:
    """What is done, in demo.json: for each stage its seconds by the clock and of processor time."""

    path: Path
    settings: dict[str, Any]
    done: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any], resume: bool) -> "Progress":
        """Raises ValueError for a folder that is in use, or of other settings."""
        path = folder / STATE
        if not path.exists():
            return cls(path, settings)
        if not resume:
            raise ValueError(
                f"{folder} has {STATE} already: --resume goes on with a run, and another --out "
                "keeps it"
            )
        saved = read_json(path)
        check_same_run(path, saved, {"settings", "done"}, settings)
        return cls(path, settings, saved["done"])

    def forget_lost(self, results: Mapping[str, Sequence[Path]]) -> None:
        """Stages whose results, by name, are not all there any more are to be done again: with the
        same seed they leave the same ones.
        """
        for name, paths in results.items():
            lost = [path for path in paths if not path.exists()]
            if lost and name in self.done:
                del self.done[name]
                print(f"{lost[0]} is gone: {name} is done again")
                (self.path.parent / name / PROGRESS).unlink(missing_ok=True)

    def finish(self, name: str, wall: float, processor: float) -> None:
        self.done[name] = [wall, processor]
        with atomic_write(self.path) as file:
            json.dump({"settings": self.settings, "done": self.done}, file, indent=2)


def end_with_parent() -> None:
    """Linux ends this process when its parent ends, so that a resumed run is the only one."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Runs:
    """Does what is not done yet, `workers` things at a time, each when what it needs is done."""

    def __init__(self, folder: Path, progress: Progress, workers: int) -> None:
        self.folder, self.progress, self.workers = folder, progress, workers
        self.processes: set[subprocess.Popen[bytes]] = set()

    def run(self, work: Mapping[str, tuple[tuple[str, ...], Callable[[], float | None]]]) -> None:
        """`work` has the needs and the function of everything by name, in order of preference."""
        todo = {name: work[name] for name in work if name not in self.progress.done}
        running: dict[Future[tuple[float, float]], str] = {}
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                while todo or running:
                    for name, (needs, function) in list(todo.items()):
                        is_ready = all(need in self.progress.done for need in needs)
                        if is_ready and len(running) < self.workers:
                            print(f"{name} …", flush=True)
                            running[pool.submit(self._timed, function)] = name
                            del todo[name]
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        self._finish(running.pop(future), future)
            except BaseException:
                for process in list(self.processes):
                    process.terminate()  # it saves and ends
                for future, name in running.items():
                    if future.exception() is None:
                        self._finish(name, future)
                raise

    def _finish(self, name: str, future: Future[tuple[float, float]]) -> None:
        wall, spent = future.result()
        self.progress.finish(name, wall, spent)
        print(f"{name}: {wall:.0f} s, {spent:.0f} s of processor time", flush=True)

    @staticmethod
    def _timed(function: Callable[[], float | None]) -> tuple[float, float]:
        """Seconds by the clock and of processor time."""
        start, before = time.perf_counter(), time.process_time()
        used = function()  # a process's own processor time, or None
        spent = time.process_time() - before if used is None else used
        return time.perf_counter() - start, spent

    def command(self, command: Command) -> float:
        """Run align.py; the processor time it took. Raises ValueError with its last line."""
        out, log = self.folder / command.name, self.folder / f"{command.name}.log"
        words = [sys.executable, str(ROOT / "align.py"), command.stage, "--out", str(out)]
        for name, value in command.flags.items():
            words += [f"--{name}", str(value)]
        words.append("--resume" if (out / PROGRESS).exists() else "--overwrite")
        environment = os.environ | {"OMP_NUM_THREADS": self.threads}
        with open(log, "ab") as file:
            process = subprocess.Popen(
                words,
                stdout=file,
                stderr=file,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
                preexec_fn=end_with_parent if sys.platform == "linux" else None,
            )
            self.processes.add(process)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self.processes.discard(process)
        if process.returncode:
            last = (log.read_text(encoding="utf-8", errors="replace").splitlines() or [""])[-1]
            raise ValueError(
                f"{command.name} ended with exit status {process.returncode} ({last}); "
                f"{log} says more, and --resume goes on from there"
            )
        return usage.ru_utime + usage.ru_stime

    @property
    def threads(self) -> str:
        return os.environ.get("OMP_NUM_THREADS", "1")
