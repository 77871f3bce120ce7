"""The losses against published numbers, formulas in float64 loops, and their invariants."""

import math

import pytest
import torch

from mini_llama.alignment import losses


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Three answers of 6, 1 and 3 tokens in rows of 8, after prompts of 1, 4 and 2.
SPANS = ((1, 7), (4, 5), (2, 5))


def spans_mask() -> torch.Tensor:
    mask = torch.zeros(len(SPANS), 8, dtype=torch.bool)
    for row, (start, end) in enumerate(SPANS):
        mask[row, start:end] = True
    return mask


# --- tokens and masks ---


def test_log_probs_and_entropy_are_those_of_the_softmax():
    logits, tokens = noise(2, 5, 7), torch.randint(0, 7, (2, 5))
    probs = torch.distributions.Categorical(logits=logits.float())
    torch.testing.assert_close(losses.token_log_probs(logits, tokens), probs.log_prob(tokens))
    torch.testing.assert_close(losses.entropy(logits), probs.entropy())


def test_masked_mean_ignores_what_is_false_even_nan():
    values = torch.tensor([[1.0, math.nan], [3.0, math.inf]])
    mask = torch.tensor([[True, False], [True, False]])
    assert losses.masked_mean(values, mask) == 2


def test_a_batch_without_a_target_is_refused():
    with pytest.raises(ValueError, match="no token is trained on"):
        losses.masked_mean(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool))


def test_whitened_values_have_mean_0_and_sd_1():
    values, mask = noise(3, 8) * 5 + 2, spans_mask()
    white = losses.whiten(values, mask)
    assert white[~mask].abs().max() == 0
    assert abs(white[mask].mean()) < 1e-12 and abs(white[mask].std() - 1) < 1e-6
    kept = losses.whiten(values, mask, shift_mean=False)
    torch.testing.assert_close(kept[mask], white[mask] + values[mask].mean())
    assert losses.whiten(torch.tensor([4.0, 4.0])).abs().max() == 0


# --- reward models ---


@pytest.mark.parametrize(
    "margin, expected",
    [
        *((0, 0.693147), (1 / 3, 0.873639), (2 / 3, 1.081037)),
        *((1, 1.313262), (2, 2.126928), (3, 3.048587)),
    ],
)
def test_ranking_loss_at_equal_scores(margin: float, expected: float):
    zero = torch.zeros(4)
    assert losses.ranking_loss(zero, zero, margin) == pytest.approx(expected, abs=1e-6)


def test_ranking_loss_is_eq_2_with_the_margins_of_table_27():
    chosen, rejected, grades = noise(4), noise(4, seed=1), torch.arange(4)
    for table, margins in {"small": (1, 2 / 3, 1 / 3, 0), "large": (3, 2, 1, 0)}.items():
        expected = [
            -math.log(1 / (1 + math.exp(-(c - r - m))))
            for c, r, m in zip(chosen.tolist(), rejected.tolist(), margins, strict=True)
        ]
        found = losses.ranking_loss(chosen, rejected, losses.margins_of(grades, table))
        assert float(found) == pytest.approx(sum(expected) / 4, rel=1e-6)
    assert losses.margins_of(grades, "none").abs().max() == 0


def test_safety_loss_is_the_cross_entropy_of_both_labels():
    scores, is_safe = torch.tensor([2.0, -1.0]), torch.tensor([True, False])
    safe, unsafe = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))
    expected = -(math.log(safe) + math.log(1 - unsafe)) / 2
    assert float(losses.safety_loss(scores, is_safe)) == pytest.approx(expected, rel=1e-6)


def test_a_tie_is_a_miss():
    chosen, rejected = torch.tensor([1.0, 1.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert losses.ranking_accuracy(chosen, rejected) == 0.5


# --- rewards ---


@pytest.mark.parametrize(
    "safety, is_safety, expected", [(0.10, False, -2.1972), (0.20, False, 2.1972)]
)
def test_combined_score_by_the_papers_threshold(safety: float, is_safety: bool, expected: float):
    scores = [torch.tensor([p]).logit() for p in (safety, 0.90)]
    found = losses.combined_score(*scores, torch.tensor([is_safety]))
    assert float(found) == pytest.approx(expected, abs=1e-4)


def test_a_safety_prompt_is_scored_by_the_safety_model():
    safety, helpfulness = torch.tensor([5.0, 5.0]), torch.tensor([-1.0, -1.0])
    found = losses.combined_score(safety, helpfulness, torch.tensor([True, False]))
    assert found.tolist() == [5, -1]


def test_rewards_by_token_as_torchtune_has_them():
    scores = torch.tensor([1.0, 2.0, 3.0])
    difference = torch.tensor([[-0.1], [-0.2], [-0.3]]).expand(3, 3)
    mask = torch.ones(3, 3, dtype=torch.bool)
    found = losses.token_rewards(scores, difference, torch.zeros(3, 3), mask, beta=0.5)
    expected = [[0.05, 0.05, 1.05], [0.1, 0.1, 2.1], [0.15, 0.15, 3.15]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_the_score_lies_on_the_last_token_and_none_on_padding():
    mask, scores = spans_mask(), torch.tensor([7.0, 8.0, 9.0])
    log_probs, reference = noise(3, 8), noise(3, 8, seed=1)
    rewards = losses.token_rewards(scores, log_probs, reference, mask, beta=0.25)
    assert rewards[~mask].abs().max() == 0
    penalty = torch.where(mask, -0.25 * (log_probs - reference), 0.0)
    for row, (_, end) in enumerate(SPANS):
        assert rewards[row, end - 1] == penalty[row, end - 1] + scores[row]
    torch.testing.assert_close(rewards.sum(1), scores + penalty.sum(1))
    with pytest.raises(ValueError, match="an answer has no token"):
        losses.last_true(torch.zeros(2, 3, dtype=torch.bool))


def test_kl_estimates():
    """k3 is never negative; both have the mean of the exact divergence over all tokens."""
    policy, reference = noise(1, 9).log_softmax(-1), noise(1, 9, seed=1).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    assert (losses.kl_k3(policy, reference) >= 0).all()
    for estimate in (losses.kl_k1, losses.kl_k3):
        mean = (policy.exp() * estimate(policy, reference)).sum()
        torch.testing.assert_close(mean, exact)
    assert losses.kl_k3(policy, policy).abs().max() == 0


# --- PPO ---


def loop_advantages(rewards, values, mask, gamma: float, lam: float) -> torch.Tensor:
    """Σ (γλ)^l δ_{t+l} over the rest of each answer, as Schulman et al. 2016 write it (eq. 16)."""
    result = torch.zeros_like(rewards)
    for row in range(len(mask)):
        places = mask[row].nonzero().flatten().tolist()
        after = {t: values[row, t + 1] if t + 1 in places else 0.0 for t in places}
        deltas = {t: rewards[row, t] + gamma * after[t] - values[row, t] for t in places}
        for t in places:
            later = [u for u in places if u >= t]
            result[row, t] = sum((gamma * lam) ** (u - t) * deltas[u] for u in later)
    return result


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.95), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_are_the_sum_of_the_definition(gamma: float, lam: float):
    rewards, values, mask = noise(3, 8), noise(3, 8, seed=1), spans_mask()
    advantages, returns = losses.advantages_and_returns(rewards, values, mask, gamma, lam)
    expected = loop_advantages(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(returns, expected + torch.where(mask, values, 0.0))
    if gamma == lam == 1:  # what is still to come, minus the value
        rest = torch.where(mask, rewards, 0.0).flip(1).cumsum(1).flip(1)
        torch.testing.assert_close(advantages, torch.where(mask, rest - values, 0.0))


def test_advantages_of_published_examples():
    """torchrl's, run; and the golden returns of torchtune's test."""
    whole = torch.ones(1, 4, dtype=torch.bool)
    reward, value = torch.tensor([[0.0, 0, 0, 1]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    advantages, _ = losses.advantages_and_returns(reward, value, whole, 1.0, 0.95)
    expected = torch.tensor([[0.7997, 0.7365, 0.67, 0.60]])
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-4)
    _, returns = losses.advantages_and_returns(reward, reward, whole, 0.9, 0.95)
    golden = torch.tensor([[0.9**3 * 0.95**2, 0.9**2 * 0.95, 0.9, 1]])
    torch.testing.assert_close(returns, golden)


@pytest.mark.parametrize(
    "advantage, log_ratio, expected",
    [
        *((1, 1, -1.2), (1, -1, -math.exp(-1)), (1, 0.1, -math.exp(0.1))),
        *((-1, 1, math.e), (-1, -1, 0.8)),
    ],
)
def test_clipped_policy_loss_by_hand(advantage: float, log_ratio: float, expected: float):
    one = torch.ones(1, 1)
    found = losses.policy_loss(one * log_ratio, one * 0, one * advantage, one.bool(), 0.2)
    assert float(found.loss) == pytest.approx(expected, abs=1e-6)
    assert found.clip_fraction == (expected in (-1.2, 0.8))


def test_the_gradient_is_cut_off_only_where_the_ratio_went_too_far_for_the_better():
    log_probs = torch.tensor([[1.0, -1.0, 1.0, -1.0]], requires_grad=True)
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    losses.policy_loss(log_probs, torch.zeros(1, 4), advantages, mask).loss.backward()
    assert (log_probs.grad == 0).tolist() == [[True, False, False, True]]


def test_equal_policies_have_ratio_1_and_minus_the_advantage_as_loss():
    log_probs, advantages, mask = noise(3, 8), noise(3, 8, seed=2), spans_mask()
    found = losses.policy_loss(log_probs, log_probs, advantages, mask)
    torch.testing.assert_close(found.loss, -advantages[mask].mean())
    assert found.clip_fraction == 0 and found.kl == 0


def test_padding_has_no_part_in_loss_or_gradient():
    mask = spans_mask()
    log_probs = noise(3, 8).requires_grad_()
    old, advantages = noise(3, 8, seed=1), noise(3, 8, seed=2)
    first = losses.policy_loss(log_probs, old, advantages, mask)
    first.loss.backward()
    assert log_probs.grad is not None and log_probs.grad[~mask].abs().max() == 0
    wild = torch.where(mask, old, -1e4)
    assert losses.policy_loss(log_probs, wild, advantages, mask).loss == first.loss


def test_clipped_value_loss_by_hand():
    """Values 0.5 above the old one count as 0.2 above it where that is farther from the return."""
    one, mask = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    towards = losses.value_loss(one * 0.5, one * 0, one, mask, clip=0.2)
    away = losses.value_loss(one * 0.5, one * 0, one * -1, mask, clip=0.2)
    assert float(towards) == pytest.approx(0.5 * 0.8**2)
    assert float(away) == pytest.approx(0.5 * 1.5**2)
    assert float(losses.value_loss(one * 0.1, one * 0, one, mask)) == pytest.approx(0.5 * 0.9**2)


# --- DPO ---


def test_dpo_loss_of_the_reference_itself_is_log_2():
    chosen, rejected = noise(5), noise(5, seed=1)
    found = losses.dpo_loss(chosen, rejected, chosen, rejected)
    assert float(found.loss) == pytest.approx(math.log(2), rel=1e-6)
    assert found.chosen_rewards.abs().max() == 0


def test_dpo_loss_by_hand():
    """log ratios 2 and -1, β 0.1: -log σ(0.3)."""
    one = torch.ones(1)
    found = losses.dpo_loss(one * -3, one * -6, one * -5, one * -5, beta=0.1)
    assert float(found.loss) == pytest.approx(-math.log(1 / (1 + math.exp(-0.3))), rel=1e-6)
    assert float(found.chosen_rewards) == pytest.approx(0.2, rel=1e-6)
    assert float(found.rejected_rewards) == pytest.approx(-0.1, rel=1e-6)
