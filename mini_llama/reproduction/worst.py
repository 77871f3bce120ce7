"""Find the dev examples that a run's classifier misclassified with the highest confidence.

run_llama.py writes labels, not scores, so the examples are scored again in the same batches, with
the saved classifier or, for prompt, the zero-shot one. Confidence is the softmax over the labels'
scores.
"""

from pathlib import Path

import torch

from classifier import ClassifierConfig, LlamaZeroShotClassifier, load_classifier
from mini_llama.assignment.batches import encode_examples
from mini_llama.assignment.options import Options
from mini_llama.assignment.progress import Progress
from mini_llama.assignment.reviews import Example, read_label_names, with_prompt
from mini_llama.assignment.scoring import score
from mini_llama.checkpoints.own_tokenizer import find_own_tokenizer
from mini_llama.reproduction.results import Misclassified
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.find import load_tokenizer
from utils import choose_device

MAX_CHARACTERS = 400  # of each sentence


def find_worst_examples(
    options: Options, gold: list[Example], predictions: list[int], count: int
) -> list[Misclassified]:
    """Up to `count` misclassified examples, the most confident first; those whose prediction
    changes when scored again are skipped.

    Raises OSError or ValueError if the classifier cannot be read.
    """
    path = find_own_tokenizer(options.pretrained_model_path, options.tokenizer)
    tokenizer = load_tokenizer(path, options.max_sentence_len)
    model, examples = _classifier(options, gold, tokenizer)
    model = model.to(choose_device(options.use_gpu))
    encoded = encode_examples(examples, tokenizer)
    with Progress(encoded.tokens) as progress:
        scores = score(model, encoded, options, "worst", progress)
    probabilities = torch.softmax(scores.float(), dim=-1)  # (N, num_labels)
    wrong = [
        Misclassified(
            _shorten(example.sentence), example.label, guess, row[guess].item(), row[label].item()
        )
        for example, guess, row in zip(gold, predictions, probabilities, strict=True)
        if guess != (label := example.label) and guess == int(row.argmax())
    ]
    return sorted(wrong, key=lambda example: -example.confidence)[:count]


def _classifier(
    options: Options, gold: list[Example], tokenizer: BaseTokenizer
) -> tuple[torch.nn.Module, list[Example]]:
    """The run's classifier and its inputs."""
    if options.option != "prompt":
        return load_classifier(Path(options.checkpoint_path)), gold
    names = read_label_names(options.label_names)
    config = ClassifierConfig(
        options.pretrained_model_path,
        len(names),
        edition=options.edition,
        norm=options.norm,
        attention=options.attention,
    )
    return LlamaZeroShotClassifier(config, tokenizer, names), with_prompt(gold, names)


def _shorten(sentence: str) -> str:
    if len(sentence) <= MAX_CHARACTERS:
        return sentence
    return sentence[: MAX_CHARACTERS - 1] + "…"
