"""Two traces of the same tokens: how far apart they are at each place, and where that begins.

Shapes: T positions, N layers, P places of a layer, M matrices of a layer.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from llama import Llama
from mini_llama.inside.trace import Trace
from mini_llama.layers.quantized_linear import Int8Linear, QuantizedLinear

# The fields of a LayerTrace in the order of the computation, and what a page calls them.
PLACES = {
    "attention_norm": "norm",
    "query": "query",
    "key": "key",
    "value": "value",
    "rotated_query": "query, turned",
    "rotated_key": "key, turned",
    "scores": "scores",
    "probabilities": "probabilities",
    "heads": "heads",
    "attention": "attention",
    "middle": "stream",
    "ffn_norm": "norm",
    "gate": "gate",
    "up": "up",
    "feed_forward": "feed-forward",
    "output": "stream",
}
MATRICES = {
    "attention.compute_query": "query",
    "attention.compute_key": "key",
    "attention.compute_value": "value",
    "attention.compute_output": "output",
    "feed_forward.w1": "w₁",
    "feed_forward.w3": "w₃",
    "feed_forward.w2": "w₂",
}
TOLERANCE = 1e-5  # of the largest magnitude: what float32's rounding alone may do


@dataclass(frozen=True)
class Difference:
    """Largest differences relative to the first trace's largest magnitude, infinite where shapes
    differ: of the embedding, of each place (N, P), of the final norm and of the logits. `weights`
    (N, M) is ‖ΔW‖/‖W‖ of each matrix, NaN where one is not known. `divergence` (T,) is KL(first
    ‖ second) of the next token, in nats.
    """

    embedding: float
    places: torch.Tensor
    final_norm: float
    logits: float
    weights: torch.Tensor
    divergence: torch.Tensor

    def first(self) -> str | None:
        """Where the difference begins, for a sentence; None if there is none."""
        if self.embedding > TOLERANCE:
            return f"the embedding ({self.embedding:.1e} of its largest magnitude)"
        names = list(PLACES.values())
        for i, row in enumerate(self.places.tolist()):
            for name, error in zip(names, row, strict=True):
                if not error <= TOLERANCE:
                    return f"layer {i}, {name} ({error:.1e} of its largest magnitude)"
        for name, error in (("the final norm", self.final_norm), ("the logits", self.logits)):
            if not error <= TOLERANCE:
                return f"{name} ({error:.1e} of the largest magnitude)"
        return None


def compare(first: Trace, second: Trace, models: tuple[Llama, Llama]) -> Difference:
    """Both traces are of the same tokens. Of models with other layers those in common count."""
    layers = list(zip(first.layers, second.layers, strict=False))
    rows = [[error(getattr(a, p), getattr(b, p)) for p in PLACES] for a, b in layers]
    return Difference(
        error(first.embedding, second.embedding),
        torch.tensor(rows),
        error(first.hidden, second.hidden),
        error(first.logits, second.logits),
        weight_changes(*models),
        divergence(first.logits, second.logits),
    )


def error(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """The largest difference, relative to the largest expected magnitude; inf if shapes differ."""
    if expected.shape != actual.shape:
        return math.inf
    return float((actual - expected).abs().max() / (expected.abs().max() or 1.0))


def divergence(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """KL of the next token's probabilities by logits (T, V): (T,), in float64."""
    a, b = (F.log_softmax(logits.double(), dim=-1) for logits in (first, second))
    return F.kl_div(b, a, reduction="none", log_target=True).sum(-1).clamp(min=0)


@torch.no_grad()
def weight_changes(first: Llama, second: Llama) -> torch.Tensor:
    """‖W₂ - W₁‖ / ‖W₁‖ of each matrix of each layer in common, by Frobenius' norm: (N, M)."""
    count = min(first.n_layers, second.n_layers)
    changes = torch.full((count, len(MATRICES)), math.nan)
    for i in range(count):
        for j, name in enumerate(MATRICES):
            path = f"layers.{i}.{name}"
            a, b = (weight_of(model.get_submodule(path)) for model in (first, second))
            if a is not None and b is not None and a.shape == b.shape:
                changes[i, j] = (b - a).norm() / (a.norm() or 1.0)
    return changes


def weight_of(layer: nn.Module) -> torch.Tensor | None:
    """A linear layer's weight in float32; None for one that is not known outside its product."""
    if isinstance(layer, Int8Linear):
        return (layer.weight.float() * layer.scales.float()[:, None]).cpu()
    if isinstance(layer, QuantizedLinear) or not isinstance(layer.weight, torch.Tensor):
        return None
    return layer.weight.detach().float().cpu()
