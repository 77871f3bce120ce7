"""Probes of Llama.generate: one sequence at a time, as the assignment runs it, and a batch.

Legend of shapes: B batch, T positions, V vocabulary.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from mini_llama.diagnosis.probes.common import (
    Cases,
    Modules,
    ResultError,
    Settings,
    Values,
    accepted,
    find,
    flags,
    make_config,
    replaced,
)

N_DRAWS = 3000  # if torch.multinomial is not used: count samples
DRAWN = ", drawn"  # suffix of outputs that may be counted frequencies
NONE_LEFT = "none left"
BATCH = "a batch of several sequences"
SUMS = "sums of the probabilities"
TOP_P_REACHED = "top_p reached exactly"


class Table:
    """A model whose logits are row `last token` of a table."""

    def __init__(self, modules: Modules, settings: Settings) -> None:
        self.model = find(modules.llama, "Llama")(make_config(modules, settings)).eval()
        self.model.double()  # the plain path: see __init__.py
        values = {"epsilon": settings.epsilon, "top_p": settings.top_p}
        self.options = accepted(find(self.model, "generate"), **values)
        filters = (
            {"epsilon"} if settings.epsilon > 0 else {"top_p"} if settings.top_p < 1 else set()
        )
        if filters and not filters & self.options.keys():
            self.options = {}  # use its defaults: another filter, or another name
        self.sums: list[bool] = []

    def run(self, table: torch.Tensor, idx: torch.Tensor, new: int, **more: float) -> torch.Tensor:
        """idx (B, T) followed by `new` tokens. Raises ResultError for any other result."""
        self.model.forward = lambda tokens, *_, **__: (
            table[tokens[:, -1:]],
            tokens.float()[..., None],
        )
        result: Any = self.model.generate(idx, new, **(self.options | more))
        expected = (idx.shape[0], idx.shape[1] + new)
        size: tuple[int, ...] = tuple(getattr(result, "shape", ()))
        if len(size) == 2 and size[0] == expected[0] and idx.shape[1] < size[1] < expected[1]:
            n = size[1] - idx.shape[1]
            raise ResultError(f"generate stopped after {n} of {new} new tokens")
        if not isinstance(result, torch.Tensor) or tuple(result.shape) != expected:
            got = tuple(getattr(result, "shape", [])) or type(result).__name__
            what = f"generate returned {got}, not {expected}"
            raise ResultError(f"{what}: the prompt and {new} new tokens")
        return result.clone()

    def one_by_one(
        self, table: torch.Tensor, idx: torch.Tensor, new: int, **more: float
    ) -> torch.Tensor:
        return torch.cat([self.run(table, idx[i : i + 1], new, **more) for i in range(len(idx))])

    def in_two_batches(
        self, table: torch.Tensor, idx: torch.Tensor, new: int, **more: float
    ) -> torch.Tensor:
        """In batches of 6: a batch as large as the vocabulary would hide a wrong axis."""
        return torch.cat([self.run(table, idx[:6], new, **more) for _ in range(2)])

    def sampled(self, name: str, table: torch.Tensor, in_batch: bool, **more: float) -> Values:
        """Probability of each token, as passed to torch.multinomial, or else counted."""
        idx = torch.zeros(8, 3, dtype=torch.long)
        run = self.in_two_batches if in_batch else self.one_by_one
        with recorded_draws() as draws:
            new = run(table, idx, 1, **({"temperature": 1.0} | more))[:, -1]
        if draws:
            self.sums += [bool((row.sum() - 1).abs() < 1e-4) for row in torch.cat(draws)]
            found = probabilities(draws, new)
            return {name: found} if in_batch else {name: found, name + DRAWN: found}
        if in_batch:
            return {}
        counts = torch.zeros(8)
        for _ in range(N_DRAWS):
            counts[self.run(table, idx[:1], 1, **({"temperature": 1.0} | more))[0, -1]] += 1
        return {name + DRAWN: counts / N_DRAWS}


def probe_generate(modules: Modules, settings: Settings) -> Cases:
    table = Table(modules, settings)
    probs = torch.tensor([0.38, 0.25, 0.16, 0.09, 0.06, 0.03, 0.02, 0.01])
    rows = torch.stack([probs.roll(5 * i + 2).log() + 2.5 for i in range(8)])  # of both signs
    idx = torch.arange(8)[:, None].expand(8, 3)

    def greedy() -> Values:
        return {"greedy": table.one_by_one(rows, idx, 4, temperature=0.0).float()}

    def ties() -> Values:
        tied = torch.tensor([1.0, 2, 2, 0, 2, 2, 2, 2]).expand(8, 8)
        new = table.one_by_one(tied, idx, 1, temperature=0.0)[:, -1]
        return {"greedy ties": flags((new == 1).all())}

    def batch() -> Values:
        found = {f"{BATCH}, greedy": table.run(rows, idx, 4, temperature=0.0).float()}
        return found | table.sampled(f"{BATCH}, tempered", rows, True, temperature=2.0)

    def sums() -> Values:
        """Runs last: it uses the earlier cases' draws, of one sequence only."""
        return {SUMS: flags(all(table.sums))} if table.sums else {}

    cases: Cases = {"greedy": greedy, "greedy ties": ties}
    for name, (logits, more) in sampling_cases(rows, settings, table.options).items():
        cases[name] = partial(table.sampled, name, logits, False, **more)
    return cases | {SUMS: sums, BATCH: batch}


def sampling_cases(
    rows: torch.Tensor, settings: Settings, options: dict[str, object]
) -> dict[str, tuple[torch.Tensor, dict[str, float]]]:
    """The logits and options of each case above temperature 0."""
    cases: dict[str, tuple[torch.Tensor, dict[str, float]]] = {
        "tempered": (rows, {"temperature": 2.0}),
        "sharpened": (rows, {"temperature": 0.5}),
    }
    if settings.epsilon > 0 and "epsilon" in options:
        cases["epsilon reached exactly"] = (torch.zeros(8, 8), {"epsilon": 0.125})
        cases[NONE_LEFT] = (rows, {"epsilon": 0.9})
    if settings.top_p < 1 and "top_p" in options:
        # exact in binary: 1/2, 1/4, 1/16 each of four
        binary = torch.tensor([0.0625, 0.5, 0.0625, 0.25, 0.0625, 0, 0, 0.0625]).log()
        cases["the most probable token above top_p"] = (rows, {"top_p": 0.2})
        cases[TOP_P_REACHED] = (binary.expand(8, 8), {"top_p": 0.75})
    return cases


@contextlib.contextmanager
def recorded_draws() -> Iterator[list[torch.Tensor]]:
    """Record the arguments of torch.multinomial, and pick column i in row i."""
    draws: list[torch.Tensor] = []
    multinomial = torch.multinomial

    def pick(probs: torch.Tensor, *sizes: Any, **options: Any) -> torch.Tensor:
        multinomial(probs, *sizes, **options)  # for its usual errors
        count = sum(len(rows) for rows in draws)
        rows = probs.reshape(-1, probs.shape[-1])
        draws.append(rows)
        picked = (count + torch.arange(len(rows))) % rows.shape[-1]
        return picked.view(*probs.shape[:-1], 1)

    with replaced(torch, multinomial=pick), replaced(torch.Tensor, multinomial=pick):
        yield draws


def probabilities(draws: list[torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """(V,): the probability of each token, in whatever order the columns were."""
    rows = torch.cat(draws)
    total = torch.zeros(8)
    for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        if i < len(row):  # each column once
            total[token] += row[i] / row.sum()  # as torch.multinomial normalises
    return total
