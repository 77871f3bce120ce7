"""Mistakes in LlamaEmbeddingClassifier, and in the outputs of Llama.forward."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from classifier import LlamaEmbeddingClassifier
from llama import Llama
from mini_llama.diagnosis.mistakes.replacing import Family, Replacement, Variant, Variants


def classified(
    pool: Callable[..., torch.Tensor] = lambda hidden, ids: hidden[:, -1],
    drops: str = "train",
    finish: Callable[..., torch.Tensor] = F.log_softmax,
) -> Variant:
    """Correct by default. `drops`: dropout in training ("train"), "always" or "never"; in training
    on the logits, "too" or "instead".
    """

    def forward(self: Any, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = pool(self.llama(input_ids)[1], input_ids)
        if drops not in ("never", "instead"):
            hidden = F.dropout(hidden, self.dropout.p, self.training or drops == "always")
        logits = self.classifier_head(hidden)
        logits = self.dropout(logits) if drops in ("too", "instead") else logits
        return finish(logits, dim=-1)

    return (Replacement(LlamaEmbeddingClassifier, "forward", forward),)


def at(hidden: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return hidden[torch.arange(len(hidden)), columns]


def count_of_others(ids: torch.Tensor, pad: int = 0) -> torch.Tensor:
    return (ids != pad).sum(1) - 1


def last_other(ids: torch.Tensor, pad: int = 0) -> torch.Tensor:
    return ((ids != pad) * torch.arange(1, ids.shape[1] + 1)).argmax(1)


def logits_for_hidden(self: Any, input_ids: torch.Tensor) -> torch.Tensor:
    logits = self.llama(input_ids)[0]
    return F.log_softmax(self.classifier_head(self.dropout(logits[:, -1, :])), dim=-1)


def with_head_for_logits() -> Variant:
    """The head takes a vector of vocabulary size."""
    own_init = LlamaEmbeddingClassifier.__init__

    def init(self: Any, config: Any) -> None:
        own_init(self, config)
        self.classifier_head = torch.nn.Linear(self.llama.config.vocab_size, config.num_labels)

    return (
        Replacement(LlamaEmbeddingClassifier, "__init__", init),
        Replacement(LlamaEmbeddingClassifier, "forward", logits_for_hidden),
    )


def forwarded(
    logits_of: Callable[[torch.Tensor], torch.Tensor] = lambda h: h[:, [-1], :],
    states_of: Callable[..., torch.Tensor] = lambda self, tokens: self.hidden_states(tokens),
) -> Variant:
    """Llama.forward, correct by default."""

    def forward(self: Any, tokens: torch.Tensor, targets: Any = None, **_: object) -> tuple:
        hidden = states_of(self, tokens)
        return self.output(hidden if targets is not None else logits_of(hidden)), hidden

    return (Replacement(Llama, "forward", forward),)


def without_norm(self: Any, tokens: torch.Tensor) -> torch.Tensor:
    hidden = self.tok_embeddings(tokens)
    for layer in self.layers:
        hidden = layer(hidden)
    return hidden


def states_before_norm(self: Any, tokens: Any, targets: Any = None, **_: object) -> tuple:
    hidden = self.hidden_states(tokens)
    read = hidden if targets is not None else hidden[:, [-1], :]
    return self.output(read), without_norm(self, tokens)


FAMILY = Family(
    classified,
    {
        "padding tested as id 0": (
            {"pool": lambda hidden, ids: at(hidden, count_of_others(ids))},
            {"pool": lambda hidden, ids: at(hidden, last_other(ids))},
            {"pool": lambda hidden, ids: at(hidden, count_of_others(ids).clamp(min=0))},
        ),
        "mean pooling": ({"pool": lambda hidden, ids: hidden.mean(1)},),
        "max pooling": ({"pool": lambda hidden, ids: hidden.amax(1)},),
        "first token": ({"pool": lambda hidden, ids: hidden[:, 0]},),
        "the last token but one": ({"pool": lambda hidden, ids: hidden[:, -2]},),
        "no dropout": ({"drops": "never"},),
        "dropout on the logits": ({"drops": "too"}, {"drops": "instead"}),
        "dropout in evaluation": ({"drops": "always"},),
        "softmax for log-softmax": ({"finish": F.softmax},),
        "log-softmax over the batch": (
            {"finish": lambda logits, dim: F.log_softmax(logits, dim=0)},
        ),
        "no log-softmax": ({"finish": lambda logits, dim: logits},),
        "log-softmax twice over": (
            {"finish": lambda logits, dim: F.log_softmax(F.softmax(logits, dim=-1), dim=-1)},
        ),
    },
    most=3,
)
VARIANTS: Variants = {
    **FAMILY.variants,
    "logits taken for hidden states": (
        (Replacement(LlamaEmbeddingClassifier, "forward", logits_for_hidden),),
        with_head_for_logits(),
    ),
    "logits of all positions": (
        classified(pool=lambda hidden, ids: hidden),
        forwarded(logits_of=lambda hidden: hidden),
    ),
    "logits without a dimension of positions": (
        forwarded(logits_of=lambda hidden: hidden[:, -1, :]),
    ),
    "logits of the first position": (forwarded(logits_of=lambda hidden: hidden[:, [0], :]),),
    "final norm left out of Llama.forward": (forwarded(states_of=without_norm),),
    "hidden states before the final norm": ((Replacement(Llama, "forward", states_before_norm),),),
    "final norm left out": (
        classified(
            pool=lambda hidden, ids: hidden[:, -1].atanh()
        ),  # undoes the replaced norm, tanh
    ),
    "padding is looked for": (
        classified(pool=lambda hidden, ids: at(hidden, count_of_others(ids, 3))),
        classified(pool=lambda hidden, ids: at(hidden, last_other(ids, 3))),
    ),
}
