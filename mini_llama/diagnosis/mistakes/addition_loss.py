"""Mistakes in the loss of a batch, shared by train_one_epoch and evaluate_loss."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import addition_run
from mini_llama.diagnosis.mistakes.replacing import Replacement, Variant

EQUALS, IGNORED = 12, -1
Mask = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def after_equals(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(B, T): True for targets after "="."""
    return (x == EQUALS).cumsum(1) > 0


def answer_loss(
    counts: Mask = after_equals,
    reduction: str = "mean",
    squash: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits,
) -> Callable[..., torch.Tensor]:
    """Correct by default; `counts` selects the targets that carry loss."""

    def loss(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = squash(model(x, targets=y)[0])  # (B, T, V)
        y = y.masked_fill(~counts(x, y), IGNORED)
        return F.cross_entropy(
            logits.flatten(0, 1), y.flatten(), ignore_index=IGNORED, reduction=reduction
        )

    return loss


def with_zeros(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Losses outside the answer are 0 but count in the mean."""
    logits = model(x, targets=y)[0]
    each = F.cross_entropy(logits.transpose(1, 2), y, ignore_index=IGNORED, reduction="none")
    return (each * after_equals(x, y)).mean()


FORMS: dict[str, tuple[Callable[..., torch.Tensor], ...]] = {
    "the question carries loss as well": (answer_loss(lambda x, y: y != IGNORED),),
    "the question carries loss, the answer none": (
        answer_loss(lambda x, y: ~after_equals(x, y) & (y != IGNORED)),
    ),
    "= itself carries loss": (answer_loss(lambda x, y: (y == EQUALS).cumsum(1) > 0),),
    "the answer's first digit carries no loss": (
        answer_loss(lambda x, y: after_equals(x, y) & (x != EQUALS)),
    ),
    "the answer's end carries no loss": (answer_loss(lambda x, y: after_equals(x, y) & (y != 0)),),
    "the loss is summed, not averaged": (answer_loss(reduction="sum"),),
    "the mean is over the question as well": (with_zeros,),
    "softmax before cross-entropy": (answer_loss(squash=lambda logits: logits.softmax(-1)),),
}
FORMS_OF_LOSS: dict[str, tuple[Variant, ...]] = {
    name: tuple((Replacement(addition_run, "answer_loss", form),) for form in forms)
    for name, forms in FORMS.items()
}
