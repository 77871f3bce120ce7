"""Mistakes in LayerNorm and RMSNorm."""

from typing import Any

import torch

import llama
from mini_llama.diagnosis.mistakes.replacing import Family, Replacement, Variant, Variants


def normed(
    is_centred: bool | str | None = None,
    correction: int = 0,
    eps: str = "inside",
    gain: bool = True,
    bias: bool = True,
    dim: int | tuple[int, ...] = -1,
) -> Variant:
    """Both norms, correct by default: the mean is subtracted if there is a bias, unless
    `is_centred` is set ("late": subtracted after squaring). `eps` is "inside" or "outside" the
    root, left out (""), or there is "no root".
    """

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        subtracts = hasattr(self, "bias") if is_centred is None else is_centred
        centred = x - x.mean(dim, keepdim=True) if subtracts else x
        x, squared = centred, (x if is_centred == "late" else centred).square()
        summed = squared.sum(dim, keepdim=True)
        square = summed / (x.numel() // summed.numel() - correction)
        inside, outside = {"outside": (0, self.eps), "": (0, 0)}.get(eps, (self.eps, 0))
        root = square + inside if eps == "no root" else (square + inside).sqrt()
        x = x / (root + outside)
        x = x * self.weight if gain else x
        return x + self.bias if bias and hasattr(self, "bias") else x

    return (
        Replacement(llama.LayerNorm, "forward", forward),
        Replacement(llama.RMSNorm, "forward", forward),
    )


FAMILY = Family(
    normed,
    {
        "unbiased variance": ({"correction": 1},),
        "eps outside the root": ({"eps": "outside"},),
        "eps left out": ({"eps": ""},),
        "no root is taken": ({"eps": "no root"},),
        "mean square in place of the variance": ({"is_centred": "late"},),
        "no gain": ({"gain": False},),
        "no bias": ({"bias": False},),
        "RMSNorm in place of LayerNorm": ({"is_centred": False},),
        "LayerNorm in place of RMSNorm": ({"is_centred": True},),
        "wrong axis": ({"dim": -2}, {"dim": 0}),
        "statistics over all axes": ({"dim": (0, 1, 2)}, {"dim": (1, 2)}, {"dim": (0, 1)}),
    },
    most=3,
)
VARIANTS: Variants = {
    **FAMILY.variants,
    "RMSNorm in place of LayerNorm": (
        (Replacement(llama, "LayerNorm", llama.RMSNorm),),
        normed(is_centred=False),
    ),
    "LayerNorm in place of RMSNorm": (
        (Replacement(llama, "RMSNorm", llama.LayerNorm),),
        normed(is_centred=True),
    ),
}
