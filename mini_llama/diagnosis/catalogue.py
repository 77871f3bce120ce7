"""The outputs of our own components: the correct ones, and those of each known mistake."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import permutations

from config import EDITIONS
from mini_llama.diagnosis.comparison import (
    DRIFT,
    MATCH,
    Answer,
    Arrays,
    Failures,
    ProbeOutput,
    distance,
    errors,
    matches,
    read_answer,
)
from mini_llama.diagnosis.mistakes.replacing import Variant, applied
from mini_llama.diagnosis.mistakes.variants import VARIANTS, Together, combined
from mini_llama.diagnosis.probes.common import Settings
from mini_llama.diagnosis.probes.examine import examine
from mini_llama.diagnosis.probes.optimization import COURSE_TEST
from mini_llama.diagnosis.probes.parts import ROPE_TEST
from mini_llama.diagnosis.registry import MISTAKES, Mistake, mistakes_of

Wrong = tuple[tuple[Mistake, ...], Answer]  # mistakes made together, and their outputs


def settings_of(edition: str) -> Settings:
    facts = EDITIONS[edition]
    return Settings(facts.norm, facts.attention, facts.epsilon, facts.top_p, facts.clips_gradients)


class Catalogue:
    """Outputs of one component in one edition: correct, and with each mistake that changes them."""

    def __init__(self, component: str, edition: str) -> None:
        self.component, self.settings = component, settings_of(edition)
        self._first_cases: dict[Together, Arrays] = {}
        self._known_together: dict[Together, Answer] = {}

    @cached_property
    def right(self) -> Answer:
        return read_answer(examine(self.component, self.settings))

    @cached_property
    def wrong(self) -> list[Wrong]:
        """Every variant that is wrong in this edition, with its outputs."""
        return [one for one in self._single if self.distance(one[1]) > MATCH]

    @cached_property
    def remarks(self) -> list[Wrong]:
        """Every variant that differs only in what the assignment leaves open."""
        right = self.right.optional
        return [
            (mistakes, answer)
            for mistakes, answer in self._single
            if self.distance(answer) <= MATCH
            and (answer.failed_optional or distance(answer.optional, right) > MATCH)
        ]

    @cached_property
    def _single(self) -> list[Wrong]:
        return [
            ((mistake,), self.answer(variant))
            for mistake in mistakes_of(self.component)
            for variant in VARIANTS.get(mistake.id, ())
        ]

    def probe(self, variant: Variant, most: int | None = None) -> ProbeOutput:
        """Probe our modules with the variant applied: the first `most` cases, or all."""
        with applied(variant):
            return examine(self.component, self.settings, (COURSE_TEST,), most)

    def answer(self, variant: Variant) -> Answer:
        return read_answer(self.probe(variant))

    def distance(self, answer: Answer) -> float:
        """Distance to the correct outputs; infinite if a required case failed."""
        return float("inf") if answer.failed else distance(answer.arrays, self.right.arrays)

    def known(self, answer: Answer) -> tuple[list[Mistake], Failures]:
        """The mistakes with the same outputs, and the failures that they do not explain."""
        if mistakes := self._matching(answer):
            return mistakes, {}
        if answer.failed and distance(answer.arrays, self.right.arrays) > DRIFT:
            return self._matching(replace(answer, failed={})), answer.failed
        return [], answer.failed

    def _matching(self, answer: Answer) -> list[Mistake]:
        """The mistake, or else the combination of mistakes, with the same outputs; or empty."""
        candidates = self._candidates(answer)
        others = self._in_separate_outputs(answer, candidates), self._combined(answer, candidates)
        for wrong in (self.wrong, *others):
            for mistakes, other in wrong:
                if matches(answer, limited_to_cases_of(answer, other)):
                    return [one for one in mistakes_of(self.component) if one in mistakes]
        return self._on_one_side(answer) if self.component == "rope" else []

    def _on_one_side(self, answer: Answer) -> list[Mistake]:
        """The mistake if it is made in the query only, or in the key only."""
        off = self._wrong_outputs(answer) - {ROPE_TEST}
        for side in ("query", "key"):
            if off and not answer.failed and all(name.startswith(side) for name in off):
                its = {n: a for n, a in answer.arrays.items() if n.startswith(side)}
                for mistakes, other in self.wrong:
                    if its.keys() <= other.arrays.keys() and distance(its, other.arrays) <= MATCH:
                        return list(mistakes)
        return []

    def _candidates(self, answer: Answer) -> list[tuple[Wrong, frozenset[str]]]:
        """Mistakes that affect only outputs that are wrong in the answer; and those outputs."""
        off = self._wrong_outputs(answer)
        affected = ((wrong, self._wrong_outputs(wrong[1])) for wrong in self.wrong)
        return [(wrong, names) for wrong, names in affected if names <= off]

    def _wrong_outputs(self, answer: Answer) -> frozenset[str]:
        sizes = errors(answer.arrays, self.right.arrays)
        off = {name for name, size in sizes.items() if size > DRIFT}
        missing = self.right.arrays.keys() - answer.arrays.keys() if answer.failed else ()
        return frozenset(off.union(missing))

    def _in_separate_outputs(
        self, answer: Answer, candidates: Iterable[tuple[Wrong, frozenset[str]]]
    ) -> Iterator[Wrong]:
        """Two mistakes, each of which affects outputs that the other does not."""
        if answer.failed:
            return
        for (one, shown), (two, _) in permutations(candidates, 2):
            if one[0] != two[0] and not (one[1].failed or two[1].failed):
                both = two[1].arrays | {name: one[1].arrays[name] for name in shown}
                yield one[0] + two[0], Answer(both)

    def _combined(
        self, answer: Answer, candidates: Iterable[tuple[Wrong, frozenset[str]]]
    ) -> Iterator[Wrong]:
        """Several mistakes in one formula, which may hide each other."""
        names = {mistake.name for (mistakes, _), _ in candidates for mistake in mistakes}
        for key, variant in combined(self.component, names):
            if self._differs_in_first_case(answer, key, variant):
                continue
            if key not in self._known_together:
                self._known_together[key] = self.answer(variant)
            other = self._known_together[key]
            if self.distance(other) > MATCH:
                yield tuple(MISTAKES[f"{self.component}: {name}"] for name, _ in key), other

    def _differs_in_first_case(self, answer: Answer, key: Together, variant: Variant) -> bool:
        """A quick check that rules out most of the thousand variants."""
        if key not in self._first_cases:
            self._first_cases[key] = read_answer(self.probe(variant, most=1)).arrays
        first = self._first_cases[key]
        shared = {name: answer.arrays[name] for name in first.keys() & answer.arrays.keys()}
        return distance(shared, first) > MATCH


def limited_to_cases_of(answer: Answer, other: Answer) -> Answer:
    """`other` without failures in cases that `answer` does not have."""
    cases = answer.failed.keys() | set(answer.arrays)
    return Answer(other.arrays, failed={k: v for k, v in other.failed.items() if k in cases})


def names_of(mistakes: Iterable[Mistake]) -> str:
    return "; ".join(mistake.name for mistake in mistakes)


Catalogues = Mapping[tuple[str, str], Catalogue]  # by component and edition
