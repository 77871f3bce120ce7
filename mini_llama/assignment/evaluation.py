"""What the options prompt, finetune and lora share: checks before work, evaluation, output files.

It runs a classifier that is passed in over batches; it does not train.
"""

import hashlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from classifier import ClassifierConfig
from llama import Llama
from mini_llama.assignment.options import Options, default_of
from mini_llama.assignment.reviews import (
    SEPARATOR,
    Batch,
    Example,
    check_labels,
    make_batches,
    read_examples,
    read_label_names,
)
from mini_llama.checkpoints.reading import check_exists
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.find import check_vocabulary, find_tokenizer, load_tokenizer
from utils import atomic_write, autocast, check_outputs, choose_device


@dataclass(frozen=True)
class Task:
    """The data of one run, read and checked."""

    device: torch.device
    tokenizer: BaseTokenizer
    train: list[Example]
    dev: list[Example]
    test: list[Example]
    num_labels: int
    label_names: list[str] | None


def prepare(options: Options, outputs: Sequence[str | Path] = ()) -> Task:
    """Check all that can be checked without a model: GPU, output files, data, labels, tokenizer.

    `outputs` are written besides the two prediction files. Raises OSError or ValueError with one
    line that says what to do.
    """
    device, tokenizer = prepare_model(options, [options.dev_out, options.test_out, *outputs])
    splits = {}
    for split in ("train", "dev", "test"):
        path = getattr(options, split)
        splits[split] = read_examples(path)
        print(f"load {len(splits[split])} data from {path}")
    label_names = _label_names(options, splits["train"])
    num_labels = len(label_names or _distinct_labels(splits["train"]))
    for split, examples in splits.items():
        check_labels(getattr(options, split), examples, num_labels)
    return Task(device, tokenizer, **splits, num_labels=num_labels, label_names=label_names)


def prepare_model(
    options: Options, outputs: Sequence[str | Path]
) -> tuple[torch.device, BaseTokenizer]:
    """The device and the tokenizer, once the output files are known to be possible.

    Raises OSError or ValueError with one line that says what to do.
    """
    device = choose_device(options.use_gpu)
    check_exists(options.pretrained_model_path)
    tokenizer_path = find_tokenizer(options.pretrained_model_path, options.tokenizer)
    check_outputs(outputs, [*options.inputs, tokenizer_path])
    return device, load_tokenizer(tokenizer_path, options.max_sentence_len)


def _label_names(options: Options, train: Sequence[Example]) -> list[str] | None:
    """The label words, and None where training needs none: their default file is another data
    set's, and the labels then are those of the training file.
    """
    is_default = options.label_names == default_of("label_names")
    if options.option != "prompt" and is_default and options.train != default_of("train"):
        return None
    names = read_label_names(options.label_names)
    absent = sorted(set(range(len(names))) - set(_distinct_labels(train)))
    if absent:
        words = ", ".join(f"{label} ({names[label]})" for label in absent)
        print(f"warning: {options.train} has no example of label {words}", file=sys.stderr)
    return names


def _distinct_labels(examples: Sequence[Example]) -> list[int]:
    return sorted({example.label for example in examples})


def classifier_config(options: Options, task: Task) -> ClassifierConfig:
    return ClassifierConfig(
        options.pretrained_model_path,
        task.num_labels,
        options.hidden_dropout_prob,
        options.option,
        options.edition,
        options.norm,
        options.attention,
        options.quantize,
    )


def announce(llama: Llama, tokenizer: BaseTokenizer, path: str | Path) -> None:
    """Say which model and arithmetic are in force, once the tokenizer is known to be its own.

    Raises ValueError for a tokenizer with another vocabulary.
    """
    check_vocabulary(tokenizer, llama.config.vocab_size, path)
    print(f"load model from {path}: {llama.arithmetic}")


class Progress:
    """Iterates over batches behind a bar with loss and real tokens a second; the bar is shown only
    on a terminal.
    """

    def __init__(self, batches: Iterable[Batch], description: str) -> None:
        self.bar = tqdm(batches, desc=description, unit="batch", disable=None, leave=False)
        self.loss: float | None = None

    def __iter__(self) -> Iterator[Batch]:
        tokens, start = 0, time.perf_counter()
        for batch in self.bar:
            yield batch
            tokens += int(batch.lengths.sum())
            loss = "" if self.loss is None else f"loss {self.loss:.3f}, "
            rate = tokens / (time.perf_counter() - start)
            self.bar.set_postfix_str(f"{loss}{rate:.0f} tokens/s", refresh=False)


@torch.inference_mode()
def score(
    model: torch.nn.Module,
    examples: Sequence[Example],
    tokenizer: BaseTokenizer,
    options: Options,
    description: str,
) -> torch.Tensor:
    """The model's scores (N, num_labels), on the CPU, in input order; batches are taken in that
    order, or, where padding is masked and they do not matter, by length.

    Raises ValueError if the model gives NaN.
    """
    model.eval()
    device = next(model.parameters()).device
    rows: list[torch.Tensor | None] = [None] * len(examples)
    batches = make_batches(examples, tokenizer, options.batch_size, by_length=options.mask_padding)
    for batch in Progress(batches, description):
        lengths = batch.lengths.to(device) if options.mask_padding else None
        with autocast(device, options.dtype):
            scores = model(batch.tokens.to(device), lengths=lengths)  # (B, num_labels)
        if scores.isnan().any():
            raise ValueError(
                "the model's scores are not numbers: its checkpoint is damaged, or training "
                f"diverged (then lower --lr {options.lr})"
            )
        for index, row in zip(batch.indices, scores.cpu(), strict=True):
            rows[index] = row
    return torch.stack(rows)


def predict(
    model: torch.nn.Module,
    examples: Sequence[Example],
    tokenizer: BaseTokenizer,
    options: Options,
    description: str,
) -> list[int]:
    """The label of the largest score of every example; see `score`."""
    return score(model, examples, tokenizer, options, description).argmax(dim=-1).tolist()


def accuracy(examples: Sequence[Example], predictions: Sequence[int]) -> float:
    """Share of examples whose label is the predicted one."""
    hits = sum(example.label == guess for example, guess in zip(examples, predictions, strict=True))
    return hits / len(examples)


def macro_f1(examples: Sequence[Example], predictions: Sequence[int]) -> float:
    """Mean over labels of the F1 score; it shows what accuracy hides, a class never predicted."""
    from sklearn.metrics import f1_score  # a second of import time, needed only here

    labels = [example.label for example in examples]
    return float(f1_score(labels, predictions, average="macro", zero_division=0))


def write_predictions(
    split: str, path: str | Path, examples: Sequence[Example], predictions: Sequence[int]
) -> None:
    """Print the split's scores and write one line `PREDICTION ||| SENTENCE` an example."""
    print(f"{split} acc :: {accuracy(examples, predictions):.3f}")
    labels = _distinct_labels(examples)
    if len(labels) == 1:
        print(
            f"every {split} example carries the label {labels[0]}, a placeholder: "
            f"this accuracy is the share predicted {labels[0]} and says nothing about the model"
        )
    else:
        print(f"{split} macro F1 :: {macro_f1(examples, predictions):.3f}")
    if len(set(predictions)) == 1 < len(predictions):
        print(f"warning: every {split} prediction is {predictions[0]}", file=sys.stderr)
    with atomic_write(path) as file:
        for example, guess in zip(examples, predictions, strict=True):
            file.write(f"{guess}{SEPARATOR}{example.sentence}\n")


def digest(path: str | Path) -> str:
    """SHA-256, in hexadecimal: of a file, of a folder's files, or of a name (tiktoken:gpt2)."""
    path = Path(path)
    if path.is_dir():
        parts = [f"{file.name} {digest(file)}" for file in sorted(path.iterdir()) if file.is_file()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if not path.exists():
        return hashlib.sha256(str(path).encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
