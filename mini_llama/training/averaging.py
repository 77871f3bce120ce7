"""An exponential moving average of the weights (Polyak and Juditsky 1992; Izmailov et al. 2018)."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn


class WeightAverage:
    """θ̄ ← d·θ̄ + (1 - d)·θ after every step, for all parameters that are trained.

    d is `decay`, but (1 + n)/(10 + n) after the n-th step where that is less, so that the weights
    of the beginning are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of another step into the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside this the network's weights are the averaged ones."""
        own = {name: weight.data for name, weight in self.weights.items()}
        try:
            for name, weight in self.weights.items():
                weight.data = self.average[name]
            yield
        finally:
            for name, weight in self.weights.items():
                weight.data = own[name]

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state_dict of a network of the same shape."""
        for name, tensor in self.average.items():
            tensor.copy_(state["average"][name])
        self.updates = state["updates"]
