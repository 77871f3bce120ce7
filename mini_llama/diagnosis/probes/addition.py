"""Probes of Spring 2026's three functions: the training data, one epoch, and the loss.

Legend of shapes: B batch, T columns, V vocabulary; addition_lib has the layout of x and y.
"""

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mini_llama.diagnosis.probes.common import (
    Cases,
    Modules,
    ResultError,
    Settings,
    Values,
    call,
    draw,
    find,
    flags,
    replaced,
)

N_IDS, IGNORED = 13, -1
CHARS = "+0123456789="
FEW, MANY = 200, 2000
SMALLEST, LARGEST = 1000, 9999
FORM = re.compile(r"(\d+)\+(\d+)=(\d+)")
NO_GRAD = "evaluate_loss records gradients: torch.no_grad() makes it faster"
# All sums have five digits: the mean is the same, however batches are averaged.
PAIRS = (5104, 8203), (9999, 6471), (8888, 1234), (7650, 4321)
ADDITIONS = [f"{a}+{b}={a + b}" for a, b in PAIRS]


class Network(nn.Module):
    """A replacement for Llama: its prediction depends on the last two input ids."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=N_IDS, dim=N_IDS, max_seq_len=20)
        self.params = self.config
        self.tok_embeddings = nn.Embedding(N_IDS, N_IDS)
        self.output = nn.Linear(N_IDS, N_IDS, bias=False)
        self.modes: list[bool] = []
        self.records: list[bool] = []
        with torch.no_grad():
            self.tok_embeddings.weight.copy_(draw("ids", N_IDS, N_IDS) / 3)
            self.output.weight.copy_(draw("logits", N_IDS, N_IDS) / 3)

    def forward(self, tokens: torch.Tensor, targets: Any = None, **_: object) -> tuple:
        """Logits (B, 1, V), or (B, T, V) with targets, and hidden states (B, T, V)."""
        self.modes.append(self.training)
        self.records.append(torch.is_grad_enabled())
        hidden = self.tok_embeddings(tokens)
        hidden = hidden + 0.5 * hidden.roll(1, 1)
        return self.output(hidden if targets is not None else hidden[:, [-1], :]), hidden


class CountingSGD(torch.optim.SGD):
    n_steps = 0

    def step(self, closure: Any = None) -> Any:
        self.n_steps += 1
        return super().step(closure)


def batches() -> DataLoader:
    """Two batches of two additions each; x and y (B, T) have two columns of padding."""
    ids = [[CHARS.index(char) + 1 for char in text] for text in ADDITIONS]
    x = torch.tensor([[0, *row, 0, 0] for row in ids])
    y = torch.tensor([[*row, 0, IGNORED, IGNORED] for row in ids])
    return DataLoader(TensorDataset(x, y), batch_size=2)


def number(value: Any) -> torch.Tensor:
    """Return the loss as a tensor (1,). Raises ResultError if it is not a number."""
    value = value[0] if isinstance(value, tuple) and value else value
    try:
        return flags(value)
    except (TypeError, ValueError):
        raise ResultError(f"got {type(value).__name__}, not a number") from None


def probe_train_one_epoch(modules: Modules, settings: Settings) -> Cases:
    train = find(modules.addition_run, "train_one_epoch")

    def epoch() -> Values:
        network, cpu = Network(), torch.device("cpu")
        start = torch.cat([weight.detach().flatten() for weight in network.parameters()])
        optimizer = CountingSGD(network.parameters(), lr=0.5)
        network.eval()
        loss = call(modules, train, network, batches(), optimizer, cpu)
        moved = torch.cat([weight.detach().flatten() for weight in network.parameters()]) - start
        return {
            "loss": number(loss),
            "change of the weights": moved,
            "number of steps": flags(optimizer.n_steps),
            "training mode": flags(all(network.modes)),
        }

    return {"an epoch": epoch}


def probe_evaluate_loss(modules: Modules, settings: Settings) -> Cases:
    evaluate = find(modules.addition_run, "evaluate_loss")

    def evaluated() -> Values:
        network = Network().train()
        loss = call(modules, evaluate, network, batches(), torch.device("cpu"))
        if any(network.records):
            modules.note(NO_GRAD)
        return {"loss": number(loss), "training mode": flags(any(network.modes))}

    return {"an evaluation": evaluated}


def probe_addition_data(modules: Modules, settings: Settings) -> Cases:
    generate = find(modules.addition_data_generation, "generate_addition_data")

    def made(n: int) -> list[str]:
        result = call(modules, generate, n)
        is_several = isinstance(result, (list, tuple, set))
        if not is_several or not all(isinstance(text, str) for text in result):
            raise ResultError(f"got {type(result).__name__}, not a list of texts a+b=c")
        return [text.strip() for text in result]

    def form() -> Values:
        random.seed(0)
        np.random.seed(0)
        texts = made(MANY)
        found = [match for text in texts if (match := FORM.fullmatch(text))]
        terms = [tuple(map(int, match.groups())) for match in found]
        values = {
            "extra additions": flags(len(texts) - MANY),
            "share without spaces": flags(sum(" " not in t for t in texts) / max(1, len(texts))),
            "share of the form a+b=c": flags(len(found) / max(1, len(texts))),
        }
        if terms:
            of_pair = [number for a, b, _ in terms for number in (a, b)]
            values["share of right sums"] = flags(sum(a + b == c for a, b, c in terms) / len(terms))
            values["from 1000"] = flags(min(of_pair) >= SMALLEST)
            values["to 9999"] = flags(max(of_pair) <= LARGEST)
        return values

    def twice() -> Values:
        with few_numbers():
            texts = made(FEW)
        pairs = [text.partition("=")[0].split("+") for text in texts]
        ordered, unordered = {tuple(p) for p in pairs}, {tuple(sorted(p)) for p in pairs}
        return {
            "no pair twice": flags(len(ordered) == len(pairs)),
            "no pair in both orders": flags(len(unordered) == len(ordered)),
        }

    return {"additions": form, "pairs of few numbers": twice}


@contextmanager
def few_numbers() -> Iterator[None]:
    """random and numpy draw integers from only thirty values, so that pairs soon repeat."""
    draw_one = random.Random(0)

    def near(low: Callable[..., int]) -> Callable[..., Any]:
        def drawn(*bounds: int, size: Any = None, **_: object) -> Any:
            if len(bounds) > 2:
                size = bounds[2]
            count = 1 if size is None else int(np.prod(size))
            values = [low(*bounds) + draw_one.randrange(30) for _ in range(count)]
            return values[0] if size is None else np.array(values).reshape(size)

        return drawn

    first = near(lambda low, *_: low)
    with (
        replaced(random, randint=first, randrange=first),
        replaced(np.random, randint=first),
    ):
        yield
