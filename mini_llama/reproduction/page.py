"""The report as one page of HTML that needs nothing beside it: styles and pictures are inside.

Whatever comes from a file is escaped, and a policy in the page forbids scripts and requests. The
file computes no score.
"""

import base64
import html
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_llama.assignment.reviews import read_label_names
from mini_llama.reproduction.processes import DONE, Record, clock, environment
from mini_llama.reproduction.runs import Run

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 66rem; margin: 2rem auto;
  padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .6rem; }
h1 { margin-top: 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.within { color: #1a6b35; font-weight: 600; }
.below, .above, .failed { color: #a32020; font-weight: 600; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f2; padding: .8rem 1rem;
  border-radius: .3rem; }
td:first-child { overflow-wrap: anywhere; }
code { font-size: .8rem; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; }
small, .notes { color: #555; font-size: .9rem; }
.scroll { overflow-x: auto; }
"""
WORST = (
    "Dev examples that were predicted wrongly and to whose wrong label the classifier gave the "
    "largest probability (softmax over the labels' scores). run_llama.py writes labels only: they "
    "were scored again by the saved classifier, for prompt by the zero-shot one. One run each, the "
    "first seed."
)
Pair = tuple[Run, Record]


def text(value: object) -> str:
    """Escaped for HTML, in an element or an attribute."""
    return html.escape(str(value), quote=True)


@dataclass(frozen=True)
class Page:
    """The comparison's cells, of which the first `left` of a row are words, notes, and plots;
    `about` says in a line what was run.
    """

    about: str
    header: Sequence[str]
    left: int
    cells: Sequence[Sequence[str]]
    notes: Sequence[str]
    plots: Sequence[tuple[str, Path]]

    def render(self, pairs: Sequence[Pair]) -> str:
        """The whole document. Raises OSError if a plot or an output is gone."""
        machine = ", ".join(f"{k} {v}" if k != "platform" else v for k, v in environment().items())
        parts = [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Reproduction of the graded figures</title>\n<style>{STYLE}</style>\n</head>",
            "<body>\n<h1>Reproduction of the graded figures</h1>",
            f"<p><small>{text(self.about)}<br>{text(machine)}</small></p>",
            self._comparison(),
            *[_picture(*plot) for plot in self.plots],
            *_generated(pairs),
            *_worst(pairs),
            _runs(pairs),
            "</body>\n</html>\n",
        ]
        return "\n".join(part for part in parts if part)

    def _comparison(self) -> str:
        notes = "".join(f"<li>{text(note)}</li>\n" for note in self.notes)
        shown = _table(self.header, self.cells, self.left) if self.cells else ""
        return f'{shown}\n<ul class="notes">\n{notes}</ul>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Columns from `left` on are numbers; a cell that begins with a verdict has its colour."""

    def cell(tag: str, column: int, value: str) -> str:
        classes = ["number"] * (column >= left)
        first = value.partition(" ")[0].rstrip(":")
        classes += [first] * (first in ("within", "below", "above", "failed"))
        attribute = f' class="{" ".join(classes)}"' if classes else ""
        return f"<{tag}{attribute}>{text(value)}</{tag}>"

    lines = []
    for tag, values in (("th", header), *(("td", row) for row in rows)):
        lines.append(f"<tr>{''.join(cell(tag, i, v) for i, v in enumerate(values))}</tr>")
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _picture(title: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    source = f'src="data:image/png;base64,{data}"'
    return f'<h2>{text(title)}</h2>\n<img alt="{text(title)}" {source}>'


def _generated(pairs: Sequence[Pair]) -> list[str]:
    parts = []
    for run, record in pairs:
        if run.dataset is None and record.status == DONE:
            parts.append("<h2>Generated texts</h2>")
            for temperature, path in zip((0, 1), run.outputs, strict=True):
                content = path.read_text(encoding="utf-8", errors="replace")
                parts.append(f"<h3>Temperature {temperature}</h3>")
                parts.append(f'<div class="text">{text(content)}</div>')
    return parts


def _worst(pairs: Sequence[Pair]) -> list[str]:
    chosen = [(run, record) for run, record in pairs if record.worst and record.status == DONE]
    parts = [f"<h2>Worst examples</h2>\n<p>{text(WORST)}</p>"] if chosen else []
    for run, record in chosen:
        names = read_label_names(run.options.label_names)
        header = ("sentence", "gold", "predicted", "confidence", "of gold")
        rows = [
            (
                wrong.sentence,
                name_of(wrong.gold, names),
                name_of(wrong.predicted, names),
                f"{wrong.confidence:.3f}",
                f"{wrong.gold_probability:.3f}",
            )
            for wrong in record.worst
        ]
        parts.append(f"<h3>{text(run.name)}</h3>\n{_table(header, rows, 3)}")
    return parts


def name_of(label: int, names: Sequence[str]) -> str:
    return names[label] if 0 <= label < len(names) else str(label)


def _runs(pairs: Sequence[Pair]) -> str:
    rows = []
    for run, record in pairs:
        status = record.status if record.error is None else f"{record.status}: {record.error}"
        peak = "-" if record.peak_bytes is None else f"{record.peak_bytes / 1e6:.0f}"
        rows.append((run.name, status, clock(record.seconds), peak))
    commands = "\n".join(
        f"<p><code>{text(shlex.join(['python', 'run_llama.py', *run.words]))}</code></p>"
        for run, _ in pairs
    )
    table = _table(("run", "status", "time", "peak MB"), rows, 2)
    return f"<h2>Runs</h2>\n{table}\n<details><summary>Commands</summary>\n{commands}\n</details>"
