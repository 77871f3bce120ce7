"""Mistakes in generation: temperature, filters, argmax."""

from collections.abc import Callable
from typing import Any

import torch

from config import EDITIONS
from mini_llama.diagnosis.mistakes.replacing import Family, Replacement, Variant, Variants
from mini_llama.inference import sampling
from mini_llama.inference.sampling import Sampler, top_p_filter


def probabilities(function: Callable[..., torch.Tensor]) -> Variant:
    """Replace logits_to_probs by `function`, which takes the same arguments."""
    return (Replacement(sampling, "logits_to_probs", function),)


def keep(probs: torch.Tensor, epsilon: float, top_p: float) -> torch.Tensor:
    """Filter and renormalise."""
    if epsilon > 0:
        probs = sampling.epsilon_filter(probs, epsilon)
    return top_p_filter(probs, top_p) if top_p < 1 else probs


EPSILON = max(edition.epsilon for edition in EDITIONS.values())
TOP_PS = sorted({edition.top_p for edition in EDITIONS.values() if edition.top_p < 1})
Rule = Callable[..., torch.Tensor]


def by_epsilon(probs: torch.Tensor, epsilon: float, top_p: float) -> torch.Tensor:
    return keep(probs, EPSILON if top_p < 1 else epsilon, 1.0)


def by_top_p(own: float) -> Rule:
    return lambda probs, epsilon, top_p: keep(probs, 0.0, own if epsilon > 0 else top_p)


def sampled(
    heat: Rule = lambda logits, temperature: logits / temperature,
    choose: Rule = keep,
) -> Variant:
    """Correct by default: `heat` applies the temperature, then softmax, then `choose` filters."""

    def probs(logits: Any, temperature: float, epsilon: float = 0, top_p: float = 1) -> Any:
        return choose(heat(logits, temperature).softmax(-1), epsilon, top_p)

    return probabilities(probs)


def filtered_first(logits: Any, temperature: float, epsilon: float = 0, top_p: float = 1) -> Any:
    return keep(logits.softmax(-1), epsilon, top_p).log().div(temperature).softmax(-1)


def logits_above_epsilon(is_scaled: bool, or_best: bool) -> Variant:
    def probs(logits: Any, temperature: float, epsilon: float = 0, top_p: float = 1) -> Any:
        hot = logits / temperature
        low = (hot if is_scaled else logits) < epsilon if epsilon > 0 else hot.isinf()
        if or_best:
            best = torch.zeros_like(low).scatter(-1, hot.argmax(-1, keepdim=True), True)
            low = low & ~(best & low.all(-1, keepdim=True))
        return keep(hot.masked_fill(low, -torch.inf).softmax(-1), 0.0, top_p)

    return probabilities(probs)


def most_probable(logits: Any, *_: float, **__: float) -> Any:
    return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)


def not_renormalised(probs: torch.Tensor, epsilon: float, top_p: float) -> torch.Tensor:
    return torch.where(keep(probs, epsilon, top_p) > 0, probs, 0.0)


def kept_where(keeps: Rule) -> Rule:
    """Filter without a special case for no token left: the result is then NaN."""

    def choose(probs: torch.Tensor, epsilon: float, top_p: float) -> torch.Tensor:
        kept = torch.where(keeps(probs, epsilon), probs, 0.0) if epsilon > 0 else probs
        return keep(kept / kept.sum(-1, keepdim=True), 0.0, top_p)

    return choose


def or_else(instead: Callable[[torch.Tensor], torch.Tensor]) -> Rule:
    """Use `instead` if no token is left."""

    def choose(probs: torch.Tensor, epsilon: float, top_p: float) -> torch.Tensor:
        none_left = (probs < epsilon).all(-1, keepdim=True)
        chosen = keep(probs, epsilon, top_p)
        return torch.where(none_left, instead(probs), chosen) if epsilon > 0 else chosen

    return choose


def drop_at_epsilon(probs: torch.Tensor, epsilon: float, top_p: float) -> torch.Tensor:
    return keep(probs, epsilon * (1 + 1e-6), top_p)


def nucleus(
    keeps: Callable[..., torch.Tensor], descending: bool = True, maps: str = "back"
) -> Rule:
    """Top-p; `keeps` gets the cumulative sums before and after each sorted token.

    `maps`: the sorted probabilities are mapped "back" to token ids; or not (""); or the sorted
    "mask" is applied to unsorted probabilities.
    """

    def choose(probs: torch.Tensor, epsilon: float, top_p: float) -> torch.Tensor:
        probs = keep(probs, epsilon, 1.0)
        if top_p >= 1:
            return probs
        values, order = probs.sort(dim=-1, descending=descending)
        after = values.cumsum(-1)
        is_kept = keeps(after - values, after, top_p)
        kept = torch.where(is_kept, probs if maps == "mask" else values, 0.0)
        kept = kept / kept.sum(-1, keepdim=True)
        return kept.scatter(-1, order, kept) if maps == "back" else kept

    return choose


def or_first(keeps: torch.Tensor) -> torch.Tensor:
    """Always keep the most probable token."""
    return keeps | (torch.arange(keeps.shape[-1]) == 0)


def greedy(pick: Callable[[torch.Tensor], torch.Tensor]) -> Variant:
    """`pick` maps logits (B, V) to tokens (B, 1) at temperature 0."""
    sample = Sampler.__call__

    def call(self: Any, logits: torch.Tensor) -> torch.Tensor:
        return pick(logits) if self.temperature == 0 else sample(self, logits)

    return (Replacement(Sampler, "__call__", call),)


def draw_among_best(logits: torch.Tensor) -> torch.Tensor:
    return (logits == logits.amax(-1, keepdim=True)).float().multinomial(1)


FAMILY = Family(
    sampled,
    {
        "multiplied by temperature": ({"heat": lambda logits, temperature: logits * temperature},),
        "temperature ignored": ({"heat": lambda logits, temperature: logits},),
        "no filter": ({"choose": lambda probs, epsilon, top_p: probs},),
        "epsilon in place of top-p": ({"choose": by_epsilon},),
        "top-p in place of epsilon": tuple({"choose": by_top_p(top_p)} for top_p in TOP_PS),
        "no renormalisation": ({"choose": not_renormalised},),
        "> against ≥": ({"choose": drop_at_epsilon}, {"choose": kept_where(torch.gt)}),
        "nothing left is not handled": ({"choose": kept_where(torch.ge)},),
        "nothing left: drawn from all tokens": ({"choose": or_else(lambda probs: probs)},),
        "nothing left: drawn evenly": (
            {"choose": or_else(lambda probs: torch.full_like(probs, 1 / probs.shape[-1]))},
        ),
        "the token that reaches top_p is left out": (
            {"choose": nucleus(lambda before, after, p: or_first(after < p))},
            {"choose": nucleus(lambda before, after, p: or_first(after <= p))},
            {"choose": nucleus(lambda before, after, p: after < p)},
            {"choose": nucleus(lambda before, after, p: after <= p)},
        ),
        "> against ≥ in top-p": ({"choose": nucleus(lambda before, after, p: before <= p)},),
        "sorted the wrong way": (
            {"choose": nucleus(lambda before, after, p: before < p, descending=False)},
            {"choose": nucleus(lambda before, after, p: or_first(after <= p), descending=False)},
            {"choose": nucleus(lambda before, after, p: after < p, descending=False)},
        ),
        "ranks taken for token ids": (
            {"choose": nucleus(lambda before, after, p: before < p, maps="")},
            {"choose": nucleus(lambda before, after, p: or_first(after < p), maps="")},
            {"choose": nucleus(lambda before, after, p: before < p, maps="mask")},
            {"choose": nucleus(lambda before, after, p: or_first(after < p), maps="mask")},
        ),
        "tokens outside the nucleus are kept": (
            {"choose": nucleus(lambda before, after, p: before >= p)},
            {"choose": nucleus(lambda before, after, p: after > p)},
        ),
    },
)
VARIANTS: Variants = {
    **FAMILY.variants,
    "epsilon before temperature": (probabilities(filtered_first),),
    "epsilon is compared with logits": tuple(
        logits_above_epsilon(is_scaled, or_best)
        for is_scaled in (True, False)
        for or_best in (True, False)
    ),
    "always the argmax": (probabilities(most_probable),),
    "argmax of the wrong axis": (
        greedy(lambda logits: logits.argmax(dim=0)[:, None]),
        greedy(lambda logits: logits.argmax(dim=0, keepdim=True)),
    ),
    "argmin for argmax": (greedy(lambda logits: logits.argmin(dim=-1, keepdim=True)),),
    "sampling ties": (greedy(draw_among_best),),
}
