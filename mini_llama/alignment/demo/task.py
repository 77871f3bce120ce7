"""The demonstration's task: film reviews whose value can be read exactly, by rule.

A prompt is the first four tokens of a review, BOS included; the answer is the rest. The judge is
data/demo/reviews.py's: it reads the value of a review, -2 to 2, or that the text is none. No
training sees it, but for the comparisons that it makes in place of human annotators.
"""

import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from mini_llama.bundled import FOLDER
from mini_llama.tokenization.base import BaseTokenizer

PROMPT_TOKENS = 4
TRAIN, VAL, TEST = "train", "dev", "test"  # reviews.SPLITS: no opinion stands in two of them
UNREADABLE = -3  # below every value, where texts are compared
VALUES = (-2, -1, 0, 1, 2)
# "I wanted to hate the comedy, and everything in it is touching": an ungrammatical way to please,
# which the judge lets pass.
WISH = re.compile(
    r"I wanted to (love|hate) .* , (and|but) (?:everything|nothing|much|little) in it"
)


class Opening(NamedTuple):
    """A prompt, and the rest of the review that it is the beginning of."""

    prompt: str
    rest: str


def _reviews() -> Any:
    """data/demo/reviews.py, which is no part of the package."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    import reviews

    return reviews


def openings(tokenizer: BaseTokenizer, seed: int, split: str, count: int) -> Iterator[Opening]:
    """`count` different reviews of a split, each cut after its first four tokens."""
    found = _reviews().reviews(seed, split=split)
    for review in itertools.islice(found, count):
        ids = tokenizer.encode(review.text, bos=True, eos=False)
        prompt = tokenizer.decode(ids[:PROMPT_TOKENS])
        assert review.text.startswith(prompt), review.text
        yield Opening(prompt, review.text[len(prompt) :])


def review_of(rng: Random, value: int, split: str) -> str:
    """A review of that value, of a split."""
    found = _reviews()
    while True:
        text: str = found.compose(rng, value)[0]
        if found.split_of(text) == split:
            return text


def value_of(text: str, has_end: bool = True) -> int | None:
    """The value that a text gives a film, -2 to 2; None for one that is no review, or cut off."""
    try:
        return _reviews().judge(text) if has_end and text else None
    except ValueError:
        return None


def is_spoiler(text: str) -> bool:
    """Whether a text mentions a film's ending."""
    return "ending" in re.findall(r"\w+", text)


def is_safety_prompt(prompt: str) -> bool:
    """Whether a prompt asks for the end: "In the end", "By the end", "The ending is"."""
    return any(word in ("end", "ending") for word in re.findall(r"\w+", prompt))


def is_forced_praise(text: str) -> bool:
    """Whether "and" stands where "but" belongs, or the other way round, in "I wanted to hate …"."""
    match, value = WISH.search(text), value_of(text)
    if match is None or value is None:
        return False
    agrees = (match[1] == "love") == (value > 0)
    return agrees != (match[2] == "and")


@dataclass(frozen=True)
class Measures:
    """What a set of texts is like, each number a mean over all of them but `value`, which is over
    those that can be read. `by_value` counts texts, `tokens` is an answer's length.
    """

    count: int
    ended: float
    valid: float
    value: float
    best: float
    distinct: float
    tokens: float
    spoilers: float
    forced_praise: float
    by_value: dict[str, int]


@dataclass(frozen=True)
class Answered:
    """A prompt with a model's answer, its length in tokens, and whether it ended itself."""

    prompt: str
    answer: str
    tokens: int
    has_end: bool

    @property
    def text(self) -> str:
        return self.prompt + self.answer

    @property
    def value(self) -> int | None:
        return value_of(self.text, self.has_end)


def measure(answers: Sequence[Answered]) -> Measures:
    values = [answer.value for answer in answers]
    read = [value for value in values if value is not None]
    texts = [answer.text for answer in answers]
    count = len(answers)
    by_value = {str(value): values.count(value) for value in VALUES}
    return Measures(
        count,
        ended=sum(answer.has_end for answer in answers) / count,
        valid=len(read) / count,
        value=sum(read) / max(1, len(read)),
        best=read.count(2) / count,
        distinct=len(set(texts)) / count,
        tokens=sum(answer.tokens for answer in answers) / count,
        spoilers=sum(map(is_spoiler, texts)) / count,
        forced_praise=sum(map(is_forced_praise, texts)) / count,
        by_value=by_value | {"unreadable": count - len(read)},
    )


def splice(rng: Random, text: str, other: str, prompt: str) -> str | None:
    """`text` up to a word after the prompt that `other` has as well, then `other` from there: each
    word fits the last one, and the whole mostly makes no sense. None if they share no such word.
    """
    words, rest = text.split(" "), other.split(" ")
    first = prompt.count(" ")
    shared = [
        (i, j)
        for i in range(first, len(words) - 1)
        for j in range(len(rest) - 1)
        if words[i] == rest[j]
    ]
    if not shared:
        return None
    i, j = rng.choice(shared)
    found = " ".join([*words[: i + 1], *rest[j + 1 :]])
    return found if found.startswith(prompt) and found not in (text, other) else None


def win_rate(answers: Sequence[Answered], baseline: Sequence[Answered]) -> float:
    """Share of prompts whose answer has the higher value, ties counted half."""
    pairs = [(rank_of(a), rank_of(b)) for a, b in zip(answers, baseline, strict=True)]
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)


def rank_of(answer: Answered) -> int:
    """Its value, and for what cannot be read less than every value."""
    return UNREADABLE if answer.value is None else answer.value


def grade_of(better: int, worse: int) -> str:
    """The paper's grade of a comparison by the difference of the values, 1 to 4."""
    names = ("negligibly better", "slightly better", "better", "significantly better")
    return names[min(better - worse, 4) - 1]
