"""What the real stories42M.pt gives: the zero-shot predictions of the graded commands, and the
greedy text of option generate, as independent correct runs agree on them.

The numbers of tokens are shipped beside them, so that a wrong batch size is recognised without the
tokenizer, which is third parties', and without sentencepiece.
"""

import base64
import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from config import EDITIONS
from mini_llama.assignment.reference_data import (
    LABEL_RUNS,
    LABELS,
    SENTENCES,
    TEXT_RUNS,
    TEXTS,
    TOKENS,
)

BATCH_SIZE = 10  # of the graded commands of option prompt, which decides how texts are padded
# Lines in which correct runs on other machines differ from the reference, at most.
LARGEST_DRIFT = {"sst-dev": 7, "sst-test": 16, "cfimdb-dev": 1, "cfimdb-test": 1}


@dataclass(frozen=True)
class ReferenceOutputs:
    """Labels by data set ("sst-dev"), or by file, and the text at temperature 0, prompt included.

    `runs` says how many independent runs gave exactly these labels, by the same keys, `text_runs`
    how many gave the text; outputs of one's own have none.
    """

    labels: Mapping[str, Sequence[int]]
    text: str | None
    runs: Mapping[str, int] = field(default_factory=dict)
    text_runs: int = 0


@lru_cache(maxsize=1)
def reference_outputs() -> dict[str, ReferenceOutputs]:
    """By edition, in the order of EDITIONS; the editions that share predictions share the lists."""
    found = {}
    for editions, packed in LABELS.items():
        digits = _unpack(packed)
        labels: dict[str, Sequence[int]] = {}
        for name, tokens in token_counts().items():
            labels[name], digits = tuple(digits[: len(tokens)]), digits[len(tokens) :]
        for edition in editions:
            runs = dict(zip(SENTENCES, LABEL_RUNS[edition], strict=True))
            text = _unpack(TEXTS[edition]).decode("utf-8")
            found[edition] = ReferenceOutputs(labels, text, runs, TEXT_RUNS[edition])
    order = [name for name in EDITIONS if name in found]
    return {name: found[name] for name in (*order, *(found.keys() - order))}


@lru_cache(maxsize=1)
def token_counts() -> dict[str, tuple[int, ...]]:
    """Tokens of each sentence with its question, BOS included, by data set, in the data's order."""
    counts = {}
    for name, packed in TOKENS.items():
        content = _unpack(packed)
        half = len(content) // 2
        pairs = zip(content[:half], content[half:], strict=True)
        counts[name] = tuple(low + 256 * high for low, high in pairs)
    return counts


def real_data_set(questions: Iterable[str]) -> str | None:
    """The data set whose sentences, each followed by its question, these are, in its order; None
    if they are of no data set of the courses.
    """
    digest = hashlib.sha256("\n".join(questions).encode()).hexdigest()
    return next((name for name, known in SENTENCES.items() if known == digest), None)


def _unpack(packed: str) -> bytes:
    return zlib.decompress(base64.b85decode("".join(packed.split())))
