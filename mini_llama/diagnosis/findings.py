"""What is said of a student's components, for a terminal and as JSON."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PASSES = "passes the course's test"


@dataclass(frozen=True)
class Finding:
    """What is to be said of one component.

    `error` is the largest one, as a share of the largest magnitude; `where` a line of the
    student's, "llama.py:12: code"; `editions` those whose arithmetic the component has instead;
    `remarks` are no mistakes: what the assignment does not say, or does not run.
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
    remarks: tuple[str, ...] = ()

    @property
    def is_correct(self) -> bool:
        return self.verdict.startswith("correct")

    @property
    def is_accepted(self) -> bool:
        """Correct, or as far from it as the course's own test lets pass."""
        return self.is_correct or self.verdict == PASSES

    @property
    def lines(self) -> list[str]:
        """Everything but the component and the verdict."""
        editions = f"{', '.join(self.editions)} (--edition)" if self.editions else ""
        parts = [
            ("", self.detail),
            ("right for the editions ", editions),
            ("at ", self.where),
            ("the assignment, ", self.rule),
            ("to mend it: ", self.remedy),
            *(("remark: ", remark) for remark in self.remarks),
        ]
        return [f"{what}{text}" for what, text in parts if text]

    def __str__(self) -> str:
        first, lines = f"{self.component:<13} {self.verdict}", self.lines
        if self.detail:
            first = f"{first}: {lines.pop(0)}"
        return ("\n" + " " * 14).join([first, *lines])


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


@dataclass(frozen=True)
class Report:
    """What is said of one submission; `refusal` says why it could not be examined."""

    name: str
    path: Path
    edition: str
    findings: tuple[Finding, ...] = ()
    refusal: str = ""

    @property
    def is_accepted(self) -> bool:
        return not self.refusal and all(finding.is_accepted for finding in self.findings)

    @property
    def summary(self) -> str:
        """How many of its components are correct."""
        if self.refusal:
            return f"not examined: {self.refusal}"
        n_correct = sum(finding.is_correct for finding in self.findings)
        n_passing = sum(finding.verdict == PASSES for finding in self.findings)
        passing = f", {n_passing} more {'passes' if n_passing == 1 else 'pass'} the course's test"
        count = f"{n_correct} of {len(self.findings)} components are correct"
        return f"{count}{passing if n_passing else ''} (edition {self.edition})"

    @property
    def text(self) -> str:
        return "\n".join([*map(str, self.findings), self.summary])

    def as_dict(self) -> dict[str, Any]:
        components = {finding.component: asdict(finding) for finding in self.findings}
        for entry in components.values():
            entry.pop("component")
            entry["error"] = None if entry["error"] in (None, math.inf) else entry["error"]
        about = {"folder": str(self.path), "edition": self.edition, "correct": self.is_accepted}
        about |= {"refusal": self.refusal} if self.refusal else {}
        return about | {"components": components}


def as_json(reports: Sequence[Report]) -> str:
    """One submission's report, or all of them by name."""
    if len(reports) == 1:
        content = reports[0].as_dict()
    else:
        content = {"submissions": {report.name: report.as_dict() for report in reports}}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
