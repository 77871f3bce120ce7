#!/usr/bin/env python
"""Make the bundled model and data again: python data/demo/build_demo.py [--work FOLDER].

From fixed seeds it writes the text to train on, trains the tokenizer and the model (pretrain.py),
and writes demo.pt, demo.model, sanity_check.data and the review files into this folder. Reviews of
the training text carry no label: the reviewer goes on with a remark of the same opinion, often
behind a run of padding, so that the model learns to read the opinion and to read past padding.
Sentences of the dev and test files are never among them.
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
sys.path[:0] = [str(ROOT), str(HERE)]

import torch

import pretrain
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.tensor_files import save_plain
from mini_llama.pretraining.data import train_tokenizer
from reviews import LABEL_NAMES, reviews, unlabelled_reviews
from sanity_check import TOKENS
from tales import tales
from tests import oracle
from utils import atomic_write

SEED = 20261122
SPLITS = {"train": 4000, "dev": 500, "test": 500}
TALES, REVIEWS = 112_000, 600_000
VOCAB_SIZE = 2048
PADDING = "\0"  # the character whose byte piece the assignment pads with
SHAPE = {"dim": 160, "n_layers": 5, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 448}
TRAINING = {"preset": "260k", "context": 256, "batch_size": 32, "dtype": "bfloat16", "seed": SEED}
TRAINING |= {"steps": 5000, "warmup": 200, "lr": 2e-3, "min_lr": 1e-5, "eval_every": 250}


def documents() -> Iterator[str]:
    """The training text: tales and reviews, mixed."""
    rng, stories, opinions = Random(SEED), tales(SEED), unlabelled_reviews(SEED, PADDING)
    left = {"tale": TALES, "review": REVIEWS}
    while any(left.values()):
        kind = "tale" if rng.random() * sum(left.values()) < left["tale"] else "review"
        left[kind] -= 1
        yield next(stories if kind == "tale" else opinions)


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
    """Text, tokenizer and model into `work`; an interrupted run goes on where it stopped."""
    tokenizer, text = work / "tokenizer.model", work / "text.txt"
    if not tokenizer.exists():
        # Without padding and double spaces, which would become pieces of their own.
        plain = (t.replace(PADDING, "").replace("  ", " ") for t in documents())
        train_tokenizer(itertools.islice(plain, 40_000), VOCAB_SIZE, tokenizer)
    if not text.exists():
        with atomic_write(text) as file:
            file.writelines(f"{document}\n\n" for document in documents())
    options = {"input": text, "tokenizer": tokenizer, "out": work / "model"} | TRAINING | SHAPE
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    try:
        pretrain.main([*words, "--resume", *extra])
    except SystemExit as stop:
        if stop.code:
            raise


def export(work: Path, folder: Path) -> None:
    """The model in half precision, which halves the file, and its tokenizer."""
    last = read_checkpoint(work / "model" / "last.pt")
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
