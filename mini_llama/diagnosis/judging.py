"""Turn the outputs of a student's component into a finding."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from config import EDITIONS
from mini_llama.diagnosis.catalogue import Catalogue, Catalogues, names_of
from mini_llama.diagnosis.comparison import (
    DRIFT,
    EXACT,
    HALF,
    Answer,
    Array,
    Arrays,
    Failures,
    ProbeOutput,
    distance,
    errors,
    read_answer,
)
from mini_llama.diagnosis.findings import PASSES, Finding
from mini_llama.diagnosis.probes.optimization import COURSE_TEST
from mini_llama.diagnosis.registry import Mistake
from mini_llama.diagnosis.remarks import remarks_of
from mini_llama.submissions.untrusted_text import one_line

MAX_TEXT = 500  # characters of a student's text shown in a line of the report
FEW = 8  # numbers shown in a line of the report
# Mistakes that are correct in these editions, whose text allows both readings.
ALSO_RIGHT = {"the token that reaches top_p is left out": ("spring2025",)}
ALSO_ALLOWED = "this edition's text allows this reading"
ATOL, RTOL = 1e-5, 1e-3  # the course's optimizer_test


def judge(component: str, output: ProbeOutput, edition: str, catalogues: Catalogues) -> Finding:
    catalogue = catalogues[component, edition]
    answer = read_answer(output)
    if not answer.measured.keys() <= catalogue.right.measured.keys():
        answer = Answer()  # not the output of any probe
    error = distance(answer.arrays, catalogue.right.arrays) if answer.arrays else None
    is_right = error is not None and error <= DRIFT and not answer.failed
    known, unexplained = ([], {}) if is_right else catalogue.known(answer)
    if not answer.failed and edition in ALSO_RIGHT.get(names_of(known), ()):
        return Finding(component, "correct", remarks=(f"{known[0].name}: {ALSO_ALLOWED}",))
    remarks = remarks_of(answer, catalogue, known, is_right)
    if is_right and error is not None:
        verdict, detail = verdict_of_right(answer, catalogue, error)
        return Finding(component, verdict, detail, error=error, remarks=remarks)
    verdict, detail = verdict_of_wrong(
        output, replace(answer, failed=unexplained), catalogue, known
    )
    where = next((f.get("where") for f in answer.failed.values()), output.get("where"))
    return Finding(
        component,
        verdict,
        detail,
        mistake=names_of(known) or None,
        rule="; ".join(dict.fromkeys(mistake.rule for mistake in known)) or None,
        remedy=" ".join(mistake.advice for mistake in known) or None,
        where=one_line(where[:MAX_TEXT]) if isinstance(where, str) else None,
        error=error,
        editions=other_editions(component, answer, edition, catalogues),
        remarks=remarks,
    )


def verdict_of_right(answer: Answer, catalogue: Catalogue, error: float) -> tuple[str, str]:
    if error <= EXACT:
        return "correct", ""
    others = {name: array for name, array in answer.arrays.items() if name != HALF}
    if distance(others, catalogue.right.arrays) <= EXACT:
        return "correct within float drift", f"the angles are in float32; {HALF} is rounded twice"
    return "correct within float drift", f"largest error {error:.1e} of the largest value"


def verdict_of_wrong(
    output: ProbeOutput, answer: Answer, catalogue: Catalogue, known: Sequence[Mistake]
) -> tuple[str, str]:
    if not answer.arrays and not known:
        return failure(output)
    sizes = errors(answer.arrays, catalogue.right.arrays)
    off = {name: size for name, size in sizes.items() if size > DRIFT}
    right = [name for name in answer.arrays if name not in off]
    verdict, parts = "wrong", [names_of(known)] if known else []
    if known and any(has_unexpected_nan(answer.arrays[n], catalogue.right.arrays[n]) for n in off):
        verdict = "NaN"
    if off and not known:
        verdict, detail = unknown_mistake(answer.arrays, catalogue, off)
        parts.append(detail)
    if answer.failed:
        failed_verdict, detail = failures(answer.failed)
        verdict = verdict if off else failed_verdict
        parts.append(detail)
    if passes_course_test(answer, catalogue):
        differing = ", ".join(dict.fromkeys([*off, *answer.failed]))
        what = parts[0].removesuffix(f" ({differing})")
        return PASSES, f"differs with {differing}: {what}; right: {', '.join(right)}"
    if right and verdict != "missing" and not known:
        parts.append(f"right: {', '.join(right)}")
    return verdict, "; ".join(parts)


def passes_course_test(answer: Answer, catalogue: Catalogue) -> bool:
    """Compare the final weights at the tolerance of the course's optimizer_test."""
    if not answer.course:
        return False
    actual, expected = (one.course[COURSE_TEST] for one in (answer, catalogue.right))
    is_same_shape = actual.shape == expected.shape
    return is_same_shape and bool(np.allclose(actual, expected, atol=ATOL, rtol=RTOL))


def other_editions(
    component: str, answer: Answer, edition: str, catalogues: Catalogues
) -> tuple[str, ...]:
    """The editions other than `edition` in which the component is correct."""
    return tuple(
        other
        for other in EDITIONS
        if other != edition
        and answer.arrays
        and not answer.failed
        and distance(answer.arrays, catalogues[component, other].right.arrays) <= DRIFT
    )


def failure(output: ProbeOutput) -> tuple[str, str]:
    """Verdict and detail if nothing could be measured."""
    for key, verdict, form in (
        ("missing", "missing", "{}"),
        ("unwritten", "not written yet", "it raises NotImplementedError"),
        ("result", "wrong result", "{}"),
        ("absent", "not examined", "{}"),
        ("error", "exception", "{}"),
        ("timeout", "endless loop", "killed after {} seconds"),
        ("died", "its process died", "{}"),
    ):
        if key in output:
            return verdict, one_line(form.format(output[key])[:MAX_TEXT])
    return "no answer", "the output of its process cannot be read"


def failures(failed: Failures) -> tuple[str, str]:
    """Verdict of the first failure; details of all, each with the cases that fail in that way."""
    by_failure: dict[tuple[str, str], list[str]] = {}
    for case, output in failed.items():
        by_failure.setdefault(failure(output), []).append(one_line(case[:MAX_TEXT]))
    texts = [
        detail if verdict == "missing" else f"{detail} ({', '.join(cases)})"
        for (verdict, detail), cases in by_failure.items()
    ]
    return next(iter(by_failure))[0], "; ".join(texts)


def unknown_mistake(
    arrays: Arrays, catalogue: Catalogue, off: Mapping[str, float]
) -> tuple[str, str]:
    """Verdict and detail of outputs that match no known mistake."""
    right = catalogue.right.arrays
    for name in off:
        array, expected = arrays[name], right[name]
        if array.shape != expected.shape:
            return "wrong shape", f"{name}: got {array.shape}, expected {expected.shape}"
        if has_unexpected_nan(array, expected):
            return "NaN", f"{name}: {np.isnan(array).sum()} of {array.size} values"
    parts = (describe_difference(name, arrays, right, size) for name, size in off.items())
    detail = f"no known mistake; {'; '.join(parts)}"
    near = sorted(
        (distance(arrays, other.arrays), names_of(mistakes))
        for mistakes, other in catalogue.wrong
        if other.arrays.keys() >= arrays.keys()
    )
    if near and near[0][0] < max(off.values()):
        detail += f"; nearest: {near[0][1]}, {near[0][0]:.2g} away"
    return "wrong", detail


def has_unexpected_nan(array: Array, expected: Array) -> bool:
    return bool(np.isnan(array).any() and not np.isnan(expected).any())


def describe_difference(name: str, arrays: Arrays, right: Arrays, size: float) -> str:
    """The output and the expected numbers if they are few, else the largest error."""
    if arrays[name].size <= FEW:
        got, expected = (" ".join(f"{x:.4g}" for x in a[name].flat) for a in (arrays, right))
        return f"{name}: got {got}, expected {expected}"
    return f"{name}: largest error {size:.2g} of the largest value"
