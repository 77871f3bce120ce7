"""A component's outputs as arrays, and the distance between two sets of outputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mini_llama.diagnosis.probes.classification import PADDED
from mini_llama.diagnosis.probes.generation import BATCH, DRAWN, NONE_LEFT, SUMS, TOP_P_REACHED
from mini_llama.diagnosis.probes.optimization import COURSE_TEST

# Largest errors, relative to the largest magnitude. Known mistakes differ by more than MATCH from
# each other and from the correct outputs.
EXACT, DRIFT, MATCH = 2e-6, 1e-4, 3e-4
CHANCE = 0.14  # tolerance for frequencies counted over random draws
HALF = "bfloat16 input"
TOLERATED = {HALF: 0.02}  # counts as drift: the assignment has no such input
# Left open, or never run, by the assignment: a difference is a remark, not a mistake.
OPTIONAL = (BATCH, NONE_LEFT, TOP_P_REACHED, SUMS, PADDED)
MAY_FAIL = (*OPTIONAL, HALF)
COURSE = "the course's"  # own tests: they repeat what other cases test

Array = NDArray[np.float64]
Arrays = dict[str, Array]
ProbeOutput = Mapping[str, Any]  # the result of probes.examine, or {"timeout": …}, {"died": …}
Failures = dict[str, ProbeOutput]  # by case


@dataclass(frozen=True)
class Answer:
    """A component's outputs by kind: required, optional (for remarks), the course's test."""

    arrays: Arrays = field(default_factory=dict)
    optional: Arrays = field(default_factory=dict)
    course: Arrays = field(default_factory=dict)
    failed: Failures = field(default_factory=dict)
    failed_optional: Failures = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def measured(self) -> Arrays:
        return self.arrays | self.optional | self.course


def read_answer(output: ProbeOutput) -> Answer:
    arrays = read_arrays(output) or {}
    failed = output.get("failed")
    failed = failed if isinstance(failed, dict) else {}
    failed = {str(k): v for k, v in failed.items() if isinstance(v, dict)}
    notes = output.get("notes")
    return Answer(
        {k: v for k, v in arrays.items() if not k.startswith((*OPTIONAL, COURSE_TEST))},
        {k: v for k, v in arrays.items() if k.startswith(OPTIONAL)},
        {k: v for k, v in arrays.items() if k == COURSE_TEST},
        {k: v for k, v in failed.items() if not k.startswith((*MAY_FAIL, COURSE))},
        {k: v for k, v in failed.items() if k.startswith(MAY_FAIL)},
        tuple(n for n in notes if isinstance(n, str)) if isinstance(notes, list) else (),
    )


def read_arrays(output: ProbeOutput) -> Arrays | None:
    """Return the values as arrays; None if there are none or they are malformed."""
    values = output.get("values")
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
    """Largest error of each output, relative to the largest magnitude expected; infinite if the
    shapes differ or NaN is in other places.
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
        if name.endswith(DRAWN):
            share = 0.0 if share <= CHANCE else share
        found[name] = min(share, DRIFT) if share <= TOLERATED.get(name, 0.0) else share
    return found


def distance(actual: Arrays, expected: Arrays) -> float:
    """The largest of `errors`; 0 if there is nothing to compare."""
    return max(errors(actual, expected).values(), default=0.0)


def matches(answer: Answer, other: Answer) -> bool:
    """True if the required outputs agree, and the same cases fail in the same way."""
    if answer.failed.keys() != other.failed.keys():
        return False
    if any(text_of(one) != text_of(other.failed[case]) for case, one in answer.failed.items()):
        return False
    return bool(answer.arrays or answer.failed) and distance(answer.arrays, other.arrays) <= MATCH


def text_of(failure: ProbeOutput) -> object:
    return failure.get("error") or failure.get("result") or failure.get("missing")
