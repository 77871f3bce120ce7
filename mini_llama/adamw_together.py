"""optimizer.AdamW's update of many parameters at once, for GPUs: there it is launching operations,
eight for each parameter, that takes the time, and PyTorch's _foreach functions launch few.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch


def is_better_together(parameters: Sequence[torch.Tensor]) -> bool:
    """Whether these are to be updated all at once: plain tensors on a CUDA device."""
    plain = [p.is_cuda and type(p) is torch.nn.Parameter for p in parameters]
    return bool(plain) and all(plain)


def update_together(
    parameters: Sequence[torch.nn.Parameter],
    states: Sequence[dict[str, Any]],
    group: dict[str, Any],
    scale: torch.Tensor | None,
) -> None:
    """The formulas of optimizer.AdamW, each operation on all parameters; the numbers are the same
    to float32's rounding. `states` hold the number of this step and the moments before it.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if scale is not None:
        gradients = list(torch._foreach_mul(gradients, scale))
    m, v = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    weights: list[torch.Tensor] = list(parameters)
    beta1, beta2 = group["betas"]
    torch._foreach_mul_(m, beta1)
    torch._foreach_add_(m, gradients, alpha=1 - beta1)
    torch._foreach_mul_(v, beta2)
    torch._foreach_addcmul_(v, gradients, gradients, value=1 - beta2)
    denominators = torch._foreach_sqrt(v)
    torch._foreach_add_(denominators, group["eps"])
    sizes = [-_step_size(group, state["step"]) for state in states]
    torch._foreach_addcdiv_(weights, m, denominators, sizes)
    if group["weight_decay"] > 0:
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])


def _step_size(group: dict[str, Any], t: int) -> float:
    beta1, beta2 = group["betas"]
    correction = math.sqrt(1 - beta2**t) / (1 - beta1**t) if group["correct_bias"] else 1.0
    return group["lr"] * correction
