"""Probes of LoRALayer, apply_lora and merge_lora_weights."""

from typing import Any

import torch
from torch import nn

from mini_llama.diagnosis.probes.common import (
    Cases,
    Modules,
    Settings,
    Values,
    call,
    draw,
    fill,
    find,
    flags,
)
from mini_llama.diagnosis.probes.parts import PROJECTIONS

RANK, ALPHA = 4, 6.0


class Projections(nn.Module):
    """Linear layers with the names that LoRA adapts, and one that it leaves unchanged."""

    def __init__(self) -> None:
        super().__init__()
        for name in (*PROJECTIONS, "w1"):
            self.add_module(name, nn.Linear(12, 10, bias=False))


def probe_lora(modules: Modules, settings: Settings) -> Cases:
    layer_class = find(modules.lora, "LoRALayer")

    def at_the_start() -> Values:
        fresh = call(modules, layer_class, nn.Linear(400, 300), RANK, ALPHA)
        a, b = (parameter_of(find(fresh, name)) for name in ("lora_A", "lora_B"))
        base = [p for name, p in fresh.named_parameters() if "lora_" not in name]
        trains = [any(p.requires_grad for p in base), a.requires_grad, b.requires_grad]
        return {
            "shapes of A and B": flags(*a.shape, *b.shape),
            "which of A and B are 0": flags(not a.any(), not b.any()),
            "standard deviation of A": flags(round(a.std().item(), 2)),
            "which of W, A and B are trainable": flags(*trains),
        }

    def forward(n_inputs: int, n_outputs: int) -> torch.Tensor:
        linear = nn.Linear(n_inputs, n_outputs)
        fill(linear, "weight", "bias")
        layer = call(modules, layer_class, linear, RANK, ALPHA).eval()
        fill(layer, "lora_A", "lora_B")
        return call(modules, layer, draw("x", 2, 3, n_inputs))

    def adapted() -> Any:
        net = Projections()
        fill(net, *PROJECTIONS, "w1")
        return changed(modules, "apply_lora", net, RANK, ALPHA)

    def applied() -> Values:
        net = adapted()
        wrapped = [isinstance(getattr(net, name), layer_class) for name in (*PROJECTIONS, "w1")]
        return {"wrapped by apply_lora": flags(*wrapped)}

    def merged() -> Values:
        net = adapted()
        fill(net, "lora_A", "lora_B")
        net = changed(modules, "merge_lora_weights", net)
        return {"merged": net.compute_query(draw("x", 2, 3, 12))}

    return {
        "at the start": at_the_start,
        "forward": lambda: {"forward": forward(12, 10)},
        "forward of a square layer": lambda: {"forward of a square layer": forward(12, 12)},
        "apply_lora": applied,
        "merge_lora_weights": merged,
    }


def changed(modules: Modules, name: str, net: Any, *options: float) -> Any:
    """Apply the function to the net; it may return a net or change this one in place."""
    result = call(modules, find(modules.lora, name), net, *options)
    if result is None:
        modules.note(f"{name} returns nothing: the model is changed in place")
    return net if result is None else result


def parameter_of(value: Any) -> torch.Tensor:
    """lora_A may be a parameter or a linear layer."""
    return value if isinstance(value, torch.Tensor) else find(value, "weight")
