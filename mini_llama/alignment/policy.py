"""Proximal policy optimization: policy, loss (Llama 2, section 3.2.3; Schulman et al. 2017).

Shapes: B answers, T tokens, N answer tokens of a batch, C the model's width.
"""

from typing import NamedTuple

import torch
from torch import nn

from llama import Llama
from mini_llama.alignment import losses
from mini_llama.alignment.answers import answer_mask, answer_states, log_probs_at, scatter
from mini_llama.alignment.data import Batch
from mini_llama.alignment.rl_options import PpoOptions


class Policy(nn.Module):
    """A model and, on the same hidden states, a head that predicts the rewards still to come.

    The head is 0 at first, so that the first advantages are the rewards themselves.
    """

    def __init__(self, llama: Llama) -> None:
        super().__init__()
        self.llama = llama
        self.value_head = nn.Linear(llama.config.dim, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """log π of the answers' tokens and values before them, (B, T) each, 0 elsewhere."""
        states = answer_states(self.llama, batch)  # (N, C)
        values = self.value_head(states.float())[:, 0]
        return log_probs_at(self.llama, states, batch), scatter(values, answer_mask(batch))


class Minibatch(NamedTuple):
    """Sampled answers, and what the policy that sampled them gave and got: all (B, T)."""

    batch: Batch
    log_probs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor

    @property
    def n_targets(self) -> int:
        """Its answers' tokens."""
        return self.batch.n_targets


class PpoLoss(nn.Module):
    """The policy with its loss as output: clipped policy loss + weight · clipped value loss."""

    def __init__(self, policy: Policy, options: PpoOptions) -> None:
        super().__init__()
        self.policy, self.options = policy, options

    def forward(self, old: Minibatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        options, mask = self.options, answer_mask(old.batch)
        log_probs, values = self.policy(old.batch)
        found = losses.policy_loss(log_probs, old.log_probs, old.advantages, mask, options.clip)
        value = losses.value_loss(values, old.values, old.returns, mask, options.value_clip)
        loss = found.loss + options.value_weight * value
        return loss, {
            "policy_loss": found.loss,
            "value_loss": value,
            "clip_fraction": found.clip_fraction,
            "step_kl": found.kl,
        }
