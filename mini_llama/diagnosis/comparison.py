"""Outputs of a component as arrays, and how far they are from others."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Largest errors, as shares of the largest magnitude. Known mistakes lie further from each other
# and from what is right than MATCH.
EXACT, DRIFT, MATCH = 2e-6, 1e-4, 3e-4
DRAWN = {"frequencies": 0.1}  # what is counted over random draws, and how far chance takes it

Arrays = dict[str, NDArray[np.float64]]
Given = Mapping[str, Any]  # what probes.examine gave, or says of a process without answer


def read_arrays(given: Given) -> Arrays | None:
    """The values as arrays; None if there are none, or they are no numbers in a shape."""
    values = given.get("values")
    if not isinstance(values, dict) or not values:
        return None
    try:
        return {
            str(name): np.array(value["numbers"], dtype=np.float64).reshape(value["shape"])
            for name, value in values.items()
        }
    except (TypeError, ValueError, KeyError, OverflowError):
        return None


def errors(actual: Arrays, expected: Arrays) -> dict[str, float]:
    """Largest error of each output, as a share of the largest magnitude expected; infinite where
    shapes, or places that are not numbers, differ.
    """
    found = {}
    for name, array in actual.items():
        other = expected.get(name)
        if other is None or array.shape != other.shape:
            found[name] = np.inf
            continue
        is_same = (array == other) | (np.isnan(array) & np.isnan(other))
        with np.errstate(invalid="ignore"):
            gap = np.where(is_same, 0.0, np.abs(array - other)).max(initial=0.0)
        scale = np.abs(other[np.isfinite(other)]).max(initial=0.0) or 1.0
        share = np.inf if np.isnan(gap) else float(gap / scale)
        found[name] = 0.0 if share <= DRAWN.get(name, 0.0) else share
    return found


def distance(actual: Arrays, expected: Arrays) -> float:
    return max(errors(actual, expected).values())
