#!/usr/bin/env python
"""Train or test a small Llama that adds four-digit numbers: addition_run.py {train,test}."""

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if sys.flags.safe_path:  # python -P and PYTHONSAFEPATH leave a command's own folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from mini_llama.addition.additions import EQUALS, IGNORED
from mini_llama.addition.options import TestOptions, TrainOptions
from mini_llama.command_line import OneLineParser, add_flags, one_line_errors
from mini_llama.threads import choose_threads

if TYPE_CHECKING:
    import torch  # imported where it is used, so that --help is fast

    from llama import Llama

    Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]

PROGRAM = "addition_run.py"
TRAIN = "train a model from scratch, and keep the one with the lowest validation loss"
TEST = "print the accuracy, and write the model's answers next to it"


def answer_loss(model: "Llama", inputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """Mean cross-entropy of the characters after "=", including the end of the answer.

    inputs, targets (B, T) are laid out as in addition_lib. The question has no loss.
    """
    from torch.nn import functional as F

    logits, _ = model(inputs, targets=targets)  # (B, T, V)
    is_answer = (inputs == EQUALS).cumsum(dim=1) > 0
    targets = targets.masked_fill(~is_answer, IGNORED)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def train_one_epoch(
    model: "Llama",
    loader: "Batches",
    optimizer: "torch.optim.Optimizer",
    device: "torch.device",
) -> float:
    """Take one optimizer step for each batch (inputs, targets); return the mean batch loss."""
    model.train()
    losses = []
    for inputs, targets in loader:
        loss = answer_loss(model, inputs.to(device), targets.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return float(sum(losses)) / len(losses)


def evaluate_loss(model: "Llama", loader: "Batches", device: "torch.device") -> float:
    """The mean batch loss, without training."""
    import torch

    model.eval()
    with torch.inference_mode():
        losses = [answer_loss(model, x.to(device), y.to(device)) for x, y in loader]
    return float(sum(losses)) / len(losses)


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog=PROGRAM, description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{train,test}")
    common: dict[str, Any] = {"allow_abbrev": False, "argument_default": argparse.SUPPRESS}
    add_flags(commands.add_parser("train", help=TRAIN, description=TRAIN, **common), TrainOptions)
    add_flags(commands.add_parser("test", help=TEST, description=TEST, **common), TestOptions)
    return parser


@one_line_errors(PROGRAM)
def main(argv: Sequence[str] | None = None) -> None:
    given = vars(make_parser().parse_args(argv))
    command = given.pop("command")
    options = TrainOptions(**given) if command == "train" else TestOptions(**given)
    print(f"Args: {dataclasses.asdict(options) | {'command': command}}")
    choose_threads()
    if isinstance(options, TrainOptions):  # the imports take seconds: after the quick checks
        from mini_llama.addition import training

        training.run(options, train_one_epoch, evaluate_loss)
    else:
        from mini_llama.addition import testing

        testing.run(options)


if __name__ == "__main__":
    main()
