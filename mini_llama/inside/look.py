"""What see.py does: trace a text and its continuation, and make a page of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mini_llama.bounds import check_usage
from mini_llama.inference.sampling import Sampler
from mini_llama.inside import page_data
from mini_llama.inside.budget import Budget, plan
from mini_llama.inside.comparison import compare
from mini_llama.inside.options import SeeOptions
from mini_llama.inside.pieces import read_piece
from mini_llama.inside.sides import Side
from mini_llama.inside.trace import Step, Trace, trace_generation, trace_tokens
from mini_llama.tokenization.stop_ids import stop_ids


def look(sides: Sequence[Side]) -> dict[str, Any]:
    """The data of a page of one model, or of two that are compared. Raises ValueError."""
    options = sides[0].options
    ids = sides[0].tokenizer.encode(text_of(options), bos=True, eos=False)
    count = 1 if options.pad_to else max(options.max_new_tokens, 1)
    length = max(len(ids), options.pad_to)
    configs = [side.llama.config for side in sides]
    tokens = min(plan(config, length, count, len(sides)).tokens for config in configs)
    budgets = [plan(config, length, count, len(sides), tokens) for config in configs]
    found = [trace_text(side, ids, budget) for side, budget in zip(sides, budgets, strict=True)]
    traces = []
    for side, budget, (trace, steps) in zip(sides, budgets, found, strict=True):
        config, excluded = side.llama.config, side.tokenizer.padding_only
        subject = page_data.Subject(side.title, side.facts, config, side.sampling, excluded)
        traces.append(page_data.page_data(subject, trace, steps, budget, read_with(side)))
    data: dict[str, Any] = {"version": 1, "traces": traces}
    if len(sides) == 2:
        difference = compare(found[0][0], found[1][0], (sides[0].llama, sides[1].llama))
        data["difference"] = page_data.difference_data(difference)
    return data


def title_of(data: Mapping[str, Any]) -> str:
    return f"Inside {' and '.join(trace['title'] for trace in data['traces'])}"


def read_with(side: Side) -> page_data.Read:
    return lambda token_id: read_piece(side.tokenizer, token_id)


def text_of(options: SeeOptions) -> str:
    edition = options.model_options().edition_in_force
    return edition.prompt_text if options.text is None else options.text


def trace_text(side: Side, ids: list[int], budget: Budget) -> tuple[Trace, list[Step]]:
    """The trace of a text, padded or not, and the steps of its continuation: with padding only the
    one that the column which is read would give. Raises ValueError.
    """
    llama, tokenizer, options = side.llama, side.tokenizer, side.options
    ids = ids[: budget.tokens]
    sampler = make_sampler(side)
    if not options.pad_to:
        tokens = torch.tensor(ids, device=llama.device)
        count = max(options.max_new_tokens, 1)
        ends = stop_ids(options.pretrained_model_path, tokenizer)
        steps = trace_generation(llama, tokens, count, sampler, ends)
        check_finite(steps[0].trace)
        return steps[0].trace, steps
    bound = f"at least {len(ids)}, the text's own tokens"
    check_usage(f"--pad_to {options.pad_to}", options.pad_to >= len(ids), bound)
    padded = ids + [tokenizer.pad_id] * (budget.tokens - len(ids))
    row = torch.tensor(padded, device=llama.device)
    trace = trace_tokens(llama, row, len(ids), options.mask_padding)
    check_finite(trace)
    chosen = int(sampler(trace.logits[trace.last][None].to(llama.device)))
    return trace, [Step(trace, chosen)]


def make_sampler(side: Side) -> Sampler:
    chosen = side.sampling
    return Sampler(
        chosen["temperature"],
        chosen["epsilon"],
        chosen["topP"],
        torch.Generator(side.llama.device).manual_seed(side.options.seed),
        side.tokenizer.padding_only,
    )


def check_finite(trace: Trace) -> None:
    """Raise ValueError for a model whose numbers are none."""
    if not bool(trace.logits.isfinite().all()):
        raise ValueError(
            "the model's logits are not numbers (NaN or infinite): its checkpoint is damaged"
        )


def size_of(path: str) -> str:
    return f"{Path(path).stat().st_size / 1e6:.1f} MB"
