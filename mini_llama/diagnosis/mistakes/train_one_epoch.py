"""Mistakes in train_one_epoch."""

from collections.abc import Callable
from typing import Any

import addition_run
from mini_llama.diagnosis.mistakes.addition_loss import FORMS_OF_LOSS
from mini_llama.diagnosis.mistakes.replacing import Replacement, Variant, Variants


def trained(
    order: str = "zero backward step",
    mode: bool = True,
    total: Callable[[list[float]], float] = lambda losses: sum(losses) / len(losses),
) -> Variant:
    """Correct by default; `order` lists the operations on each batch."""

    def train(model: Any, loader: Any, optimizer: Any, device: Any) -> float:
        model.train(mode)
        losses = []
        for x, y in loader:
            loss = addition_run.answer_loss(model, x.to(device), y.to(device))
            for operation in order.split():
                {
                    "zero": optimizer.zero_grad,
                    "backward": loss.backward,
                    "step": optimizer.step,
                }[operation]()
            losses.append(loss.item())
        return total(losses)

    return (Replacement(addition_run, "train_one_epoch", train),)


VARIANTS: Variants = {
    **FORMS_OF_LOSS,
    "gradients are never set to 0": (trained("backward step"),),
    "gradients are set to 0 before the step": (trained("backward zero step"),),
    "no step is made": (trained("zero backward"), trained("")),
    "the model is not in training mode": (trained(mode=False),),
    "the batches' losses are not averaged": (trained(total=sum),),
    "the last batch's loss": (trained(total=lambda losses: losses[-1]),),
}
