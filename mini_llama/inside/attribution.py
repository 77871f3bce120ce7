"""Which tokens a classification rests on: gradient × input, and leaving one token out at a time.

Shapes: B batch, T tokens, N labels, C width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from llama import Llama
from mini_llama.layers.linear import plain_products

ROWS = 16  # texts with a token left out that are run together
# Token ids (B, T) and lengths (B,) or None → scores (B, N).
Scores = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class Attribution:
    """The probabilities of the labels (N,), the most probable one, and for each token (T,) how much
    its log-probability rests on it: `gradient` is ∂ log p / ∂e · e for the token's embedding e
    (Shrikumar et al. 2016), `left_out` is log p with the token less log p without it. NaN for
    what is not left out: the first token and padding.
    """

    probabilities: torch.Tensor
    label: int
    gradient: torch.Tensor
    left_out: torch.Tensor


def attribute(
    scores: Scores, llama: Llama, tokens: torch.Tensor, length: int, masks_padding: bool
) -> Attribution:
    """Of tokens (T,), those from `length` on padding. `llama` is the model that `scores` runs."""
    lengths = torch.tensor([length], device=tokens.device) if masks_padding else None
    with plain_products():
        with torch.no_grad():
            log_probs = F.log_softmax(scores(tokens[None], lengths).float(), dim=-1)[0]
        label = int(log_probs.argmax())
        gradient = gradient_times_input(scores, llama, tokens, lengths, label)
        left_out = leave_one_out(scores, tokens, length, masks_padding, label)
    left_out = float(log_probs[label]) - left_out
    return Attribution(log_probs.exp().cpu(), label, gradient.cpu(), left_out.cpu())


def gradient_times_input(
    scores: Scores,
    llama: Llama,
    tokens: torch.Tensor,
    lengths: torch.Tensor | None,
    label: int,
) -> torch.Tensor:
    """∂ log p(label) / ∂e · e for the embedding e of each token: (T,)."""
    leaves: list[torch.Tensor] = []

    def make_leaf(_module: nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = llama.tok_embeddings.register_forward_hook(make_leaf)
    try:
        with torch.enable_grad():
            log_probs = F.log_softmax(scores(tokens[None], lengths).float(), dim=-1)
            [gradient] = torch.autograd.grad(log_probs[0, label], leaves)
    finally:
        handle.remove()
    return (gradient[0] * leaves[0][0]).sum(-1).detach().float()


@torch.no_grad()
def leave_one_out(
    scores: Scores, tokens: torch.Tensor, length: int, masks_padding: bool, label: int
) -> torch.Tensor:
    """log p(label) of the text without each of its tokens, (T,); later ones move up."""
    found = torch.full((len(tokens),), torch.nan)
    places = torch.arange(1, length)
    for some in places.split(ROWS):
        rows = torch.stack([torch.cat((tokens[:i], tokens[i + 1 :])) for i in some.tolist()])
        lengths = torch.full((len(rows),), length - 1) if masks_padding else None
        lengths = None if lengths is None else lengths.to(tokens.device)
        log_probs = F.log_softmax(scores(rows, lengths).float(), dim=-1)
        found[some] = log_probs[:, label].cpu()
    return found
