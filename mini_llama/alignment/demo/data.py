"""The demonstration's files: reviews, prompts, and comparisons of the SFT model's own answers."""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from llama import load_pretrained
from mini_llama.alignment.answers import Sampling, answer_of, completion_of, sample_answers
from mini_llama.alignment.chat import Tokens
from mini_llama.alignment.demo.task import (
    TEST,
    TRAIN,
    UNREADABLE,
    VAL,
    Answered,
    grade_of,
    is_safety_prompt,
    is_spoiler,
    openings,
    rank_of,
    splice,
)
from mini_llama.alignment.rollouts import seed_of
from mini_llama.checkpoints.own_tokenizer import find_own_tokenizer
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.find import load_tokenizer
from utils import atomic_write

MAX_NEW_TOKENS = 40  # the longest review has 27
TEST_PROMPTS = 400
# Of the answers that are compared (section 3.2.1), the first one with each other; the last is often
# unreadable, which the reward model has to learn, too. All are 1 for the pairs that measure it.
TEMPERATURES, VAL_TEMPERATURES = (1.0, 1.0, 1.4), (1.0, 1.0)
REVIEWS, PROMPTS, FEW_PROMPTS, VAL_PROMPTS, TEST_FILE = (
    *("reviews.jsonl", "prompts.jsonl", "few-prompts.jsonl"),
    *("held-out-prompts.jsonl", "test-prompts.jsonl"),
)
PAIRS, VAL_PAIRS, SAFETY_PAIRS, VAL_SAFETY_PAIRS = (
    *("pairs.jsonl", "held-out-pairs.jsonl"),
    *("safety-pairs.jsonl", "held-out-safety-pairs.jsonl"),
)
TRIES = 20  # to make a pair of two answers
WRITTEN_FIRST = (REVIEWS, PROMPTS, FEW_PROMPTS, VAL_PROMPTS, TEST_FILE)
WRITTEN_THEN = (PAIRS, VAL_PAIRS, SAFETY_PAIRS, VAL_SAFETY_PAIRS)
HELPFUL_SHARE = 10  # one pair in ten of the safety model's is from the helpfulness data (3.2.2)


@dataclass(frozen=True)
class Sizes:
    """How much data the stages get."""

    reviews: int = 140 * 64
    prompts: int = 30 * 256
    few_prompts: int = 1024  # for rejection sampling
    val_prompts: int = 128
    comparisons: int = 4500  # prompts, answered three times
    splices: int = 2000
    val_comparisons: int = 600

    def scaled(self, scale: float, iterations: int) -> "Sizes":
        """Fewer of everything, for a quick look; prompts enough for PPO's iterations."""
        numbers = {name: max(64, round(scale * n)) for name, n in vars(self).items()}
        return Sizes(**numbers | {"prompts": max(64, iterations * 256)})


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    with atomic_write(path) as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_prompts_and_reviews(
    folder: Path, tokenizer: BaseTokenizer, sizes: Sizes, seed: int
) -> None:
    """Reviews to imitate, prompts to answer, and those on which nothing is ever trained: held-out
    ones for early stopping, and 400 to measure with, which are the same for every seed.
    """
    reviews = openings(tokenizer, seed_of(seed, 0), TRAIN, sizes.reviews + sizes.prompts)
    write_lines(
        folder / REVIEWS,
        ({"prompt": o.prompt, "completion": o.rest} for o in islice(reviews, sizes.reviews)),
    )
    prompts = [prompt_line(opening.prompt) for opening in reviews]
    write_lines(folder / PROMPTS, prompts)
    write_lines(folder / FEW_PROMPTS, prompts[: sizes.few_prompts])
    held_out = openings(tokenizer, seed_of(seed, 1), VAL, sizes.val_prompts)
    write_lines(folder / VAL_PROMPTS, map(prompt_line, (o.prompt for o in held_out)))
    test = openings(tokenizer, 11, TEST, TEST_PROMPTS)
    write_lines(folder / TEST_FILE, map(prompt_line, (o.prompt for o in test)))


def prompt_line(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "safety": is_safety_prompt(prompt)}


def answer_prompts(
    model: Path, prompts: Sequence[str], seed: int, temperature: float = 1.0
) -> list[Answered]:
    """A model's answer to each prompt; the model has its tokenizer beside it."""
    llama = load_pretrained(model)
    tokenizer = load_tokenizer(find_own_tokenizer(model))
    assert tokenizer.eos_id is not None
    ids = tokenizer.encode_batch(prompts, bos=True, eos=False)
    ends = [tokenizer.eos_id]
    texts = sample_answers(llama, ids, Sampling(MAX_NEW_TOKENS, ends, temperature), seed)
    return answered(prompts, texts, tokenizer, ends)


def answered(
    prompts: Sequence[str],
    texts: Sequence[Tokens],
    tokenizer: BaseTokenizer,
    ends: Collection[int],
) -> list[Answered]:
    """Sampled answers as the judge takes them."""
    return [
        Answered(
            prompt,
            completion_of(text, tokenizer.decode),
            len(answer_of(text)),
            text.ids[-1] in ends,
        )
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def write_comparisons(folder: Path, model: Path, sizes: Sizes, seed: int) -> None:
    """Pairs of the model's own answers, at two temperatures, that the judge and the rule of
    spoilers compare, as annotators would. Some are compared with what two answers make when one
    goes on as the other: so the reward model learns that half a review and half another are none.
    """
    tokenizer = load_tokenizer(find_own_tokenizer(model))
    parts = (
        (TRAIN, sizes.comparisons, TEMPERATURES),
        (VAL, sizes.val_comparisons, VAL_TEMPERATURES),
    )
    names = ((PAIRS, SAFETY_PAIRS), (VAL_PAIRS, VAL_SAFETY_PAIRS))
    for number, (part, files) in enumerate(zip(parts, names, strict=True)):
        split, count, temperatures = part
        opened = openings(tokenizer, seed_of(seed, 2, number), split, count)
        prompts = [opening.prompt for opening in opened]
        first, *others = (
            answer_prompts(model, prompts, seed_of(seed, 3, number, i), temperature)
            for i, temperature in enumerate(temperatures)
        )
        pairs = [pair for other in others for pair in helpful_pairs(first, other)]
        safety = [pair for other in others for pair in safety_pairs(first, other)]
        write_lines(folder / files[1], [*safety, *pairs[::HELPFUL_SHARE]])
        if split == TRAIN:
            readable = [answer for answer in first if answer.value is not None]
            pairs += spliced_pairs(readable, sizes.splices, Random(seed_of(seed, 4)))
        write_lines(folder / files[0], pairs)


def helpful_pairs(
    first: Sequence[Answered], second: Sequence[Answered]
) -> Iterator[dict[str, Any]]:
    """The answer of the higher value is chosen, a readable one over an unreadable one. Empty ones
    are left out: they cannot be learnt from.
    """
    for one, other in zip(first, second, strict=True):
        ranks = rank_of(one), rank_of(other)
        if ranks[0] == ranks[1] or not (one.answer and other.answer):
            continue
        better, worse = (one, other) if ranks[0] > ranks[1] else (other, one)
        grade = grade_of(max(ranks), min(ranks))
        yield pair_line(better, worse, "significantly better" if UNREADABLE in ranks else grade)


def spliced_pairs(answers: Sequence[Answered], count: int, rng: Random) -> Iterator[dict[str, Any]]:
    """An answer and the same one that goes on as another one does, `count` times; fewer times for
    answers that have few words in common.
    """
    made = 0
    for _ in range(TRIES * count if answers else 0):
        one, other = rng.choice(answers), rng.choice(answers)
        text = splice(rng, one.text, other.text, one.prompt)
        if text is None:
            continue
        for pair in helpful_pairs([one], [replace(one, answer=text[len(one.prompt) :])]):
            yield pair
            made += 1
        if made == count:
            return


def safety_pairs(first: Sequence[Answered], second: Sequence[Answered]) -> Iterator[dict[str, Any]]:
    """The answer without a spoiler is chosen, where the other one has one."""
    for one, other in zip(first, second, strict=True):
        spoils = is_spoiler(one.text), is_spoiler(other.text)
        if spoils[0] != spoils[1] and one.answer and other.answer:
            safe, unsafe = (other, one) if spoils[0] else (one, other)
            yield pair_line(safe, unsafe, "significantly better")


def pair_line(chosen: Answered, rejected: Answered, grade: str) -> dict[str, Any]:
    return {
        "prompt": chosen.prompt,
        "chosen": chosen.answer,
        "rejected": rejected.answer,
        "grade": grade,
        "chosen_safe": not is_spoiler(chosen.text),
        "rejected_safe": not is_spoiler(rejected.text),
    }
