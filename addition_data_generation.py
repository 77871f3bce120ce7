#!/usr/bin/env python
"""Write additions to train, validate and test on; no pair of numbers is in more than one file.

addition_run.py train writes its own files; this command is for trying the task without the course's
test file. An existing test file is kept.
"""

import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

if sys.flags.safe_path:  # python -P and PYTHONSAFEPATH leave a command's own folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import mini_llama  # noqa: F401  # says which packages are missing, before one is imported

# isort: split

import numpy as np

from mini_llama.addition.additions import (
    N_PAIRS,
    pair_indices,
    pairs_from_indices,
    read_additions,
)
from mini_llama.bounds import COUNTS, SEEDS, check_usage
from mini_llama.command_line import (
    argument,
    check_ranges,
    make_parser,
    number,
    one_line_errors,
    parse_given,
)
from utils import atomic_write

PROGRAM = "addition_data_generation.py"
DESCRIPTION = "\n".join(__doc__.splitlines()[:1])


def generate_addition_data(
    n: int, excluded: Iterable[str] = (), generator: np.random.Generator | None = None
) -> list[str]:
    """Draw n random additions `a+b=c` of two numbers from 1000 to 9999, without repeating a pair
    (in either order) and without the pairs in `excluded`.

    Without a generator, the seed comes from Python's `random`. Raises ValueError if n is more than
    there are.
    """
    generator = generator or np.random.default_rng(random.getrandbits(64))
    taken = np.unique(pair_indices(excluded))
    is_possible = 0 <= n <= N_PAIRS - len(taken)
    check_usage(f"{n} additions", is_possible, f"from 0 to {N_PAIRS - len(taken):,}: all there are")
    drawn = generator.choice(N_PAIRS, n + len(taken), replace=False)  # n remain in any case
    drawn = drawn[~np.isin(drawn, taken)][:n]
    smaller, larger = pairs_from_indices(drawn)
    is_swapped = generator.random(n) < 0.5
    first = np.where(is_swapped, larger, smaller).tolist()
    second = np.where(is_swapped, smaller, larger).tolist()
    return [f"{a}+{b}={a + b}" for a, b in zip(first, second, strict=True)]


def write_additions(additions: Sequence[str], path: str | Path) -> None:
    """Write one addition per line. Raises OSError."""
    with atomic_write(path) as file:
        file.writelines(f"{line}\n" for line in additions)
    print(f"{len(additions)} data points saved to {path}")


def generate_dataset(n: int, filename: str, save_dir: str | Path = "data") -> None:
    """Write n new additions to a file in `save_dir`, which is created. Raises OSError."""
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    write_additions(generate_addition_data(n), Path(save_dir) / filename)


@dataclass(frozen=True)
class DataOptions:
    """The command's options. Raises ValueError, naming the flag, for a value out of bounds."""

    train: int = number(100_000, "additions to train on", COUNTS)
    dev: int = number(20_000, "additions to validate on", COUNTS)
    test: int = number(10_000, "additions to test on, if there is no test file yet", COUNTS)
    seed: int = number(1337, "", SEEDS)
    save_dir: str = argument("data", "folder of addition_{train,dev,test}.txt")

    def __post_init__(self) -> None:
        check_ranges(self)
        drawn = f"--train {self.train} and --dev {self.dev}"
        check_usage(drawn, self.train + self.dev <= N_PAIRS, f"at most {N_PAIRS:,} together")
        check_usage(f"--test {self.test}", self.test <= N_PAIRS, f"at most {N_PAIRS:,}: all pairs")


def write_all(options: DataOptions) -> None:
    """Write all three files. Raises OSError, ValueError."""
    folder = Path(options.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(options.seed)
    path = folder / "addition_test.txt"
    if path.exists():
        test = read_additions(path)
        print(f"keeping {path}: its {len(test)} pairs are excluded from the other files")
    else:
        test = generate_addition_data(options.test, generator=generator)
        write_additions(test, path)
    drawn = generate_addition_data(options.train + options.dev, test, generator)
    write_additions(drawn[: options.train], folder / "addition_train.txt")
    write_additions(drawn[options.train :], folder / "addition_dev.txt")


@one_line_errors(PROGRAM)
def main(argv: Sequence[str] | None = None) -> None:
    given = parse_given(make_parser(PROGRAM, DESCRIPTION, DataOptions), argv)
    write_all(DataOptions(**given))


if __name__ == "__main__":
    main()
