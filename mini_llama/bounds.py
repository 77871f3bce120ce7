"""Values out of bounds are refused in one form: what was given, and what it must be."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass


class UsageError(ValueError):
    """A command line that is wrong whatever the files hold: exit status 2."""


def check_bound(given: str, holds: bool, bound: str, error: type[Exception] = ValueError) -> None:
    """Raise the error, "GIVEN is not allowed: it must be BOUND", unless `holds`.

    `given` names the value as its user does: "--lr -1.0", or "dim=0" for a field of a file.
    """
    if not holds:
        raise error(f"{given} is not allowed: it must be {bound}")


def check_usage(given: str, holds: bool, bound: str) -> None:
    """`check_bound` for options: raise UsageError unless `holds`."""
    check_bound(given, holds, bound, UsageError)


@contextlib.contextmanager
def as_usage() -> Iterator[None]:
    """Raise the block's ValueError as a UsageError: it is about options alone."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from None


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; both belong to it, unless `is_open` takes `low` out and
    `is_half_open` takes `high` out. NaN is in no range.
    """

    low: float
    high: float
    is_open: bool = False
    is_half_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.is_open else value >= self.low
        return above and (value < self.high if self.is_half_open else value <= self.high)

    def __str__(self) -> str:
        """ "at least 1 and at most 1000"."""
        low = f"{'above' if self.is_open else 'at least'} {self.low}"
        return f"{low} and {'below' if self.is_half_open else 'at most'} {_short(self.high)}"


def _short(number: float) -> str:
    return "2^63 - 1" if number == SEEDS_END else str(number)


SEEDS_END = 2**63 - 1
# Bounds that are far above what anybody trains: beyond them a run would never end, or not fit.
COUNTS = Range(1, 10**9)
COUNTS_OR_NONE = Range(0, 10**9)
SEEDS = Range(0, SEEDS_END)
EPOCHS = Range(1, 100_000)
BATCH_SIZES = Range(1, 2**20)
WIDTHS = Range(1, 2**20)
LAYERS = Range(1, 4096)
LEARNING_RATES = Range(0, 1e30)  # float32 ends at 3e38; what diverges says so
