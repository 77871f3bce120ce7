"""AdamW with decoupled weight decay (Kingma and Ba 2015; Loshchilov and Hutter 2019).

This is the assignment's variant: bias correction is folded into the step size (Kingma and Ba, end
of section 2), so eps is added to the uncorrected sqrt(v), and weight decay comes after the step.
torch.optim.AdamW adds eps to the corrected sqrt(v) and decays first; with eps and weight_decay 0
the two agree.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from mini_llama.adamw_together import is_better_together, update_together
from mini_llama.bounds import check_bound

SPARSE = "AdamW takes no sparse gradients: use torch.optim.SparseAdam for these parameters"
CLIP_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_'s guard against a norm of 0


class AdamW(Optimizer):
    """m ← β1 m + (1-β1) g;  v ← β2 v + (1-β2) g²;  p ← p - step·m / (sqrt(v) + eps);
    p ← p - lr·weight_decay·p, with step = lr·sqrt(1-β2^t)/(1-β1^t), or lr without `correct_bias`.

    `max_grad_norm` scales the gradients of each parameter group down to that norm before they
    enter the moments; `.grad` itself is unchanged. Raises ValueError for a value out of bounds.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter] | Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        max_grad_norm: float | None = None,
    ) -> None:
        for name, value, holds, bound in (
            ("lr", lr, lr >= 0, "at least 0"),
            ("betas[0]", betas[0], 0 <= betas[0] < 1, "at least 0 and below 1"),
            ("betas[1]", betas[1], 0 <= betas[1] < 1, "at least 0 and below 1"),
            ("eps", eps, eps >= 0, "at least 0"),
            ("weight_decay", weight_decay, weight_decay >= 0, "at least 0"),
            ("max_grad_norm", max_grad_norm, max_grad_norm is None or max_grad_norm > 0, "> 0"),
        ):
            check_bound(f"{name} {value}", holds, bound)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "correct_bias": correct_bias,
            "max_grad_norm": max_grad_norm,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the loss of `closure`, if given.

        Raises RuntimeError for a sparse gradient, before anything of its group is updated.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if any(p.grad.layout != torch.strided for p in parameters):
                raise RuntimeError(SPARSE)
            scale = clip_scale([p.grad for p in parameters], group["max_grad_norm"])
            if is_better_together(parameters):
                states = [self._begin(parameter) for parameter in parameters]
                update_together(parameters, states, group, scale)
                continue
            for parameter in parameters:
                self._update(parameter, group, scale)
        return loss

    def _update(
        self, parameter: torch.nn.Parameter, group: dict, scale: torch.Tensor | None
    ) -> None:
        gradient = parameter.grad
        assert gradient is not None  # step chose the parameters that have one
        if scale is not None:
            gradient = gradient * scale
        state = self._begin(parameter)
        beta1, beta2 = group["betas"]
        m, v, lr = state["exp_avg"], state["exp_avg_sq"], group["lr"]
        m.mul_(beta1).add_(gradient, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        step_size = lr
        if group["correct_bias"]:
            t = state["step"]
            step_size = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        parameter.addcdiv_(m, v.sqrt().add_(group["eps"]), value=-step_size)
        if group["weight_decay"] > 0:
            parameter.mul_(1 - lr * group["weight_decay"])

    def _begin(self, parameter: torch.nn.Parameter) -> dict[str, Any]:
        """The parameter's moments, 0 at first, and the number of this step."""
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)  # m
            state["exp_avg_sq"] = torch.zeros_like(parameter)  # v
        state["step"] += 1
        return state


def clip_scale(gradients: list[torch.Tensor], max_norm: float | None) -> torch.Tensor | None:
    """The factor for the gradients that makes their global 2-norm at most `max_norm`.

    None if there is nothing to clip. Pascanu et al. 2013, section 3.2.
    """
    if max_norm is None or not gradients:
        return None
    norm = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(g).to(gradients[0].device) for g in gradients])
    )
    return (max_norm / (norm + CLIP_EPS)).clamp(max=1.0)
