"""The report as one HTML page with embedded plots, from templates/reproduction.html."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_llama.assignment.reviews import read_label_names
from mini_llama.html_page import render
from mini_llama.reproduction.estimate import format_duration
from mini_llama.reproduction.results import DONE, Record, environment
from mini_llama.reproduction.runs import Run

Pair = tuple[Run, Record]


@dataclass(frozen=True)
class Grid:
    """A table whose first `left` columns are text and the others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int


@dataclass(frozen=True)
class Page:
    """The comparison, its notes, and the plots (title, file); `about` describes the runs."""

    about: str
    comparison: Grid
    notes: Sequence[str]
    plots: Sequence[tuple[str, Path]]

    def render(self, pairs: Sequence[Pair]) -> str:
        """The whole document. Raises OSError if a plot or an output is missing."""
        machine = ", ".join(f"{k} {v}" if k != "platform" else v for k, v in environment().items())
        return render(
            "reproduction.html",
            title="Reproduction of the graded figures",
            about=self.about,
            machine=machine,
            comparison=self.comparison,
            notes=self.notes,
            pictures=[(title, _encoded(path)) for title, path in self.plots],
            texts=_texts(pairs),
            worst=_worst(pairs),
            runs=_runs(pairs),
            commands=[run.command for run, _ in pairs],
        )


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _texts(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    """Both generated texts, if they were generated."""
    return [
        (f"Temperature {temperature}", path.read_text(encoding="utf-8", errors="replace"))
        for run, record in pairs
        if run.dataset is None and record.status == DONE
        for temperature, path in zip((0, 1), run.outputs, strict=True)
    ]


def _worst(pairs: Sequence[Pair]) -> list[tuple[str, Grid]]:
    """A table for each run that has worst examples."""
    header = ("sentence", "gold", "predicted", "confidence", "of gold")
    tables = []
    for run, record in pairs:
        if not record.worst or record.status != DONE:
            continue
        names = read_label_names(run.options.label_names)
        rows = [
            (
                wrong.sentence,
                label_name(wrong.gold, names),
                label_name(wrong.predicted, names),
                f"{wrong.confidence:.3f}",
                f"{wrong.gold_probability:.3f}",
            )
            for wrong in record.worst
        ]
        tables.append((run.name, Grid(header, rows, 3)))
    return tables


def label_name(label: int, names: Sequence[str]) -> str:
    """A label's name, or its number if it has none."""
    return names[label] if 0 <= label < len(names) else str(label)


def _runs(pairs: Sequence[Pair]) -> Grid:
    rows = []
    for run, record in pairs:
        status = record.status if record.error is None else f"{record.status}: {record.error}"
        peak = "-" if record.peak_bytes is None else f"{record.peak_bytes / 1e6:.0f}"
        rows.append((run.name, status, format_duration(record.seconds), peak))
    return Grid(("run", "status", "time", "peak MB"), rows, 2)
