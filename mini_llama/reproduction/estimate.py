"""How long the runs that are left will take."""

from collections.abc import Sequence
from pathlib import Path

from mini_llama.assignment.figures import SPLITS
from mini_llama.reproduction.runs import TRAINED, Run

START_SECONDS = 4.0  # of Python and torch


class Estimate:
    """Estimates the remaining time from earlier runs of the same kind or, where there is none, from
    the bytes of text that go through the model.
    """

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str | None], list[float]] = {}
        self.bytes, self.bytes_seconds = 0, 0.0

    def learn(self, run: Run, seconds: float) -> None:
        self.seconds.setdefault((run.options.option, run.dataset), []).append(seconds)
        self.bytes += work(run)
        self.bytes_seconds += max(0.0, seconds - START_SECONDS) if work(run) else 0.0

    def say(self, rest: Sequence[Run]) -> str:
        total = 0.0
        for run in rest:
            known = self.seconds.get((run.options.option, run.dataset))
            if known:
                total += sum(known) / len(known)
            elif self.bytes:
                total += START_SECONDS + work(run) * self.bytes_seconds / self.bytes
            else:
                return "no estimate yet of what remains"
        return f"about {clock(total)} remain"


def work(run: Run) -> int:
    """Bytes of text that are classified; a training step counts as three evaluations."""
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


def clock(seconds: float) -> str:
    """75.2 → 1:15."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
