"""A classifier over examples: its scores, the labels they predict, and what is reported of them."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from tqdm import tqdm

from mini_llama.assignment.batches import Batch, EncodedExamples, make_batches
from mini_llama.assignment.figures import is_placeholder
from mini_llama.assignment.metrics import accuracy, macro_f1
from mini_llama.assignment.options import Options
from mini_llama.assignment.predictions import write_predictions
from utils import autocast


class Progress:
    """Iterates over batches under a bar with loss and real tokens a second; the bar is shown only
    on a terminal.
    """

    def __init__(self, batches: Iterable[Batch], description: str) -> None:
        self.bar = tqdm(batches, desc=description, unit="batch", disable=None, leave=False)
        self.loss: float | None = None

    def __iter__(self) -> Iterator[Batch]:
        tokens, start = 0, time.perf_counter()
        for batch in self.bar:
            yield batch
            tokens += int(batch.lengths.sum())
            loss = "" if self.loss is None else f"loss {self.loss:.3f}, "
            rate = tokens / (time.perf_counter() - start)
            self.bar.set_postfix_str(f"{loss}{rate:.0f} tokens/s", refresh=False)


@torch.inference_mode()
def score(
    model: torch.nn.Module,
    encoded: EncodedExamples,
    options: Options,
    description: str,
) -> torch.Tensor:
    """The model's scores (N, num_labels), on the CPU, in input order. Batches are in that
    order, or by length if padding is masked, since they then do not matter.

    Raises ValueError if the model gives NaN.
    """
    model.eval()
    device = next(model.parameters()).device
    rows: dict[int, torch.Tensor] = {}
    batches = make_batches(encoded, options.batch_size, by_length=options.mask_padding)
    for batch in Progress(batches, description):
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
) -> list[int]:
    """The label of the largest score of every example; see `score`."""
    return score(model, encoded, options, description).argmax(dim=-1).tolist()


def write_results(
    model: torch.nn.Module, splits: Mapping[str, EncodedExamples], options: Options
) -> dict[str, list[int]]:
    """Predict the dev and the test split, and, once both are known, print their scores and write
    their prediction files. Returns the predictions by split.
    """
    predictions = {
        split: predict(model, encoded, options, f"eval {split}")
        for split, encoded in splits.items()
    }
    for split, encoded in splits.items():
        report_scores(split, [e.label for e in encoded.examples], predictions[split])
        path = getattr(options, f"{split}_out")
        write_predictions(path, encoded.examples, predictions[split])
    return predictions


def report_scores(split: str, labels: Sequence[int], predictions: Sequence[int]) -> None:
    """Print a split's accuracy and macro F1, and a line for what makes them meaningless."""
    print(f"{split} acc :: {accuracy(labels, predictions):.3f}")
    if is_placeholder(labels):
        print(
            f"every {split} example carries the label {labels[0]}, a placeholder: "
            f"this accuracy is the share predicted {labels[0]} and says nothing about the model"
        )
    else:
        print(f"{split} macro F1 :: {macro_f1(labels, predictions):.3f}")
    if len(set(predictions)) == 1 < len(predictions):
        print(f"warning: every {split} prediction is {predictions[0]}", file=sys.stderr)
