"""Learning rates: linear warmup, then constant, a cosine, or constant with a fall at the end."""

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
    @property
    def cooldown(self) -> float: ...


def learning_rate(options: Scheduled, step: int) -> float:
    """Linear warmup over `warmup` steps to `lr`, then constant, or half a cosine to `min_lr`, or
    ("wsd") constant and a linear fall to `min_lr` from fall_begins on.

    Steps count from 0. Loshchilov and Hutter 2017, eq. 5, without restarts; warmup-stable-decay: Hu
    et al. 2024 (MiniCPM), section 4, with the linear fall of Hägele et al. 2024.
    """
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    if options.schedule == "constant":
        return options.lr
    if options.schedule == "wsd":
        begin = fall_begins(options.steps, options.cooldown)
        into = max(0, step - begin) / max(1, options.steps - begin)
        return options.lr + (options.min_lr - options.lr) * min(1.0, into)
    decay_steps = (options.decay_steps or options.steps) - options.warmup
    progress = min(1.0, (step - options.warmup) / max(1, decay_steps))
    return options.min_lr + (options.lr - options.min_lr) * (1 + math.cos(math.pi * progress)) / 2


def fall_begins(steps: int, cooldown: float) -> int:
    """The step from which on the learning rate of "wsd" falls: the last `cooldown` of all steps."""
    return steps - max(1, round(cooldown * steps))
