"""Rejection sampling (Llama 2, section 3.2.3): the best of K answers to each prompt, by the reward
model, becomes the answer to learn.

The best answers of all earlier iterations compete: with those of the last one alone the paper saw
skills get lost, such as rhyming.

Shapes: K candidates, P prompts.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llama import Llama
from mini_llama.alignment import sft
from mini_llama.alignment.answers import Sampling, completion_of, merged, sample_answers
from mini_llama.alignment.chat import Tokens
from mini_llama.alignment.data import Row
from mini_llama.alignment.records import Prompt, read_demonstrations, read_objects, read_prompts
from mini_llama.alignment.reward import Rewards
from mini_llama.alignment.rl_options import RejectionOptions
from mini_llama.alignment.rollouts import (
    Question,
    contents_of_models,
    form_of,
    load_rewards,
    questions_of,
    seed_of,
)
from mini_llama.alignment.start import Start, content_of, load_causal
from mini_llama.alignment.supervised import Job, run_stage
from mini_llama.resume import check_same_run
from mini_llama.training.loop import report
from mini_llama.training.processes import Process
from utils import atomic_write, read_json

BEST, HELD_OUT, CURVES = "best.jsonl", "best-held-out.jsonl", "candidates.json"
CANDIDATE_OPTIONS = (
    *("candidates", "temperature", "max_new_tokens", "max_length"),
    *("seed", "template", "val_fraction"),
)


@dataclass(frozen=True)
class Candidates:
    """K answers to each of P prompts: texts [K][P], scores (K, P), whether they ended (K, P)."""

    texts: list[list[Tokens]]
    scores: torch.Tensor
    has_end: torch.Tensor

    def best(self) -> list[int | None]:
        """For each prompt the number of its best answer among those that end; None without one."""
        scores = self.scores.masked_fill(~self.has_end, float("-inf"))
        numbers, ends = scores.argmax(dim=0).tolist(), self.has_end.any(dim=0).tolist()
        return [n if has_one else None for n, has_one in zip(numbers, ends, strict=True)]


def curves(scores: torch.Tensor) -> dict[str, list[float]]:
    """Means over prompts of the highest and of the median score of the first N answers, N = 1 to K
    (figure 7): scores (K, P).
    """
    counts = range(1, len(scores) + 1)
    return {
        "max": [float(scores[:n].amax(dim=0).mean()) for n in counts],
        "median": [float(scores[:n].quantile(0.5, dim=0).mean()) for n in counts],
    }


def run(options: RejectionOptions) -> int:
    """Sample, choose, fine-tune; the exit status. Raises OSError or ValueError, one line each."""
    return run_stage(options, read_prompts, make_job)


def make_job(
    options: RejectionOptions,
    process: Process,
    start: Start,
    records: tuple[list[Prompt], list[Prompt]],
) -> Job[Row]:
    """Fine-tuning on the best answers, which are sampled unless a run to resume has them."""
    folder = Path(options.out)
    settings = candidate_settings(options)
    paths = [folder / BEST, folder / HELD_OUT]
    if options.resume and (folder / CURVES).exists():
        saved = read_json(folder / CURVES)
        check_same_run(folder / CURVES, saved, {"settings", "max", "median"}, settings)
        report(process, f"the best answers are in {paths[0]} already")
    else:
        choose_answers(options, process, start, records, settings)
    train, val = (read_demonstrations((str(p),)) if p.stat().st_size else [] for p in paths)
    if not train:
        raise ValueError(
            f"none of the sampled answers ends within --max_new_tokens {options.max_new_tokens}: "
            "raise it, or give a policy that has learnt to end"
        )
    job = sft.make_job(options, process, start, (train, val))
    job.settings |= settings
    return job


def candidate_settings(options: RejectionOptions) -> dict[str, Any]:
    """What the answers depend on, as plain data."""
    settings = {name: getattr(options, name) for name in CANDIDATE_OPTIONS}
    settings["policy"] = content_of(options.policy or options.pretrained_model_path)
    for name in ("data", "val_data", "previous"):
        settings[name] = [content_of(path) for path in getattr(options, name)]
    return settings | contents_of_models(options)


def choose_answers(
    options: RejectionOptions,
    process: Process,
    start: Start,
    records: tuple[list[Prompt], list[Prompt]],
    settings: dict[str, Any],
) -> None:
    """Write best.jsonl, best-held-out.jsonl and, last, candidates.json into the run's folder."""
    folder = Path(options.out)
    rewards = load_rewards(options, start, process.device)
    llama = merged(start.llama) if options.policy is None else load_policy(options, start)
    sampling = Sampling(options.max_new_tokens, start.ends, options.temperature, options.rows)
    questions = [questions_of(part, start, options) for part in records]
    earlier = earlier_answers(options, start, rewards)
    scores = torch.empty(options.candidates, 0)
    for name, part in zip((BEST, HELD_OUT), questions, strict=True):
        found = sample_candidates(llama, part, sampling, rewards, options, process)
        lines = best_lines(part, found, start, earlier if name == BEST else {})
        scores = torch.cat([scores, found.scores], dim=1)
        if process.is_main:
            with atomic_write(folder / name) as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        report(process, f"{len(lines):,} best answers of {options.candidates} in {folder / name}")
    if process.is_main:
        with atomic_write(folder / CURVES) as file:
            json.dump({"settings": settings} | curves(scores), file, indent=2)
    if process.world_size > 1:
        dist.barrier()


def load_policy(options: RejectionOptions, start: Start) -> Llama:
    """The model that answers. Raises OSError, and ValueError for another vocabulary."""
    assert options.policy is not None
    llama, _ = load_causal(options.policy)
    own, other = start.llama.config.vocab_size, llama.config.vocab_size
    if own != other:
        raise ValueError(
            f"--policy {options.policy} has a vocabulary of {other} tokens, and the model to "
            f"fine-tune one of {own}: give a policy with the same tokenizer"
        )
    return llama.to(start.llama.device)


def sample_candidates(
    llama: Llama,
    questions: Sequence[Question],
    sampling: Sampling,
    rewards: Rewards,
    options: RejectionOptions,
    process: Process,
) -> Candidates:
    """K scored answers to each question; each process samples those to its share of them."""
    llama.eval()
    mine = list(questions[process.rank :: process.world_size])
    texts: list[list[Tokens]] = []
    scores = torch.zeros(options.candidates, len(mine))
    for k in range(options.candidates if mine else 0):
        seed = seed_of(options.seed, k, process.rank)
        texts.append(sample_answers(llama, [q.ids for q in mine], sampling, seed))
        scores[k] = rewards(texts[-1], [q.is_safety for q in mine])
    if process.world_size > 1:
        return gathered(texts, scores, len(questions), sampling, process)
    return Candidates(texts, scores, ended(texts, sampling, scores.shape))


def gathered(
    texts: list[list[Tokens]],
    scores: torch.Tensor,
    count: int,
    sampling: Sampling,
    process: Process,
) -> Candidates:
    """The candidates of all processes, in the questions' order."""
    shares: list[Any] = [None] * process.world_size
    dist.all_gather_object(shares, (texts, scores))
    whole = torch.zeros(len(scores), count)
    rows = [[Tokens([], [])] * count for _ in range(len(scores))]
    for rank, (found, part) in enumerate(shares):
        whole[:, rank :: process.world_size] = part
        for row, own in zip(rows, found, strict=False):
            row[rank :: process.world_size] = own
    return Candidates(rows, whole, ended(rows, sampling, whole.shape))


def ended(texts: Sequence[Sequence[Tokens]], sampling: Sampling, shape: torch.Size) -> torch.Tensor:
    """(K, P): True for answers that ended themselves, and say something before."""
    flags = [
        [text.ids[-1] in sampling.ends and sum(text.learns) > 1 for text in row] for row in texts
    ]
    return torch.tensor(flags, dtype=torch.bool).view(shape)


def earlier_answers(
    options: RejectionOptions, start: Start, rewards: Rewards
) -> dict[str, dict[str, Any]]:
    """The best lines of earlier iterations by prompt, in JSON, scored by today's reward model."""
    lines = [content for path in options.previous for _, content in read_objects(path)]
    if not lines:
        return {}
    encoder = start.encoder(options.max_length)
    records = read_demonstrations(options.previous)
    texts = [encoder.demonstration(record)[-1] for record in records]
    marks = [bool(line.get("safety", False)) for line in lines]
    found: dict[str, dict[str, Any]] = {}
    for line, score in zip(lines, rewards(texts, marks).tolist(), strict=True):
        key = json.dumps(line["prompt"])
        if key not in found or score > found[key]["reward"]:
            found[key] = line | {"reward": score}
    return found


def best_lines(
    questions: Sequence[Question],
    candidates: Candidates,
    start: Start,
    earlier: dict[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """The best answer to each prompt, of today's and of earlier ones, then earlier ones to other
    prompts. A prompt to which no answer ended is left out.
    """
    lines, rest = [], dict(earlier)
    for p, (question, k) in enumerate(zip(questions, candidates.best(), strict=True)):
        form = form_of(question.record)
        before = rest.pop(json.dumps(form), None)
        if k is None:
            lines += [before] if before else []
            continue
        text, score = candidates.texts[k][p], candidates.scores[k, p].item()
        if before and before["reward"] >= score:
            lines.append(before)
            continue
        answer = completion_of(text, start.tokenizer.decode)
        if not answer:  # of control tokens alone
            continue
        is_text = isinstance(form, str)
        completion = answer if is_text else [{"role": "assistant", "content": answer}]
        line = {"prompt": form, "completion": completion, "reward": score}
        lines.append(line | ({"safety": True} if question.is_safety else {}))
    return lines + list(rest.values())
