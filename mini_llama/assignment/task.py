"""What is checked and read before any work: device, output files, data, labels, tokenizer."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from classifier import ClassifierConfig
from llama import Llama
from mini_llama.assignment.options import Options, default_of
from mini_llama.assignment.reviews import (
    Example,
    check_labels,
    read_examples,
    read_label_names,
)
from mini_llama.checkpoints.own_tokenizer import find_own_tokenizer
from mini_llama.checkpoints.reading import check_exists, recognise
from mini_llama.threads import describe_threads
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.find import check_vocabulary, load_tokenizer
from utils import check_outputs, choose_device


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
    """The device and the tokenizer, after checking that the output files can be written.

    Raises OSError or ValueError with one line that says what to do.
    """
    device = choose_device(options.use_gpu)
    recognise(options.pretrained_model_path)
    if options.adapters:
        check_exists(options.adapters)
    tokenizer_path = find_own_tokenizer(options.pretrained_model_path, options.tokenizer)
    check_outputs(outputs, [*options.inputs, tokenizer_path])
    return device, load_tokenizer(tokenizer_path, options.max_sentence_len)


def _label_names(options: Options, train: Sequence[Example]) -> list[str] | None:
    """The label words; None if training needs none: the default file is of another data set, and
    the labels are then those of the training file.
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
    """The configuration of the classifiers."""
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


def announce(
    llama: Llama, tokenizer: BaseTokenizer, path: str | Path, device: torch.device
) -> None:
    """Print which model is used, with which arithmetic and why, and on a CPU the threads.

    Raises ValueError for a tokenizer with another vocabulary than the model's.
    """
    check_vocabulary(tokenizer, llama.config.vocab_size, path)
    threads = f"; {describe_threads()}" if device.type == "cpu" else ""
    print(f"load model from {path}: {llama.arithmetic}{threads}")
