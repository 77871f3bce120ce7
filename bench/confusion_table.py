"""Plant each known mistake (tests/plants.py), alone and with others, and check diagnose.py.

    python bench/confusion_table.py [--pairs]

Mistakes are planted in our own modules and in tests/student. With --pairs, every two mistakes of
different components are also planted together. To need few copies, each copy has mistakes in
several components; a pair is correct if both mistakes are named.

Exit status 1 if a mistake planted alone is not named, if anything else is reported, or if fewer
than 95 % of the pairs are correct.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mini_llama.diagnosis.findings import Finding
from tests.plants import PLANTS, REMARKED, STUDENT_PLANTS, Plant, diagnose_planted, fits

ENOUGH = 0.95


def is_named(one: Plant, findings: Iterable[Finding]) -> bool:
    """True if the component's finding names the mistakes of the plant, and no others."""
    finding = next(f for f in findings if f.component == one.mistake.component)
    if one.mistake.name in REMARKED:
        return finding.is_correct and any(r.startswith(one.mistake.name) for r in finding.remarks)
    return finding.mistake == "; ".join(mistake.name for mistake in one.mistakes)


def singles(folder: Path) -> tuple[int, int]:
    """How many are named, with nothing else reported; and the total."""
    right = total = 0
    plants = [*PLANTS, *STUDENT_PLANTS]
    for (one,), findings in diagnose_planted(folder, [((one,), one.edition) for one in plants]):
        reported = [
            f"{f.component}: {f.mistake or f.verdict}" for f in findings if not f.is_correct
        ]
        others = [text for text in reported if not text.startswith(f"{one.mistake.component}: ")]
        total += 1
        right += is_named(one, findings) and not others
        if not is_named(one, findings) or others:
            print(f"{one.id}  ->  {'; '.join(reported) or 'all correct'}")
    return right, total


def pairs_of(plants: Sequence[Plant]) -> set[frozenset[int]]:
    """Index pairs of plants in different components that can be planted together."""
    return {
        frozenset((i, j))
        for (i, one), (j, two) in combinations(enumerate(plants), 2)
        if one.mistake.component != two.mistake.component and fits((one, two))
    }


def covering(plants: Sequence[Plant]) -> Iterator[tuple[int, ...]]:
    """Sets of plants, at most one in each component, that cover every pair of `pairs_of`."""
    left = pairs_of(plants)
    while left:
        chosen = sorted(next(iter(left)))
        taken = {plants[i].mistake.component for i in chosen}
        for component in {one.mistake.component for one in plants} - taken:
            rivals = [i for i, one in enumerate(plants) if one.mistake.component == component]
            fitting = [i for i in rivals if fits([plants[j] for j in (*chosen, i)])]
            gains = {i: sum(frozenset((i, j)) in left for j in chosen) for i in fitting}
            best = max(gains, key=lambda i: gains[i], default=None)
            if best is not None and gains[best]:
                chosen.append(best)
        left -= {frozenset(pair) for pair in combinations(chosen, 2)}
        yield tuple(chosen)


def pairs(folder: Path) -> tuple[int, int]:
    """For how many pairs both mistakes are named; and the total."""
    right = total = 0
    for number, plants in enumerate((PLANTS, STUDENT_PLANTS)):
        of_one_edition = [one for one in plants if one.edition == "mmia"]
        sets = list(covering(of_one_edition))
        counted: set[frozenset[int]] = set()
        plantings = [(tuple(of_one_edition[i] for i in chosen), "mmia") for chosen in sets]
        place = folder / str(number)
        place.mkdir()
        for chosen, (_, findings) in zip(sets, diagnose_planted(place, plantings), strict=True):
            named = {i: is_named(of_one_edition[i], findings) for i in chosen}
            for i in (i for i in chosen if not named[i]):
                reported = next(
                    str(f) for f in findings if f.component == of_one_edition[i].mistake.component
                )
                print(
                    f"among {len(chosen)}: {of_one_edition[i].id}  ->  {reported.splitlines()[0]}"
                )
            new = {frozenset(pair) for pair in combinations(chosen, 2)} - counted
            counted |= new
            total += len(new)
            right += sum(all(named[i] for i in pair) for pair in new)
        print(f"{len(sets)} copies with {len(of_one_edition)} mistakes", flush=True)
    return right, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", action="store_true", help="also plant pairs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "singles").mkdir()
        right, total = singles(Path(folder) / "singles")
        print(
            f"{right} of {total} planted mistakes are named, with nothing else reported", flush=True
        )
        failed = right < total
        if options.pairs:
            right, total = pairs(Path(folder))
            print(f"{right} of {total} pairs are named ({right / total:.1%})")
            failed |= right < ENOUGH * total
    sys.exit(failed)


if __name__ == "__main__":
    main()
