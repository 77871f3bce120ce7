"""What see.py does: trace a text and its continuation, and make a page of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mini_llama.bounds import check_usage
from mini_llama.inference.sampling import Sampler
from mini_llama.inside import page_data
from mini_llama.inside.attribution import attribute
from mini_llama.inside.budget import plan
from mini_llama.inside.comparison import compare
from mini_llama.inside.options import SeeOptions
from mini_llama.inside.pieces import read_piece
from mini_llama.inside.sides import Side
from mini_llama.inside.student import student_data
from mini_llama.inside.trace import Step, Trace, trace_generation, trace_tokens
from mini_llama.tokenization.stop_ids import stop_ids


def look(sides: Sequence[Side]) -> dict[str, Any]:
    """The data of a page of one model, or of two that are compared. Raises ValueError."""
    options = sides[0].options
    ids, question = encode_text(sides[0])
    generates = not options.pad_to and sides[0].classifier is None
    count = options.max_new_tokens if generates else 1
    length = max(len(ids), options.pad_to)
    configs = [side.llama.config for side in sides]
    shares = len(sides) + (options.code is not None)
    tokens = min(plan(config, length, count, shares).tokens for config in configs)
    budgets = [plan(config, length, count, shares, tokens) for config in configs]
    ids = cut(ids, question, tokens)
    found = [trace_text(side, ids, tokens, count) for side in sides]
    traces = []
    for side, budget, (trace, steps) in zip(sides, budgets, found, strict=True):
        config, excluded = side.llama.config, side.tokenizer.padding_only
        subject = page_data.Subject(side.title, side.facts, config, side.sampling, excluded)
        content = page_data.page_data(subject, trace, steps, budget, read_with(side))
        traces.append(content | label_of(side, trace))
    data: dict[str, Any] = {"version": 1, "traces": traces}
    if options.code is not None:
        data["code"] = student_data(sides[0], found[0][0].tokens)
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


def encode_text(side: Side) -> tuple[list[int], int]:
    """The ids of the text, with a zero-shot classifier's question after it, and how many of them
    are the question's. Raises ValueError.
    """
    text, encode = text_of(side.options), side.tokenizer.encode
    question = side.classifier.question if side.classifier else ""
    ids = encode(text + question, bos=True, eos=False)
    return ids, max(len(ids) - len(encode(text, bos=True, eos=False)), 0)


def cut(ids: list[int], question: int, most: int) -> list[int]:
    """The first of the ids; of a text with a question, the question stays whole if it can."""
    if len(ids) <= most or question >= most:
        return ids[:most]
    return ids[: most - question] + ids[len(ids) - question :]


def trace_text(side: Side, ids: list[int], width: int, count: int) -> tuple[Trace, list[Step]]:
    """The trace of a text, and the `count` steps of its continuation; with --pad_to the text is
    padded to `width`, and the only step is what the column that is read would give. Raises
    ValueError.
    """
    llama, tokenizer, options = side.llama, side.tokenizer, side.options
    sampler = make_sampler(side)
    row = torch.tensor(ids, device=llama.device)
    if not options.pad_to and side.classifier is None:
        ends = stop_ids(options.pretrained_model_path, tokenizer)
        steps = trace_generation(llama, row, count, sampler, ends)
        check_finite(steps[0].trace)
        return steps[0].trace, steps
    bound = f"at least {len(ids)}, the text's own tokens"
    check_usage(f"--pad_to {options.pad_to}", not 0 < options.pad_to < len(ids), bound)
    padding = row.new_full((max(width - len(ids), 0),), tokenizer.pad_id)
    trace = trace_tokens(llama, torch.cat((row, padding)), len(ids), side.masks_padding)
    check_finite(trace)
    chosen = int(sampler(trace.logits[trace.last][None].to(llama.device)))
    return trace, [Step(trace, chosen)]


def label_of(side: Side, trace: Trace) -> dict[str, Any]:
    """What a classifier says of the text, and what that rests on; nothing of a language model."""
    classifier = side.classifier
    if classifier is None:
        return {}
    tokens = trace.tokens.to(side.llama.device)
    found = attribute(classifier.scores, side.llama, tokens, trace.length, side.masks_padding)
    return {"label": page_data.label_data(found, classifier.names, classifier.kind)}


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
