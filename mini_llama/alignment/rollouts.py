"""What an iteration of PPO learns from: answers, their rewards by token, and their advantages.

Shapes: B answers, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llama import Llama
from mini_llama.alignment import losses
from mini_llama.alignment.answers import (
    Sampling,
    answer_log_probs,
    answer_mask,
    answer_of,
    batch_of,
    merged,
    sample_answers,
    scatter,
)
from mini_llama.alignment.chat import Tokens
from mini_llama.alignment.policy import Minibatch, Policy
from mini_llama.alignment.records import Prompt
from mini_llama.alignment.reward import Rewards, load_reward_model
from mini_llama.alignment.rl_options import PpoOptions, SamplingOptions
from mini_llama.alignment.start import Start, content_of
from mini_llama.training.core import TrainerCore
from mini_llama.training.processes import Process


@dataclass(frozen=True)
class Question:
    """A prompt's token ids, whether it is a safety prompt, and the line that it came from."""

    ids: list[int]
    is_safety: bool
    record: Prompt


@dataclass(frozen=True)
class Answers:
    """Sampled answers, their scores (B,), and whether each one ended itself (B,)."""

    texts: list[Tokens]
    scores: torch.Tensor
    has_end: torch.Tensor

    def numbers(self) -> dict[str, float]:
        return {
            "reward": float(self.scores.mean()),
            "reward_sd": float(self.scores.std(correction=0)),
            "ended": float(self.has_end.float().mean()),
            "tokens": sum(len(answer_of(text)) for text in self.texts) / len(self.texts),
        }


@dataclass(frozen=True)
class Collector:
    """Samples answers from the policy, scores them, and computes their advantages."""

    options: PpoOptions
    process: Process
    policy: Policy
    reference: Llama
    rewards: Rewards
    sampling: Sampling

    def answer(self, questions: Sequence[Question], seed: int) -> Answers:
        """An answer to each question, scored; the same seed gives the same ones."""
        llama = merged(self.policy.llama)
        llama.eval()
        texts = sample_answers(llama, [question.ids for question in questions], self.sampling, seed)
        scores = self.rewards(texts, [question.is_safety for question in questions])
        has_end = torch.tensor([text.ids[-1] in self.sampling.ends for text in texts])
        return Answers(texts, scores, has_end)

    def collect(
        self, trainer: TrainerCore, questions: Sequence[Question], seed: int
    ) -> tuple[list[Minibatch], dict[str, float]]:
        """This process's minibatches of one iteration, and the iteration's numbers by name."""
        answers = self.answer(questions, seed)
        white = whiten(answers.scores, self.process)
        white = white.masked_fill(~answers.has_end, -self.options.missing_eos_penalty)
        size = self.options.minibatch_size // self.process.world_size
        minibatches, ratios = [], []
        for start in range(0, len(answers.texts), size):
            part = slice(start, start + size)
            minibatch, log_ratios = self.evaluate(trainer, answers.texts[part], white[part])
            minibatches.append(minibatch)
            ratios.append(log_ratios)
        numbers = answers.numbers() | {"kl": float(torch.cat(ratios).mean())}
        shared = {name: self.process.mean(torch.tensor(v)) for name, v in numbers.items()}
        return self.whiten_advantages(minibatches), shared

    def evaluate(
        self, trainer: TrainerCore, texts: Sequence[Tokens], white: torch.Tensor
    ) -> tuple[Minibatch, torch.Tensor]:
        """A minibatch, its advantages not yet whitened, and each text's log π - log π_0 (B,).

        The log probabilities are those of the update's own forward pass on the same rows, in the
        mode that computes gradients: so the ratio is 1 to the bit before the first step. Those that
        decoding saw are equal up to rounding alone.
        """
        options = self.options
        batch = batch_of(texts, self.rewards.pad_id, self.process.device)
        mask = answer_mask(batch)
        self.policy.train()
        with trainer.autocast():
            log_probs, values = (found.detach() for found in self.policy(batch))
            with torch.no_grad():
                reference = answer_log_probs(self.reference, batch)
        rewards = losses.token_rewards(
            white.to(log_probs.device), log_probs, reference, mask, options.beta
        )
        advantages, returns = losses.advantages_and_returns(
            rewards, values, mask, options.gamma, options.gae_lambda
        )
        log_ratios = losses.kl_k1(log_probs, reference).sum(dim=1)
        return Minibatch(batch, log_probs, values, advantages, returns), log_ratios.cpu()

    def whiten_advantages(self, minibatches: Sequence[Minibatch]) -> list[Minibatch]:
        """Over all tokens of the iteration's answers, of all processes; not in the paper."""
        masks = [answer_mask(minibatch.batch) for minibatch in minibatches]
        found = [m.advantages[mask] for m, mask in zip(minibatches, masks, strict=True)]
        white = whiten(torch.cat(found), self.process).split([len(part) for part in found])
        return [
            m._replace(advantages=scatter(part, mask))
            for m, part, mask in zip(minibatches, white, masks, strict=True)
        ]

    def log_ratios(self, trainer: TrainerCore, texts: Sequence[Tokens]) -> torch.Tensor:
        """log π - log π_0 of each text (B,): its mean estimates the KL divergence a text."""
        size, found = self.options.minibatch_size, []
        for start in range(0, len(texts), size):
            part = texts[start : start + size]
            found.append(self.evaluate(trainer, part, torch.zeros(len(part)))[1])
        return torch.cat(found)


def load_rewards(options: SamplingOptions, start: Start, device: torch.device) -> Rewards:
    """Raises OSError, and ValueError as load_reward_model does."""
    paths = (options.reward_model, options.safety_model)
    helpfulness, safety = (
        None if path is None else load_reward_model(path, start, device) for path in paths
    )
    assert helpfulness is not None
    return Rewards(helpfulness, safety, start.tokenizer.pad_id)


def questions_of(
    records: Sequence[Prompt], start: Start, options: SamplingOptions
) -> list[Question]:
    """Encoded prompts. Raises ValueError, naming the line, for one that leaves no room for an
    answer, and for a mark "safety" that is neither true nor false.
    """
    encoder = start.encoder(options.max_length)
    questions = []
    for record in records:
        ids = encoder.prompt(record)
        if len(ids) + options.max_new_tokens > encoder.max_length:
            wrong = f"the prompt is {len(ids)} tokens, which with --max_new_tokens "
            wrong += f"{options.max_new_tokens} are more than {encoder.max_length}"
            raise record.place.error(wrong, "shorten it, or lower --max_new_tokens")
        is_safety = record.rest.get("safety", False)
        if not isinstance(is_safety, bool):
            raise record.place.error(f"safety is {is_safety!r}", "it must be true or false")
        questions.append(Question(ids, is_safety, record))
    return questions


def form_of(record: Prompt) -> str | list[dict[str, str]]:
    """A prompt as it stands in JSON lines."""
    if isinstance(record.text, str):
        return record.text
    return [{"role": turn.role, "content": turn.text} for turn in record.text]


def contents_of_models(options: SamplingOptions) -> dict[str, str | None]:
    """The reward models' files and contents, which a resumed run must share."""
    paths = {name: getattr(options, name) for name in ("reward_model", "safety_model")}
    return {name: path and content_of(path) for name, path in paths.items()}


def seed_of(*numbers: int) -> int:
    """A seed from these numbers alone."""
    return int(np.random.SeedSequence(list(numbers)).generate_state(1)[0])


def whiten(values: torch.Tensor, process: Process) -> torch.Tensor:
    """losses.whiten over the values of all processes: (N,)."""
    if process.world_size == 1:
        return losses.whiten(values)
    on_device = values.double().to(process.device)
    count = process.mean(torch.tensor(float(len(values)), device=process.device))
    mean = process.mean(on_device.sum()) / count
    squares = process.mean((on_device - mean).square().sum())
    variance = squares / (count - 1 / process.world_size)
    return losses.standardize(values, mean, variance)
