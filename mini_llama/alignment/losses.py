"""The losses and rewards of post-training as pure functions: SFT, reward models, PPO and DPO.

Equations are numbered as in Llama 2 (Touvron et al. 2023, arXiv 2307.09288v2). What that paper
leaves out of PPO is taken from the line that leads from OpenAI's lm-human-preferences (Ziegler et
al. 2019) over "The N implementation details of RLHF with PPO" (Huang et al. 2024, arXiv
2403.17031) to TRL, and marked "not in the paper".

A mask is boolean and True at the tokens of an answer, its EOS included; everything else is prompt
or padding and has no part in any mean.

Shapes: B answers, T token positions, V vocabulary, P pairs.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

# m(r) by grade: significantly better, better, slightly better, negligibly better or unsure
# (table 27).
GRADES = ("significantly", "better", "slightly", "negligibly")
MARGINS = {
    "none": (0.0, 0.0, 0.0, 0.0),
    "small": (1.0, 2 / 3, 1 / 3, 0.0),
    "large": (3.0, 2.0, 1.0, 0.0),
}
SAFETY_THRESHOLD = 0.15  # section 3.2.3: precision 0.89, recall 0.55 on Meta's safety test set
GAMMA, LAMBDA = 1.0, 0.95  # not in the paper
VALUE_CLIP = 0.2  # not in the paper
WHITENING_EPSILON = 1e-8


# --- tokens and masks --------------------------------------------------------------------------


def token_log_probs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log softmax(logits)[token]: logits (B, T, V), tokens (B, T) → (B, T), in float32."""
    return -F.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none")


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """-Σ p log p of each position: logits (B, T, V) → (B, T), in float32."""
    log_probs = logits.float().log_softmax(dim=-1)
    return -(log_probs.exp() * log_probs).sum(dim=-1)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over True: values and mask of one shape → a number. Raises ValueError for none: the
    mean of nothing is NaN, and a loss of 0 in its place would hide that nothing is learnt.
    """
    count = mask.sum()
    if count == 0:
        raise ValueError("no token is trained on: every prompt fills its row; raise --max_length")
    return torch.where(mask, values, 0.0).sum() / count


def whiten(
    values: torch.Tensor, mask: torch.Tensor | None = None, shift_mean: bool = True
) -> torch.Tensor:
    """(x - mean) / sd, over True if there is a mask; what is False is 0 (section 3.2.3).

    With `shift_mean` False the mean is kept. Of a single value, or of equal ones, it is 0. The
    variance is the unbiased one, as in TRL.
    """
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    mean = masked_mean(values, mask)
    squares = torch.where(mask, (values - mean).square(), 0.0).sum()
    white = standardize(values, mean, squares / (mask.sum() - 1).clamp(min=1))
    return torch.where(mask, white if shift_mean else white + mean, 0.0)


def standardize(
    values: torch.Tensor, mean: torch.Tensor | float, variance: torch.Tensor | float
) -> torch.Tensor:
    """(x - mean) / sd, and 0 where the variance is."""
    variance = torch.as_tensor(variance, dtype=values.dtype, device=values.device)
    return (values - mean) * torch.rsqrt(variance + WHITENING_EPSILON)


# --- reward models -----------------------------------------------------------------------------


def ranking_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """Eq. 2, and eq. 1 where m = 0: mean of -log σ(r(x, y_c) - r(x, y_r) - m(r)); scores (P,)."""
    return -F.logsigmoid(chosen.float() - rejected.float() - margins).mean()


def margins_of(grades: torch.Tensor, table: str) -> torch.Tensor:
    """m(r) of grades (P,), integers that index GRADES, by a table of MARGINS: (P,)."""
    return torch.tensor(MARGINS[table], device=grades.device)[grades]


def safety_loss(scores: torch.Tensor, is_safe: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of σ(score) with whether each answer is safe: scores, is_safe (B,).

    The safety model's auxiliary loss (section A.3.4, table 29), to which the threshold 0.5 after
    the sigmoid, 0 before, refers.
    """
    return F.binary_cross_entropy_with_logits(scores.float(), is_safe.float())


def ranking_accuracy(chosen: torch.Tensor, rejected: torch.Tensor) -> float:
    """Share of pairs whose chosen answer has the higher score; a tie counts as a miss."""
    return float((chosen > rejected).float().mean())


# --- the reward of reinforcement learning ------------------------------------------------------


def combined_score(
    safety: torch.Tensor, helpfulness: torch.Tensor, is_safety: torch.Tensor
) -> torch.Tensor:
    """logit(R_c): of the safety model if the prompt is_safety, or if R_s < 0.15; else of the
    helpfulness model (section 3.2.3).

    Scores (B,) are those before the sigmoid, so they are the logits of the paper's R, and the
    threshold here is logit(0.15).
    """
    threshold = math.log(SAFETY_THRESHOLD / (1 - SAFETY_THRESHOLD))
    return torch.where(is_safety | (safety < threshold), safety, helpfulness)


def kl_k1(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """log π - log π_0 of sampled tokens: an unbiased estimate of the KL divergence of π from π_0,
    which may be negative (Schulman 2020, "Approximating KL Divergence").
    """
    return log_probs - reference


def kl_k3(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """r - 1 - log r with r = π_0/π: unbiased, never negative, of less variance than k1 (ibid.)."""
    log_ratio = reference - log_probs
    return torch.expm1(log_ratio) - log_ratio


def token_rewards(
    scores: torch.Tensor,
    log_probs: torch.Tensor,
    reference: torch.Tensor,
    mask: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Eq. 4 by token: -β (log π - log π_0), and the answer's score on its last token, its EOS.

    scores (B,), the others (B, T) → (B, T); their sum over a row is score - β · (sum of k1).
    """
    rewards = torch.where(mask, -beta * kl_k1(log_probs, reference), 0.0)
    rows = torch.arange(len(scores), device=scores.device)
    last = last_true(mask)
    return rewards.index_put((rows, last), rewards[rows, last] + scores)


def last_true(mask: torch.Tensor) -> torch.Tensor:
    """Index of the last True of each row: (B, T) → (B,). Raises ValueError for a row without."""
    if not mask.any(dim=1).all():
        raise ValueError("an answer has no token, so its reward has no place")
    places = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, places, -1).amax(dim=1)


# --- PPO ---------------------------------------------------------------------------------------


def advantages_and_returns(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    gamma: float = GAMMA,
    lam: float = LAMBDA,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), not in the paper.

    δ_t = r_t + γ V_{t+1} - V_t,  A_t = δ_t + γ λ A_{t+1},  returns = A + V; V after the last token
    is 0. All (B, T), 0 where the mask is False; each row's True tokens are consecutive.
    """
    values = torch.where(mask, values, 0.0)
    rewards = torch.where(mask, rewards, 0.0)
    advantage, next_value = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    columns = []
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(mask[:, t], delta + gamma * lam * advantage, 0.0)
        next_value = values[:, t]
        columns.append(advantage)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, advantages + values


class PolicyLoss(NamedTuple):
    """A loss, the share of its tokens that is clipped, and their estimated KL from the sampler."""

    loss: torch.Tensor
    clip_fraction: torch.Tensor
    kl: torch.Tensor


def policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    clip: float = 0.2,
) -> PolicyLoss:
    """mean of max(-A ρ, -A clip(ρ, 1 - ε, 1 + ε)), ρ = π/π_old (Schulman et al. 2017, eq. 7;
    section 3.2.3 has ε = 0.2). All (B, T).
    """
    log_ratio = torch.where(mask, log_probs - old_log_probs, 0.0)  # no overflow at padding
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return PolicyLoss(
        masked_mean(torch.maximum(plain, clipped), mask),
        masked_mean((clipped > plain).float(), mask),
        masked_mean(kl_k3(log_probs, old_log_probs), mask).detach(),
    )


def value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    clip: float = VALUE_CLIP,
) -> torch.Tensor:
    """½ mean of max((V - R)², (V_clipped - R)²), V_clipped within ±clip of the old value.

    Not in the paper; OpenAI's baselines and TRL. All (B, T).
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    squares = torch.maximum((values - returns).square(), (clipped - returns).square())
    return 0.5 * masked_mean(squares, mask)


# --- DPO ---------------------------------------------------------------------------------------


class PreferenceLoss(NamedTuple):
    """A loss, and the implicit rewards β (log π - log π_0) of both answers, (P,) each."""

    loss: torch.Tensor
    chosen_rewards: torch.Tensor
    rejected_rewards: torch.Tensor


def dpo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float = 0.1,
) -> PreferenceLoss:
    """-log σ(β [(log π - log π_0)(y_c) - (log π - log π_0)(y_r)]), mean over pairs.

    Log probabilities (P,) of whole answers, summed over their tokens (Rafailov et al. 2023, eq. 7).
    """
    chosen_rewards = beta * (chosen - reference_chosen)
    rejected_rewards = beta * (rejected - reference_rejected)
    loss = ranking_loss(chosen_rewards, rejected_rewards)
    return PreferenceLoss(loss, chosen_rewards.detach(), rejected_rewards.detach())
