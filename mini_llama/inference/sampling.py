"""From the logits of one position to the next token: greedy, temperature, epsilon, top-p.

Randomness comes only from the torch.Generator that is passed in (torch's global one if none is).

Shapes: B batch, V vocabulary.
"""

from dataclasses import dataclass

import torch

from config import check_sampling

SMALLEST, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def epsilon_filter(probs: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Drop tokens with p < epsilon; if none is left keep the most probable one.

    probs (B, V) sum to 1 and so do the returned ones. Epsilon sampling: Hewitt et al. 2022,
    section 4.
    """
    kept = torch.where(probs < epsilon, 0.0, probs)
    best = torch.zeros_like(probs).scatter_(-1, probs.argmax(-1, keepdim=True), 1.0)
    kept = torch.where(kept.sum(-1, keepdim=True) > 0, kept, best)
    return kept / kept.sum(-1, keepdim=True)


def top_p_filter(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the fewest tokens, most probable first, whose probabilities reach top_p together.

    probs (B, V) sum to 1 and so do the returned ones. Nucleus sampling: Holtzman et al. 2020,
    section 3.1. Among equally probable tokens the smaller id comes first.
    """
    ordered, ids = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered  # probability of all tokens that come earlier
    ordered = torch.where(before < max(top_p, SMALLEST), ordered, 0.0)
    kept = torch.zeros_like(probs).scatter_(-1, ids, ordered)
    return kept / kept.sum(-1, keepdim=True)


def logits_to_probs(
    logits: torch.Tensor, temperature: float, epsilon: float = 0.0, top_p: float = 1.0
) -> torch.Tensor:
    """Probabilities (B, V) to sample from, in float32; temperature > 0 comes before the filters."""
    logits = logits.float()
    # Outside float32's range a temperature would become 0 or infinity.
    temperature = min(max(temperature, SMALLEST), LARGEST)
    # The largest logit is moved to 0 first, so that a tiny temperature cannot overflow.
    logits = (logits - logits.max(dim=-1, keepdim=True).values) / temperature
    probs = torch.softmax(logits, dim=-1)
    if epsilon > 0:
        probs = epsilon_filter(probs, epsilon)
    if top_p < 1:
        probs = top_p_filter(probs, top_p)
    return probs


def sample(probs: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """One token id for each row of probabilities (B, V): (B, 1)."""
    return torch.multinomial(probs, num_samples=1, generator=generator)


@dataclass(frozen=True)
class Sampler:
    """Logits (B, V) → next token ids (B, 1), by the rules of its fields.

    temperature 0 is the argmax (the smallest id among equals) and draws nothing random. epsilon 0
    and top_p 1 keep every token but `excluded`, the id of padding, which belongs to batches and
    not to texts. Raises ValueError for a value out of bounds.
    """

    temperature: float = 1.0
    epsilon: float = 0.0
    top_p: float = 1.0
    generator: torch.Generator | None = None
    excluded: int | None = None

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.epsilon, self.top_p)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Raises ValueError for logits that are not numbers."""
        are_numbers = logits.max(dim=-1).values.isfinite().all()  # a maximum is NaN where one is
        # A tokenizer may have padding that the model does not know.
        if self.excluded is not None and self.excluded < logits.shape[-1]:
            logits = logits.clone()
            logits[:, self.excluded] = float("-inf")
        # Before the question, which waits for a GPU; random tokens cannot be drawn from NaN.
        most_probable = logits.argmax(dim=-1, keepdim=True) if self.temperature == 0 else None
        if not are_numbers:
            raise ValueError(
                "the model's logits are not numbers (NaN or infinite): its checkpoint is damaged"
            )
        if most_probable is not None:
            return most_probable
        probs = logits_to_probs(logits, self.temperature, self.epsilon, self.top_p)
        return sample(probs, self.generator)
