"""What grading.py found, as a table for the terminal, CSV, JSON and one HTML page.

Whatever a student wrote, names included, is taken for hostile: a terminal gets printable ASCII,
the page escaped text and no script, a spreadsheet no formula. The file decides nothing.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from html import escape

from mini_llama.assignment.figures import BANDS, is_placeholder
from mini_llama.command_line import visible
from mini_llama.submissions.archive import one_line, shorten
from mini_llama.submissions.grading import GREEDY_TEXT, Grade, Output, Standard

MARKS = {"below": "-", "above": "+", "no figure": "?"}
LEGEND = (
    "accuracy: - below, + above the edition's band, ? no figure to compare with, "
    "! one class on every line"
)
SHORT = {"prompting": "prompt", "finetuning": "tune", "lora": "lora"}
RANKS = ("equal", "drift", "differs")
NAME_WIDTH = 24
# OWASP's list of what makes a cell a formula, and the full-width forms that some programs take.
FORMULA_STARTS = tuple("=+-@\t\r＝＋－＠")

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; padding: 0 1.5rem;
  max-width: 84rem; color: #1b1f24; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; }
h2 { font-size: 1.05rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
.note { color: #57606a; margin: .2rem 0; }
.wide { overflow-x: auto; margin: 1.2rem 0 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid #d8dee4; text-align: right;
  white-space: nowrap; }
th { font-weight: 600; background: #f6f8fa; }
th.group { text-align: center; border-left: 1px solid #d8dee4; }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere;
  min-width: 7rem; max-width: 18rem; }
td.reason { text-align: left; white-space: normal; }
tbody tr:hover td { box-shadow: inset 0 0 0 99rem #0000000a; }
.low { background: #ffd8d3; } .high { background: #ddf4ff; } .warn { background: #fff1c2; }
.none { color: #57606a; }
section { border: 1px solid #d8dee4; border-radius: 6px; padding: .8rem 1rem; margin: .8rem 0; }
ul { margin: 0; padding-left: 1.2rem; } li { overflow-wrap: anywhere; margin: .15rem 0; }
.error b, .fail b, .timeout b { color: #b42318; } .warning b, .differs b { color: #8a5a00; }
a { color: #0550ae; }
"""
# What is as it should be has no colour, so that the rest is seen.
CLASSES = {"within": "", "no figure": "", "below": "low", "above": "high"}
CLASSES |= {"missing": "warn", "faulty": "warn", "no gold": "none"}
CLASSES |= {"ok": "", "errors": "warn", "refused": "low"}
CLASSES |= {"equal": "", "drift": "", "differs": "warn", "-": "none"}


# --- what all forms show ---


def scored_files(standard: Standard) -> list[str]:
    """The files whose accuracy means something, in the order of the columns."""
    gold = standard.gold
    return [
        name
        for name, file in standard.files.items()
        if file.data_name not in gold or not is_placeholder(gold[file.data_name])
    ]


def split_name(file: str, standard: Standard) -> tuple[str, str]:
    """sst-dev-lora-output.txt → sst-dev, lora."""
    data_name = standard.files[file].data_name
    return data_name, file.removeprefix(f"{data_name}-").removesuffix("-output.txt")


def cell_of(output: Output) -> str:
    if output.accuracy is None:
        return output.verdict
    mark = MARKS.get(output.verdict, "") + ("!" if output.one_class else "")
    return f"{output.accuracy:.3f}{mark}"


def agreement_cells(grade: Grade) -> tuple[str, str]:
    """The worst verdict on the prompting files, and the one on the text; "-" for none."""
    verdicts = {a.file: a.verdict for a in grade.agreements}
    text = verdicts.pop(GREEDY_TEXT, "-")
    return max(verdicts.values(), key=RANKS.index, default="-"), text


def counts(grade: Grade) -> tuple[int, int]:
    """Errors and warnings."""
    found = Counter(problem.severity for problem in grade.problems)
    return found["error"], found["warning"]


def size_cell(grade: Grade) -> str:
    return f"{grade.size / 1e6:.1f} MB" if grade.size else "-"


def checks_cell(grade: Grade) -> str:
    passed = sum(check.verdict == "pass" for check in grade.checks)
    return f"{passed} of {len(grade.checks)}" if grade.checks else "-"


def details(grade: Grade) -> Iterator[tuple[str, str]]:
    """A kind and a line for everything that the table has no room for."""
    if grade.refusal is not None:
        yield "refused", grade.refusal
    for problem in grade.problems:
        yield problem.severity, str(problem).removeprefix(f"{problem.severity}: ")
    for agreement in grade.agreements:
        if agreement.verdict != "equal":
            yield agreement.verdict, f"{agreement.file}: {agreement.message}"
    for check in grade.checks:
        yield check.verdict, f"{check.name}: {check.message}"
    for remark in grade.remarks:
        yield "remark", remark


def summary(grades: Sequence[Grade]) -> str:
    found = Counter(grade.status for grade in grades)
    parts = (("ok", "without errors"), ("errors", "with errors"), ("refused", "refused"))
    said = ", ".join(f"{words} {found[key]}" for key, words in parts)
    return f"submissions: {len(grades)}; {said}"


# --- terminal ---


def table(grades: Sequence[Grade], standard: Standard) -> str:
    """A line for each submission, then what is to be said of each, then the sum."""
    header, rows = _grid(grades, standard)
    texts = {grade.name: [_line(*pair) for pair in details(grade)] for grade in grades}
    widths = [max(map(len, column)) for column in zip(*header, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (*header, *rows)
    ]
    for name, said in texts.items():
        if said:
            lines += ["", one_line(name), *said]
    return "\n".join([*lines, "", LEGEND, summary(grades)])


def _grid(grades: Sequence[Grade], standard: Standard) -> tuple[list[list[str]], list[list[str]]]:
    files = scored_files(standard)
    pairs = [split_name(file, standard) for file in files]
    more = ["lines", "temp 0"] if standard.references else []
    has_checks = any(grade.checks for grade in grades)
    groups = [
        data if i == 0 or pairs[i - 1][0] != data else "" for i, (data, _) in enumerate(pairs)
    ]
    above = ["", "", "", "", "", *groups, *("" for _ in more), *([""] if has_checks else [])]
    below = [
        "submission",
        "status",
        "size",
        "err",
        "warn",
        *(SHORT.get(m, m) for _, m in pairs),
        *more,
    ]
    below += ["checks"] if has_checks else []
    rows = []
    for grade in grades:
        cells = {output.file: cell_of(output) for output in grade.outputs}
        row = [one_line(shorten(grade.name, NAME_WIDTH)), grade.status]
        row += [size_cell(grade), *(["-", "-"] if grade.refusal else map(str, counts(grade)))]
        row += [cells.get(file, "-") for file in files]
        row += agreement_cells(grade) if standard.references else []
        row += [checks_cell(grade)] if has_checks else []
        rows.append(row)
    return [above, below], rows


def _line(kind: str, text: str) -> str:
    return one_line(f"  {kind}: {text}")


# --- CSV and JSON ---


def csv_text(grades: Sequence[Grade], standard: Standard) -> str:
    """A row for each submission. Numbers are numbers; text that would be a formula gets a ' ."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(_csv_header(grades, standard))
    for grade in grades:
        outputs = {output.file: output for output in grade.outputs}
        agreements = {agreement.file: agreement for agreement in grade.agreements}
        row = [grade.name, grade.status, grade.refusal, grade.size, *counts(grade)]
        for file in standard.files:
            output = outputs.get(file, Output(file, ""))
            row += [output.verdict, output.accuracy, output.macro_f1]
        for file in _compared_files(standard):
            row += (
                [agreements[file].verdict, agreements[file].share]
                if file in agreements
                else ["", None]
            )
        if any(each.checks for each in grades):
            row += [checks_cell(grade)]
        row += [" | ".join(f"{kind}: {text}" for kind, text in details(grade))]
        writer.writerow([_cell(value) for value in row])
    return buffer.getvalue()


def _csv_header(grades: Sequence[Grade], standard: Standard) -> list[str]:
    header = ["submission", "status", "refusal", "bytes", "errors", "warnings"]
    for file in standard.files:
        header += [
            f"{'-'.join(split_name(file, standard))} {of}"
            for of in ("verdict", "accuracy", "macro F1")
        ]
    for file in _compared_files(standard):
        header += [f"{file} against reference", f"{file} share equal"]
    return [*header, *(["checks"] if any(g.checks for g in grades) else []), "details"]


def _compared_files(standard: Standard) -> list[str]:
    references = standard.references.values()
    files = [file for file in standard.files if any(file in r.labels for r in references)]
    return files + ([GREEDY_TEXT] if any(r.text is not None for r in references) else [])


def _cell(value: str | float | None) -> str | float:
    if value is None or value != value:
        return ""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA_STARTS) else text


def json_text(grades: Sequence[Grade], standard: Standard) -> str:
    """Everything that was found, in ASCII."""
    content = {
        "edition": standard.edition,
        "bands": BANDS,
        "references": list(standard.references),
        "submissions": [{"status": grade.status} | asdict(grade) for grade in grades],
    }
    return json.dumps(_finite(content), indent=1) + "\n"


def _finite(value: object) -> object:
    """JSON has no NaN, and a name that is not UTF-8 on disk no code points."""
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


# --- HTML ---


def html_page(grades: Sequence[Grade], standard: Standard, title: str) -> str:
    """One page that needs nothing else, loads nothing and runs nothing."""
    bands = ", ".join(f"{band} for {name.upper()}" for name, band in BANDS.items())
    sections = "".join(_section(i, grade) for i, grade in enumerate(grades))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{_text(title)}</title><style>{STYLE}</style></head><body>
<h1>{_text(title)}</h1>
<p class="note">{_text(summary(grades))}. Edition {_text(standard.edition)}; bands: {bands}.</p>
<p class="note">{_text(LEGEND)}.</p>
<div class="wide"><table>{_head(grades, standard)}<tbody>
{"".join(_row(i, grade, grades, standard) for i, grade in enumerate(grades))}</tbody></table></div>
{sections}</body></html>
"""


def _text(text: str) -> str:
    return escape(visible(text), quote=True)


def _head(grades: Sequence[Grade], standard: Standard) -> str:
    pairs = [split_name(file, standard) for file in scored_files(standard)]
    groups = Counter(data for data, _ in pairs)
    top = '<th colspan="5"></th>'
    top += "".join(f'<th class="group" colspan="{n}">{_text(d)}</th>' for d, n in groups.items())
    names = [
        "submission",
        "status",
        "size",
        "errors",
        "warnings",
        *(SHORT.get(m, m) for _, m in pairs),
    ]
    if standard.references:
        top += '<th class="group" colspan="2">reference</th>'
        names += ["lines", "temp 0"]
    if any(grade.checks for grade in grades):
        top += '<th class="group"></th>'
        names.append("checks")
    return f"<thead><tr>{top}</tr><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr></thead>"


def _row(i: int, grade: Grade, grades: Sequence[Grade], standard: Standard) -> str:
    name = f'<a href="#s{i}">{_text(grade.name)}</a>' if _section(i, grade) else _text(grade.name)
    cells = [f"<td>{name}</td>", _td(grade.status, CLASSES[grade.status])]
    files = scored_files(standard)
    n_checks = int(any(each.checks for each in grades))
    if grade.refusal is not None:
        span = 3 + len(files) + (2 if standard.references else 0) + n_checks
        cells.append(f'<td class="reason" colspan="{span}">{_text(grade.refusal)}</td>')
        return f"<tr>{''.join(cells)}</tr>\n"
    cells += [_td(size_cell(grade)), *(_td(str(count)) for count in counts(grade))]
    outputs = {output.file: output for output in grade.outputs}
    cells += [_output_td(outputs[file]) for file in files]
    if standard.references:
        cells += [_td(cell, CLASSES[cell]) for cell in agreement_cells(grade)]
    if n_checks:
        is_good = all(check.verdict == "pass" for check in grade.checks)
        cells.append(_td(checks_cell(grade), "" if is_good else "low"))
    return f"<tr>{''.join(cells)}</tr>\n"


def _output_td(output: Output) -> str:
    hint = ""
    if output.accuracy is not None:
        figure = "none" if output.figure is None else f"{output.figure:.3f}"
        hint = f"{output.verdict}; figure {figure}, macro F1 {output.macro_f1:.3f}"
    kind = "warn" if output.one_class else CLASSES[output.verdict]
    return _td(cell_of(output), kind, hint)


def _td(text: str, kind: str = "", hint: str = "") -> str:
    attributes = f' class="{kind}"' if kind else ""
    attributes += f' title="{_text(hint)}"' if hint else ""
    return f"<td{attributes}>{_text(text)}</td>"


def _section(i: int, grade: Grade) -> str:
    """What the table has no room for; a refusal stands in the table."""
    items = "".join(
        f'<li class="{kind}"><b>{kind}</b> {_text(text)}</li>' for kind, text in details(grade)
    )
    if grade.refusal is not None or not items:
        return ""
    return f'<section id="s{i}"><h2>{_text(grade.name)}</h2><ul>{items}</ul></section>\n'
