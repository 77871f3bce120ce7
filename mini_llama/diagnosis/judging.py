"""From what a student's component gives to what is to be said of it."""

from itertools import islice, permutations

import numpy as np

from config import EDITIONS
from mini_llama.diagnosis.catalogue import Catalogue, Catalogues
from mini_llama.diagnosis.comparison import (
    DRIFT,
    EXACT,
    MATCH,
    Arrays,
    Given,
    distance,
    errors,
    read_arrays,
)
from mini_llama.diagnosis.findings import Finding
from mini_llama.diagnosis.registry import Mistake
from mini_llama.submissions.untrusted_text import one_line

MAX_TEXT = 500  # characters of a student's that a line of the report shows
FEW = 8  # numbers that a line of the report can show


def judge(component: str, given: Given, edition: str, catalogues: Catalogues) -> Finding:
    catalogue = catalogues[component, edition]
    arrays = read_arrays(given)
    if arrays is not None and not arrays.keys() <= catalogue.right.keys():
        arrays = None  # no probe gave that
    error = None if arrays is None else distance(arrays, catalogue.right)
    if error is not None and error <= EXACT:
        return Finding(component, "correct", error=error)
    if error is not None and error <= DRIFT:
        detail = f"largest error {error:.1e} of the largest value"
        return Finding(component, "correct within float drift", detail, error=error)
    known = known_mistakes(given, arrays, catalogue)
    if known:
        verdict, detail = "wrong", "; ".join(mistake.name for mistake in known)
    else:
        verdict, detail = failure(given) if arrays is None else unknown(arrays, catalogue)
    where = given.get("where")
    return Finding(
        component,
        verdict,
        detail,
        mistake=detail if known else None,
        rule="; ".join(dict.fromkeys(mistake.rule for mistake in known)) or None,
        remedy=" ".join(mistake.advice for mistake in known) or None,
        where=one_line(where[:MAX_TEXT]) if isinstance(where, str) else None,
        error=error,
        editions=other_editions(component, arrays, edition, catalogues),
    )


def other_editions(
    component: str, arrays: Arrays | None, edition: str, catalogues: Catalogues
) -> tuple[str, ...]:
    """Those besides `edition` in which the component is right."""
    return tuple(
        other
        for other in EDITIONS
        if other != edition
        and arrays is not None
        and distance(arrays, catalogues[component, other].right) <= DRIFT
    )


def known_mistakes(given: Given, arrays: Arrays | None, catalogue: Catalogue) -> list[Mistake]:
    """The mistake that gives the same; else two that do together, each in other outputs."""
    if arrays is None:
        same = (m for m, wrong in catalogue.wrong if given.get("error") == wrong.get("error", ""))
        return list(islice(same, 1))
    known = [(m, a) for m, wrong in catalogue.wrong if (a := read_arrays(wrong)) is not None]
    for mistake, expected in known:
        if distance(arrays, expected) <= MATCH:
            return [mistake]
    for (mistake, one), (other, two) in permutations(known, 2):
        shown = {name for name, size in errors(one, catalogue.right).items() if size > DRIFT}
        both = two | {name: one[name] for name in shown}
        if mistake is not other and distance(arrays, both) <= MATCH:
            return [mistake, other]
    return []


def failure(given: Given) -> tuple[str, str]:
    """Verdict and detail where nothing was measured."""
    for key, verdict, form in (
        ("missing", "missing", "{}"),
        ("unwritten", "not written yet", "it raises NotImplementedError"),
        ("result", "wrong result", "{}"),
        ("error", "exception", "{}"),
        ("timeout", "endless loop", "killed after {} seconds"),
        ("died", "its process died", "{}"),
    ):
        if key in given:
            return verdict, one_line(form.format(given[key])[:MAX_TEXT])
    return "no answer", "what its process sent cannot be read"


def unknown(arrays: Arrays, catalogue: Catalogue) -> tuple[str, str]:
    """Verdict and detail of outputs that no known mistake gives."""
    for name, array in arrays.items():
        expected = catalogue.right.get(name)
        if expected is not None and array.shape != expected.shape:
            return "wrong shape", f"{name}: got {array.shape}, expected {expected.shape}"
        if np.isnan(array).any() and not (expected is not None and np.isnan(expected).any()):
            return "NaN", f"{name}: {np.isnan(array).sum()} of {array.size} values"
    found = {name: size for name, size in errors(arrays, catalogue.right).items() if size > DRIFT}
    parts = (compared(name, arrays, catalogue.right, size) for name, size in found.items())
    detail = f"no known mistake; {'; '.join(parts)}"
    near = sorted(
        (distance(arrays, its), mistake.name)
        for mistake, wrong in catalogue.wrong
        if (its := read_arrays(wrong)) is not None
    )
    if near and near[0][0] < max(found.values()):
        detail += f"; nearest: {near[0][1]}, {near[0][0]:.2g} away"
    return "wrong", detail


def compared(name: str, arrays: Arrays, right: Arrays, size: float) -> str:
    """One output against what is right: its numbers if they are few, else the largest error."""
    if name in right and arrays[name].size <= FEW:
        got, expected = (" ".join(f"{x:.4g}" for x in a[name].flat) for a in (arrays, right))
        return f"{name}: got {got}, expected {expected}"
    return f"{name}: largest error {size:.2g} of the largest value"
