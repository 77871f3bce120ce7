"""Option prompt: zero-shot classification by the most probable label word."""

import sys

from classifier import LlamaZeroShotClassifier
from mini_llama.assignment.adapters import load_adapters
from mini_llama.assignment.batches import EncodedExamples, encode_examples
from mini_llama.assignment.graded_run import report_predictions
from mini_llama.assignment.options import Options
from mini_llama.assignment.progress import Progress
from mini_llama.assignment.reviews import with_prompt
from mini_llama.assignment.scoring import predict_splits, write_results
from mini_llama.assignment.task import announce, classifier_config, prepare
from utils import seed_everything


def run(options: Options) -> None:
    """Classify dev and test, print both accuracies, write both prediction files, and compare them
    with the reference outputs where the run is a graded one.

    Raises OSError or ValueError before any work is done.
    """
    seed_everything(options.seed)
    task = prepare(options)
    names = task.labels.names
    assert names is not None  # only training may go without them
    config = classifier_config(options, task)
    model = LlamaZeroShotClassifier(config, task.tokenizer, names)
    announce(model.llama, task.tokenizer, options.pretrained_model_path, task.device)
    if options.adapters:
        load_adapters(model.llama, options.adapters)
    model.to(task.device)
    splits = {}
    for split in options.scored:
        asked = with_prompt(task.splits[split], names, options.question)
        splits[split] = encode_examples(asked, task.tokenizer)
        warn_of_lost_questions(split, splits[split], task.tokenizer.max_len)
    with Progress(sum(encoded.tokens for encoded in splits.values())) as progress:
        predictions = predict_splits(model, splits, options, progress)
    write_results(splits, predictions, options, task.labels.written)
    report_predictions(model.llama, task.tokenizer, options, splits, predictions)


def warn_of_lost_questions(split: str, encoded: EncodedExamples, max_len: int | None) -> None:
    """Warn of texts whose question --max_sentence_len cuts off, as in the assignment."""
    if max_len is None:
        return
    lost = sum(len(row) - 1 == max_len for row in encoded.rows)  # BOS is not counted
    if lost:
        print(
            f"warning: --max_sentence_len {max_len} cuts the question, or a part of it, "
            f"off {lost} of {len(encoded.rows)} {split} texts",
            file=sys.stderr,
        )
