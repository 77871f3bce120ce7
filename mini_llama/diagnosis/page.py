"""Write the reports as JSON and as one HTML page (templates/diagnosis.html)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_llama.command_line import visible
from mini_llama.diagnosis.findings import Finding, Report, as_json
from mini_llama.html_page import render
from utils import atomic_write, check_outputs

NOT_EXAMINED = ("none", "-")


@dataclass(frozen=True)
class Row:
    """One submission: the CSS class and text of each cell, and the details below the table."""

    name: str
    summary: str
    cells: Sequence[tuple[str, str]]
    details: Sequence[tuple[str, str, Sequence[str]]]


def html_page(reports: Sequence[Report]) -> str:
    """One self-contained page without scripts."""
    components = list(dict.fromkeys(f.component for r in reports for f in r.findings))
    n_accepted = sum(report.is_accepted for report in reports)
    names = ", ".join(report.name for report in reports[:3])
    return render(
        "diagnosis.html",
        visible,
        title=f"Diagnosis: {names}{' …' if len(reports) > 3 else ''}",
        summary=f"{n_accepted} of {len(reports)} without a mistake",
        edition=reports[0].edition,
        components=components,
        rows=[_row(report, components) for report in reports],
    )


def _row(report: Report, components: Sequence[str]) -> Row:
    found = {finding.component: finding for finding in report.findings}
    cells = [_cell(found[name]) if name in found else NOT_EXAMINED for name in components]
    details = [
        (_kind(finding), f"{finding.component}: {finding.verdict}", finding.lines)
        for finding in report.findings
        if finding.lines
    ]
    return Row(report.name, report.summary, cells, details)


def _cell(finding: Finding) -> tuple[str, str]:
    text = finding.mistake or finding.verdict
    return _kind(finding), text if not finding.is_correct else "correct"


def _kind(finding: Finding) -> str:
    if finding.is_correct:
        return "good"
    return "pass" if finding.is_accepted else "bad"


def check_files(
    json_file: Path | None,
    html_file: Path | None,
    inputs: Sequence[Path],
    overwrite: bool = False,
) -> None:
    """Raise ValueError if a file cannot be written, is an input, is named twice or, without
    `overwrite`, exists.
    """
    files = [path for path in (json_file, html_file) if path is not None]
    check_outputs(files, inputs, overwrite)


def write_files(reports: Sequence[Report], json_file: Path | None, html_file: Path | None) -> None:
    """Write the files that are given, each atomically."""
    for path, make in ((json_file, as_json), (html_file, html_page)):
        if path is not None:
            with atomic_write(path) as file:
                file.write(make(reports))
