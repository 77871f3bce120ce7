"""What each component of our own modules gives: rightly, and with each known mistake."""

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
    Given,
    distance,
    errors,
    is_alike,
    read_answer,
)
from mini_llama.diagnosis.mistakes.replacing import Variant, made
from mini_llama.diagnosis.mistakes.variants import VARIANTS, Together, combined
from mini_llama.diagnosis.probes.common import Settings
from mini_llama.diagnosis.probes.examine import examine
from mini_llama.diagnosis.probes.optimization import COURSE_TEST
from mini_llama.diagnosis.probes.parts import ROPE_TEST
from mini_llama.diagnosis.registry import MISTAKES, Mistake, mistakes_of

Wrong = tuple[tuple[Mistake, ...], Answer]  # mistakes that are made together, and what they give


def settings_of(edition: str) -> Settings:
    facts = EDITIONS[edition]
    return Settings(facts.norm, facts.attention, facts.epsilon, facts.top_p, facts.clips_gradients)


class Catalogue:
    """What one component gives in one edition: rightly, and with each mistake that shows there."""

    def __init__(self, component: str, edition: str) -> None:
        self.component, self.settings = component, settings_of(edition)
        self._first_cases: dict[Together, Arrays] = {}
        self._known_together: dict[Together, Answer] = {}

    @cached_property
    def right(self) -> Answer:
        return read_answer(examine(self.component, self.settings))

    @cached_property
    def wrong(self) -> list[Wrong]:
        """Every variant that is not right in this edition, with what it gives."""
        return [one for one in self._single if self.distance(one[1]) > MATCH]

    @cached_property
    def remarks(self) -> list[Wrong]:
        """Every variant that differs only in what the assignment does not say."""
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

    def give(self, variant: Variant, most: int | None = None) -> Given:
        """What our own modules give with the variant in their place, in the first `most` cases."""
        with made(variant):
            return examine(self.component, self.settings, (COURSE_TEST,), most)

    def answer(self, variant: Variant) -> Answer:
        return read_answer(self.give(variant))

    def distance(self, answer: Answer) -> float:
        """Infinite where something that must work failed."""
        return float("inf") if answer.failed else distance(answer.arrays, self.right.arrays)

    def known(self, answer: Answer) -> tuple[list[Mistake], Failures]:
        """The mistakes that give the same, and the failures that they leave unexplained."""
        if mistakes := self._alike(answer):
            return mistakes, {}
        if answer.failed and distance(answer.arrays, self.right.arrays) > DRIFT:
            return self._alike(replace(answer, failed={})), answer.failed
        return [], answer.failed

    def _alike(self, answer: Answer) -> list[Mistake]:
        """The mistake that gives the same, else the mistakes that do together; empty if none do."""
        shown_there = self._showing_where_it_is_off(answer)
        others = self._in_other_outputs(answer, shown_there), self._together(answer, shown_there)
        for wrong in (self.wrong, *others):
            for mistakes, other in wrong:
                if is_alike(answer, fitting(answer, other)):
                    return [one for one in mistakes_of(self.component) if one in mistakes]
        return self._on_one_side(answer) if self.component == "rope" else []

    def _on_one_side(self, answer: Answer) -> list[Mistake]:
        """The mistake that is made with the query, or with the key, alone."""
        off = self._shown(answer) - {ROPE_TEST}
        for side in ("query", "key"):
            if off and not answer.failed and all(name.startswith(side) for name in off):
                its = {n: a for n, a in answer.arrays.items() if n.startswith(side)}
                for mistakes, other in self.wrong:
                    if its.keys() <= other.arrays.keys() and distance(its, other.arrays) <= MATCH:
                        return list(mistakes)
        return []

    def _showing_where_it_is_off(self, answer: Answer) -> list[tuple[Wrong, frozenset[str]]]:
        """The mistakes that show, each by itself, only in what is not right; and where they do."""
        off = self._shown(answer)
        shown = ((wrong, self._shown(wrong[1])) for wrong in self.wrong)
        return [(wrong, where) for wrong, where in shown if where <= off]

    def _shown(self, answer: Answer) -> frozenset[str]:
        sizes = errors(answer.arrays, self.right.arrays)
        off = {name for name, size in sizes.items() if size > DRIFT}
        missing = self.right.arrays.keys() - answer.arrays.keys() if answer.failed else ()
        return frozenset(off.union(missing))

    def _in_other_outputs(
        self, answer: Answer, candidates: Iterable[tuple[Wrong, frozenset[str]]]
    ) -> Iterator[Wrong]:
        """Two mistakes, of which each shows where the other does not."""
        if answer.failed:
            return
        for (one, shown), (two, _) in permutations(candidates, 2):
            if one[0] != two[0] and not (one[1].failed or two[1].failed):
                both = two[1].arrays | {name: one[1].arrays[name] for name in shown}
                yield one[0] + two[0], Answer(both)

    def _together(
        self, answer: Answer, candidates: Iterable[tuple[Wrong, frozenset[str]]]
    ) -> Iterator[Wrong]:
        """Mistakes of one formula made at once, which may cover each other."""
        names = {mistake.name for (mistakes, _), _ in candidates for mistake in mistakes}
        for key, variant in combined(self.component, names):
            if self._differs_at_once(answer, key, variant):
                continue
            if key not in self._known_together:
                self._known_together[key] = self.answer(variant)
            other = self._known_together[key]
            if self.distance(other) > MATCH:
                yield tuple(MISTAKES[f"{self.component}: {name}"] for name, _ in key), other

    def _differs_at_once(self, answer: Answer, key: Together, variant: Variant) -> bool:
        """Whether the first case is enough to tell them apart: there are a thousand variants."""
        if key not in self._first_cases:
            self._first_cases[key] = read_answer(self.give(variant, most=1)).arrays
        first = self._first_cases[key]
        shared = {name: answer.arrays[name] for name in first.keys() & answer.arrays.keys()}
        return distance(shared, first) > MATCH


def fitting(answer: Answer, other: Answer) -> Answer:
    """The other, without failures in what the answer was not asked, or has no numbers of."""
    asked = answer.failed.keys() | set(answer.arrays)
    return Answer(other.arrays, failed={k: v for k, v in other.failed.items() if k in asked})


def names_of(mistakes: Iterable[Mistake]) -> str:
    return "; ".join(mistake.name for mistake in mistakes)


Catalogues = Mapping[tuple[str, str], Catalogue]  # by component and edition
