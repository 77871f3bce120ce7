"""What see.py does: load the model, trace a text and its continuation, write the page."""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from config import LlamaConfig
from llama import Llama
from mini_llama.assignment.completion import load
from mini_llama.bounds import check_usage
from mini_llama.command_line import visible
from mini_llama.inference.sampling import Sampler
from mini_llama.inside import page, page_data
from mini_llama.inside.budget import Budget, plan
from mini_llama.inside.options import SeeOptions
from mini_llama.inside.pieces import read_piece
from mini_llama.inside.server import Server, serve
from mini_llama.inside.trace import Step, Trace, trace_generation, trace_tokens
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.stop_ids import stop_ids
from utils import atomic_write


def run(options: SeeOptions) -> None:
    """Write the page. Raises OSError or ValueError, one line each."""
    outputs = [] if options.serve else [options.out]
    with contextlib.redirect_stdout(sys.stderr):
        llama, tokenizer = load(options.model_options(), outputs)
    data = look(llama, tokenizer, options)
    if options.serve:
        serve(make_server(llama, tokenizer, options, data))
        return
    title = data["traces"][0]["title"]
    with atomic_write(options.out) as file:
        file.write(page.render(f"Inside {title}", data))
    size = Path(options.out).stat().st_size
    for note in data["traces"][0]["notes"]:
        print(note)
    print(f"wrote {options.out} ({size / 1e6:.1f} MB): open it in a browser")


# What a live page may ask for, and of which types.
LIVE: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "pad_to": (int,),
    "mask_padding": (bool,),
    "max_new_tokens": (int,),
    "temperature": (int, float),
}


def make_server(
    llama: Llama, tokenizer: BaseTokenizer, options: SeeOptions, data: dict[str, Any]
) -> Server:
    """The server of the page, with `data` to begin with."""

    def answer(question: Mapping[str, Any]) -> Mapping[str, Any]:
        asked = asked_options(options, question)
        return with_live(look(llama, tokenizer, asked), asked)

    title = f"Inside {data['traces'][0]['title']}"
    text = page.render(title, with_live(data, options), is_live=True)
    return Server(options.port, text, page.policy_of_ours(is_live=True), answer)


def asked_options(options: SeeOptions, question: Mapping[str, Any]) -> SeeOptions:
    """The options with what a page asks for. Raises ValueError for what it may not."""
    values = {name: question[name] for name in LIVE if name in question}
    for name, value in values.items():
        if type(value) not in LIVE[name]:
            raise ValueError(f"{name} is not allowed to be a {type(value).__name__}")
    return dataclasses.replace(options, **values)


def with_live(data: dict[str, Any], options: SeeOptions) -> dict[str, Any]:
    """The data of a page that can ask for more."""
    live = {name: getattr(options, name) for name in LIVE}
    return data | {"live": live | {"text": text_of(options)}}


def look(llama: Llama, tokenizer: BaseTokenizer, options: SeeOptions) -> dict[str, Any]:
    """The data of the page."""
    ids = tokenizer.encode(text_of(options), bos=True, eos=False)
    count = 1 if options.pad_to else max(options.max_new_tokens, 1)
    budget = plan(llama.config, max(len(ids), options.pad_to), count)
    trace, steps = trace_text(llama, tokenizer, ids, options, budget)
    check_finite(trace)
    subject = page_data.Subject(
        visible(Path(options.pretrained_model_path).name),
        facts_of(llama, options),
        llama.config,
        sampling_of(options),
        tokenizer.padding_only,
    )
    read = read_with(tokenizer)
    return {"version": 1, "traces": [page_data.page_data(subject, trace, steps, budget, read)]}


def read_with(tokenizer: BaseTokenizer) -> page_data.Read:
    return lambda token_id: read_piece(tokenizer, token_id)


def text_of(options: SeeOptions) -> str:
    edition = options.model_options().edition_in_force
    return edition.prompt_text if options.text is None else options.text


def trace_text(
    llama: Llama, tokenizer: BaseTokenizer, ids: list[int], options: SeeOptions, budget: Budget
) -> tuple[Trace, list[Step]]:
    """The trace of a text, padded or not, and the steps of its continuation: with padding only the
    one that the column which is read would give.
    """
    ids = ids[: budget.tokens]
    sampler = make_sampler(llama, tokenizer, options)
    if not options.pad_to:
        tokens = torch.tensor(ids, device=llama.device)
        count = max(options.max_new_tokens, 1)
        steps = trace_generation(
            llama, tokens, count, sampler, stop_ids(options.pretrained_model_path, tokenizer)
        )
        return steps[0].trace, steps
    bound = f"at least {len(ids)}, the text's own tokens"
    check_usage(f"--pad_to {options.pad_to}", options.pad_to >= len(ids), bound)
    padded = ids + [tokenizer.pad_id] * (budget.tokens - len(ids))
    row = torch.tensor(padded, device=llama.device)
    trace = trace_tokens(llama, row, len(ids), options.mask_padding)
    chosen = int(sampler(trace.logits[trace.last][None].to(llama.device)))
    return trace, [Step(trace, chosen)]


def make_sampler(llama: Llama, tokenizer: BaseTokenizer, options: SeeOptions) -> Sampler:
    chosen = sampling_of(options)
    return Sampler(
        chosen["temperature"],
        chosen["epsilon"],
        chosen["topP"],
        torch.Generator(llama.device).manual_seed(options.seed),
        tokenizer.padding_only,
    )


def sampling_of(options: SeeOptions) -> dict[str, float]:
    edition = options.model_options().edition_in_force
    return {
        "temperature": options.temperature,
        "epsilon": edition.epsilon if options.epsilon is None else options.epsilon,
        "topP": edition.top_p if options.top_p is None else options.top_p,
    }


def facts_of(llama: Llama, options: SeeOptions) -> dict[str, str]:
    """What is said of the model, by name."""
    config: LlamaConfig = llama.config
    count = sum(math.prod(p.shape) for p in llama.parameters())
    heads = f"{config.n_heads} heads of {config.head_dim}"
    if config.n_kv_heads < config.n_heads:
        heads += f", {config.n_kv_heads} key heads"
    facts = {
        "arithmetic": str(llama.arithmetic),
        "shape": f"{config.n_layers} layers, width {config.dim}, {heads}, "
        f"feed-forward {config.hidden_dim}, vocabulary {config.vocab_size}",
    }
    if llama.quantization:
        facts["weights"] = llama.quantization
    elif count:
        facts["parameters"] = f"{count:,}"
    if options.adapters:
        facts["adapters"] = visible(Path(options.adapters).name)
    return facts


def check_finite(trace: Trace) -> None:
    """Raise ValueError for a model whose numbers are none."""
    if not bool(trace.logits.isfinite().all()):
        raise ValueError(
            "the model's logits are not numbers (NaN or infinite): its checkpoint is damaged"
        )
