"""The catalogue: every mistake is detected, and no two look the same."""

import pytest
import torch

from config import EDITIONS
from mini_llama.diagnosis.catalogue import Catalogue
from mini_llama.diagnosis.comparison import EXACT, HALF, MATCH, distance, matches
from mini_llama.diagnosis.diagnosis import COMPONENTS
from mini_llama.diagnosis.mistakes import (
    attention,
    classifier,
    feed_forward,
    generate,
    layer,
    lora,
    norm,
    optimizer,
    rope,
)
from mini_llama.diagnosis.mistakes.replacing import Replacement, Variant, applied
from mini_llama.diagnosis.mistakes.variants import VARIANTS
from mini_llama.diagnosis.probes.examine import examine
from mini_llama.diagnosis.registry import MISTAKES, TOP_P, mistakes_of
from tests.plants import REMARKED

# Mistakes that are impossible, or have no effect, in the default edition.
SHOWS_IN = {
    "LayerNorm in place of RMSNorm": "fall2024",
    "not causal where the edition is": "llama2",
}
CLEARLY = 5 * MATCH


@pytest.fixture(scope="module")
def catalogues() -> dict[tuple[str, str], Catalogue]:
    return {(c, e): Catalogue(c, e) for c in COMPONENTS for e in EDITIONS}


@pytest.mark.parametrize("id", VARIANTS)
def test_every_form_of_a_mistake_shows(id: str, catalogues):
    mistake = MISTAKES[id]
    edition = SHOWS_IN.get(mistake.name, "spring2026" if mistake.rule == TOP_P else "mmia")
    catalogue = catalogues[mistake.component, edition]
    listed = catalogue.remarks if mistake.name in REMARKED else catalogue.wrong
    forms = [answer for (one,), answer in listed if one is mistake]
    assert len(forms) == len(VARIANTS[id]) > 0
    if mistake.name not in REMARKED:
        assert all(catalogue.distance(answer) > CLEARLY for answer in forms)


# The formulas of mistakes/ without any mistake, in basic PyTorch operations.
RIGHT = [
    ("rope", rope.rotated_by(rope.rotate_in_own_type)),
    ("rope", rope.lines()),
    ("rope", rope.tables()),
    ("norm", norm.normed()),
    ("attention", attention.attended()),
    ("feed_forward", feed_forward.gated(lambda one, three: one * one.sigmoid() * three)),
    ("layer", layer.block(lambda x, a, f, an, fn: (h := x + a(an(x))) + f(fn(h)))),
    ("layer", layer.halves(lambda x, function, norm: x + function(norm(x)))),
    ("generate", generate.sampled()),
    ("generate", generate.greedy(lambda logits: logits.max(-1, keepdim=True)[1])),
    ("lora", lora.low_rank()),
    *(("lora", variant) for variant in lora.scaled(lambda layer: layer.alpha / layer.rank)),
    ("optimizer", optimizer.update()),
    ("classifier", classifier.classified()),
    ("classifier", classifier.forwarded()),
    ("generate", generate.sampled(choose=generate.nucleus(lambda before, after, p: before < p))),
]


@pytest.mark.parametrize("edition", EDITIONS)
@pytest.mark.parametrize(("component", "variant"), RIGHT)
def test_our_modules_agree_with_the_formulas_written_out(
    component: str, variant: Variant, edition: str, catalogues
):
    """Even where our modules use a faster implementation."""
    catalogue = catalogues[component, edition]
    given, right = catalogue.answer(variant), catalogue.right
    arrays = given.arrays | given.optional
    if component == "rope":  # the plain rotation leaves bfloat16 as it is
        del arrays[HALF]
    else:
        assert arrays.keys() == (right.arrays | right.optional).keys()
    assert not given.failed and not given.failed_optional
    assert distance(arrays, right.arrays | right.optional) <= EXACT


@pytest.mark.parametrize("edition", EDITIONS)
@pytest.mark.parametrize("component", COMPONENTS)
def test_mistakes_differ_from_each_other(component, edition, catalogues):
    """Except for the general forms, whose names start with "a wrong term"."""
    wrong = catalogues[component, edition].wrong
    for i, ((mistake,), one) in enumerate(wrong):
        for (other,), two in wrong[:i]:
            if mistake is not other and not mistake.name.startswith("a wrong term"):
                assert not matches(one, two), (mistake.name, other.name)


@pytest.mark.parametrize("edition", EDITIONS)
def test_generate_is_probed_with_a_table_instead_of_the_models_forward(edition: str, catalogues):
    """The table's most probable token after i is (5i + 2) mod 8, whatever weights the model has."""
    rows = torch.arange(8)
    expected = [rows, rows, rows]
    for _ in range(4):
        expected.append((5 * expected[-1] + 2) % 8)
    greedy = catalogues["generate", edition].right.arrays["greedy"]
    assert greedy.tolist() == torch.stack(expected, dim=1).tolist()


def test_a_variant_leaves_our_modules_as_they_were():
    for variant in (variant for variants in VARIANTS.values() for variant in variants):
        before = [dict(vars(replacement.owner)) for replacement in variant]
        with applied(variant):
            assert all(vars(owner)[name] is value for owner, name, value in variant)
        assert [dict(vars(replacement.owner)) for replacement in variant] == before


def test_modules_are_restored_after_an_exception():
    class Owner:
        first, second = staticmethod(abs), 2

    before = dict(vars(Owner))
    with (
        pytest.raises(ZeroDivisionError),
        applied((Replacement(Owner, "first", 3), Replacement(Owner, "second", 4))),
    ):
        assert (Owner.first, Owner.second) == (3, 4)
        raise ZeroDivisionError
    stale = (Replacement(Owner, "first", 3), Replacement(Owner, "renamed", 4))
    with pytest.raises(KeyError, match="renamed"), applied(stale):
        pass
    assert dict(vars(Owner)) == before


def test_probes_do_not_depend_on_earlier_draws(catalogues):
    settings = catalogues["generate", "mmia"].settings
    before = examine("generate", settings)
    torch.rand(3)
    assert examine("generate", settings) == before


def test_the_registry_names_each_mistake_once_with_rule_and_remedy():
    components = {mistake.component for mistake in MISTAKES.values()}
    listed = [mistake.id for component in components for mistake in mistakes_of(component)]
    assert sorted(listed) == sorted(MISTAKES)
    assert {MISTAKES[id].component for id in VARIANTS} == set(COMPONENTS)
    for mistake in MISTAKES.values():
        assert mistake.rule and mistake.remedy.endswith(".") and mistake.advice.endswith(".")


def test_an_option_of_diagnose_follows_the_remedy():
    mistake = MISTAKES["attention: causal where the edition is not"]
    assert mistake.remedy == "Apply no mask."
    assert mistake.advice == "Apply no mask, or name the edition that has one with --edition."
