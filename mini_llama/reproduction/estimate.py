"""Estimate how long the remaining runs will take."""

from collections.abc import Sequence
from pathlib import Path

from mini_llama.assignment.figures import SPLITS
from mini_llama.reproduction.runs import TRAINED, Run

START_SECONDS = 4.0  # to start Python and import torch


class Estimate:
    """The remaining time, estimated from earlier runs of the same kind or, if there are none, from
    the bytes of text to process.
    """

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str | None], list[float]] = {}
        self.bytes, self.bytes_seconds = 0, 0.0

    def update(self, run: Run, seconds: float) -> None:
        self.seconds.setdefault((run.options.option, run.dataset), []).append(seconds)
        self.bytes += text_bytes(run)
        self.bytes_seconds += max(0.0, seconds - START_SECONDS) if text_bytes(run) else 0.0

    def describe(self, rest: Sequence[Run]) -> str:
        total = 0.0
        for run in rest:
            known = self.seconds.get((run.options.option, run.dataset))
            if known:
                total += sum(known) / len(known)
            elif self.bytes:
                total += START_SECONDS + text_bytes(run) * self.bytes_seconds / self.bytes
            else:
                return "no estimate yet of the remaining time"
        return f"about {format_duration(total)} remaining"


def text_bytes(run: Run) -> int:
    """Bytes of text that a run processes; a training step counts as three evaluations."""
    if run.dataset is None:
        return 0
    sizes = {}
    for split in ("train", *SPLITS):
        path = Path(getattr(run.options, split))
        sizes[split] = path.stat().st_size if path.is_file() else 0
    evaluated = sizes["dev"] + sizes["test"]
    if run.options.option not in TRAINED:
        return evaluated
    return run.options.epochs * (4 * sizes["train"] + sizes["dev"]) + evaluated


def format_duration(seconds: float) -> str:
    """75.2 → 1:15."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
