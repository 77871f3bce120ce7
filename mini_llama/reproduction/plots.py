"""Learning curves and confusion matrices of finished runs, as PNG files. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mini_llama.assignment.figures import SPLITS, is_placeholder
from mini_llama.assignment.reviews import read_label_names
from mini_llama.optional_imports import import_optional
from mini_llama.reproduction.outputs import read_epochs, read_predictions
from mini_llama.reproduction.results import DONE, Record
from mini_llama.reproduction.runs import TRAINED, Run
from utils import atomic_write

COLOURS = {"finetune": "#2a5caa", "lora": "#c4561e"}
MAX_LABELS = 12  # with more, the matrix has no room for numbers
MAX_CHARACTERS = 14
Groups = dict[tuple[str, str], list[tuple[Run, Record]]]


def draw(folder: Path, groups: Groups) -> list[tuple[str, Path]]:
    """Write all plots and return their titles and files. Raises ValueError without matplotlib."""
    matplotlib = import_optional("matplotlib", "drawing plots")
    matplotlib.use("Agg")
    pyplot = import_optional("matplotlib.pyplot", "drawing plots")
    plots = []
    # A label's name may contain a dollar sign, which starts a formula in matplotlib.
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 10}):
        for dataset in dict.fromkeys(dataset for dataset, _ in groups):
            done = {
                option: [run for run, record in pairs if record.status == DONE]
                for (name, option), pairs in groups.items()
                if name == dataset
            }
            done = {option: runs for option, runs in done.items() if runs}
            if not done:
                continue
            title = next(iter(done.values()))[0].options.dataset
            for kind, figure in (
                ("Learning curves", draw_curves(pyplot, done)),
                ("Confusion matrices of all runs", draw_confusion(pyplot, done)),
            ):
                if figure is None:
                    continue
                folder.mkdir(exist_ok=True)
                path = folder / f"{kind.split()[0].lower()}-{title}.png"
                with atomic_write(path, "wb") as file:
                    figure.savefig(file, format="png", dpi=120)
                pyplot.close(figure)
                plots.append((f"{kind}, {title}", path))
    return plots


def draw_curves(pyplot: Any, done: dict[str, list[Run]]) -> Any:
    """Training loss, training accuracy and dev accuracy over epochs, one line per seed."""
    curves = {o: [read_epochs(run) for run in runs] for o, runs in done.items() if o in TRAINED}
    if not any(epochs for runs in curves.values() for epochs in runs):
        return None
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for option, runs in curves.items():
        for i, epochs in enumerate(runs):
            x = [e["epoch"] for e in epochs]
            look = {
                "color": COLOURS[option],
                "marker": "o",
                "markersize": 4,
                "alpha": 1 if len(runs) < 3 else 0.5,
            }
            losses, train, dev = (
                [e[name] for e in epochs]
                for name in ("train_loss", "train_accuracy", "dev_accuracy")
            )
            left.plot(x, losses, label=option if i == 0 else None, **look)
            right.plot(x, dev, label=f"{option}, dev" if i == 0 else None, **look)
            label = f"{option}, train" if i == 0 else None
            right.plot(x, train, label=label, linestyle="--", markerfacecolor="none", **look)
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="accuracy")
    last = int(max(e["epoch"] for runs in curves.values() for epochs in runs for e in epochs))
    for axes in (left, right):
        axes.set_xlim(-0.3, last + 0.3)
        axes.set_xticks(range(0, last + 1, 1 + last // 10))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def confusion(runs: Sequence[Run], split: str, size: int) -> np.ndarray:
    """Counts by (gold, predicted) label, summed over all runs."""
    counts = np.zeros((size, size), dtype=np.int64)
    for run in runs:
        gold, predictions = read_predictions(run, split)
        np.add.at(counts, ([example.label for example in gold], predictions), 1)
    return counts


def draw_confusion(pyplot: Any, done: dict[str, list[Run]]) -> Any:
    """A row for each split with more than one gold label, a column for each option."""
    first = next(iter(done.values()))[0]
    names = [shorten(name) for name in read_label_names(first.options.label_names)]
    splits = []
    for split in SPLITS:
        gold, _ = read_predictions(first, split)
        if not is_placeholder([example.label for example in gold]):
            splits.append(split)
    if not splits or len(names) > MAX_LABELS:
        return None
    side = 1.5 + 0.42 * len(names)
    figure, grid = pyplot.subplots(
        len(splits),
        len(done),
        figsize=(side * len(done) + 0.6, side * len(splits) + 0.4),
        layout="constrained",
        squeeze=False,
    )
    for row, split in zip(grid, splits, strict=True):
        for i, (axes, (option, runs)) in enumerate(zip(row, done.items(), strict=True)):
            counts = confusion(runs, split, len(names))
            draw_matrix(axes, counts)
            axes.set_title(f"{option}, {split}", fontsize=10)
            ticks = range(len(names))
            axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticks(ticks, names if i == 0 else [""] * len(names))
            axes.set(xlabel="predicted", ylabel="gold" if i == 0 else None)
    return figure


def draw_matrix(axes: Any, counts: np.ndarray) -> None:
    """The color is the share of the gold label, the number is the count."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (y, x), count in np.ndenumerate(counts):
        colour = "white" if shares[y, x] > 0.55 else "#222222"
        axes.text(x, y, str(count), ha="center", va="center", color=colour, fontsize=8)
    axes.tick_params(length=0, labelsize=8)


def shorten(name: str) -> str:
    return name if len(name) <= MAX_CHARACTERS else name[: MAX_CHARACTERS - 1] + "…"
