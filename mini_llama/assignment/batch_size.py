"""Infer the batch size that predictions were made with.

The assignment has no padding mask: a prediction depends only on its sentence and on the length that
its batch is padded to. Where batches of 10 and batches of N, in the data's order, are padded to the
same length, both give the same prediction. If all lines that differ from the reference are other
lines, the batch size explains them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mini_llama.assignment.reference_outputs import BATCH_SIZE

SIZES = (*range(1, 129), 160, 192, 200, 250, 256, 320, 400, 500, 512, 1000, 1024, 2048, 4096)
DRIFT_RATE = 0.005  # share of lines that differ between correct runs
# Natural logarithms of likelihood ratios, over differences that are equally likely on every line
# (for these, thousands of trials reached 10 at most).
PROOF = 14.0
HINT = 8.0
TIE = 3.0  # sizes this close to the likeliest are reported with it


@dataclass(frozen=True)
class Lines:
    """A file's token counts, in order, and the lines (from 0) that differ from the reference."""

    tokens: tuple[int, ...]
    different: frozenset[int]


@dataclass(frozen=True)
class BatchSizes:
    """The likeliest batch sizes, usually one, and the log likelihood ratio of the first over
    differences that are equally likely on every line.
    """

    sizes: tuple[int, ...]
    evidence: float

    @property
    def is_proved(self) -> bool:
        return self.evidence >= PROOF

    @property
    def is_likely(self) -> bool:
        return self.evidence >= HINT

    def __str__(self) -> str:
        first, *others = self.sizes
        if len(others) > 2:
            return f"a batch size from {min(self.sizes)} to {max(self.sizes)}"
        return f"batch size {' or '.join(map(str, sorted([first, *others])))}"


def find_batch_size(files: Sequence[Lines]) -> BatchSizes:
    """The batch size that explains which lines of these files, all of one command, differ."""
    null = sum(_likelihood(len(file.different), len(file.tokens)) for file in files)
    scores = {}
    for size in SIZES:
        if size != BATCH_SIZE:
            scores[size] = sum(map(_score, files, (size,) * len(files))) - null
    best = max(scores.values())
    sizes = tuple(size for size, score in scores.items() if score >= best - TIE)
    likeliest = max(scores, key=lambda size: scores[size])
    return BatchSizes((likeliest, *(size for size in sizes if size != likeliest)), best)


def same_padding(tokens: tuple[int, ...], size: int) -> frozenset[int]:
    """The lines (from 0) that batches of `size` pad to the same length as the graded batches."""
    return _same_padding(tokens)[size]


@lru_cache(maxsize=8)
def _same_padding(tokens: tuple[int, ...]) -> dict[int, frozenset[int]]:
    graded = list(_padded(tokens, BATCH_SIZE))
    return {
        size: frozenset(
            i for i, (a, b) in enumerate(zip(graded, _padded(tokens, size), strict=True)) if a == b
        )
        for size in SIZES
    }


def _padded(tokens: Sequence[int], size: int) -> Iterator[int]:
    """The length that each line's batch is padded to."""
    for start in range(0, len(tokens), size):
        batch = tokens[start : start + size]
        for _ in batch:
            yield max(batch)


def _score(file: Lines, size: int) -> float:
    """Log-likelihood of the differing lines: at the rate of drift where the padding is the same,
    at any rate where it is not.
    """
    same = same_padding(file.tokens, size)
    inside = len(file.different & same)
    drift = inside * math.log(DRIFT_RATE) + (len(same) - inside) * math.log1p(-DRIFT_RATE)
    return drift + _likelihood(len(file.different) - inside, len(file.tokens) - len(same))


def _likelihood(count: int, total: int) -> float:
    """Log-likelihood of `count` in `total` at the rate that makes it largest."""
    if count in (0, total):
        return 0.0
    rate = count / total
    return count * math.log(rate) + (total - count) * math.log1p(-rate)
