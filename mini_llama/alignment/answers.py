"""Answers sampled from a model, and the log probabilities of their tokens.

Prompts of different lengths share a batch: the shorter ones begin to sample while the longer ones
are still being read. Padding is on the right, so that a causal model never sees it.

Shapes: B answers, T tokens of a row, N answer tokens of a batch, C the model's width, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

from base_llama import shapes_only
from llama import Llama
from lora import LoRALayer, merged_state_dict
from mini_llama.alignment.chat import Tokens
from mini_llama.alignment.data import Batch, collate
from mini_llama.alignment.losses import token_log_probs
from mini_llama.inference.generation import stream
from mini_llama.inference.sampling import Sampler
from mini_llama.layers.linear_loss import IGNORED


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled: at most `max_new_tokens` tokens, the last of them the first of
    `ends`, EOS and what else stops the model; `rows` of them at a time.
    """

    max_new_tokens: int
    ends: Collection[int]
    temperature: float = 1.0
    rows: int = 256
    excluded: int | None = None

    def sampler(self, seed: int, device: torch.device) -> Sampler:
        generator = torch.Generator(device).manual_seed(seed)
        return Sampler(self.temperature, generator=generator, excluded=self.excluded)


class PromptsFirst:
    """A generation.Sample for prompts of different lengths: a row's prompt, then what is sampled.

    Its first call is for position `start`, the length of the shortest prompt.
    """

    def __init__(self, sample: Sampler, prompts: Sequence[Sequence[int]], start: int) -> None:
        self.sample, self.prompts, self.position = sample, prompts, start

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        token = self.sample(logits)
        for row, prompt in enumerate(self.prompts):
            if len(prompt) > self.position:
                token[row] = prompt[self.position]
        self.position += 1
        return token


def sample_answers(
    llama: Llama, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
) -> list[Tokens]:
    """An answer to each prompt, in the prompts' order, as examples: prompt and answer, and True for
    the answer's tokens.

    Prompts of similar length are decoded together, with a key/value cache. The same seed gives the
    same answers. Raises ValueError as check_prompts does.
    """
    check_prompts(prompts, sampling.max_new_tokens, llama.config.max_seq_len)
    sampler = sampling.sampler(seed, llama.device)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, Tokens] = {}
    for start in range(0, len(order), sampling.rows):
        chosen = order[start : start + sampling.rows]
        answers = _decode(llama, [prompts[i] for i in chosen], sampling, sampler)
        for i, answer in zip(chosen, answers, strict=True):
            learns = [False] * len(prompts[i]) + [True] * len(answer)
            found[i] = Tokens([*prompts[i], *answer], learns)
    return [found[i] for i in range(len(prompts))]


def check_prompts(prompts: Sequence[Sequence[int]], max_new_tokens: int, context: int) -> None:
    """Raise ValueError for no prompt, an empty one, or one that leaves no room for its answer."""
    if not prompts:
        raise ValueError("there is no prompt: give at least one")
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    if not all(prompts):
        raise ValueError("a prompt has no token, and this tokenizer adds no BOS: leave it out")
    if (count := len(prompts[longest])) + max_new_tokens > context:
        raise ValueError(
            f"prompt {longest + 1} has {count} tokens, and with --max_new_tokens {max_new_tokens} "
            f"that is more than the model's context of {context}: shorten it, or lower "
            "--max_new_tokens"
        )


def _decode(
    llama: Llama, prompts: Sequence[Sequence[int]], sampling: Sampling, sampler: Sampler
) -> list[list[int]]:
    """The answers to one batch of prompts."""
    device = llama.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    shortest, longest = int(lengths.min()), int(lengths.max())
    start = torch.tensor([prompt[:shortest] for prompt in prompts], device=device)
    stops = torch.tensor(sorted(sampling.ends), device=device)
    sample = PromptsFirst(sampler, prompts, shortest)
    ends = lengths + sampling.max_new_tokens  # where each row is cut off
    columns = []
    count = longest - shortest + sampling.max_new_tokens
    for position, token in enumerate(stream(llama, start, count, sample), shortest):
        columns.append(token)
        is_stop = torch.isin(token[:, 0], stops) & (position >= lengths)
        ends = torch.where(is_stop, ends.clamp(max=position + 1), ends)
        if bool((ends <= position + 1).all()):
            break
    rows = torch.cat(columns, dim=1).tolist()
    bounds = zip(rows, lengths.tolist(), ends.tolist(), strict=True)
    return [row[first - shortest : end - shortest] for row, first, end in bounds]


def prompt_length(example: Tokens) -> int:
    return example.learns.index(True)


def answer_of(example: Tokens) -> list[int]:
    return example.ids[prompt_length(example) :]


def completion_of(example: Tokens, decode: Callable[[list[int]], str]) -> str:
    """An answer's text: what it adds to that of its prompt."""
    before = decode(example.ids[: prompt_length(example)])
    return decode(example.ids).removeprefix(before)


def batch_of(examples: Sequence[Tokens], pad_id: int, device: torch.device) -> Batch:
    """One example a row."""
    return collate([[example] for example in examples], pad_id).to(device)


def batches_of(
    examples: Sequence[Tokens], size: int, pad_id: int, device: torch.device
) -> Iterator[Batch]:
    """All examples in order, `size` of them a batch."""
    for start in range(0, len(examples), size):
        yield batch_of(examples[start : start + size], pad_id, device)


def answer_mask(batch: Batch) -> torch.Tensor:
    """(B, T): True at the positions that predict the tokens of answers, EOS included."""
    return batch.targets != IGNORED


def answer_states(llama: Llama, batch: Batch) -> torch.Tensor:
    """The hidden states (N, C) of answer_mask's positions, row after row."""
    return llama.hidden_states(batch.tokens)[answer_mask(batch)]


def log_probs_at(llama: Llama, states: torch.Tensor, batch: Batch) -> torch.Tensor:
    """log p of the answers' tokens: answer_states (N, C) → (B, T), 0 elsewhere."""
    mask = answer_mask(batch)
    logits = llama.output(states)[None]  # (1, N, V)
    return scatter(token_log_probs(logits, batch.targets[mask][None])[0], mask)


def answer_log_probs(llama: Llama, batch: Batch) -> torch.Tensor:
    """log p of the answers' tokens, (B, T), 0 elsewhere."""
    return log_probs_at(llama, answer_states(llama, batch), batch)


def scatter(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """values (N,) at the True of mask (B, T), row after row; 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def merged(llama: Llama) -> Llama:
    """The model as decoding takes it: itself, or with LoRA layers a copy that has them merged.

    The copy shares all other tensors.
    """
    if not any(isinstance(module, LoRALayer) for module in llama.modules()):
        return llama
    with shapes_only():
        copy = Llama(llama.config)
    copy.load_state_dict(merged_state_dict(llama), assign=True)
    copy.tie_weights()
    return copy.eval()
