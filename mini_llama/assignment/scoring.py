"""A classifier over examples: its scores, the labels they predict, and what is reported of them."""

import sys
from collections.abc import Mapping, Sequence

import torch

from mini_llama.assignment.batches import EncodedExamples, make_batches
from mini_llama.assignment.figures import is_placeholder
from mini_llama.assignment.metrics import accuracy, macro_f1
from mini_llama.assignment.options import Options
from mini_llama.assignment.predictions import write_predictions
from mini_llama.assignment.progress import Progress
from utils import autocast


@torch.inference_mode()
def score(
    model: torch.nn.Module,
    encoded: EncodedExamples,
    options: Options,
    description: str,
    progress: Progress,
) -> torch.Tensor:
    """The model's scores (N, num_labels), on the CPU, in input order. Batches are in that
    order, or by length if padding is masked, since they then do not matter.

    Raises ValueError if the model gives NaN.
    """
    model.eval()
    device = next(model.parameters()).device
    rows: dict[int, torch.Tensor] = {}
    batches = make_batches(encoded, options.batch_size, by_length=options.mask_padding)
    for batch in progress.over(batches, description):
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
    return torch.stack([rows[index] for index in range(len(encoded.rows))])


def predict(
    model: torch.nn.Module,
    encoded: EncodedExamples,
    options: Options,
    description: str,
    progress: Progress,
) -> list[int]:
    """The label of the largest score of every example; see `score`."""
    return score(model, encoded, options, description, progress).argmax(dim=-1).tolist()


def predict_splits(
    model: torch.nn.Module,
    splits: Mapping[str, EncodedExamples],
    options: Options,
    progress: Progress,
) -> dict[str, list[int]]:
    """The predictions of every split."""
    return {
        split: predict(model, encoded, options, f"eval {split}", progress)
        for split, encoded in splits.items()
    }


def write_results(
    splits: Mapping[str, EncodedExamples],
    predictions: Mapping[str, Sequence[int]],
    options: Options,
    written: Sequence[str],
) -> None:
    """Print the scores of each split's predictions, and write its prediction file, which has
    `written` for each label.
    """
    for split, encoded in splits.items():
        report_scores(split, [e.label for e in encoded.examples], predictions[split], written)
        path = getattr(options, f"{split}_out")
        write_predictions(path, encoded.examples, [written[guess] for guess in predictions[split]])
    for split in splits:
        print(f"wrote {split} predictions to {getattr(options, f'{split}_out')}")


def report_scores(
    split: str, labels: Sequence[int], predictions: Sequence[int], written: Sequence[str]
) -> None:
    """Print a split's accuracy and macro F1, and a line for what makes them meaningless."""
    print(f"{split} acc :: {accuracy(labels, predictions):.3f}")
    if is_placeholder(labels):
        label = written[labels[0]]
        print(
            f"every {split} example carries the label {label}, a placeholder: "
            f"this accuracy is the share predicted {label} and says nothing about the model"
        )
    else:
        print(f"{split} macro F1 :: {macro_f1(labels, predictions):.3f}")
    if len(set(predictions)) == 1 < len(predictions):
        print(f"warning: every {split} prediction is {written[predictions[0]]}", file=sys.stderr)
