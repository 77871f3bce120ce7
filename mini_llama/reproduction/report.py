"""Compare the scores of finished runs, over seeds, with the courses' figures.

`report` prints the table and writes results.json, the plots and report.html.
"""

import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from config import DEFAULT_EDITION
from mini_llama.assignment.agreement import Agreement
from mini_llama.assignment.figures import (
    BANDS,
    MEASURED,
    REFERENCE,
    SPLITS,
    Figure,
    is_placeholder,
    two_figures,
    verdict,
)
from mini_llama.assignment.metrics import accuracy, macro_f1
from mini_llama.assignment.options import default_of
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.record import Checkpoint
from mini_llama.downloads.files import FILES, STORIES42M_ARGS
from mini_llama.reproduction import plots as reproduction_plots
from mini_llama.reproduction.estimate import format_duration
from mini_llama.reproduction.outputs import read_epochs, read_labels, read_predictions
from mini_llama.reproduction.page import Grid, Page
from mini_llama.reproduction.reference import compare_runs
from mini_llama.reproduction.results import DONE, Record, Results
from mini_llama.reproduction.runs import TRAINED, Run, Settings
from mini_llama.reproduction.worst import find_worst_examples
from mini_llama.tables import align
from utils import atomic_write

PUBLISHED = {file.name: file.sources[0].sha256 for file in FILES}
NOT_JUDGED = "not judged"
WORST_COUNT = 5
HEADER = (
    *("data", "option", "split", "runs", "accuracy", "reference"),
    *("verdict", "macro F1", "time", "peak MB"),
)
LEFT = 3  # columns of text; the others are numbers
Pair = tuple[Run, Record]


@dataclass(frozen=True)
class Row:
    """One option on one split of one data set, over all successful seeds.

    `seconds` is the mean over whole runs, dev and test together, and `peak_bytes` the largest.
    `why_not` is the reason if the reference does not apply. `measured` is the accuracy of
    independent runs' predictions if it differs from the course's text.
    """

    data: str
    option: str
    split: str
    accuracies: list[float]
    macro_f1s: list[float]
    reference: Figure | None
    verdict: str
    seconds: float | None
    peak_bytes: int | None
    why_not: str | None = None
    measured: float | None = None

    def cells(self) -> tuple[str, ...]:
        peak = "-" if self.peak_bytes is None else f"{self.peak_bytes / 1e6:.0f}"
        reference = "-"
        if self.reference is not None:
            mean, deviation = self.reference
            reference = f"{mean:.3f}" + ("" if deviation is None else f" ({deviation:.3f})")
            reference += "" if self.measured is None else f" or {self.measured:.3f}"
        is_first = self.split == SPLITS[0]  # time and memory are per run, not per split
        return (
            *(self.data, self.option, self.split, str(len(self.accuracies))),
            *(mean_text(self.accuracies), reference, self.verdict, mean_text(self.macro_f1s)),
            format_duration(self.seconds) if is_first and self.seconds is not None else "",
            peak if is_first else "",
        )


def mean_text(values: Sequence[float]) -> str:
    """The mean and, for two or more values, the sample standard deviation."""
    if not values:
        return "-"
    deviation = f" ({statistics.stdev(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


def report(settings: Settings, pairs: Sequence[Pair], results: Results) -> None:
    """Print the table, then write results.json, plots and report.html.

    Raises OSError if they cannot be written.
    """
    groups = group(pairs)
    rows = list(make_rows(settings, groups))
    notes = make_notes(rows, pairs) + figure_notes(settings, rows)
    agreements = compare_with_reference(settings, pairs)
    notes += [f"{one.file}: {one.message}" for one in agreements]
    print("\n" + "\n".join([*table(rows), *(f"- {note}" for note in notes)]), flush=True)
    for runs in groups.values():
        notes += add_worst(runs, results)
    plots = []
    try:
        plots = reproduction_plots.draw(settings.out / "plots", groups)
    except ValueError as error:
        notes.append(f"no plots: {error}")
        print(f"- {notes[-1]}")
    summary = [asdict(row) for row in rows]
    epochs = {run.name: read_epochs(run) for run, _ in pairs if run.options.option in TRAINED}
    compared = [asdict(one) for one in agreements]
    results.write(summary=summary, notes=notes, epochs=epochs, agreements=compared)
    cells = [row.cells() for row in rows]
    page = Page(about(settings), Grid(HEADER, cells, LEFT), notes, plots)
    path = settings.out / "report.html"
    with atomic_write(path) as file:
        file.write(page.render(pairs))
    print(f"report: {path}")


def about(settings: Settings) -> str:
    """The settings that all runs share, as one line."""
    edition = settings.edition or f"the checkpoint's own, else {DEFAULT_EDITION}"
    parts = [f"model {settings.checkpoint}", f"edition: {edition}", f"dtype {settings.dtype}"]
    parts += ["padding masked"] * settings.mask_padding + ["on a GPU"] * settings.use_gpu
    if settings.max_sentence_len is not None:
        parts.append(f"training texts cut to {settings.max_sentence_len} tokens")
    return "; ".join(parts)


def group(pairs: Iterable[Pair]) -> dict[tuple[str, str], list[Pair]]:
    """The classification runs by data set (the courses' name) and option, sorted by data set."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for run, record in pairs:
        if run.dataset is not None:
            groups.setdefault((run.dataset, run.options.option), []).append((run, record))
    return dict(sorted(groups.items(), key=lambda item: list(BANDS).index(item[0][0])))


def make_rows(settings: Settings, groups: dict[tuple[str, str], list[Pair]]) -> Iterator[Row]:
    """A row for each option and split. Raises OSError or ValueError for damaged outputs."""
    why = why_no_figures_apply(settings) if groups else None
    for (dataset, option), pairs in groups.items():
        done = [pair for pair in pairs if pair[1].status == DONE]
        why_not = why or next((reason for reason in map(why_not_judged, done) if reason), None)
        for split in SPLITS:
            scored = [read_labels(run, split) for run, _ in done]
            is_void = bool(scored) and is_placeholder(scored[0][0])
            accuracies = [accuracy(*pair) for pair in scored]
            key = (settings.edition or DEFAULT_EDITION, option, dataset, split)
            reference = None if settings.is_bundled else REFERENCE.get(key)
            word = "placeholder" if is_void else NOT_JUDGED if why_not else "-"
            if not done:
                word = "failed"
            elif word == "-" and reference is not None:
                mean = statistics.fmean(accuracies)
                word = f"{verdict(mean, reference[0], dataset)} ({mean - reference[0]:+.3f})"
            yield Row(
                pairs[0][0].options.dataset,
                option,
                split,
                accuracies,
                [] if is_void else [macro_f1(*pair) for pair in scored],
                reference,
                word,
                statistics.fmean(r.seconds for _, r in done) if done else None,
                max((r.peak_bytes for _, r in done if r.peak_bytes), default=None),
                why_not if word == NOT_JUDGED else None,
                None if reference is None else MEASURED.get(key),
            )


def compare_with_reference(settings: Settings, pairs: Sequence[Pair]) -> list[Agreement]:
    """Compare the graded commands' outputs on the real model with the reference outputs."""
    done = [pair for pair in pairs if pair[1].status == DONE]
    if settings.is_bundled or not done or why_no_figures_apply(settings):
        return []
    return list(compare_runs([run for run, record in done if not why_not_judged((run, record))]))


def why_no_figures_apply(settings: Settings) -> str | None:
    """Why the figures do not apply to this model; None if they do."""
    if settings.is_bundled:
        return "the bundled model and data stand in for the real ones"
    path = settings.checkpoint
    try:
        saved: Checkpoint = read_checkpoint(path)
    except (OSError, ValueError) as error:
        return str(error)
    for name, expected in STORIES42M_ARGS.items():
        if (actual := saved.model_args.get(name)) != expected:
            return f"{path} is not stories42M.pt ({name} {actual}, not {expected})"
    if saved.recorded:
        return f"{path} is not stories42M.pt (it records its own norm or attention)"
    return None


def why_not_judged(pair: Pair) -> str | None:
    """Why a run is not one of the graded commands on the courses' files; None if it is."""
    run, record = pair
    for name in ("train", *SPLITS) if run.dataset is not None else ():
        if record.inputs[name] != PUBLISHED[f"data/{run.dataset}-{name}.txt"]:
            return f"{getattr(run.options, name)} is not the courses' file"
    if record.inputs["tokenizer"] != PUBLISHED["tokenizer.model"]:
        return f"{run.inputs['tokenizer']} is not the courses' tokenizer.model"
    names = ["max_sentence_len", "mask_padding", "dtype"]
    for name in [*names, *["epochs"] * (run.options.option in TRAINED)]:
        if (value := getattr(run.options, name)) != default_of(name):
            return f"the graded commands have --{name} {default_of(name)}, not {value}"
    return None


def table(rows: Sequence[Row]) -> list[str]:
    """The aligned lines of the table; none without rows."""
    return align([HEADER, *(row.cells() for row in rows)], left=LEFT) if rows else []


def make_notes(rows: Sequence[Row], pairs: Sequence[Pair]) -> list[str]:
    """Notes that explain the table, one line each."""
    notes = []
    verdicts = {row.verdict for row in rows}
    if rows:
        notes.append("accuracy and macro F1: mean over runs (sample standard deviation)")
    if any(row.reference for row in rows):
        bands = ", ".join(f"{band} for {name}" for name, band in BANDS.items())
        notes.append(
            "reference: the courses' mean over 10 seeds (standard deviation), with stories42M.pt; "
            f"within: the difference is at most the courses' band ({bands})"
        )
    reasons = dict.fromkeys(row.why_not for row in rows if row.why_not)
    notes += [f"the reference figures do not apply: {reason}" for reason in reasons]
    if "placeholder" in verdicts:
        notes.append(
            "placeholder: all gold labels are the same; this accuracy is the share predicted "
            "as that label, and gets no verdict"
        )
    if any(row.option == "prompt" for row in rows):
        notes.append("prompt is deterministic: one run is enough")
    done = [record for _, record in pairs if record.status == DONE]
    if any(record.is_resumed for record in done):
        notes.append("time of a resumed run: the sum of its parts, without those that were killed")
    if any(record.peak_bytes is None for record in done):
        notes.append("peak memory is not measured: it is unknown on this system")
    elif done:
        notes.append("peak MB: largest resident memory of the process, not of a GPU")
    notes += [f"{run.name} failed: {r.error}" for run, r in pairs if r.status != DONE]
    return notes


def figure_notes(settings: Settings, rows: Sequence[Row]) -> list[str]:
    """A line for each figure whose value in the course's text differs from its predictions'."""
    edition = settings.edition or DEFAULT_EDITION
    found = (two_figures(edition, row.option, row.data, row.split) for row in rows if row.measured)
    return [note for note in found if note]


def add_worst(pairs: Sequence[Pair], results: Results) -> list[str]:
    """Add the worst examples to the first finished run's record; return a note if that fails."""
    first = next((pair for pair in pairs if pair[1].status == DONE), None)
    if first is None or first[1].worst is not None:
        return []
    run, record = first
    gold, predictions = read_predictions(run, "dev")
    if is_placeholder([example.label for example in gold]):
        return []
    try:
        record.worst = find_worst_examples(run.options, gold, predictions, WORST_COUNT)
    except (OSError, ValueError) as error:
        print(f"no worst examples of {run.name}: {error}", file=sys.stderr)
        return [f"no worst examples of {run.name}: {error}"]
    results.put(record)
    return []
