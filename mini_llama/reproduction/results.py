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
    """The record of a run. `settings` and `inputs` (SHA-256 of what it read) are its identity;
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


class Results:
    """The results file: records by name, and a summary; every change is written at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Record] = {}

    def read(self) -> None:
        """Read the records of an earlier call, if there are any.

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

    def find(self, fresh: Record) -> Record | None:
        """The record of this run, if it had the same settings and files."""
        old = self.records.get(fresh.name)
        return old if old is not None and old.is_same(fresh) else None

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
    """A dataclass from parsed JSON, each field of its type, each number finite. Raises TypeError,
    ValueError or OverflowError.
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
    """The versions and platform that results may depend on."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": platform.platform(),
    }
