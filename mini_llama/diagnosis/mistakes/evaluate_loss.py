"""Mistakes in evaluate_loss."""

from collections.abc import Callable
from typing import Any

import torch

import addition_run
from mini_llama.diagnosis.mistakes.addition_loss import FORMS_OF_LOSS
from mini_llama.diagnosis.mistakes.replacing import Replacement, Variant, Variants


def evaluated(
    mode: bool = False,
    total: Callable[[list[float]], float] = lambda losses: sum(losses) / len(losses),
) -> Variant:
    """Correct by default."""

    @torch.no_grad()
    def evaluate(model: Any, loader: Any, device: Any) -> float:
        model.train(mode)
        losses = [addition_run.answer_loss(model, x.to(device), y.to(device)) for x, y in loader]
        return total([loss.item() for loss in losses])

    return (Replacement(addition_run, "evaluate_loss", evaluate),)


VARIANTS: Variants = {
    **FORMS_OF_LOSS,
    "the model is in training mode": (evaluated(mode=True),),
    "the batches' losses are not averaged": (evaluated(total=sum),),
    "the last batch's loss": (evaluated(total=lambda losses: losses[-1]),),
}
