#!/usr/bin/env python
"""What the bundled model is worth: python bench/demo_report.py [--work FOLDER] [--stories 100].

Prints its validation perplexity on stories and reviews that it was not trained on, a greedy and a
temperature-1 sample, the share of its own sentences of six words or more that its training text
does not have, and what a bag of words makes of the review files. The training text is generated
again from its seeds.
"""

import argparse
import itertools
import math
import random
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "data" / "demo")]

import torch
import torch.nn.functional as F

from build_demo import SEED, documents
from llama import Llama, load_pretrained
from mini_llama import bundled
from mini_llama.assignment.reviews import read_examples
from reviews import reviews
from tales import tales
from tokenizer import Tokenizer

UNSEEN_SEED = SEED + 1000
LEAST_WORDS = 6


def sentences(text: str) -> Iterator[str]:
    """Sentences of at least six words, quotation marks aside."""
    for sentence in re.split(r"(?<=[.!?])[\"']?\s+", text):
        if len(sentence.split()) >= LEAST_WORDS:
            yield sentence.strip(" \"'")


@torch.inference_mode()
def perplexity(llama: Llama, tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """exp of the mean loss of all tokens but BOS, each text alone, cut to the context."""
    total, count = 0.0, 0
    for text in texts:
        ids = tokenizer.encode(text, bos=True, eos=True)[: llama.config.max_seq_len]
        tokens = torch.tensor([ids])
        logits, _ = llama(tokens[:, :-1], targets=tokens[:, 1:])
        total += F.cross_entropy(logits[0], tokens[0, 1:], reduction="sum").item()
        count += len(ids) - 1
    return math.exp(total / count)


def write_stories(llama: Llama, tokenizer: Tokenizer, count: int) -> list[str]:
    """Texts at temperature 1 from BOS and a story's first words, up to EOS."""
    rng = random.Random(UNSEEN_SEED)
    starts = [" ".join(t.split()[:4]) for t in itertools.islice(tales(UNSEEN_SEED), count)]
    texts = []
    for start in starts:
        prompt = torch.tensor([tokenizer.encode(start, bos=True, eos=False)])
        generator = torch.Generator().manual_seed(rng.getrandbits(32))
        tokens = llama.generate(
            prompt, 230, 1.0, epsilon=0.0, generator=generator, stop_id=tokenizer.eos_id
        )
        texts.append(tokenizer.decode(tokens[0].tolist()))
    return texts


def novelty(texts: list[str]) -> tuple[int, int]:
    """(sentences that the training text does not have, all sentences of six words or more)."""
    written = [sentence for text in texts for sentence in list(sentences(text))[:-1]]
    unseen = set(written)
    for document in documents():
        unseen.difference_update(sentences(document))
    return sum(sentence in unseen for sentence in written), len(written)


def bag_of_words(name: str, n: int) -> float:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    train, dev = (read_examples(bundled.FOLDER / f"{name}-{s}.txt") for s in ("train", "dev"))
    vectorizer = CountVectorizer(token_pattern=r"\S+", ngram_range=(1, n))
    features = vectorizer.fit_transform([e.sentence for e in train])
    model = LogisticRegression(max_iter=1000).fit(features, [e.label for e in train])
    return model.score(vectorizer.transform([e.sentence for e in dev]), [e.label for e in dev])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stories", type=int, default=100)
    args = parser.parse_args()
    llama = load_pretrained(bundled.CHECKPOINT)
    tokenizer = Tokenizer(tokenizer_model=bundled.CHECKPOINT.with_suffix(".model"))
    stories = itertools.islice(tales(UNSEEN_SEED), 300)
    print(f"perplexity, unseen stories: {perplexity(llama, tokenizer, stories):.2f}")
    plain = (r.text for r in itertools.islice(reviews(UNSEEN_SEED, split="test"), 1000))
    print(f"perplexity, unseen reviews: {perplexity(llama, tokenizer, plain):.2f}")
    texts = write_stories(llama, tokenizer, args.stories)
    print(f"temperature 1: {texts[0]}")
    new, count = novelty(texts)
    print(f"{new} of {count} sentences of {LEAST_WORDS} words or more are new ({new / count:.0%})")
    for name, labels in (("demo", 5), ("demo2", 2)):
        scores = ", ".join(f"{bag_of_words(name, n):.3f} (1 to {n} words)" for n in (1, 2, 3))
        print(f"bag of words, {labels} labels, dev accuracy: {scores}")


if __name__ == "__main__":
    main()
