"""Mistakes in LoRA."""

from collections.abc import Callable
from typing import Any

import torch

from lora import INIT_STD, LoRALayer
from mini_llama.diagnosis.mistakes.replacing import Family, Replacement, Variant, Variants


def changed(change: Callable[[Any], object]) -> Variant:
    """Apply `change` at the end of LoRALayer.__init__."""
    own_init = LoRALayer.__init__

    def init(self: Any, original_layer: Any, rank: int = 4, alpha: float = 1.0) -> None:
        own_init(self, original_layer, rank, alpha)
        with torch.no_grad():
            change(self)

    return (Replacement(LoRALayer, "__init__", init),)


def scaled(scale: Callable[[Any], float]) -> tuple[Variant, Variant]:
    """Two variants: the wrong scale everywhere, or in forward only."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.original_layer(x) + scale(self) * (x @ self.lora_A.T @ self.lora_B.T)

    everywhere = changed(lambda layer: setattr(layer, "scaling", scale(layer)))
    return everywhere, (Replacement(LoRALayer, "forward", forward),)


def swap(layer: Any) -> None:
    layer.lora_A, layer.lora_B = layer.lora_B, layer.lora_A


def swapped_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.original_layer(x) + self.scaling * (x @ self.lora_B.T @ self.lora_A.T)


def swapped_merged_weight(self: Any) -> torch.Tensor:
    return self.original_layer.weight + self.scaling * (self.lora_A @ self.lora_B)


def transpose(layer: Any) -> None:
    layer.lora_A, layer.lora_B = (
        torch.nn.Parameter(matrix.T.contiguous()) for matrix in (layer.lora_A, layer.lora_B)
    )


def transposed_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.original_layer(x) + self.scaling * (x @ self.lora_A @ self.lora_B)


def transposed_merged_weight(self: Any) -> torch.Tensor:
    return self.original_layer.weight + self.scaling * (self.lora_A @ self.lora_B).T


def low_rank(
    update: Callable[[torch.Tensor, Any], torch.Tensor] = lambda x, layer: (
        x @ layer.lora_A.T @ layer.lora_B.T
    ),
    scale: Callable[[Any], float] = lambda layer: layer.scaling,
    base: Callable[..., torch.Tensor] = lambda x, layer: layer.original_layer(x),
) -> Variant:
    """LoRALayer.forward as base + scale · update, correct by default."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return base(x, self) + scale(self) * update(x, self)

    return (Replacement(LoRALayer, "forward", forward),)


FAMILY = Family(
    low_rank,
    {
        "no scaling": ({"scale": lambda layer: 1.0},),
        "alpha instead of alpha/rank": ({"scale": lambda layer: layer.alpha},),
        "rank/alpha instead of alpha/rank": ({"scale": lambda layer: layer.rank / layer.alpha},),
        "B A without the transposes": (
            {"update": lambda x, layer: x @ (layer.lora_B @ layer.lora_A)},
        ),
        "A x without the transposes": (
            {"update": lambda x, layer: layer.lora_B @ (layer.lora_A @ x)},
            {"update": lambda x, layer: x @ layer.lora_A @ layer.lora_B},
        ),
        "A B instead of B A": ({"update": lambda x, layer: x @ (layer.lora_A @ layer.lora_B)},),
        "W x left out": ({"base": lambda x, layer: torch.zeros(())},),
        "the low-rank term is subtracted": ({"scale": lambda layer: -layer.scaling},),
    },
)


def scaled_merge(scale: Callable[[Any], float]) -> Variant:
    def merged_weight(self: Any) -> torch.Tensor:
        return self.original_layer.weight + scale(self) * (self.lora_B @ self.lora_A)

    return (Replacement(LoRALayer, "merged_weight", merged_weight),)


VARIANTS: Variants = {
    **FAMILY.variants,
    "no scaling in merge_lora_weights": (scaled_merge(lambda layer: 1.0),),
    "no scaling": scaled(lambda layer: 1.0),
    "alpha instead of alpha/rank": scaled(lambda layer: layer.alpha),
    "A and B swapped": (
        (
            *changed(swap),
            Replacement(LoRALayer, "forward", swapped_forward),
            Replacement(LoRALayer, "merged_weight", swapped_merged_weight),
        ),
    ),
    "A and B stored transposed": (
        (
            *changed(transpose),
            Replacement(LoRALayer, "forward", transposed_forward),
            Replacement(LoRALayer, "merged_weight", transposed_merged_weight),
        ),
    ),
    "W is not frozen": (changed(lambda layer: layer.original_layer.requires_grad_(True)),),
    "B is not 0 at the start": (
        changed(lambda layer: layer.lora_B.normal_(0.0, INIT_STD)),
        changed(lambda layer: (layer.lora_B.normal_(0.0, INIT_STD), layer.lora_A.zero_())),
    ),
    "A is 0 at the start": (changed(lambda layer: layer.lora_A.zero_()),),
}
