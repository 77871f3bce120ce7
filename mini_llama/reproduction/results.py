"""The record of each run, and the results file."""

import json
import math
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch

from utils import atomic_write

VERSION = 1
STARTED, DONE, FAILED, INTERRUPTED = "started", "done", "failed", "interrupted"
MAX_BYTES = 50_000_000  # of a results file


@dataclass
class Misclassified:
    """A misclassified example, with the probabilities of the predicted and of the gold label."""

    sentence: str
    gold: int
    predicted: int
    confidence: float
    gold_probability: float


@dataclass
class Record:
    """The record of a run. `settings` and `inputs` (SHA-256 of each input file) identify it;
    `seconds` is the wall time of all its parts that were not killed, `peak_bytes` the largest
    resident memory of its process, None if unknown on this system.
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
    worst: list[Misclassified] | None = None

    def is_same(self, other: "Record") -> bool:
        return (self.settings, self.inputs) == (other.settings, other.inputs)


class Results:
    """The results file: records by name, and a summary; every change is written immediately."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Record] = {}

    def read(self) -> None:
        """Read the records of an earlier call, if there are any.

        Raises OSError, and ValueError if the file is not a results file.
        """
        if not self.path.exists():
            return
        try:
            if self.path.stat().st_size > MAX_BYTES:
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

    def find(self, fresh: Record) -> Record | None:
        """The earlier record of this run, if its settings and files are the same."""
        old = self.records.get(fresh.name)
        return old if old is not None and old.is_same(fresh) else None

    def put(self, record: Record) -> None:
        self.records[record.name] = record
        self.write()

    def write(self, **more: Any) -> None:
        """Write all records atomically, together with `more` JSON data."""
        runs = [asdict(record) for record in self.records.values()]
        content = {"version": VERSION, "environment": environment(), "runs": runs} | more
        with atomic_write(self.path) as file:
            json.dump(content, file, indent=1, allow_nan=False)
            file.write("\n")


def _record(entry: Any) -> Record:
    record = _parse_dataclass(Record, entry)
    if record.worst is not None:
        record.worst = [_parse_dataclass(Misclassified, example) for example in record.worst]
    return record


def _parse_dataclass(kind: type, entry: Any) -> Any:
    """Make a dataclass from parsed JSON, checking types and that numbers are finite.

    Raises TypeError, ValueError or OverflowError.
    """
    value = kind(**entry)
    for name, hint in get_type_hints(kind).items():
        given = getattr(value, name)
        hints = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        allowed = tuple(get_origin(one) or one for one in hints)
        if not isinstance(given, (*allowed, int) if float in allowed else allowed):
            raise TypeError(f"{name} is {given!r:.40}")
        if isinstance(given, float | int) and not math.isfinite(given):
            raise ValueError(f"{name} is {given}")
    return value


def environment() -> dict[str, str]:
    """The versions and the platform, which may affect results."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": platform.platform(),
    }
