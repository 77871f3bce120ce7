"""What is checked and read before any work: device, output files, data, labels, tokenizer."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from classifier import ClassifierConfig
from llama import Llama
from mini_llama.assignment.labels import (
    Labels,
    are_indices,
    label_set,
    named_labels,
    own_labels,
)
from mini_llama.assignment.options import Options
from mini_llama.assignment.reviews import Example, Record, read_label_names
from mini_llama.assignment.table_files import Columns, read_records
from mini_llama.checkpoints.own_tokenizer import find_own_tokenizer
from mini_llama.checkpoints.reading import check_exists, recognise
from mini_llama.layers.int8_blocks import describe_kept
from mini_llama.tf32 import use_tf32
from mini_llama.threads import describe_threads
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.find import check_vocabulary, load_tokenizer
from utils import check_outputs, choose_device


@dataclass(frozen=True)
class Task:
    """The data of one run, read and checked: examples by split, of which "dev" is always there."""

    device: torch.device
    tokenizer: BaseTokenizer
    splits: dict[str, list[Example]]
    labels: Labels

    @property
    def num_labels(self) -> int:
        return len(self.labels.written)

    @property
    def label_names(self) -> list[str] | None:
        return self.labels.names


def prepare(options: Options, outputs: Sequence[str | Path] = ()) -> Task:
    """Check all that can be checked without a model: GPU, output files, data, labels, tokenizer.

    `outputs` are written besides the prediction files. Raises OSError or ValueError with one line
    that says what to do.
    """
    written = [getattr(options, f"{split}_out") for split in options.scored]
    device, tokenizer = prepare_model(options, [*written, *outputs])
    columns = Columns(options.text_column, options.label_column)
    records = {}
    for split, path in options.splits.items():
        records[split] = read_records(path, columns)
        print(f"load {len(records[split])} data from {path}")
    labels = _labels(options, records)
    splits = {split: labels.examples(found) for split, found in records.items()}
    if "train" in splits:
        _warn_of_absent(options.train, labels, splits["train"])
    return Task(device, tokenizer, splits, labels)


def prepare_model(
    options: Options, outputs: Sequence[str | Path]
) -> tuple[torch.device, BaseTokenizer]:
    """The device and the tokenizer, after checking that the output files can be written.

    Raises OSError or ValueError with one line that says what to do.
    """
    device = choose_device(options.use_gpu)
    use_tf32(device, options.tf32)
    recognise(options.pretrained_model_path)
    if options.adapters:
        check_exists(options.adapters)
    tokenizer_path = find_own_tokenizer(options.pretrained_model_path, options.tokenizer)
    check_outputs(outputs, [*options.inputs, tokenizer_path])
    return device, load_tokenizer(tokenizer_path, options.max_sentence_len)


def _labels(options: Options, records: Mapping[str, Sequence[Record]]) -> Labels:
    """The classes: those of the label words, or, where their default file is of another data set,
    those that the data themselves have.
    """
    found = label_set(record for split in records.values() for record in split)
    if not options.has_label_names:
        defining = found if options.option == "prompt" else label_set(records["train"])
        if options.option != "prompt" or not are_indices(defining):
            return own_labels(defining, found)
        if not Path(options.label_names).exists():
            what = f"the labels of {options.dev} are indices, and --option prompt asks for words"
            raise ValueError(f"{what}: name a JSON list of them with --label-names")
    return named_labels(read_label_names(options.label_names), found, options.label_names)


def _warn_of_absent(path: str, labels: Labels, train: Sequence[Example]) -> None:
    """Warn of label words without an example to train on."""
    absent = sorted(set(range(len(labels.written))) - {example.label for example in train})
    if absent and labels.names is not None:
        words = ", ".join(f"{label} ({labels.names[label]})" for label in absent)
        print(f"warning: {path} has no example of label {words}", file=sys.stderr)


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
    kept = describe_kept(llama)
    print(f"load model from {path}: {llama.arithmetic}{threads}{f'; {kept}' if kept else ''}")
