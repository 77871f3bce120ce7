"""The graded commands as processes, one after another, with a record of each.

Every run is a process of run_llama.py with a folder of its own. Its record is written after
each step, so that Ctrl-C, a crash or a kill leaves all finished runs to a later --resume.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from mini_llama.assignment.figures import SPLITS
from mini_llama.assignment.finetune import progress_path
from mini_llama.places import ROOT
from mini_llama.reproduction.estimate import Estimate, clock
from mini_llama.reproduction.outputs import hashes, headline, read_log
from mini_llama.reproduction.results import DONE, FAILED, INTERRUPTED, STARTED, Record, Results
from mini_llama.reproduction.runs import TRAINED, Run
from mini_llama.resume import digest

COMMAND = (sys.executable, str(ROOT / "run_llama.py"))
# Options that say where files are, not what is computed; files that are read count by content.
PLACES = {"generated_sentence_low_temp_out", "generated_sentence_high_temp_out", "dev_out"}
PLACES |= {"test_out", "checkpoint_out", "resume", "adapters"}
DATA_FILES = {"train", *SPLITS, "label_names"}
GRACE = 15.0  # seconds that a run has to finish a write once it is asked to stop
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss


def identify(run: Run) -> Record:
    """A fresh record: all options that decide the result, and a hash of each file that is read."""
    inputs = run.inputs
    ignored = PLACES | inputs.keys() | (DATA_FILES if run.dataset is None else set())
    settings = {k: v for k, v in asdict(run.options).items() if k not in ignored}
    settings = json.loads(json.dumps(settings))  # as it will be read back
    return Record(run.name, settings, {name: digest(path) for name, path in inputs.items()})


def run_all(runs: Sequence[Run], results: Results) -> Iterator[tuple[Run, Record]]:
    """Do what is not done, printing a line before and after each run; yields every run's record.

    A run that fails is recorded with its one line, and the next begins. KeyboardInterrupt and
    SystemExit are passed on after the child has stopped.
    """
    start = time.monotonic()
    rest = Estimate()
    for number, run in enumerate(runs, 1):
        place = f"[{number}/{len(runs)}] {run.name}"
        fresh = identify(run)
        old = results.find(fresh)
        if old is not None and old.status == DONE and old.outputs == hashes(run):
            rest.learn(run, old.seconds)
            print(f"{place}: done before, {headline(run)}", flush=True)
            yield run, old
            continue
        elapsed = clock(time.monotonic() - start)
        print(f"{place}: {elapsed} elapsed, {rest.say(runs[number - 1 :])}", flush=True)
        goes_on = old is not None and is_interrupted(run)
        record = old if old is not None and goes_on else fresh
        perform(run, record, results, goes_on)
        if record.status == DONE:
            rest.learn(run, record.seconds)
            said = f"{headline(run)}, {clock(record.seconds)}{megabytes(record)}"
        else:
            said = f"failed: {record.error}"
        print(f"{place}: {said}", flush=True)
        yield run, record


def is_interrupted(run: Run) -> bool:
    """Whether run_llama.py's own --resume has something to go on with."""
    if run.options.option not in TRAINED:
        return False
    return progress_path(run.options).exists() and run.options.checkpoint_path.exists()


def perform(run: Run, record: Record, results: Results, goes_on: bool) -> None:
    """Run the command, or resume its training, and record the outcome in `results`."""
    run.folder.mkdir(parents=True, exist_ok=True)
    record.is_resumed |= goes_on
    record.status, record.error, record.outputs, record.worst = STARTED, None, {}, None
    results.put(record)
    start = time.perf_counter()
    record.status = INTERRUPTED  # unless the process ends by itself
    try:
        exit_code, peak = spawn([*run.arguments, *["--resume"] * goes_on], run.log, goes_on)
        record.peak_bytes = max(peak or 0, record.peak_bytes or 0) or None
        record.status, record.error = judge(run, exit_code)
    finally:
        record.seconds += time.perf_counter() - start
        record.outputs = hashes(run) if record.status == DONE else {}
        results.put(record)


def judge(run: Run, exit_code: int) -> tuple[str, str | None]:
    """(status, the one line that says what went wrong)."""
    if exit_code < 0:
        return FAILED, f"killed by signal {-exit_code}; was there too little memory? See {run.log}"
    if exit_code > 0:
        lines = [line.strip() for line in read_log(run).split("\n") if line.strip()]
        last = lines[-1] if lines else "it printed nothing"
        return FAILED, f"{last[:400]} (exit status {exit_code})"
    missing = [path.name for path in run.outputs if not path.is_file()]
    if missing:
        return FAILED, f"it ended well but wrote no {', '.join(missing)}; see {run.log}"
    try:
        headline(run)
    except (OSError, ValueError) as error:
        return FAILED, str(error)
    return DONE, None


def spawn(arguments: Sequence[str], log: Path, is_appended: bool) -> tuple[int, int | None]:
    """Run one process to its end, its output in `log`: (exit status, peak resident bytes or None).

    Whatever interrupts the wait stops the process first.
    """
    # Unbuffered, so that an error follows what was printed before it.
    environ = os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}
    with open(log, "ab" if is_appended else "wb") as file:
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environ,
        )
        try:
            return wait(process)
        finally:
            if process.poll() is None:
                stop(process)


def wait(process: subprocess.Popen) -> tuple[int, int | None]:
    """(exit status, peak resident bytes, or None where it is unknown on this system)."""
    if not hasattr(os, "wait4"):
        return process.wait(), None
    # A child's peak starts from that of its parent: this process stays smaller than any
    # run as long as it loads no model, no scikit-learn and no matplotlib before all have ended.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * MAXRSS_BYTES


def stop(process: subprocess.Popen) -> None:
    """Terminate the process, and kill it if it does not end."""
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def megabytes(record: Record) -> str:
    return "" if record.peak_bytes is None else f", {record.peak_bytes / 1e6:.0f} MB"
