"""What each component of our own modules gives: rightly, and with each known mistake."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from config import EDITIONS
from mini_llama.diagnosis.comparison import MATCH, Arrays, Given, distance, read_arrays
from mini_llama.diagnosis.mistakes.replacing import Variant, made
from mini_llama.diagnosis.mistakes.variants import VARIANTS
from mini_llama.diagnosis.probes import Settings, examine
from mini_llama.diagnosis.registry import Mistake, mistakes_of


def settings_of(edition: str) -> Settings:
    facts = EDITIONS[edition]
    return Settings(facts.norm, facts.attention, facts.epsilon, facts.top_p, facts.clips_gradients)


class Catalogue:
    """What one component gives in one edition: rightly, and with each mistake that shows there."""

    def __init__(self, component: str, edition: str) -> None:
        self.component, self.settings = component, settings_of(edition)

    @cached_property
    def right(self) -> Arrays:
        return read_arrays(examine(self.component, self.settings)) or {}

    @cached_property
    def wrong(self) -> list[tuple[Mistake, Given]]:
        """Every variant that is not right in this edition, with what it gives."""
        given = [
            (mistake, self.give(variant))
            for mistake in mistakes_of(self.component)
            for variant in VARIANTS.get(mistake.id, ())
        ]
        return [(mistake, one) for mistake, one in given if self.distance(one) > MATCH]

    def give(self, variant: Variant) -> Given:
        """What our own modules give with the variant in their place."""
        with made(variant):
            return examine(self.component, self.settings)

    def distance(self, given: Given) -> float:
        arrays = read_arrays(given)
        return np.inf if arrays is None else distance(arrays, self.right)


Catalogues = Mapping[tuple[str, str], Catalogue]  # by component and edition
