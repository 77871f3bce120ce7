"""Mistakes in the trained classifier, and in what Llama.forward gives it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from classifier import LlamaEmbeddingClassifier
from llama import Llama
from mini_llama.diagnosis.mistakes.replacing import Replacement, Variant, Variants


def classified(
    pool: Callable[[torch.Tensor], torch.Tensor] = lambda hidden: hidden[:, -1],
    drops: str = "train",
    finish: Callable[..., torch.Tensor] = F.log_softmax,
) -> Variant:
    """By default as it should be; `drops`: in training ("train"), "always" or "never"."""

    def forward(self: Any, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = pool(self.llama(input_ids)[1])
        if drops != "never":
            hidden = F.dropout(hidden, self.dropout.p, self.training or drops == "always")
        return finish(self.classifier_head(hidden), dim=-1)

    return (Replacement(LlamaEmbeddingClassifier, "forward", forward),)


def all_logits(self: Any, tokens: torch.Tensor, *_: object, **__: object) -> tuple:
    hidden = self.hidden_states(tokens)
    return self.output(hidden), hidden


VARIANTS: Variants = {
    "mean pooling": (classified(pool=lambda hidden: hidden.mean(1)),),
    "first token": (classified(pool=lambda hidden: hidden[:, 0]),),
    "no dropout": (classified(drops="never"),),
    "dropout in evaluation": (classified(drops="always"),),
    "softmax for log-softmax": (classified(finish=F.softmax),),
    "no log-softmax": (classified(finish=lambda logits, dim: logits),),
    "logits of all positions": (
        classified(pool=lambda hidden: hidden),
        (Replacement(Llama, "forward", all_logits),),
    ),
}
