#!/usr/bin/env python
"""Make the bundled model and data again: python data/demo/build_demo.py [--work FOLDER].

From fixed seeds it writes the text to train on, trains the tokenizer and the model (pretrain.py),
and writes demo.pt, demo.model, sanity_check.data and the review files into this folder. Behind most
reviews of the training text stands the reviewer's verdict in words, either as an answer to the
assignment's question or after a run of padding, so that the model learns to answer and to read past
padding; sentences of the dev and test files are never among them.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE), str(ROOT / "tests")]

import torch

import oracle
import pretrain
from checkpoint import read_checkpoint, save_checkpoint, save_plain
from pretrain_data import train_tokenizer
from reviews import LABEL_NAMES, PROMPTS, reviews
from sanity_check import TOKENS
from tales import tales
from utils import atomic_write

SEED = 20261122
SPLITS = {"train": 4000, "dev": 500, "test": 500}
VOCAB_SIZE = 2048
PADDING = "\0"  # the character whose byte piece the assignment pads with
SHAPE = {"dim": 160, "n_layers": 5, "n_heads": 8, "n_kv_heads": 4, "hidden_dim": 448}
TRAINING = {"context": 256, "batch_size": 32, "warmup": 200, "dtype": "bfloat16"}


@dataclass(frozen=True)
class Stage:
    """One training run: what it reads, and for how long at which learning rate.

    A review is drawn with five labels, with the probability `five`, or with two. It stands alone
    with the probability `bare`, is followed by the assignment's question and its answer with the
    probability `asked`, and else, if it has five labels, by a run of padding, whose length is drawn
    from `padding` and is at least 0, and its verdict.
    """

    name: str
    tales: int
    reviews: int
    five: float
    bare: float
    asked: float
    padding: tuple[int, int]
    options: dict[str, float]


# First language, mostly; then judging, which is the harder thing to learn.
LANGUAGE = {"steps": 1000, "decay_steps": 1600, "lr": 2e-3, "min_lr": 2e-5, "seed": SEED}
JUDGEMENT = {"steps": 1200, "lr": 1.5e-3, "min_lr": 1e-5, "seed": SEED + 1}
STAGES = (
    Stage("language", 36_000, 240_000, 0.7, 0.10, 0.35, (0, 25), LANGUAGE),
    Stage("judgement", 8_000, 330_000, 0.95, 0.0, 0.15, (-12, 25), JUDGEMENT),
)


def review_documents(stage: Stage, seed: int) -> Iterator[str]:
    """Endless reviews of the train split in the forms that the stage asks for."""
    rng = Random(seed)
    streams = {n: reviews(seed + n, labels=n, split="train") for n in LABEL_NAMES}
    while True:
        labels = 5 if rng.random() < stage.five else 2
        review = next(streams[labels])
        verdict = LABEL_NAMES[labels][review.label]
        form = rng.random()
        if form < stage.bare:
            yield review.text
        elif form < stage.bare + stage.asked:
            # The question ends in a space and the label word brings its own, as in the contract.
            yield f"{review.text} {PROMPTS[labels]} {verdict}"
        elif labels == 5:
            padding = PADDING * max(0, rng.randrange(*stage.padding))
            yield f"{review.text}{padding} {verdict}"
        else:
            yield review.text


def documents(stage: Stage) -> Iterator[str]:
    """The stage's training text: tales and reviews, mixed."""
    seed = stage.options["seed"]
    rng, stories, judged = Random(seed), tales(seed), review_documents(stage, seed)
    left = {"tale": stage.tales, "review": stage.reviews}
    while any(left.values()):
        kind = "tale" if rng.random() * sum(left.values()) < left["tale"] else "review"
        left[kind] -= 1
        yield next(stories if kind == "tale" else judged)


def write_text(stage: Stage, path: Path) -> None:
    with atomic_write(path) as file:
        for document in documents(stage):
            file.write(f"{document}\n\n")


def write_reviews(folder: Path) -> None:
    """demo-{train,dev,test}.txt with five labels, demo2-… with two, and the label words."""
    for labels, name in ((5, "demo"), (2, "demo2")):
        for split, count in SPLITS.items():
            lines = itertools.islice(reviews(SEED + 1, labels=labels, split=split), count)
            with atomic_write(folder / f"{name}-{split}.txt") as file:
                file.writelines(f"{review.label} ||| {review.text}\n" for review in lines)
        with atomic_write(folder / f"{name}-label-mapping.json") as file:
            file.write(json.dumps(LABEL_NAMES[labels]) + "\n")


def train_model(work: Path, extra: list[str]) -> None:
    """Tokenizer and all stages into `work`; an interrupted one goes on where it stopped."""
    tokenizer = work / "tokenizer.model"
    if not tokenizer.exists():
        # Without padding and double spaces, which would become pieces of their own.
        plain = (t.replace(PADDING, "").replace("  ", " ") for t in documents(STAGES[0]))
        train_tokenizer(itertools.islice(plain, 40_000), VOCAB_SIZE, tokenizer)
    before = None
    for stage in STAGES:
        text = work / f"{stage.name}.txt"
        if not text.exists():
            write_text(stage, text)
        options = {"input": text, "tokenizer": tokenizer, "out": work / stage.name}
        options |= {"preset": "260k", "eval_every": 200} | SHAPE | TRAINING | stage.options
        options |= {} if before is None else {"init": before}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        try:
            pretrain.main([*words, "--resume", *extra])
        except SystemExit as stop:
            if stop.code:
                raise
        before = work / stage.name / "last.pt"


def export(work: Path, folder: Path) -> None:
    """The last stage's model in half precision, which halves the file, and its tokenizer."""
    last = read_checkpoint(work / STAGES[-1].name / "last.pt")
    tensors = {name: tensor.half() for name, tensor in last.tensors.items()}
    tensors.pop("output.weight")
    save_checkpoint(folder / "demo.pt", last.model_args, tensors)
    with atomic_write(folder / "demo.model", "wb") as file:
        file.write((work / "tokenizer.model").read_bytes())


def write_reference(folder: Path) -> None:
    """What sanity_check.py compares with: the float64 NumPy forward on the assignment's token ids,
    taken modulo the vocabulary.
    """
    checkpoint = read_checkpoint(folder / "demo.pt")
    config = checkpoint.make_config()
    logits, hidden_states = oracle.forward(
        {name: tensor.double().numpy() for name, tensor in checkpoint.tensors.items()},
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        norm=config.norm,
        attention=config.attention,
        eps=config.layer_norm_eps,
        tokens=(TOKENS % config.vocab_size).numpy(),
    )
    arrays = {"logits": logits[:, -1:], "hidden_states": hidden_states}
    tensors = {name: torch.tensor(array, dtype=torch.float32) for name, array in arrays.items()}
    save_plain(folder / "sanity_check.data", tensors)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder for large files")
    parser.add_argument("--only", choices=("data", "train", "export"), help="one part alone")
    args, extra = parser.parse_known_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.only in (None, "data"):
        write_reviews(HERE)
    if args.only in (None, "train"):
        train_model(args.work, extra)
    if args.only in (None, "export"):
        export(args.work, HERE)
        write_reference(HERE)


if __name__ == "__main__":
    main()
