"""The catalogue: every mistake shows, and none looks like another."""

import pytest
import torch

from config import EDITIONS
from mini_llama.diagnosis.diagnosis import COMPONENTS, MATCH, Catalogue, distance, read_arrays
from mini_llama.diagnosis.mistakes import MISTAKES, made
from mini_llama.diagnosis.probes import examine

# What an edition's own arithmetic makes impossible, or leaves without effect.
SHOWS_IN = {
    "LayerNorm in place of RMSNorm": "fall2024",
    "not causal where the edition is": "llama2",
}
CLEARLY = 5 * MATCH


@pytest.fixture(scope="module")
def catalogues() -> dict[tuple[str, str], Catalogue]:
    return {(c, e): Catalogue(c, e) for c in COMPONENTS for e in EDITIONS}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: f"{m.component}: {m.name}")
def test_every_form_of_a_mistake_shows(mistake, catalogues):
    catalogue = catalogues[mistake.component, SHOWS_IN.get(mistake.name, "mmia")]
    forms = [given for one, given in catalogue.wrong if one is mistake]
    assert len(forms) == len(mistake.variants) > 0
    assert all(catalogue.distance(given) > CLEARLY for given in forms)
    assert mistake.remedy.endswith(".") and mistake.rule


@pytest.mark.parametrize("edition", EDITIONS)
@pytest.mark.parametrize("component", COMPONENTS)
def test_mistakes_differ_from_each_other(component, edition, catalogues):
    wrong = catalogues[component, edition].wrong
    for i, (mistake, given) in enumerate(wrong):
        for other, its in wrong[:i]:
            if mistake is other:
                continue
            one, two = read_arrays(given), read_arrays(its)
            if one is None or two is None:
                assert given != its, (mistake.name, other.name)
            else:
                assert distance(one, two) > CLEARLY, (mistake.name, other.name)


def test_a_variant_leaves_our_modules_as_they_were(catalogues):
    settings = catalogues["attention", "mmia"].settings
    before = examine("attention", settings)
    for mistake in MISTAKES:
        for variant in mistake.variants:
            with made(variant):
                pass
    assert examine("attention", settings) == before


def test_probes_do_not_depend_on_what_was_drawn_before(catalogues):
    settings = catalogues["generate", "mmia"].settings
    before = examine("generate", settings)
    torch.rand(3)
    assert examine("generate", settings) == before


def test_names_are_told_once():
    names = [(m.component, m.name) for m in MISTAKES]
    assert len(names) == len(set(names))
    assert {m.component for m in MISTAKES} == set(COMPONENTS)
