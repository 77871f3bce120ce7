"""Mistakes in LayerNorm and RMSNorm."""

from typing import Any

import torch

import llama
from mini_llama.diagnosis.mistakes.replacing import Replacement, Variant, Variants


def normed(
    is_centred: bool | None = None,
    correction: int = 0,
    eps: str = "inside",
    gain: bool = True,
    bias: bool = True,
    dim: int = -1,
) -> Variant:
    """Both norms, by default as they should be: the mean is subtracted where there is a bias,
    unless `is_centred` says otherwise; `eps` stands "inside" the root, "outside" or nowhere ("").
    """

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        subtracts = hasattr(self, "bias") if is_centred is None else is_centred
        if subtracts:
            x = x - x.mean(dim, keepdim=True)
        square = x.square().sum(dim, keepdim=True) / (x.shape[dim] - correction)
        inside, outside = {"inside": (self.eps, 0), "outside": (0, self.eps), "": (0, 0)}[eps]
        x = x / ((square + inside).sqrt() + outside)
        x = x * self.weight if gain else x
        return x + self.bias if bias and hasattr(self, "bias") else x

    return (
        Replacement(llama.LayerNorm, "forward", forward),
        Replacement(llama.RMSNorm, "forward", forward),
    )


VARIANTS: Variants = {
    "unbiased variance": (normed(correction=1),),
    "eps outside the root": (normed(eps="outside"),),
    "eps left out": (normed(eps=""),),
    "no gain": (normed(gain=False),),
    "no bias": (normed(bias=False),),
    "RMSNorm in place of LayerNorm": (
        (Replacement(llama, "LayerNorm", llama.RMSNorm),),
        normed(is_centred=False),
    ),
    "LayerNorm in place of RMSNorm": (
        (Replacement(llama, "RMSNorm", llama.LayerNorm),),
        normed(is_centred=True),
    ),
    "wrong axis": (normed(dim=-2), normed(dim=0)),
}
