"""The records of a training run: metrics.jsonl, loss.png and, on request, TensorBoard's files."""

import contextlib
import json
import math
import sys
from pathlib import Path
from typing import Any

from mini_llama.optional_imports import import_optional
from mini_llama.training.folder import CURVE, METRICS
from utils import atomic_write


class TrainingLog:
    """Appends records to `folder`/metrics.jsonl, and to TensorBoard's files beside it.

    With `resume_step` the records of later steps, which an interrupted run wrote, are dropped.
    `labels` are plot_losses'. Raises ValueError if TensorBoard is asked for and not installed.
    """

    def __init__(
        self, folder: Path, tensorboard: bool, resume_step: int = 0, **labels: str
    ) -> None:
        self.path, self.curve, self.labels = folder / METRICS, folder / CURVE, labels
        self.records = [r for r in read_metrics(self.path) if r["step"] <= resume_step]
        with atomic_write(self.path) as file:
            file.writelines(json.dumps(record) + "\n" for record in self.records)
        self.writer = None
        if tensorboard:
            module = import_optional("torch.utils.tensorboard", "--tensorboard", "tensorboard")
            self.writer = module.SummaryWriter(str(folder), purge_step=resume_step + 1)

    def write(self, step: int, **values: float) -> None:
        """Record values of one step. A number that is not finite is written as null."""
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        self.records.append({"step": step, **finite})
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(self.records[-1]) + "\n")
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def draw(self) -> None:
        """Draw the loss curve so far, where matplotlib is installed; the end of a run says if not.
        Raises OSError.
        """
        with contextlib.suppress(ValueError):
            plot_losses(self.records, self.curve, **self.labels)

    def finish(self) -> None:
        """Close the files; draw the curve, or print why not."""
        self.close()
        draw_losses(self.records, self.curve, **self.labels)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file; a last line that a crash cut short is left out."""
    records = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records


def plot_losses(
    records: list[dict[str, Any]],
    path: Path,
    title: str = "Pre-training",
    step_name: str = "optimizer step",
    scale: str = "linear",
    loss_name: str = "cross-entropy, nats a token",
    curves: str = "train_loss val_loss",
) -> None:
    """Two curves over steps as a PNG, of training and of held-out data: `curves` are their names
    in the records; `scale` is theirs, linear or log.

    Raises ValueError without matplotlib.
    """
    matplotlib = import_optional("matplotlib", "the loss curve")
    matplotlib.use("Agg")
    pyplot = import_optional("matplotlib.pyplot", "the loss curve")
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    styles: tuple[dict[str, Any], ...] = ({"alpha": 0.6}, {"marker": "o"})
    for name, style in zip(curves.split(), styles, strict=True):
        points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), **style)
    axes.set(xlabel=step_name, ylabel=loss_name, title=title, yscale=scale)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)


def draw_losses(records: list[dict[str, Any]], path: Path, **labels: str) -> None:
    """Plot the losses, or print why not: a finished run does not fail for it.

    `labels` are plot_losses'.
    """
    try:
        plot_losses(records, path, **labels)
        print(f"loss curve: {path}")
    except ValueError as error:
        print(f"no loss curve: {error}", file=sys.stderr)
