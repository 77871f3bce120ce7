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
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE), str(ROOT / "tests")]

import torch  # noqa: E402

import oracle  # noqa: E402
import pretrain  # noqa: E402
from checkpoint import read_checkpoint, save_checkpoint, save_plain  # noqa: E402
from pretrain_data import train_tokenizer  # noqa: E402
from reviews import LABEL_NAMES, PROMPTS, reviews  # noqa: E402
from sanity_check import TOKENS  # noqa: E402
from tales import tales  # noqa: E402
from utils import atomic_write  # noqa: E402

SEED = 20261122
SPLITS = {"train": 4000, "dev": 500, "test": 500}
VOCAB_SIZE = 2048
TALES, REVIEWS = 36_000, 240_000
PADDING = "\0"  # the character whose byte piece the assignment pads with
MOST_PADDING = 24
SHAPE = {"dim": 160, "n_layers": 5, "n_heads": 8, "n_kv_heads": 4, "hidden_dim": 448}
TRAINING = {"context": 256, "batch_size": 32, "lr": 2e-3, "min_lr": 2e-5, "warmup": 200}


def review_documents(seed: int) -> Iterator[str]:
    """Endless reviews of the train split: bare, answered, or judged after a run of padding."""
    rng = Random(seed)
    streams = {n: reviews(seed + n, labels=n, split="train") for n in LABEL_NAMES}
    while True:
        labels = 5 if rng.random() < 0.7 else 2
        review = next(streams[labels])
        verdict = LABEL_NAMES[labels][review.label]
        form = rng.random()
        if form < 0.1:
            yield review.text
        elif form < 0.45:
            # The question ends in a space and the label word brings its own, as in the contract.
            yield f"{review.text} {PROMPTS[labels]} {verdict}"
        elif labels == 5:
            yield f"{review.text}{PADDING * rng.randrange(MOST_PADDING + 1)} {verdict}"
        else:
            yield review.text


def documents() -> Iterator[str]:
    """The training text: tales and reviews, mixed."""
    rng, stories, judged = Random(SEED), tales(SEED), review_documents(SEED)
    left = {"tale": TALES, "review": REVIEWS}
    while any(left.values()):
        kind = "tale" if rng.random() * sum(left.values()) < left["tale"] else "review"
        left[kind] -= 1
        yield next(stories if kind == "tale" else judged)


def write_text(path: Path) -> None:
    with atomic_write(path) as file:
        for document in documents():
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


def train_model(work: Path, steps: int, extra: list[str]) -> None:
    """Tokenizer and model into `work`; an interrupted training goes on."""
    text, tokenizer = work / "text.txt", work / "tokenizer.model"
    if not text.exists():
        write_text(text)
    if not tokenizer.exists():
        # Without padding and double spaces, which would become pieces of their own.
        plain = (text.replace(PADDING, "").replace("  ", " ") for text in documents())
        train_tokenizer(itertools.islice(plain, 40_000), VOCAB_SIZE, tokenizer)
    arguments = ["--input", str(text), "--tokenizer", str(tokenizer), "--out", str(work / "run")]
    arguments += ["--preset", "260k", "--steps", str(steps), "--seed", str(SEED), "--resume"]
    arguments += ["--eval_every", "250", *extra]
    for name, value in (SHAPE | TRAINING).items():
        arguments += [f"--{name}", str(value)]
    try:
        pretrain.main(arguments)
    except SystemExit as stop:
        if stop.code:
            raise


def export(work: Path, folder: Path) -> None:
    """The best model in half precision, which halves the file, and its tokenizer."""
    best = read_checkpoint(work / "run" / "best.pt")
    tensors = {name: tensor.half() for name, tensor in best.tensors.items()}
    tensors.pop("output.weight")
    save_checkpoint(folder / "demo.pt", best.model_args, tensors)
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
    parser.add_argument("--steps", type=int, default=2000, help="training steps (default: 2000)")
    parser.add_argument("--only", choices=("data", "train", "export"), help="one part alone")
    args, extra = parser.parse_known_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.only in (None, "data"):
        write_reviews(HERE)
    if args.only in (None, "train"):
        train_model(args.work, args.steps, extra)
    if args.only in (None, "export"):
        export(args.work, HERE)
        write_reference(HERE)


if __name__ == "__main__":
    main()
