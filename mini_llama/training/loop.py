"""The steps of a run: bar, metrics, evaluations on the way, and an end at a signal."""

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

from mini_llama.training.core import TrainerCore
from mini_llama.training.log import TrainingLog
from mini_llama.training.processes import Process, StopRequest

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Steps:
    """Which steps are to be done: from `start`, the number that is done, to `end`; `unit` names
    them for the bar. An evaluation follows every `eval_every`-th step and the last. With
    `flops_a_token` the operations a second are logged, and their share of `peak`, if it is known.
    """

    start: int
    end: int
    eval_every: int
    unit: str = "step"
    flops_a_token: float | None = None
    peak: float | None = None

    def speed(self, rate: float) -> dict[str, float]:
        """What is logged of so many tokens a second."""
        values = {"tokens_per_second": rate}
        if self.flops_a_token is not None:
            values["flops_per_second"] = rate * self.flops_a_token
            if self.peak is not None:
                values["mfu"] = values["flops_per_second"] / self.peak
        return values


def run_loop(
    trainer: TrainerCore,
    steps: Steps,
    batches: Iterable[Batch],
    take_step: Callable[[Batch], tuple[dict[str, float], int]],
    check: Callable[[], dict[str, float]],
    log: TrainingLog | None,
) -> int | None:
    """Take the steps; None at the end, or the number of the signal that stopped them.

    `take_step` returns the numbers to log, that of the bar first, and how many tokens the step
    took, of all processes; `check` evaluates, saves, and returns numbers to log, too. Only the
    first process has a log.
    """
    stop = StopRequest()
    bar = tqdm(total=steps.end, initial=steps.start, unit=steps.unit, disable=None)
    start, tokens = time.perf_counter(), 0
    todo = itertools.islice(batches, steps.end - steps.start)
    for number, batch in enumerate(todo, steps.start + 1):
        values, count = take_step(batch)
        tokens += count
        rate = tokens / (time.perf_counter() - start)
        name, shown = next(iter(values.items()))
        bar.set_postfix_str(
            f"{name.removeprefix('train_')} {shown:.3f}, {rate:.0f} tokens/s", refresh=False
        )
        bar.update()
        values |= steps.speed(rate) | {"lr": trainer.optimizer.param_groups[0]["lr"]}
        is_stopped = stop.agreed(trainer.process)
        is_checked = number % steps.eval_every == 0 or number == steps.end
        if is_checked:
            values |= check()
        if log is not None:
            log.write(number, **values)
            if is_checked:
                log.draw()
        if is_stopped:
            break
    bar.close()
    return stop.signal


def exit_status(process: Process, stopped: int | None, step: int) -> int:
    """0, or that of a run which a signal stopped, which is reported."""
    if stopped is None:
        return 0
    report(process, f"stopped at step {step}; --resume goes on from there")
    return 128 + stopped


def report(process: Process, line: str) -> None:
    """Print a line above the bar, in the first process alone."""
    if process.is_main:
        tqdm.write(line)
