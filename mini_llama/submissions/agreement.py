"""Predictions and generated texts against reference outputs of the editions."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from mini_llama.submissions.rules import GREEDY_TEXT, PROMPT_TEXTS
from mini_llama.submissions.standard import Standard

# Published runs of one commit differ in 0 to 2 of 1,101 lines after prompting, and in 83 to 391
# after training: prompting can be compared line by line, and equal trained outputs are rare.
DRIFT = 0.01


@dataclass(frozen=True)
class Agreement:
    """A file against the reference outputs. `verdict`: "equal", "drift", or "differs".

    `share`: of lines that are equal to edition `against`'s, or of words up to the first other one.
    """

    file: str
    verdict: str
    share: float
    against: str
    looks_like: tuple[str, ...]
    message: str


def compare_all(
    labels: Mapping[str, Sequence[int]], text: str, standard: Standard
) -> Iterator[Agreement]:
    """What can be compared with any reference."""
    references = standard.references.items()
    for file, found in labels.items():
        known = {edition: r.labels[file] for edition, r in references if file in r.labels}
        if known:
            yield compare_labels(file, found, known, standard.edition)
    texts = {edition: r.text for edition, r in references if r.text is not None}
    if text and texts:
        yield compare_text(text, texts, standard.edition, standard.expected.prompts)


def compare_labels(
    file: str, labels: Sequence[int], references: Mapping[str, Sequence[int]], edition: str
) -> Agreement:
    """A prompting file line by line, with the reference of `edition`, or with the nearest if there
    is none of it.
    """
    different = {
        name: [i for i, (a, b) in enumerate(zip(labels, reference, strict=True), 1) if a != b]
        for name, reference in references.items()
    }
    n = len(labels)
    fewest = min(map(len, different.values()))
    nearest = [name for name, lines in different.items() if len(lines) == fewest]
    against = edition if edition in different else nearest[0]
    lines = different[against]
    share = 1 - len(lines) / n
    first = f"first in line {', '.join(map(str, lines[:5]))}"
    differ = f"{len(lines)} of {n} lines differ from {against} ({len(lines) / n:.1%}, {first})"
    if not lines:
        what = f"all {n} lines are those of {against}"
        return Agreement(file, "equal", share, against, tuple(nearest), what)
    if len(lines) <= DRIFT * n:
        what = f"{differ}: float drift"
        return Agreement(file, "drift", share, against, tuple(nearest), what)
    alike = tuple(nearest) if fewest <= DRIFT * n else ()
    names = ", ".join(nearest)
    like = f"it looks like {names} ({fewest} differ)" if alike else "like none of the references"
    if not alike and len(references) > 1:
        like += f" (nearest is {names}, {fewest} differ)"
    what = f"{differ}: another arithmetic; {like}"
    return Agreement(file, "differs", share, against, alike, what)


def compare_text(
    text: str, references: Mapping[str, str], edition: str, prompts: tuple[str, ...] = PROMPT_TEXTS
) -> Agreement:
    """The text at temperature 0. One near-tie that falls otherwise changes all that follows, so
    that a share of equal words, unlike one of lines, proves no other arithmetic.
    """
    shares = {
        name: _common_words(text, reference, prompts) for name, reference in references.items()
    }
    equal = tuple(name for name, reference in references.items() if reference == text)
    nearest = max(shares, key=lambda name: shares[name][0])
    against = edition if edition in shares else (*equal, nearest)[0]
    common, n = shares[against]
    share = common / n if n else math.nan
    if against in equal:
        what = f"is the text of {against}"
        return Agreement(GREEDY_TEXT, "equal", 1.0, against, equal, what)
    what = f"the first {common} of {n} words after the prompt are those of {against}"
    if equal:
        what += f"; it is the text of {', '.join(equal)}"
    elif nearest != against and shares[nearest][0] > common:
        what += f"; nearest is {nearest}, with {shares[nearest][0]}"
    return Agreement(GREEDY_TEXT, "differs", share, against, equal, what)


def _common_words(text: str, reference: str, prompts: tuple[str, ...]) -> tuple[int, int]:
    """How many words after the prompt are the reference's, up to the first other one, and how
    many the reference has; none if the prompts are two.
    """
    prompt = next((start for start in prompts if reference.startswith(start)), "")
    words = reference.removeprefix(prompt).split()
    found = text.removeprefix(prompt).split() if text.startswith(prompt) else []
    common = takewhile(lambda pair: pair[0] == pair[1], zip(words, found, strict=False))
    return len(list(common)), len(words)
