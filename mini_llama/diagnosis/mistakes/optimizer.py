"""Mistakes in AdamW."""

import math
from collections.abc import Callable
from typing import Any

import torch

import optimizer
from mini_llama.diagnosis.mistakes.replacing import Replacement, Variant, Variants
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
) -> Variant:
    """The update of one parameter, by default as it should be.

    `decay`: after, before, without lr, never; `correction`: as asked, always, never, first alone;
    `eps`: which form of the step it stands in.
    """

    def update_parameter(self: Any, p: Any, group: dict, scale: Any) -> None:
        lr, weight_decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        g = p.grad if clips_step else clip(p.grad, scale)
        g = g + weight_decay * p if coupled else g
        state = self.state[p]
        t = state["step"] = state.get("step", 0) + 1
        m = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
        v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
        corrects = {"never": False, "always": True}.get(correction, group["correct_bias"])
        first, second = (1 - beta1**t, 1 - beta2**t) if corrects else (1, 1)
        second = 1 if correction == "first alone" else second
        shrink = {"without lr": weight_decay, "never": 0}.get(decay, lr * weight_decay)
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


VARIANTS: Variants = {
    "coupled decay": (update(coupled=True),),
    "decay before the step": (update(decay="before"),),
    "decay without lr": (update(decay="without lr"),),
    "no decay": (update(decay="never"),),
    "second moment not corrected": (update(correction="first alone"),),
    "no bias correction": (update(correction="never"),),
    "correct_bias ignored": (update(correction="always"),),
    "plain instead of efficient form": (update(eps="plain"),),
    "eps inside the root": (update(eps="inside"), update(eps="plain inside")),
    "clipping after the moments, or none": (
        (Replacement(optimizer, "clip_scale", lambda gradients, max_norm: None),),
        update(clips_step=True),
    ),
    "each parameter clipped by itself": (update(clip=clip_alone),),
}
