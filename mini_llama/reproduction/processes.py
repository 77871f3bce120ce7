"""Graded commands, one process after another: what was run before, what is run now, what it gave.

Every run is a process of run_llama.py with a folder of its own. What is known of it is written
after each step, so that Ctrl-C, a crash or a kill leaves all finished runs to a later --resume.
"""

import dataclasses
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from mini_llama.assignment.figures import SPLITS
from mini_llama.assignment.finetune import progress_path
from mini_llama.assignment.metrics import accuracy
from mini_llama.assignment.predictions import read_predictions as read_prediction_file
from mini_llama.assignment.reviews import Example, read_examples, read_label_names, with_prompt
from mini_llama.places import ROOT
from mini_llama.reproduction.runs import TRAINED, Run
from mini_llama.resume import digest
from utils import atomic_write

COMMAND = (sys.executable, str(ROOT / "run_llama.py"))
VERSION = 1
STARTED, DONE, FAILED, INTERRUPTED = "started", "done", "failed", "interrupted"
# Options that say where files are, not what is computed; files that are read count by content.
PLACES = {"generated_sentence_low_temp_out", "generated_sentence_high_temp_out", "dev_out"}
PLACES |= {"test_out", "checkpoint_out", "resume"}
DATA_FILES = {"train", *SPLITS, "label_names"}
GRACE = 15.0  # seconds that a run has to finish a write once it is told to stop
EPOCH = re.compile(
    r"epoch (\d+): train loss :: ([\d.]+), train acc :: ([\d.]+), dev acc :: ([\d.]+)"
)
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss
START_SECONDS = 4.0  # of Python and torch, for the estimate of what remains
MOST_BYTES = 50_000_000  # of a results file


@dataclass
class Wrong:
    """An example that a classifier got wrong; probabilities of the predicted and the gold label."""

    sentence: str
    gold: int
    predicted: int
    confidence: float
    gold_probability: float


@dataclass
class Record:
    """What is kept of a run. `settings` and `inputs` (SHA-256 of what it read) are its identity;
    `seconds` is the wall time of all its parts that ended, `peak_bytes` the largest resident
    memory of its process, None where it is unknown on this system.
    """

    name: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    status: str = STARTED
    error: str | None = None
    is_resumed: bool = False
    seconds: float = 0.0
    peak_bytes: int | None = None
    outputs: dict[str, str] = field(default_factory=dict)
    worst: list[Wrong] | None = None

    def is_same(self, other: "Record") -> bool:
        return (self.settings, self.inputs) == (other.settings, other.inputs)


def identify(run: Run) -> Record:
    """A fresh record: all options that decide the result, and a hash of each file that is read."""
    inputs = run.inputs
    ignored = PLACES | inputs.keys() | (DATA_FILES if run.dataset is None else set())
    settings = {k: v for k, v in asdict(run.options).items() if k not in ignored}
    settings = json.loads(json.dumps(settings))  # as it will be read back
    return Record(run.name, settings, {name: digest(path) for name, path in inputs.items()})


class Results:
    """The results file: records by name, and a summary; every change is written at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Record] = {}

    def read(self) -> None:
        """Take over what an earlier call left, if there is anything.

        Raises OSError, and ValueError if the file is not one of ours.
        """
        if not self.path.exists():
            return
        try:
            if self.path.stat().st_size > MOST_BYTES:
                raise ValueError("too large")
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["version"] != VERSION:
                raise ValueError(f"version {content['version']}")
            records = [_record(entry) for entry in content["runs"]]
        except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
            raise ValueError(
                f"{self.path} is not a results file of this program ({error}); "
                "move it away, or give another --out"
            ) from None
        self.records = {record.name: record for record in records}

    def put(self, record: Record) -> None:
        self.records[record.name] = record
        self.write()

    def write(self, **more: Any) -> None:
        """Write all records, atomically; `more` is plain data that a reader may want with them."""
        runs = [asdict(record) for record in self.records.values()]
        content = {"version": VERSION, "environment": environment(), "runs": runs} | more
        with atomic_write(self.path) as file:
            json.dump(content, file, indent=1, allow_nan=False)
            file.write("\n")


def _record(entry: Any) -> Record:
    record = _typed(Record, entry)
    if record.worst is not None:
        record.worst = [_typed(Wrong, example) for example in record.worst]
    return record


def _typed(kind: type, entry: Any) -> Any:
    """A dataclass of what JSON gave, each field of its type, each number finite. Raises TypeError,
    ValueError or OverflowError.
    """
    value = kind(**entry)
    for one in dataclasses.fields(kind):
        given = getattr(value, one.name)
        allowed = list | None if one.name == "worst" else getattr(one.type, "__origin__", one.type)
        if not isinstance(given, float | int if allowed is float else allowed):
            raise TypeError(f"{one.name} is {given!r:.40}")
        if isinstance(given, float | int) and not math.isfinite(given):
            raise ValueError(f"{one.name} is {given}")
    return value


def environment() -> dict[str, str]:
    """What results on another machine may differ by."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": platform.platform(),
    }


def run_all(runs: Sequence[Run], results: Results) -> Iterator[tuple[Run, Record]]:
    """Do what is not done, printing a line before and after each run; yields every run's record.

    A run that fails is recorded with its one line, and the next begins. Raises KeyboardInterrupt
    or SystemExit, once the child has stopped, where they came from outside.
    """
    start = time.monotonic()
    rest = Estimate()
    for number, run in enumerate(runs, 1):
        place = f"[{number}/{len(runs)}] {run.name}"
        fresh, old = identify(run), results.records.get(run.name)
        is_known = old is not None and old.is_same(fresh)
        if is_known and old.status == DONE and old.outputs == hashes(run):
            rest.learn(run, old.seconds)
            print(f"{place}: done before, {headline(run)}", flush=True)
            yield run, old
            continue
        elapsed = clock(time.monotonic() - start)
        print(f"{place}: {elapsed} elapsed, {rest.say(runs[number - 1 :])}", flush=True)
        goes_on = is_known and is_interrupted(run)
        record = old if goes_on else fresh
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
    """Run the command, or go on with its training, and put what came of it into `results`."""
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
    # The figure begins with the peak of the process that started it: this one stays smaller than
    # any run as long as it loads no model, no scikit-learn and no matplotlib before all have ended.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * MAXRSS_BYTES


def stop(process: subprocess.Popen) -> None:
    """Ask the process to end, and end it if it does not."""
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


# What a run left


def hashes(run: Run) -> dict[str, str]:
    """SHA-256 of the graded files that are there, by name."""
    return {path.name: digest(path) for path in run.outputs if path.is_file()}


def read_log(run: Run) -> str:
    return run.log.read_text(encoding="utf-8", errors="replace") if run.log.exists() else ""


def read_predictions(run: Run, split: str) -> tuple[list[Example], list[int]]:
    """The gold examples of a split and the label predicted for each.

    Raises OSError, and ValueError if the two files are not of the same sentences.
    """
    source = getattr(run.options, split)
    asked = gold = read_examples(source)
    if run.options.option == "prompt":
        asked = with_prompt(gold, read_label_names(run.options.label_names))
    return gold, read_prediction_file(getattr(run.options, f"{split}_out"), asked, source)


def read_labels(run: Run, split: str) -> tuple[list[int], list[int]]:
    """The gold and the predicted labels of a split. Raises as read_predictions does."""
    gold, predictions = read_predictions(run, split)
    return [example.label for example in gold], predictions


def read_epochs(run: Run) -> list[dict[str, float]]:
    """Loss and accuracies as they were printed after each epoch; one done twice counts once."""
    epochs = {}
    for match in EPOCH.finditer(read_log(run)):
        names = ("epoch", "train_loss", "train_accuracy", "dev_accuracy")
        epochs[int(match[1])] = dict(zip(names, map(float, match.groups()), strict=True))
    return [epochs[number] for number in sorted(epochs)]


def headline(run: Run) -> str:
    """What a run gave, in a few words. Raises OSError or ValueError for damaged outputs."""
    if run.dataset is None:
        return "two texts"
    scores = ((s, accuracy(*read_labels(run, s))) for s in SPLITS)
    return ", ".join(f"{split} acc {value:.3f}" for split, value in scores)


# Time


class Estimate:
    """How long the rest will take: as long as runs of the same kind took, or, where there was none,
    by the bytes of text that go through the model.
    """

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str | None], list[float]] = {}
        self.bytes, self.bytes_seconds = 0, 0.0

    def learn(self, run: Run, seconds: float) -> None:
        self.seconds.setdefault((run.options.option, run.dataset), []).append(seconds)
        self.bytes += work(run)
        self.bytes_seconds += max(0.0, seconds - START_SECONDS) if work(run) else 0.0

    def say(self, rest: Sequence[Run]) -> str:
        total = 0.0
        for run in rest:
            known = self.seconds.get((run.options.option, run.dataset))
            if known:
                total += sum(known) / len(known)
            elif self.bytes:
                total += START_SECONDS + work(run) * self.bytes_seconds / self.bytes
            else:
                return "no estimate yet of what remains"
        return f"about {clock(total)} remain"


def work(run: Run) -> int:
    """Bytes of text that are classified; a training step counts as three evaluations."""
    if run.dataset is None:
        return 0
    sizes = {}
    for split in ("train", *SPLITS):
        path = Path(getattr(run.options, split))
        sizes[split] = path.stat().st_size if path.is_file() else 0
    evaluated = sizes["dev"] + sizes["test"]
    if run.options.option not in TRAINED:
        return evaluated
    return run.options.epochs * (4 * sizes["train"] + sizes["dev"]) + evaluated


def clock(seconds: float) -> str:
    """75.2 → 1:15."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def megabytes(record: Record) -> str:
    return "" if record.peak_bytes is None else f", {record.peak_bytes / 1e6:.0f} MB"
