"""Learning rates: linear warmup, then constant or a cosine."""

import math
from typing import Protocol


class Scheduled(Protocol):
    """Whatever has these fields: a Recipe, or the options of pretrain.py."""

    @property
    def lr(self) -> float: ...
    @property
    def min_lr(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def decay_steps(self) -> int | None: ...
    @property
    def warmup(self) -> int: ...
    @property
    def schedule(self) -> str: ...


def learning_rate(options: Scheduled, step: int) -> float:
    """Linear warmup over `warmup` steps to `lr`, then constant or half a cosine to `min_lr`.

    Steps count from 0. Loshchilov and Hutter 2017, eq. 5, without restarts.
    """
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    if options.schedule == "constant":
        return options.lr
    decay_steps = (options.decay_steps or options.steps) - options.warmup
    progress = min(1.0, (step - options.warmup) / max(1, decay_steps))
    return options.min_lr + (options.lr - options.min_lr) * (1 + math.cos(math.pi * progress)) / 2
