"""Run the graded commands as processes, one after another, and record each.

Every run is a process of run_llama.py with its own folder. Its record is written after each step,
so that after Ctrl-C, a crash or a kill, --resume keeps all finished runs.
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
from mini_llama.reproduction.estimate import Estimate, format_duration
from mini_llama.reproduction.outputs import headline, output_hashes, read_log
from mini_llama.reproduction.results import DONE, FAILED, INTERRUPTED, STARTED, Record, Results
from mini_llama.reproduction.runs import TRAINED, Run
from mini_llama.resume import digest

COMMAND = (sys.executable, str(ROOT / "run_llama.py"))
# Options for file locations, which do not affect the result; input files are compared by content.
PATH_OPTIONS = {"generated_sentence_low_temp_out", "generated_sentence_high_temp_out", "dev_out"}
PATH_OPTIONS |= {"test_out", "checkpoint_out", "resume", "adapters"}
DATA_FILES = {"train", *SPLITS, "label_names"}
GRACE_SECONDS = 15.0  # for a terminated run to finish writing
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss


def identify(run: Run) -> Record:
    """A new record, with all options that affect the result and a hash of each input file."""
    inputs = run.inputs
    ignored = PATH_OPTIONS | inputs.keys() | (DATA_FILES if run.dataset is None else set())
    settings = {k: v for k, v in asdict(run.options).items() if k not in ignored}
    settings = json.loads(json.dumps(settings))  # as they will be read back
    return Record(run.name, settings, {name: digest(path) for name, path in inputs.items()})


def run_all(runs: Sequence[Run], results: Results) -> Iterator[tuple[Run, Record]]:
    """Do all unfinished runs, printing a line before and after each, and yield every run's record.

    A failed run is recorded with its error line, and the next one starts. KeyboardInterrupt and
    SystemExit are re-raised after the child has stopped.
    """
    start = time.monotonic()
    estimate = Estimate()
    for number, run in enumerate(runs, 1):
        place = f"[{number}/{len(runs)}] {run.name}"
        fresh = identify(run)
        old = results.find(fresh)
        if old is not None and old.status == DONE and old.outputs == output_hashes(run):
            estimate.update(run, old.seconds)
            print(f"{place}: already done, {headline(run)}", flush=True)
            yield run, old
            continue
        elapsed = format_duration(time.monotonic() - start)
        print(f"{place}: {elapsed} elapsed, {estimate.describe(runs[number - 1 :])}", flush=True)
        is_resuming = old is not None and is_interrupted(run)
        record = old if old is not None and is_resuming else fresh
        execute(run, record, results, is_resuming)
        if record.status == DONE:
            estimate.update(run, record.seconds)
            result = f"{headline(run)}, {format_duration(record.seconds)}{peak_text(record)}"
        else:
            result = f"failed: {record.error}"
        print(f"{place}: {result}", flush=True)
        yield run, record


def is_interrupted(run: Run) -> bool:
    """Whether run_llama.py's own --resume can continue this run."""
    if run.options.option not in TRAINED:
        return False
    return progress_path(run.options).exists() and run.options.checkpoint_path.exists()


def execute(run: Run, record: Record, results: Results, is_resuming: bool) -> None:
    """Run the command, or resume its training, and record the outcome in `results`."""
    run.folder.mkdir(parents=True, exist_ok=True)
    record.is_resumed |= is_resuming
    record.status, record.error, record.outputs, record.worst = STARTED, None, {}, None
    results.put(record)
    start = time.perf_counter()
    record.status = INTERRUPTED  # unless the process ends by itself
    try:
        exit_code, peak = run_process(
            [*run.arguments, *["--resume"] * is_resuming], run.log, is_resuming
        )
        record.peak_bytes = max(peak or 0, record.peak_bytes or 0) or None
        record.status, record.error = check_outcome(run, exit_code)
    finally:
        record.seconds += time.perf_counter() - start
        record.outputs = output_hashes(run) if record.status == DONE else {}
        results.put(record)


def check_outcome(run: Run, exit_code: int) -> tuple[str, str | None]:
    """The status, and the error line of a failed run."""
    if exit_code < 0:
        return FAILED, f"killed by signal {-exit_code}; did it run out of memory? See {run.log}"
    if exit_code > 0:
        lines = [line.strip() for line in read_log(run).split("\n") if line.strip()]
        last = lines[-1] if lines else "it printed nothing"
        return FAILED, f"{last[:400]} (exit status {exit_code})"
    missing = [path.name for path in run.outputs if not path.is_file()]
    if missing:
        return FAILED, f"it succeeded but did not write {', '.join(missing)}; see {run.log}"
    try:
        headline(run)
    except (OSError, ValueError) as error:
        return FAILED, str(error)
    return DONE, None


def run_process(arguments: Sequence[str], log: Path, is_appended: bool) -> tuple[int, int | None]:
    """Run one process with its output in `log`; return its exit status and peak resident bytes
    (None if unknown).

    An exception during the wait stops the process first.
    """
    # Unbuffered, so that an error comes after the lines printed before it.
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
    """The exit status and the peak resident bytes, None if unknown on this system."""
    if not hasattr(os, "wait4"):
        return process.wait(), None
    # A child's peak is at least its parent's at the fork. So this process must stay smaller than
    # any run: it loads no model, scikit-learn or matplotlib until all runs have ended.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * MAXRSS_BYTES


def stop(process: subprocess.Popen) -> None:
    """Terminate the process, and kill it if it does not end."""
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def peak_text(record: Record) -> str:
    return "" if record.peak_bytes is None else f", {record.peak_bytes / 1e6:.0f} MB"
