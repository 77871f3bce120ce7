"""Mistakes in AdamW."""

import math
from collections.abc import Callable
from typing import Any

import torch

import optimizer
from mini_llama.diagnosis.mistakes.replacing import Family, Replacement, Variant, Variants
from optimizer import AdamW, clip_scale

MAX_GRAD_NORM = 0.9  # the probe's


def multiply(gradient: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return gradient if scale is None else gradient * scale


def update(
    decay: str = "after",
    coupled: bool = False,
    correction: str = "as asked",
    eps: str = "efficient",
    clip: Callable[..., torch.Tensor] = multiply,
    clips_step: bool = False,
    late: int = 0,
) -> Variant:
    """The update of one parameter, by default as it should be.

    `decay`: after, before, without lr, never, by the step; `correction`: as asked, always, never,
    first alone, second alone, no root, reversed; `eps`: which form of the step it stands in;
    `late`: what t counts from.
    """

    def update_parameter(self: Any, p: Any, group: dict, scale: Any) -> None:
        lr, weight_decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        g = p.grad if clips_step else clip(p.grad, scale)
        g = g + weight_decay * p if coupled else g
        state = self.state[p]
        state["step"] = state.get("step", 0) + 1
        t = state["step"] + late
        m = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
        v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
        asked = group["correct_bias"] and correction != "never"
        corrects = not asked if correction == "reversed" else asked or correction == "always"
        first, second = (1 - beta1**t, 1 - beta2**t) if corrects else (1, 1)
        first = 1 if correction == "second alone" else first
        second = 1 if correction == "first alone" else second
        second = second**2 if correction == "no root" else second
        shrink = {
            "without lr": weight_decay,
            "never": 0,
            "by the step": lr * weight_decay * math.sqrt(second) / first,
        }.get(decay, lr * weight_decay)
        if decay == "before":
            p.mul_(1 - shrink)
        if eps == "plain":
            step = lr * (m / first) / ((v / second).sqrt() + group["eps"])
        elif eps == "inside":
            step = lr * math.sqrt(second) / first * m / (v + group["eps"]).sqrt()
        elif eps == "plain inside":
            step = lr * (m / first) / (v / second + group["eps"]).sqrt()
        else:
            step = lr * math.sqrt(second) / first * m / (v.sqrt() + group["eps"])
        p.sub_(clip(step, scale) if clips_step else step)
        if decay != "before" and not coupled:
            p.mul_(1 - shrink)

    return (Replacement(AdamW, "_update", update_parameter),)


def clip_alone(gradient: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return gradient if scale is None else multiply(gradient, clip_scale([gradient], MAX_GRAD_NORM))


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
        "coupled decay": ({"coupled": True},),
        "decay before the step": ({"decay": "before"},),
        "decay without lr": ({"decay": "without lr"},),
        "decay by the corrected step size": ({"decay": "by the step"},),
        "no decay": ({"decay": "never"},),
        "clipping after the moments, or none": ({"clips_step": True}, {"clip": lambda g, scale: g}),
        "each parameter clipped by itself": ({"clip": clip_alone},),
    },
    most=4,
)
VARIANTS: Variants = {
    **FAMILY.variants,
    "clipping after the moments, or none": (
        (Replacement(optimizer, "clip_scale", lambda gradients, max_norm: None),),
        update(clips_step=True),
    ),
}
