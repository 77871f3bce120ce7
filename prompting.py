"""Option prompt: zero-shot classification by the words that the model would answer with.

The reading position and the padding are the classifier's; here is only the order of work.
"""

from classifier import LlamaZeroShotClassifier
from evaluation import announce, classifier_config, predict, prepare, write_predictions
from options import Options
from sentiment_data import with_prompt
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
        predictions = predict(model, examples, task.tokenizer, options, f"eval {split}")
        results.append((split, path, examples, predictions))
    for result in results:
        write_predictions(*result)
