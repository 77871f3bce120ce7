"""The findings on a submission's components, as text and as JSON."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PASSES = "passes the course's test"


@dataclass(frozen=True)
class Finding:
    """The result for one component.

    `error` is the largest error, relative to the largest magnitude; `where` a line of the student's
    code, "llama.py:12: code"; `editions` the other editions in which the component is correct;
    `remarks` are not mistakes: they concern what the assignment leaves open or never runs.
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
        """Correct, or passes the course's own test."""
        return self.is_correct or self.verdict == PASSES

    @property
    def lines(self) -> list[str]:
        """All lines but the component and the verdict."""
        editions = f"{', '.join(self.editions)} (--edition)" if self.editions else ""
        parts = [
            ("", self.detail),
            ("correct for the editions ", editions),
            ("at ", self.where),
            ("rule: ", self.rule),
            ("fix: ", self.remedy),
            *(("remark: ", remark) for remark in self.remarks),
        ]
        return [f"{label}{text}" for label, text in parts if text]

    def __str__(self) -> str:
        first, lines = f"{self.component:<13} {self.verdict}", self.lines
        if self.detail:
            first = f"{first}: {lines.pop(0)}"
        return ("\n" + " " * 14).join([first, *lines])


def reported_once(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Show an exception that stops several components, such as one in a constructor, only once."""
    first: dict[tuple, str] = {}
    for finding in findings:
        key = finding.detail, finding.where
        if finding.verdict == "exception" and finding.where and key in first:
            finding = Finding(finding.component, "not examined", f"same exception as {first[key]}")
        first.setdefault(key, finding.component)
        yield finding


@dataclass(frozen=True)
class Report:
    """The result for one submission; `refusal` says why it could not be examined."""

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
        """The number of correct components, in one line."""
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
    """A single report, or several by name."""
    if len(reports) == 1:
        content = reports[0].as_dict()
    else:
        content = {"submissions": {report.name: report.as_dict() for report in reports}}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
