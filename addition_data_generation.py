#!/usr/bin/env python
"""Write files of additions to train, validate and test on: no pair of numbers is in two of them.

addition_run.py train writes its own; this command is for trying the task without the course's test
file. A test file that is there stays as it is.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mini_llama  # noqa: F401  # says which packages are missing, before one is imported

# isort: split

import numpy as np

from mini_llama.addition.additions import (
    N_PAIRS,
    numbered_pairs,
    pair_numbers,
    read_additions,
)
from mini_llama.bounds import check_bound
from mini_llama.command_line import (
    argument,
    check_option,
    make_parser,
    one_line_errors,
    parse_given,
)
from utils import atomic_write

PROGRAM = "addition_data_generation.py"
DESCRIPTION = "\n".join(__doc__.splitlines()[:1])


def generate_addition_data(
    n: int, excluded: Iterable[str] = (), generator: np.random.Generator | None = None
) -> list[str]:
    """n additions `a+b=c` of two numbers from 1000 to 9999, drawn at random; no pair, in whichever
    order, comes twice, and none that is in `excluded`.

    Without a generator Python's `random` says which. Raises ValueError for more than there are.
    """
    generator = generator or np.random.default_rng(random.getrandbits(64))
    taken = np.unique(pair_numbers(excluded))
    is_possible = 0 <= n <= N_PAIRS - len(taken)
    check_bound(f"{n} additions", is_possible, f"from 0 to {N_PAIRS - len(taken):,}: all there are")
    drawn = generator.choice(N_PAIRS, n + len(taken), replace=False)  # enough, whatever is dropped
    drawn = drawn[~np.isin(drawn, taken)][:n]
    smaller, larger = numbered_pairs(drawn)
    is_swapped = generator.random(n) < 0.5
    first = np.where(is_swapped, larger, smaller).tolist()
    second = np.where(is_swapped, smaller, larger).tolist()
    return [f"{a}+{b}={a + b}" for a, b in zip(first, second, strict=True)]


def write_additions(additions: Sequence[str], path: str | Path) -> None:
    """One a line. Raises OSError."""
    with atomic_write(path) as file:
        file.writelines(f"{line}\n" for line in additions)
    print(f"{len(additions)} data points saved to {path}")


def generate_dataset(n: int, filename: str, save_dir: str | Path = "data") -> None:
    """n new additions in a file of a folder, which is made if it is not there. Raises OSError."""
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    write_additions(generate_addition_data(n), Path(save_dir) / filename)


@dataclass(frozen=True)
class DataOptions:
    """The command's options. Raises ValueError, naming the flag, for a value out of bounds."""

    train: int = argument(100_000, "additions to train on")
    dev: int = argument(20_000, "additions to validate on")
    test: int = argument(10_000, "additions to test on, if there is no test file yet")
    seed: int = argument(1337)
    save_dir: str = argument("data", "folder of addition_{train,dev,test}.txt")

    def __post_init__(self) -> None:
        for name in ("train", "dev", "test"):
            check_option(self, name, getattr(self, name) >= 1, "at least 1")
        check_option(self, "seed", self.seed >= 0, "at least 0")


def write_all(options: DataOptions) -> None:
    """All three files. Raises OSError, ValueError."""
    folder = Path(options.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(options.seed)
    path = folder / "addition_test.txt"
    if path.exists():
        test = read_additions(path)
        print(f"{path} is there and stays: its {len(test)} pairs are in neither other file")
    else:
        test = generate_addition_data(options.test, generator=generator)
        write_additions(test, path)
    drawn = generate_addition_data(options.train + options.dev, test, generator)
    write_additions(drawn[: options.train], folder / "addition_train.txt")
    write_additions(drawn[options.train :], folder / "addition_dev.txt")


def main(argv: Sequence[str] | None = None) -> None:
    given = parse_given(make_parser(PROGRAM, DESCRIPTION, DataOptions), argv)
    with one_line_errors(PROGRAM):
        write_all(DataOptions(**given))


if __name__ == "__main__":
    main()
