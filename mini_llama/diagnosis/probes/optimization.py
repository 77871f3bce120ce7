"""Probes of AdamW: a few steps with each option, and the course's own test."""

from functools import partial

import numpy as np
import torch
from torch import nn

from mini_llama.diagnosis.probes.common import (
    Cases,
    Modules,
    Settings,
    Values,
    accepted,
    draw,
    find,
)

LARGE_EPS, USUAL_EPS = 0.3, 1e-6
MAX_GRAD_NORM = 0.9
COURSE_TEST = "the course's optimizer_test"
COURSE_STEPS = 1000


def probe_optimizer(modules: Modules, settings: Settings) -> Cases:
    optimizer_class = find(modules.optimizer, "AdamW")

    def train(eps: object = USUAL_EPS, **options: object) -> torch.Tensor:
        """Two weights after each of 4 steps, as one row."""
        weights = [nn.Parameter(draw("first", 3, 4)), nn.Parameter(draw("second", 5))]
        options = accepted(optimizer_class, **options)
        optimizer = optimizer_class(weights, lr=0.1, betas=(0.8, 0.95), eps=eps, **options)
        states = []
        for step in range(4):
            for i, weight in enumerate(weights):
                weight.grad = draw(f"gradient {step} of {i}", *weight.shape) * (1 + step) / (1 + i)
            optimizer.step()
            states += [weight.detach().flatten().clone() for weight in weights]
        return torch.cat(states)

    def course_test() -> Values:
        options: dict[str, object] = {"correct_bias": True}
        options |= {"max_grad_norm": MAX_GRAD_NORM} if settings.clips else {}
        return {COURSE_TEST: course_weight(optimizer_class, accepted(optimizer_class, **options))}

    options_of: dict[str, dict[str, object]] = {
        "plain": {},
        "a large eps": {"eps": LARGE_EPS},
        "weight decay": {"weight_decay": 0.5},
        "correct_bias=False": {"correct_bias": False},
    }
    if settings.clips:
        options_of["clipping"] = {"max_grad_norm": MAX_GRAD_NORM}
        options_of["clipping of short gradients"] = {"max_grad_norm": 1000 * MAX_GRAD_NORM}

    def trained(name: str) -> Values:
        return {name: train(**options_of[name])}

    cases: Cases = {name: partial(trained, name) for name in options_of}
    return cases | {COURSE_TEST: course_test}


def course_weight(optimizer_class: type, options: dict[str, object]) -> torch.Tensor:
    """The weight (2, 3) after training as in the course's optimizer_test.py."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    optimizer = optimizer_class(model.parameters(), lr=1e-3, weight_decay=1e-4, **options)
    weight = model.weight
    for _ in range(COURSE_STEPS):
        x = torch.tensor(rng.uniform(size=3), dtype=torch.float32)
        target = torch.stack((x[0] + x[1], -x[2]))
        with torch.no_grad():  # gradient of the squared error, by hand: faster than autograd
            weight.grad = 2 * torch.outer(weight @ x - target, x)
        optimizer.step()
    return weight.detach()
