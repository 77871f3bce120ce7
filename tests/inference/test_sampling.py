"""Sampling against numbers worked out by hand from the contract's rules."""

import dataclasses

import numpy as np
import pytest
import torch

from mini_llama.inference.sampling import Sampler, logits_to_probs

PROBS = torch.tensor([[0.5, 0.3, 0.15, 0.04, 0.01]])


def logits(probs: torch.Tensor = PROBS) -> torch.Tensor:
    return probs.log() + 3.0  # any constant: softmax does not see it


@pytest.mark.parametrize(
    ("temperature", "epsilon", "top_p", "expected"),
    [
        (1.0, 0.0, 1.0, [0.5, 0.3, 0.15, 0.04, 0.01]),
        (1.0, 0.05, 1.0, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0, 0]),
        (1.0, 0.2, 1.0, [0.625, 0.375, 0, 0, 0]),
        (1.0, 0.9, 1.0, [1, 0, 0, 0, 0]),  # none is left: the argmax
        (1.0, 0.0, 0.9, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0, 0]),
        (1.0, 0.0, 0.4, [1, 0, 0, 0, 0]),
        (1.0, 0.2, 0.7, [0.625, 0.375, 0, 0, 0]),
        # temperature 1/2 squares: 0.25, 0.09, 0.0225, 0.0016, 0.0001, their sum is 0.3642
        (0.5, 0.0, 1.0, [0.686436, 0.247117, 0.061779, 0.004393, 0.000275]),
    ],
)
def test_logits_to_probs(temperature, epsilon, top_p, expected):
    probs = logits_to_probs(logits(), temperature, epsilon, top_p)
    torch.testing.assert_close(probs, torch.tensor([expected]).float(), atol=1e-6, rtol=1e-5)


def test_temperature_comes_before_epsilon():
    # At temperature 3 the last token rises from 0.01 to 0.10: epsilon 0.05 keeps it.
    assert (logits_to_probs(logits(), 3.0, epsilon=0.05) > 0).all()


def test_a_token_at_epsilon_is_kept():
    probs = torch.tensor([[0.5, 0.25, 0.25]])
    kept = logits_to_probs(probs.log(), 1.0, epsilon=0.25)
    torch.testing.assert_close(kept, probs)


def test_top_p_takes_the_smaller_id_of_equals():
    kept = logits_to_probs(torch.zeros(1, 4), 1.0, top_p=0.5)
    torch.testing.assert_close(kept, torch.tensor([[0.5, 0.5, 0.0, 0.0]]))


def test_top_p_takes_the_smaller_ids_of_many_equals():
    """As many as the vocabulary has: sorting a few keeps their order in any case."""
    levels = torch.randint(1, 5, (3, 2048), generator=torch.Generator().manual_seed(0))
    probs = levels.double() / levels.sum(-1, keepdim=True)
    kept = logits_to_probs(probs.log(), 1.0, top_p=0.5) > 0
    for row, chosen in zip(levels.numpy(), kept.numpy(), strict=True):
        order = np.lexsort((np.arange(len(row)), -row))  # by probability, then by id
        assert set(np.flatnonzero(chosen)) == set(order[: chosen.sum()])


def test_rows_are_filtered_on_their_own():
    rows = torch.cat((PROBS, PROBS.flip(-1)))
    kept = logits_to_probs(rows.log(), 1.0, epsilon=0.05)
    torch.testing.assert_close(kept[0], kept[1].flip(-1))


def test_each_row_keeps_its_own_best_token_where_epsilon_drops_all():
    """Only the second row has a token above epsilon: the one that is the first row's best."""
    rows = torch.tensor([[0.25, 0.4, 0.35], [0.05, 0.85, 0.1], [0.5, 0.3, 0.2]])
    kept = logits_to_probs(rows.log(), 1.0, epsilon=0.6)
    assert kept.tolist() == [[0, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_top_p_of_rows_with_different_sums():
    rows = torch.cat((PROBS, torch.tensor([[0.1, 0.1, 0.2, 0.2, 0.4]])))
    kept = logits_to_probs(rows.log(), 1.0, top_p=0.7)
    expected = torch.tensor([[0.625, 0.375, 0, 0, 0], [0, 0, 0.25, 0.25, 0.5]])
    torch.testing.assert_close(kept, expected)


@pytest.mark.parametrize("arguments", [{}, {"epsilon": 0.0, "top_p": 1.0}])
def test_filters_that_keep_all_change_no_bit(arguments: dict):
    """Neither a sum that is not quite 1 nor a tail too small for it matters."""
    rows = 8 * torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    expected = torch.softmax(rows - rows.max(dim=-1, keepdim=True).values, dim=-1)
    assert torch.equal(logits_to_probs(rows, 1.0, **arguments), expected)


def test_half_precision_is_sampled_from_in_float32():
    half = torch.tensor([[1.0, 2.5, -3.0, 0.125]]).bfloat16()
    probs = logits_to_probs(half, 0.7)
    assert probs.dtype == torch.float32
    exact = torch.softmax(half.double() / 0.7, dim=-1)
    torch.testing.assert_close(probs.double(), exact, rtol=1e-6, atol=0)


def test_defaults_are_the_contract():
    sampler = Sampler()
    assert dataclasses.asdict(sampler) == {
        "temperature": 1.0,
        "epsilon": 0.0,
        "top_p": 1.0,
        "generator": None,
        "excluded": None,
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampler.top_p = 0.5


@pytest.mark.parametrize("temperature", [1e-37, 1e-45, 1e-46, 1e-50, 5e-324])
@pytest.mark.parametrize("filters", [{}, {"epsilon": 0.05}, {"top_p": 0.9}])
def test_a_temperature_towards_0_tends_to_the_argmax(temperature: float, filters: dict):
    """The limit of softmax(l / T); equal maxima share it."""
    rows = torch.tensor([[1.0, 3.0, 2.999], [2.0, 2.0, -float("inf")]])
    probs = logits_to_probs(rows, temperature, **filters)
    assert probs.tolist() == [[0, 1, 0], [0.5, 0.5, 0]]


@pytest.mark.parametrize("temperature", [1e30, 1e38, 1e39, 1e300])
def test_a_high_temperature_tends_to_the_uniform(temperature: float):
    rows = torch.tensor([[1.0, 3.0, -200.0, -float("inf")]])
    third = 1 / 3
    expected = torch.tensor([[third, third, third, 0]])
    torch.testing.assert_close(logits_to_probs(rows, temperature), expected)


@pytest.mark.parametrize("top_p", [1e-30, 1e-45, 1e-50, 5e-324])
def test_a_tiny_top_p_keeps_the_most_probable(top_p: float):
    assert logits_to_probs(logits(), 1.0, top_p=top_p).tolist() == [[1, 0, 0, 0, 0]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_excluded_id_is_never_drawn(temperature: float):
    """The others keep their proportions, and the caller's logits stay as they were."""
    rows = torch.tensor([[0.97, 0.01, 0.02]]).log().repeat(5000, 1)
    before = rows.clone()
    generator = torch.Generator().manual_seed(0)
    drawn = Sampler(temperature, epsilon=0.05, generator=generator, excluded=0)(rows)
    assert torch.equal(rows, before)
    share = (drawn == 2).double().mean()
    assert not (drawn == 0).any()
    assert share == 1 if temperature == 0 else abs(share - 2 / 3) < 0.03


def test_an_excluded_id_is_excluded_from_a_single_row():
    rows = torch.tensor([[0.1, 0.2, 0.1, 0.6]]).log()
    assert Sampler(0.0, excluded=3)(rows).tolist() == [[1]]


def test_an_excluded_id_that_the_model_does_not_have_changes_nothing():
    assert Sampler(0.0, excluded=5)(logits()).tolist() == [[0]]


def test_greedy_takes_the_first_maximum():
    picked = Sampler(temperature=0.0)(torch.tensor([[1.0, 5.0, 5.0], [2.0, 0.0, 1.0]]))
    assert picked.tolist() == [[1], [0]]


def test_greedy_draws_nothing_among_equals():
    state = torch.get_rng_state()
    picked = Sampler(temperature=0.0)(torch.tensor([[2.0, 5.0, 5.0, 5.0]]).expand(200, -1))
    assert (picked == 1).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_tiny_temperature_is_greedy_and_finite():
    probs = logits_to_probs(torch.tensor([[1e4, 1.0, -1e4]]), 1e-40)
    assert probs.tolist() == [[1.0, 0.0, 0.0]]


def test_frequencies():
    generator = torch.Generator().manual_seed(0)
    draws = Sampler(1.0, 0.05, 1.0, generator)(logits().expand(20_000, -1))
    frequencies = draws.flatten().bincount(minlength=5) / 20_000
    expected = torch.tensor([0.5, 0.3, 0.15, 0.0, 0.0]) / 0.95
    torch.testing.assert_close(frequencies, expected, atol=0.015, rtol=0)  # 4 standard errors
    assert frequencies[3:].sum() == 0


def test_only_the_generator_is_random():
    def draw() -> list:
        generator = torch.Generator().manual_seed(5)
        return Sampler(1.0, generator=generator)(logits().expand(50, -1)).tolist()

    torch.manual_seed(0)
    first = draw()
    torch.manual_seed(1)
    torch.rand(3)
    assert draw() == first


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_not_numbers_are_refused(temperature: float, wrong: float):
    with pytest.raises(ValueError, match="not numbers"):
        Sampler(temperature)(torch.tensor([[0.0, 1.0], [1.0, wrong]]))


def test_bounds():
    with pytest.raises(ValueError, match=r"top_p 0 is not allowed: it must be above 0"):
        Sampler(top_p=0)
