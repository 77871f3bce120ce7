"""Read a run's outputs: its log, its predictions and their scores."""

import re

from mini_llama.assignment import predictions
from mini_llama.assignment.figures import SPLITS
from mini_llama.assignment.metrics import accuracy
from mini_llama.assignment.reviews import Example, read_examples, read_label_names, with_prompt
from mini_llama.reproduction.runs import Run
from mini_llama.resume import digest

EPOCH = re.compile(
    r"epoch (\d+): train loss :: ([\d.]+), train acc :: ([\d.]+), dev acc :: ([\d.]+)"
)


def output_hashes(run: Run) -> dict[str, str]:
    """SHA-256 of the graded files that exist, by name."""
    return {path.name: digest(path) for path in run.outputs if path.is_file()}


def read_log(run: Run) -> str:
    """The run's printed output; "" if there is none yet."""
    return run.log.read_text(encoding="utf-8", errors="replace") if run.log.exists() else ""


def read_predictions(run: Run, split: str) -> tuple[list[Example], list[int]]:
    """The gold examples of a split and the label predicted for each.

    Raises OSError, and ValueError if the two files do not have the same sentences.
    """
    source = getattr(run.options, split)
    inputs = gold = read_examples(source)
    if run.options.option == "prompt":
        inputs = with_prompt(gold, read_label_names(run.options.label_names))
    return gold, predictions.read_predictions(getattr(run.options, f"{split}_out"), inputs, source)


def read_labels(run: Run, split: str) -> tuple[list[int], list[int]]:
    """The gold and the predicted labels of a split. Raises as read_predictions does."""
    gold, predicted = read_predictions(run, split)
    return [example.label for example in gold], predicted


def read_epochs(run: Run) -> list[dict[str, float]]:
    """The loss and accuracies printed after each epoch; for a repeated epoch, the last ones."""
    epochs = {}
    for match in EPOCH.finditer(read_log(run)):
        names = ("epoch", "train_loss", "train_accuracy", "dev_accuracy")
        epochs[int(match[1])] = dict(zip(names, map(float, match.groups()), strict=True))
    return [epochs[number] for number in sorted(epochs)]


def headline(run: Run) -> str:
    """A run's result as one short line. Raises OSError or ValueError for damaged outputs."""
    if run.dataset is None:
        return "two texts"
    scores = ((s, accuracy(*read_labels(run, s))) for s in SPLITS)
    return ", ".join(f"{split} acc {value:.3f}" for split, value in scores)
