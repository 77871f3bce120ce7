"""Mistakes in generation: temperature, filters, argmax."""

from collections.abc import Callable
from typing import Any

import torch

from mini_llama.diagnosis.mistakes.replacing import Replacement, Variant, Variants
from mini_llama.inference import sampling
from mini_llama.inference.sampling import Sampler, epsilon_filter, logits_to_probs, top_p_filter


def probabilities(function: Callable[..., torch.Tensor]) -> Variant:
    """`function` takes logits (B, V), temperature, epsilon and top_p, as logits_to_probs does."""
    return (Replacement(sampling, "logits_to_probs", function),)


def keep(probs: torch.Tensor, epsilon: float, top_p: float) -> torch.Tensor:
    """What the filters leave, renormalised."""
    if epsilon > 0:
        probs = sampling.epsilon_filter(probs, epsilon)
    return top_p_filter(probs, top_p) if top_p < 1 else probs


def tempered(rule: Callable[[torch.Tensor, float], torch.Tensor]) -> Variant:
    """The right rule is logits / temperature."""

    def probs(logits: Any, temperature: float, epsilon: float = 0, top_p: float = 1) -> Any:
        return keep(rule(logits, temperature).softmax(-1), epsilon, top_p)

    return probabilities(probs)


def filtered_first(logits: Any, temperature: float, epsilon: float = 0, top_p: float = 1) -> Any:
    return keep(logits.softmax(-1), epsilon, top_p).log().div(temperature).softmax(-1)


def not_filtered(logits: Any, temperature: float, *_: object, **__: object) -> torch.Tensor:
    return logits_to_probs(logits, temperature)


def not_renormalised(if_none_left: float) -> Variant:
    """`if_none_left` is what the most probable token then gets, as a share of 1."""

    def probs_of(logits: Any, temperature: float, epsilon: float = 0, top_p: float = 1) -> Any:
        probs = (logits / temperature).softmax(-1)
        kept = torch.where(keep(probs, epsilon, top_p) > 0, probs, 0.0)
        return torch.where(kept < epsilon, kept.sign() * if_none_left, kept)

    return probabilities(probs_of)


def filtered(function: Callable[[torch.Tensor, float], torch.Tensor]) -> Variant:
    return (Replacement(sampling, "epsilon_filter", function),)


def kept_where(keeps: Callable[..., torch.Tensor]) -> Variant:
    """Where nothing is left, the quotient is not a number."""

    def filter_probs(probs: torch.Tensor, epsilon: float) -> torch.Tensor:
        kept = torch.where(keeps(probs, epsilon), probs, 0.0)
        return kept / kept.sum(-1, keepdim=True)

    return filtered(filter_probs)


def drop_at_epsilon(probs: torch.Tensor, epsilon: float) -> torch.Tensor:
    return epsilon_filter(probs, epsilon * (1 + 1e-6))


def greedy(pick: Callable[[torch.Tensor], torch.Tensor]) -> Variant:
    """What is picked of logits (B, V) at temperature 0; the right one is (B, 1)."""
    sample = Sampler.__call__

    def call(self: Any, logits: torch.Tensor) -> torch.Tensor:
        return pick(logits) if self.temperature == 0 else sample(self, logits)

    return (Replacement(Sampler, "__call__", call),)


def draw_among_best(logits: torch.Tensor) -> torch.Tensor:
    return (logits == logits.amax(-1, keepdim=True)).float().multinomial(1)


VARIANTS: Variants = {
    "multiplied by temperature": (tempered(lambda logits, temperature: logits * temperature),),
    "temperature ignored": (tempered(lambda logits, temperature: logits),),
    "epsilon before temperature": (probabilities(filtered_first),),
    "no filter": (probabilities(not_filtered),),
    "no renormalisation": (not_renormalised(1.0), not_renormalised(0.0)),
    "> against ≥": (filtered(drop_at_epsilon), kept_where(torch.gt)),
    "nothing left is not handled": (kept_where(torch.ge),),
    "argmax of the wrong axis": (
        greedy(lambda logits: logits.argmax(dim=0)[:, None]),
        greedy(lambda logits: logits.argmax(dim=0, keepdim=True)),
    ),
    "sampling ties": (greedy(draw_among_best),),
}
