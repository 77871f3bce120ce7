"""Option predict: a trained classifier on new texts, as they come.

Texts are read, classified and written in parts, so that a file of any size needs little memory.
"""

import contextlib
import dataclasses
import itertools
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import IO

import torch

from mini_llama.assignment.answers import Answer, Writer
from mini_llama.assignment.batches import POOL, encode_examples
from mini_llama.assignment.options import STANDARD_STREAM, Options
from mini_llama.assignment.progress import Progress
from mini_llama.assignment.reviews import Example, existing
from mini_llama.assignment.scoring import report_scores, score
from mini_llama.assignment.table_files import Columns
from mini_llama.assignment.texts import Text, read_texts
from mini_llama.assignment.trained import TrainedClassifier, load_trained, tokenizer_of
from mini_llama.checkpoints.reading import recognise
from mini_llama.command_line import visible
from mini_llama.text_files import check_file
from mini_llama.tf32 import use_tf32
from mini_llama.threads import describe_threads
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.find import check_vocabulary
from mini_llama.warning import warn
from utils import atomic_write, check_outputs, choose_device

# What decides a prediction beside the weights: the run's own values are the checkpoint's.
REMEMBERED = ("batch_size", "dtype")
CHARACTERS_A_TOKEN = 4  # before any text is tokenised


def run(options: Options) -> None:
    """Classify the texts of --input and write the predictions to --output; report the accuracy of
    texts that have labels. What is not a prediction goes to standard error.

    Raises OSError or ValueError, one line each.
    """
    torch.set_flush_denormal(True)  # as in training, so that the predictions are the same
    results = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        device = choose_device(options.use_gpu)
        use_tf32(device, options.tf32)
        check_input(options)
        recognise(options.pretrained_model_path)
        if options.output != STANDARD_STREAM:
            check_outputs([options.output], options.inputs)
        arithmetic = {name: getattr(options, name) for name in ("edition", "norm", "attention")}
        trained = load_trained(options.pretrained_model_path, **arithmetic)
        options = with_memory(options, trained)
        tokenizer = tokenizer_of(
            trained, options.pretrained_model_path, options.tokenizer, options.max_sentence_len
        )
        announce(trained, tokenizer, options, device)
        trained.model.to(device)
        with _opened(options.output, results) as file:
            labels, guesses = write_answers(trained, tokenizer, options, file)
        print(f"classified {len(guesses)} texts from {_name(options.input, 'standard input')}")
        if None not in labels:
            known = [label for label in labels if label is not None]
            report_scores("input", known, guesses, trained.written)
        if options.output != STANDARD_STREAM:
            print(f"wrote predictions to {options.output}")


def check_input(options: Options) -> None:
    """Raise OSError or ValueError for a file of texts that is not there, or is no file."""
    if options.input is not None and options.input != STANDARD_STREAM:
        check_file(existing(options.input))


def announce(
    trained: TrainedClassifier, tokenizer: BaseTokenizer, options: Options, device: torch.device
) -> None:
    """Say which classifier is used, for which labels. Raises ValueError for a tokenizer with
    another vocabulary than the model's.
    """
    path = options.pretrained_model_path
    check_vocabulary(tokenizer, trained.llama.config.vocab_size, path)
    threads = f"; {describe_threads()}" if device.type == "cpu" else ""
    names = f" ({', '.join(trained.names)})" if trained.names else ""
    labels = f"{trained.num_labels} labels{names}"
    arithmetic = f"; {trained.llama.arithmetic}" if trained.llama.arithmetic else ""
    print(visible(f"load classifier from {path}: {labels}{arithmetic}{threads}"))


def _name(path: str | None, stream: str) -> str | None:
    return stream if path == STANDARD_STREAM else path


def with_memory(options: Options, trained: TrainedClassifier) -> Options:
    """The options, with what the classifier learnt with where that was not asked for."""
    facts = trained.facts
    masks = options.mask_padding or bool(facts.get("mask_padding"))
    if masks and facts.get("mask_padding") is False:
        warn("the classifier was trained without --mask_padding, and may do worse with it")
    longest = options.max_sentence_len or facts.get("max_sentence_len")
    for name in REMEMBERED if not masks else ("dtype",):
        own, given = facts.get(name), getattr(options, name)
        if own is not None and own != given:
            print(f"it was trained with --{name} {own}: with that, predictions are its run's")
    return dataclasses.replace(options, mask_padding=masks, max_sentence_len=longest)


@contextlib.contextmanager
def _opened(path: str, results: IO[str]) -> Iterator[IO[str]]:
    if path != STANDARD_STREAM:
        with atomic_write(path) as file:
            yield file
        return
    if hasattr(results, "reconfigure"):
        results.reconfigure(encoding="utf-8", newline="\n")
    yield results
    results.flush()


def write_answers(
    trained: TrainedClassifier, tokenizer: BaseTokenizer, options: Options, file: IO[str]
) -> tuple[list[int | None], list[int]]:
    """Classify and write all texts; their labels and predictions.

    Raises ValueError if there is none, and as read_texts does.
    """
    words = trained.names or trained.written
    writer = Writer(file, options.format, trained.written, words, options.probabilities)
    labels: list[int | None] = []
    guesses: list[int] = []
    assert options.input is not None
    columns = Columns(options.text_column, options.label_column, needs_label=False)
    texts = read_texts(options.input, columns, trained.label_of)
    with progress_of(options, file) as progress:
        for part in parts_of(texts, options):
            for answer in classify(trained, tokenizer, options, part, progress):
                writer.write(answer)
                labels.append(answer.label)
                guesses.append(answer.prediction)
            file.flush()
    if not guesses:
        raise ValueError(f"{_name(options.input, 'standard input')} has no text to classify")
    return labels, guesses


def classify(
    trained: TrainedClassifier,
    tokenizer: BaseTokenizer,
    options: Options,
    part: Sequence[Text],
    progress: Progress,
) -> list[Answer]:
    """The answers to some texts, in their order."""
    examples = [Example(text.sentence, text.label or 0) for text in part]
    encoded = encode_examples(examples, tokenizer)
    progress.expect(encoded.tokens, sum(len(text.sentence) for text in part))
    scores = score(trained.model, encoded, options, "predict", progress)
    guesses = scores.argmax(dim=-1).tolist()
    return [
        Answer(text.sentence, guess, text.label, row)
        for text, guess, row in zip(part, guesses, scores.tolist(), strict=True)
    ]


def parts_of(texts: Iterator[Text], options: Options) -> Iterator[list[Text]]:
    """The texts in parts: one at a time from a terminal, a batch at a time from a pipe, so that
    answers come soon, and several batches at a time from a file, so that those of like length can
    come together.
    """
    size = options.batch_size * POOL
    if options.input == STANDARD_STREAM and not _is_file(sys.stdin):
        size = 1 if sys.stdin.isatty() else options.batch_size
    while part := list(itertools.islice(texts, size)):
        yield part


def _is_file(stream: IO[str]) -> bool:
    return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)


def progress_of(options: Options, results: IO[str]) -> Progress:
    """A bar where the input is a file, unless the answers are shown in the same place."""
    is_shown = options.output == STANDARD_STREAM and results.isatty()
    source = options.input
    if source is None or source == STANDARD_STREAM or is_shown:
        return Progress(0, is_hidden=True)
    size = os.path.getsize(source)
    return Progress(size // CHARACTERS_A_TOKEN, characters=size)
