"""Option prompt: zero-shot classification by the words that the model would answer with.

The reading position and the padding are the classifier's; here is only the order of work.
"""

import sys
from collections.abc import Sequence

from classifier import LlamaZeroShotClassifier
from mini_llama.assignment.evaluation import (
    announce,
    classifier_config,
    predict,
    prepare,
    write_predictions,
)
from mini_llama.assignment.options import Options
from mini_llama.assignment.reviews import Example, with_prompt
from mini_llama.tokenization.base import BaseTokenizer
from utils import seed_everything


def run(options: Options) -> None:
    """Classify dev and test, print both accuracies, write both prediction files.

    Raises OSError or ValueError before any work is done.
    """
    seed_everything(options.seed)
    task = prepare(options)
    config = classifier_config(options, task)
    model = LlamaZeroShotClassifier(config, task.tokenizer, task.label_names).to(task.device)
    announce(model.llama, task.tokenizer, options.pretrained_model_path)
    results = []
    for split, path in (("dev", options.dev_out), ("test", options.test_out)):
        examples = with_prompt(getattr(task, split), task.label_names)
        warn_of_lost_questions(split, examples, task.tokenizer)
        predictions = predict(model, examples, task.tokenizer, options, f"eval {split}")
        results.append((split, path, examples, predictions))
    for result in results:
        write_predictions(*result)


def warn_of_lost_questions(
    split: str, examples: Sequence[Example], tokenizer: BaseTokenizer
) -> None:
    """--max_sentence_len cuts the question as well, as in the assignment: say how often it does."""
    if tokenizer.max_len is None:
        return
    counts = (len(tokenizer.encode(e.sentence, bos=False, eos=False)) for e in examples)
    lost = sum(count == tokenizer.max_len for count in counts)
    if lost:
        print(
            f"warning: --max_sentence_len {tokenizer.max_len} cuts the question, or a part of it, "
            f"off {lost} of {len(examples)} {split} texts",
            file=sys.stderr,
        )
