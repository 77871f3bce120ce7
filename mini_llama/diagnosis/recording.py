"""Record the inputs and outputs of every component of a model in one run, with hooks."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from mini_llama.diagnosis.numpy_llama import Array

COMPONENTS = ("attention_norm", "attention", "ffn_norm", "feed_forward")


class Call(NamedTuple):
    """The input and the output of a module."""

    input: Array
    output: Array


class NeverCalledError(LookupError):
    """A module was not called in the recorded run."""


class Calls(dict[str, Call]):
    def __missing__(self, name: str) -> Call:
        raise NeverCalledError(name)


class Run(NamedTuple):
    """A recorded run of a model; `inside` holds intermediate arrays of a student's attentions."""

    calls: Calls
    logits: Array
    hidden_states: Array
    inside: Mapping[str, Array] = {}


def find_modules(model: nn.Module, n_layers: int) -> dict[str, nn.Module]:
    """The components by name. Raises ValueError naming those that are missing."""
    layers = [f"layers.{i}" for i in range(n_layers)]
    names = ["tok_embeddings", *layers, *(f"{x}.{c}" for x in layers for c in COMPONENTS)]
    modules = dict(model.named_modules(remove_duplicate=False))
    missing = [name for name in (*names, "norm", "output") if name not in modules]
    if missing:
        more = " and others" if len(missing) > 3 else ""
        raise ValueError(
            f"the model has no module {', '.join(missing[:3])}{more}: "
            "--explain finds the components by the assignment's names"
        )
    return {name: modules[name] for name in (*names, "norm", "output")}


def record_run(model: nn.Module, tokens: torch.Tensor, n_layers: int) -> Run:
    """Record every component's input and output for tokens (B, T), and the model's output.

    For a module that is called more than once, the first call counts. Raises ValueError naming the
    module if one is missing, fails or does not return a tensor.
    """
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    running = ["forward"]

    def before(name: str, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        running.append(name)
        inputs.setdefault(name, to_numpy(next(iter([*args, *kwargs.values()]), None)))

    def after(name: str, _module: nn.Module, _args: tuple, output: Any) -> None:
        running.pop()
        outputs.setdefault(name, to_numpy(output))

    handles = []
    for name, module in find_modules(model, n_layers).items():
        pre_hook = partial(before, name)
        handles.append(module.register_forward_pre_hook(pre_hook, with_kwargs=True))
        handles.append(module.register_forward_hook(partial(after, name)))
    try:
        with torch.no_grad():
            returned = model(tokens)
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"the model fails in {running[-1]}: {what}") from error
    finally:
        for handle in handles:
            handle.remove()
    if not (isinstance(returned, (tuple, list)) and len(returned) == 2):
        kind = type(returned).__name__
        raise ValueError(f"the model returns a {kind}, not the pair (logits, hidden_states)")
    calls = {
        name: Call(_array(f"the input of {name}", inputs[name]), _array(f"the output of {name}", y))
        for name, y in outputs.items()
    }
    logits, hidden_states = (_array("what the model returns", to_numpy(part)) for part in returned)
    return Run(Calls(calls), logits, hidden_states)


def to_numpy(value: Any) -> Any:
    """A tensor's values in float64; a copy, because the model may change them in place later."""
    is_tensor = isinstance(value, torch.Tensor)
    return value.detach().double().cpu().numpy().copy() if is_tensor else value


def _array(what: str, value: Any) -> Array:
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{what} is a {type(value).__name__}, not a tensor")
    return value
