"""What is said of a student's components, for a terminal and as JSON."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """What is to be said of one component.

    `error` is the largest one, as a share of the largest magnitude; `where` a line of the
    student's, "llama.py:12: code"; `editions` those whose arithmetic the component has instead.
    """

    component: str
    verdict: str
    detail: str = ""
    mistake: str | None = None
    rule: str | None = None
    remedy: str | None = None
    where: str | None = None
    error: float | None = None
    editions: tuple[str, ...] = ()

    @property
    def is_correct(self) -> bool:
        return self.verdict.startswith("correct")

    def __str__(self) -> str:
        detail = f": {self.detail}" if self.detail else ""
        lines = [f"{self.component:<13} {self.verdict}{detail}"]
        if self.editions:
            lines.append(f"right for the editions {', '.join(self.editions)} (--edition)")
        lines += [f"at {self.where}"] if self.where else []
        lines += [f"the assignment, {self.rule}"] if self.rule else []
        lines += [f"to mend it: {self.remedy}"] if self.remedy else []
        return ("\n" + " " * 14).join(lines)


def reported_once(findings: Sequence[Finding]) -> Iterator[Finding]:
    """An exception that stops several components, of a class that all are made with, is shown
    with the first of them.
    """
    first: dict[tuple, str] = {}
    for finding in findings:
        key = finding.detail, finding.where
        if finding.verdict == "exception" and finding.where and key in first:
            finding = Finding(finding.component, "not examined", f"stopped as {first[key]} was")
        first.setdefault(key, finding.component)
        yield finding


def as_json(folder: Path, edition: str, findings: Sequence[Finding]) -> str:
    components = {finding.component: asdict(finding) for finding in findings}
    for entry in components.values():
        entry.pop("component")
        entry["error"] = None if entry["error"] in (None, math.inf) else entry["error"]
    correct = all(finding.is_correct for finding in findings)
    report = {"folder": str(folder), "edition": edition, "correct": correct}
    return json.dumps(report | {"components": components}, indent=2, ensure_ascii=False) + "\n"
