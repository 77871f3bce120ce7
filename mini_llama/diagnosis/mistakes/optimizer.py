"""Mistakes in AdamW."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import optimizer
from mini_llama.diagnosis.mistakes.replacing import Family, Replacement, Variant, Variants
from optimizer import AdamW, clip_scale


def multiply(gradient: torch.Tensor, scale: torch.Tensor | None, _: object) -> torch.Tensor:
    return gradient if scale is None else gradient * scale


@dataclass(frozen=True)
class Form:
    """The update of one parameter, correct by default.

    `decay`: after, before, without lr, never, by the step, coupled, negative; `correction`: as
    set, always, never, first alone, second alone, no root, reversed; `eps`: the form of the step;
    `clips_step`: clips the step, not the gradient; `late`: added to t; `moments`: "" (correct),
    kept corrected, unweighted, not squared, exchanged (betas), shared count (of steps).
    """

    decay: str = "after"
    correction: str = "as set"
    eps: str = "efficient"
    clip: Callable[..., torch.Tensor] = multiply
    clips_step: bool = False
    late: int = 0
    moments: str = ""
    sign: int = 1

    def __call__(self, optimizer: Any, p: Any, group: dict, scale: Any) -> None:
        lr, weight_decay = group["lr"], group["weight_decay"]
        g = p.grad if self.clips_step else self.clip(p.grad, scale, group["max_grad_norm"])
        g = g + weight_decay * p if self.decay == "coupled" else g
        state = optimizer.state[p]
        counted = optimizer.__dict__ if self.moments == "shared count" else state
        counted["t"] = counted.get("t", 0) + 1
        first, second = self.corrections(group, counted["t"] + self.late)
        m, v = self.moved(state, g, group["betas"])
        if self.moments == "kept corrected":
            state["m"], state["v"] = m / first, v / second
        shrink = {
            "without lr": weight_decay,
            "never": 0,
            "coupled": 0,
            "negative": -lr * weight_decay,
            "by the step": lr * weight_decay * math.sqrt(second) / first,
        }.get(self.decay, lr * weight_decay)
        if self.decay == "before":
            p.mul_(1 - shrink)
        step = lr * self.sign * self.quotient(m, v, group["eps"], (first, second))
        p.sub_(self.clip(step, scale, None) if self.clips_step else step)
        if self.decay != "before":
            p.mul_(1 - shrink)

    def corrections(self, group: dict, t: int) -> tuple[float, float]:
        """The divisors of m and v."""
        is_on = group["correct_bias"] and self.correction != "never"
        corrects = not is_on if self.correction == "reversed" else is_on
        if not (corrects or self.correction == "always"):
            return 1.0, 1.0
        beta1, beta2 = group["betas"][::-1] if self.moments == "exchanged" else group["betas"]
        first = 1.0 if self.correction == "second alone" else 1 - beta1**t
        second = 1.0 if self.correction == "first alone" else 1 - beta2**t
        return first, second**2 if self.correction == "no root" else second

    def moved(self, state: dict, g: torch.Tensor, betas: tuple) -> tuple:
        """Update m and v in the state, and return them."""
        beta1, beta2 = betas[::-1] if self.moments == "exchanged" else betas
        share1, share2 = (1, 1) if self.moments == "unweighted" else (1 - beta1, 1 - beta2)
        squared = g if self.moments == "not squared" else g**2
        state["m"] = beta1 * state.get("m", 0) + share1 * g
        state["v"] = beta2 * state.get("v", 0) + share2 * squared
        return state["m"], state["v"].abs()

    def quotient(
        self, m: torch.Tensor, v: torch.Tensor, eps: float, corrections: tuple[float, float]
    ) -> torch.Tensor:
        first, second = corrections
        if self.eps == "plain":
            return m / first / ((v / second).sqrt() + eps)
        if self.eps == "plain inside":
            return m / first / (v / second + eps).sqrt()
        size = math.sqrt(second) / first
        return size * m / ((v + eps).sqrt() if self.eps == "inside" else v.sqrt() + eps)


def update(**options: Any) -> Variant:
    """`options` are fields of Form."""
    form = Form(**options)

    def update_parameter(self: Any, p: Any, group: dict, scale: Any) -> None:
        form(self, p, group, scale)

    return (Replacement(AdamW, "_update", update_parameter),)


def always_scaled(gradients: Sequence[torch.Tensor], max_norm: float | None) -> Any:
    """Gradients below max_norm are scaled up, too."""
    if max_norm is None:
        return None
    return max_norm / torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))


def clip_alone(g: torch.Tensor, scale: torch.Tensor | None, max_norm: float) -> torch.Tensor:
    return g if scale is None else multiply(g, clip_scale([g], max_norm), None)


FAMILY = Family(
    update,
    {
        "plain instead of efficient form": ({"eps": "plain"},),
        "eps inside the root": ({"eps": "inside"}, {"eps": "plain inside"}),
        "second moment not corrected": ({"correction": "first alone"},),
        "first moment not corrected": ({"correction": "second alone"},),
        "the root of 1-β2^t is not taken": ({"correction": "no root"},),
        "no bias correction": ({"correction": "never"},),
        "correct_bias ignored": ({"correction": "always"},),
        "correct_bias reversed": ({"correction": "reversed"},),
        "t does not start at 1": ({"late": 1},),
        "coupled decay": ({"decay": "coupled"},),
        "decay before the step": ({"decay": "before"},),
        "decay without lr": ({"decay": "without lr"},),
        "decay by the corrected step size": ({"decay": "by the step"},),
        "no decay": ({"decay": "never"},),
        "clipping after the moments, or none": ({"clips_step": True}, {"clip": lambda g, *_: g}),
        "each parameter clipped by itself": ({"clip": clip_alone},),
    },
    most=4,
)
# Rarer mistakes: combined in pairs only.
RARE: dict[str, tuple[dict[str, Any], ...]] = {
    "the corrected moments are kept": (
        {"moments": "kept corrected", "eps": "plain", "correction": "always"},
        {"moments": "kept corrected", "eps": "plain"},
        {"moments": "kept corrected"},
    ),
    "1-β left out of the moments": ({"moments": "unweighted"},),
    "the gradient is not squared in v": ({"moments": "not squared"},),
    "β1 and β2 exchanged": ({"moments": "exchanged"},),
    "all parameters share one t": ({"moments": "shared count"},),
    "the weight grows by the decay": ({"decay": "negative"},),
    "the step is added": ({"sign": -1},),
}
ALL = Family(update, {**FAMILY.options, **RARE})
FAMILIES = (FAMILY, ALL)
VARIANTS: Variants = {
    **ALL.variants,
    "short gradients are scaled up": ((Replacement(optimizer, "clip_scale", always_scaled),),),
    "clipping after the moments, or none": (
        (Replacement(optimizer, "clip_scale", lambda gradients, max_norm: None),),
        update(clips_step=True),
    ),
}
