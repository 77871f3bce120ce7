"""The demonstration's numbers: what each model writes after 400 prompts that no training saw."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llama import Llama, load_pretrained
from mini_llama.alignment.answers import (
    Sampling,
    answer_log_probs,
    batches_of,
    sample_answers,
)
from mini_llama.alignment.chat import Tokens
from mini_llama.alignment.data import Encoder
from mini_llama.alignment.demo import data
from mini_llama.alignment.demo.stages import DATA, MODEL, SAMPLES
from mini_llama.alignment.demo.task import (
    VALUES,
    Answered,
    measure,
    value_of,
    win_rate,
)
from mini_llama.alignment.records import read_preferences
from mini_llama.alignment.rejection_sampling import curves
from mini_llama.alignment.reward import JudgedPair, accuracy_by_grade, score_texts
from mini_llama.checkpoints.own_tokenizer import find_own_tokenizer
from mini_llama.task_heads import LlamaForSequenceClassification, load_task_head
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.find import load_tokenizer

POLICIES = ("sft", "rejection", "ppo", "ppo-safety", "ppo-beta-0", "dpo")
CURVES = ("ppo", "ppo-safety", "ppo-beta-0")
CANDIDATES = 8
SHOWN = 10  # texts on the page
SEED = 9  # of the answers that are measured
CPU = torch.device("cpu")


class Examiner:
    """Measures the models of a folder; all answer the same prompts with the same random numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer: BaseTokenizer = load_tokenizer(find_own_tokenizer(folder / "sft" / MODEL))
        lines = data.read_lines(folder / DATA / data.TEST_FILE)
        self.prompts = [line["prompt"] for line in lines]
        self.ids = self.tokenizer.encode_batch(self.prompts, bos=True, eos=False)
        assert self.tokenizer.eos_id is not None
        self.ends = (self.tokenizer.eos_id,)
        self.reference = self.model("sft")
        self.reward = self.reward_model("reward")
        self.safety = self.reward_model("safety-reward")

    def model(self, name: str) -> Llama:
        return load_pretrained(self.folder / name / MODEL)

    def reward_model(self, name: str) -> LlamaForSequenceClassification:
        model = load_task_head(self.folder / name / MODEL)
        assert isinstance(model, LlamaForSequenceClassification)
        return model

    def sample(self, llama: Llama, seed: int = SEED) -> list[Tokens]:
        return sample_answers(llama, self.ids, Sampling(data.MAX_NEW_TOKENS, self.ends), seed)

    def answered(self, texts: Sequence[Tokens]) -> list[Answered]:
        return data.answered(self.prompts, texts, self.tokenizer, self.ends)

    def scores(self, texts: Sequence[Tokens]) -> list[float]:
        return score_texts(self.reward, texts, self.tokenizer.pad_id).tolist()

    @torch.no_grad()
    def kl(self, llama: Llama, texts: Sequence[Tokens]) -> float:
        """KL divergence a text from the SFT model, estimated from its own texts (k1)."""
        total = 0.0
        for batch in batches_of(texts, 200, self.tokenizer.pad_id, CPU):
            both = [answer_log_probs(model, batch) for model in (llama, self.reference)]
            total += float((both[0] - both[1]).sum())
        return total / len(texts)


def examine(folder: Path) -> dict[str, Any]:
    """results.json's content, but for times."""
    examiner = Examiner(folder)
    found: dict[str, Any] = {"policies": {}, "texts": {}}
    baseline: list[Answered] = []
    for name in POLICIES:
        llama = examiner.model(name)
        texts = examiner.sample(llama)
        answers = examiner.answered(texts)
        baseline = baseline or answers
        numbers = dataclasses.asdict(measure(answers))
        numbers["reward"] = statistics.fmean(examiner.scores(texts))
        numbers["kl"] = examiner.kl(llama, texts)
        numbers["win_rate"] = win_rate(answers, baseline)
        found["policies"][name] = numbers
        found["texts"][name] = [(a.text, a.value) for a in answers[:SHOWN]]
    found["best_of"] = best_of(examiner, baseline)
    found["histogram"] = histogram(examiner)
    found["reward_model"] = reward_accuracy(examiner)
    found["iterations"] = {name: iterations(folder / name) for name in CURVES}
    return found


def best_of(examiner: Examiner, baseline: Sequence[Answered]) -> dict[str, Any]:
    """Measures of the best of N answers of the SFT model, and figure 7's curves."""
    texts = [examiner.sample(examiner.reference, SEED + k) for k in range(CANDIDATES)]
    scores = torch.tensor([examiner.scores(row) for row in texts])
    found: dict[str, Any] = {}
    for n in (1, 2, 4, 8):
        chosen = scores[:n].argmax(dim=0).tolist()
        answers = examiner.answered([texts[k][i] for i, k in enumerate(chosen)])
        numbers = dataclasses.asdict(measure(answers))
        found[str(n)] = numbers | {"win_rate": win_rate(answers, baseline)}
    return found | {"curves": curves(scores)}


def histogram(examiner: Examiner) -> dict[str, list[float]]:
    """The scores of three answers of the SFT model to each prompt, by their true value."""
    found: dict[str, list[float]] = {str(value): [] for value in (*VALUES, "unreadable")}
    for k in range(3):
        texts = examiner.sample(examiner.reference, SEED + k)
        answers = examiner.answered(texts)
        for answer, score in zip(answers, examiner.scores(texts), strict=True):
            name = "unreadable" if answer.value is None else str(answer.value)
            found[name].append(round(score, 3))
    return found


def reward_accuracy(examiner: Examiner) -> dict[str, Any]:
    """Held-out accuracy of both reward models, by grade; of the helpfulness model for pairs of
    readable answers alone, too.
    """
    encoder = Encoder(examiner.tokenizer, "plain", examiner.ends, 64)
    pad_id, found = examiner.tokenizer.pad_id, {}
    for name, file in (("reward", data.VAL_PAIRS), ("safety-reward", data.VAL_SAFETY_PAIRS)):
        records = read_preferences((str(examiner.folder / DATA / file),))
        pairs = [JudgedPair(encoder.preference(record)) for record in records]
        readable = [
            pair
            for pair, record in zip(pairs, records, strict=True)
            if value_of(f"{record.rejected.prompt}{record.rejected.answer}") is not None
        ]
        model = examiner.reward if name == "reward" else examiner.safety
        found[name] = accuracy_by_grade(model, pairs, pad_id)
        if name == "reward":
            found["reward, readable answers"] = accuracy_by_grade(model, readable, pad_id)
    return found


def iterations(folder: Path) -> list[dict[str, float]]:
    """The judge's view of each evaluation of a PPO run, from its samples.jsonl."""
    lines, found = data.read_lines(folder / SAMPLES), []
    baseline: list[Answered] = []
    for number in dict.fromkeys(line["iteration"] for line in lines):
        part = [line for line in lines if line["iteration"] == number]
        answers = [
            Answered(line["prompt"], line["completion"], line["tokens"], line["ended"])
            for line in part
        ]
        baseline = baseline or answers
        numbers = dataclasses.asdict(measure(answers))
        del numbers["by_value"], numbers["count"]
        found.append(
            {"iteration": number}
            | numbers
            | {
                "reward": statistics.fmean(line["reward"] for line in part),
                "kl": statistics.fmean(line["log_ratio"] for line in part),
                "win_rate": win_rate(answers, baseline),
            }
        )
    return found
