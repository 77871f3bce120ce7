"""Scores of predictions: accuracy and macro F1."""

from collections.abc import Sequence


def accuracy(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """Share of predictions that equal the label."""
    hits = sum(label == guess for label, guess in zip(labels, predictions, strict=True))
    return hits / len(labels)


def macro_f1(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """Mean over labels of the F1 score; it shows what accuracy hides, a class never predicted."""
    from sklearn.metrics import f1_score  # a second of import time, needed only here

    return float(f1_score(labels, predictions, average="macro", zero_division=0))
