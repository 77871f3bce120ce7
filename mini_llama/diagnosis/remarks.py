"""Remarks, in addition to the verdict, on what the assignment leaves open or never runs."""

from collections.abc import Sequence

from mini_llama.diagnosis.catalogue import Catalogue
from mini_llama.diagnosis.comparison import (
    DRIFT,
    HALF,
    MATCH,
    OPTIONAL,
    Answer,
    distance,
    errors,
)
from mini_llama.diagnosis.probes.classification import PADDED
from mini_llama.diagnosis.probes.generation import BATCH, NONE_LEFT, SUMS, TOP_P_REACHED
from mini_llama.diagnosis.probes.parts import ROPE_TEST
from mini_llama.diagnosis.registry import Mistake
from mini_llama.submissions.untrusted_text import one_line

CALLS = "calls: "
MAX_TEXT = 200
TEXTS = {
    BATCH: "correct for one sequence, which is all that the assignment runs; a batch fails",
    NONE_LEFT: "the assignment does not say what to draw if epsilon leaves no token",
    TOP_P_REACHED: "this makes a difference only if the sum equals top_p exactly",
    SUMS: "torch.multinomial renormalises by itself",
    PADDED: "the assignment's classifier reads the last column, padded or not",
    HALF: "fails on bfloat16 input, which the assignment does not have",
}
MISSED_BY_ROPE_TEST = "the course's rope_test does not see it"
EQUAL_HEADS = "right where query and key have the same number of heads, as in stories42M"


def remarks_of(
    answer: Answer, catalogue: Catalogue, known: Sequence[Mistake], is_right: bool
) -> tuple[str, ...]:
    found = [*named_remarks(answer, catalogue, is_right), *notes_of(answer, known)]
    if catalogue.component == "rope" and not is_right:
        found += rope_remarks(answer, catalogue)
    return tuple(dict.fromkeys(found))


def named_remarks(answer: Answer, catalogue: Catalogue, is_right: bool) -> list[str]:
    """Remarks on optional cases that differ or fail; none for a wrong component, whose mistake
    affects these cases as well.
    """
    if not is_right:
        return []
    right = catalogue.right.optional
    off = [name for name, size in errors(answer.optional, right).items() if size > MATCH]
    cases = dict.fromkeys(case for case in OPTIONAL for name in off if name.startswith(case))
    cases |= dict.fromkeys(answer.failed_optional)
    return [remark_of(case, answer, catalogue) for case in cases]


def remark_of(case: str, answer: Answer, catalogue: Catalogue) -> str:
    """The known form, if there is one, and why it is not a mistake."""
    name, text = known_form(case, answer, catalogue), TEXTS[case]
    failed = answer.failed_optional.get(case)
    if name is None and case == NONE_LEFT:
        name = "nothing left: it stops" if failed else "nothing left: drawn from other tokens"
    if failed and case == NONE_LEFT:
        text += f" ({one_line(str(failed.get('error') or failed.get('result'))[:MAX_TEXT])})"
    return text if name is None else f"{name}: {text}"


def known_form(case: str, answer: Answer, catalogue: Catalogue) -> str | None:
    """The name of the variant with the same outputs in this case."""
    its = {name: array for name, array in answer.optional.items() if name.startswith(case)}
    right = {n: a for n, a in catalogue.right.optional.items() if n.startswith(case)}
    for (mistake, *_), other in catalogue.remarks:
        fails = case in other.failed_optional
        if fails and case in answer.failed_optional:
            return mistake.name
        others = {name: array for name, array in other.optional.items() if name.startswith(case)}
        shows = not fails and distance(right, others) > MATCH
        if shows and its and distance(its, others) <= MATCH:
            return mistake.name
    return None


def notes_of(answer: Answer, known: Sequence[Mistake]) -> list[str]:
    counted = [note for note in answer.notes if note.startswith(CALLS)]
    found = [one_line(n[:MAX_TEXT]) for n in answer.notes if not n.startswith(CALLS)]
    for mistake in known:
        norm = mistake.name.removesuffix(" is not used")
        if norm != mistake.name and f"{CALLS}{norm} 1" in counted:
            found.append(f"{norm} is computed, and its result is not used")
    return found


def rope_remarks(answer: Answer, catalogue: Catalogue) -> list[str]:
    sizes = errors(answer.arrays, catalogue.right.arrays)
    found = []
    if sizes.get(ROPE_TEST, 1.0) <= DRIFT:
        found.append(MISSED_BY_ROPE_TEST)
    off = {name for name, size in sizes.items() if size > DRIFT} | answer.failed.keys()
    if off and off <= {"key of fewer heads", "fewer key heads"}:
        found = [EQUAL_HEADS]
    for side, other in (("query", "key"), ("key", "query")):
        if off - {ROPE_TEST} and all(n.startswith(side) for n in off - {ROPE_TEST}):
            found.append(f"only the {side} is wrong: the {other} is correct")
    return found
