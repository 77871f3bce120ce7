"""Totals of many timed steps from a sample of them, with their standard errors."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Estimate(NamedTuple):
    """Seconds, and standard errors by their source: those of one source add up, since they are of
    one fitted line, and those of different sources are independent.
    """

    seconds: float
    errors: Mapping[str, float] = {}

    @property
    def error(self) -> float:
        return math.hypot(*self.errors.values())

    def plus(self, other: "Estimate") -> "Estimate":
        errors = Counter(self.errors)
        errors.update(other.errors)
        return Estimate(self.seconds + other.seconds, dict(errors))


def total(parts: Sequence[Estimate]) -> Estimate:
    result = Estimate(0.0)
    for part in parts:
        result = result.plus(part)
    return result


def ratio(one: Estimate, other: Estimate) -> tuple[float, float]:
    """one / other, and its standard error to first order."""
    value = one.seconds / other.seconds
    return value, value * math.hypot(one.error / one.seconds, other.error / other.seconds)


def of_repeats(seconds: Sequence[float], times: int, source: str) -> Estimate:
    """`times` of what took `seconds` when it was repeated; a single figure has no error."""
    count = len(seconds)
    mean = math.fsum(seconds) / count
    if count < 2:
        return Estimate(times * mean)
    variance = math.fsum((s - mean) ** 2 for s in seconds) / (count - 1)
    return Estimate(times * mean, {source: times * math.sqrt(variance / count)})


def stratified(sizes: Sequence[float], count: int, seed: int) -> list[int]:
    """Indices of `count` of the steps, one drawn from each of as many strata of like size, in a
    drawn order; all of them where there are fewer.
    """
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    count, generator = min(count, len(order)), random.Random(seed)
    bounds = [len(order) * n // count for n in range(count + 1)]
    drawn = [order[generator.randrange(*pair)] for pair in itertools.pairwise(bounds)]
    generator.shuffle(drawn)
    return drawn


class Line(NamedTuple):
    """seconds = mean + slope · (size - middle), fitted by least squares to `steps` steps, whose
    standard deviation around it is `spread`; `width` is the sum of squares of size - middle.
    """

    steps: int
    middle: float
    mean: float
    slope: float
    spread: float
    width: float

    def sum(self, sizes: Sequence[float], source: str) -> Estimate:
        """Seconds of all steps of these sizes. The error is that of the line, and of the steps'
        own spread around it (Cochran 1977, chapter 7).
        """
        count = len(sizes)
        away = math.fsum(sizes) - count * self.middle
        of_slope = away / math.sqrt(self.width) if self.width else 0.0
        error = self.spread * math.hypot(count / math.sqrt(self.steps), of_slope, math.sqrt(count))
        return Estimate(count * self.mean + self.slope * away, {source: error})


def fit(sizes: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line through timed steps; at least three, or the spread is unknown and taken as 0."""
    count = len(sizes)
    middle, mean = math.fsum(sizes) / count, math.fsum(seconds) / count
    width = math.fsum((x - middle) ** 2 for x in sizes)
    pairs = list(zip(sizes, seconds, strict=True))
    slope = math.fsum((x - middle) * (y - mean) for x, y in pairs) / width if width else 0.0
    squares = math.fsum((y - mean - slope * (x - middle)) ** 2 for x, y in pairs)
    spread = math.sqrt(squares / (count - 2)) if count > 2 else 0.0
    return Line(count, middle, mean, slope, spread, width)


def clock(estimate: Estimate) -> str:
    """ "12.3 s ± 0.4", or in minutes or hours where there are many."""
    for unit, seconds in (("h", 3600), ("min", 60)):
        if estimate.seconds >= 2 * seconds:
            return f"{estimate.seconds / seconds:.2f} {unit} ± {estimate.error / seconds:.2f}"
    return f"{estimate.seconds:.1f} s ± {estimate.error:.1f}"


def markdown(rows: Mapping[str, Mapping[str, Estimate]], sides: Sequence[str], what: str) -> str:
    """A table of `rows` with a column a side, the last of which the others are divided by."""
    *ours, peer = sides
    heads = [what, *sides, *(f"{side} / {peer}" for side in ours)]
    lines = [heads, ["---"] * len(heads)]
    for name, row in rows.items():
        cells = [clock(row[side]) if side in row else "" for side in sides]
        for side in ours:
            known = side in row and peer in row and row[peer].seconds > 0
            cells.append("{:.2f} ± {:.2f}".format(*ratio(row[side], row[peer])) if known else "")
        lines.append([name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
