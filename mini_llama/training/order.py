"""Which examples a step takes: the same whatever the step a run resumes at, and shared out among
processes.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Draws(Sampler[list[int]]):
    """Of every global batch of `batch_size` windows drawn from (seed, step), the `share` from
    `first` on.
    """

    count: int
    start_step: int
    first: int
    share: int
    batch_size: int
    seed: int

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count(self.start_step):
            generator = np.random.default_rng([self.seed, step])
            draw = generator.integers(self.count, size=self.batch_size)
            yield draw[self.first : self.first + self.share].tolist()


@dataclass(frozen=True)
class Shares(Sampler[list[int]]):
    """Window numbers at the positions first + s·stride and the `share` - 1 after it, s = 0, 1, …,
    of the endless sequence of epochs; of one epoch in order if `seed` is None.
    """

    count: int
    first: int
    share: int
    stride: int
    seed: int | None

    def __iter__(self) -> Iterator[list[int]]:
        if self.seed is None:
            for start in range(self.first, self.count, self.stride):
                yield list(range(start, min(start + self.share, self.count)))
            return
        epoch = -1
        for start in itertools.count(self.first, self.stride):
            batch = []
            for position in range(start, start + self.share):
                if position // self.count != epoch:
                    epoch = position // self.count
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
                batch.append(int(order[position % self.count]))
            yield batch
