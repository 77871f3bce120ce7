"""The limited process of sanity_check.py --code: loads and runs a student's model, records the
inputs and outputs of its components, and sends them back as numbers.

The source of this file is run in the student's folder, after that of missing_modules.py, and
imports nothing of the project. Methods are wrapped, not hooked, so that calls of `.forward()` are
recorded too. The request is read from standard input. The answer on standard output is a line of
JSON, followed by the float64 arrays that it lists.

Shapes: B batch, T positions, H heads, D head_dim, C width.
"""

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

COMPONENTS = ("attention_norm", "attention", "ffn_norm", "feed_forward")
PROJECTIONS = ("compute_query", "compute_key", "compute_value")
HEADS = ("query", "key", "value")
ROPE, SCORES = "apply_rotary_emb", "compute_query_key_value_scores"


class Recording:
    """The arrays of the first call of each place, by the place's name and their kind."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens
        self.arrays: dict[str, torch.Tensor] = {}
        self.running = ["forward"]

    def keep(self, name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor) and name not in self.arrays:
            # a copy, because the model may change it in place later
            self.arrays[name] = value.detach().to("cpu", torch.float64, copy=True)

    def activation(self, values: Iterable[Any]) -> Any:
        """The first tensor (B, T, …) among a module's inputs or outputs, else the first tensor."""
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        shape = self.tokens.shape
        fitting = [tensor for tensor in tensors if tensor.shape[:2] == shape]
        return next(iter([*fitting, *tensors]), None)

    def wrapped(self, name: str, function: Callable) -> Callable:
        """Wrap a module's forward to record its input and output."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.running[-1] == name:  # forward, below a __call__ of its own
                return function(*args, **kwargs)
            self.running.append(name)
            self.keep(f"{name} input", self.activation([*args, *kwargs.values()]))
            output = function(*args, **kwargs)
            self.keep(f"{name} output", self.activation(parts(output)))
            self.running.pop()
            return output

        return call

    def wrapped_heads(self, what: str, function: Callable, owner: str = "") -> Callable:
        """Wrap a function of query, key and value heads to record them for an attention."""

        def call(*args: Any, **kwargs: Any) -> Any:
            name = owner or self.attention()
            given = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
            for kind, value in zip(HEADS, given, strict=False):
                self.keep(f"{name} {what} {kind}", value)
            output = function(*args, **kwargs)
            for kind, value in zip(HEADS, parts(output), strict=False):
                self.keep(f"{name} {what} {kind} output", value)
            return output

        return call

    def attention(self) -> str:
        """The name of the innermost attention that is running."""
        running = [name for name in self.running if name.endswith(".attention")]
        return running[-1] if running else ""


def parts(value: Any) -> Sequence[Any]:
    """The values of a module's output, as a list."""
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, (tuple, list)) else [value]


def places(n_layers: int) -> Iterator[str]:
    yield "tok_embeddings"
    for i in range(n_layers):
        yield from (f"layers.{i}", *(f"layers.{i}.{c}" for c in COMPONENTS))
        yield from (f"layers.{i}.attention.{c}" for c in PROJECTIONS)
    yield from ("norm", "output")


def wrap_model(model: nn.Module, n_layers: int, recording: Recording) -> None:
    """Wrap the modules that have the assignment's names."""
    for name in places(n_layers):
        owner, _, last = name.rpartition(".")
        parent, module = find(model, owner) if owner else model, find(model, name)
        if not isinstance(module, nn.Module):
            if callable(module) and not last.isdigit():
                setattr(parent, last, recording.wrapped(name, module))
            continue
        own_call = type(module).__call__
        if own_call is not nn.Module.__call__:
            wrapped = staticmethod(recording.wrapped(name, own_call.__get__(module)))
            module.__class__ = type(type(module).__name__, (type(module),), {"__call__": wrapped})
        object.__setattr__(module, "forward", recording.wrapped(name, module.forward))
        scores = getattr(module, SCORES, None)
        if callable(scores) and last == "attention":
            heads = recording.wrapped_heads("attended", scores, name)
            object.__setattr__(module, SCORES, heads)


def find(model: nn.Module, name: str) -> Any:
    """model.layers[0].attention for layers.0.attention; None if there is none."""
    found: Any = model
    for part in name.split("."):
        try:
            found = found[int(part)] if part.isdigit() else getattr(found, part)
        except (AttributeError, IndexError, KeyError, TypeError):
            return None
    return found


def wrap_rope(folder: str, recording: Recording) -> None:
    """Wrap apply_rotary_emb under every name that the folder's modules have for it."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and os.path.realpath(file).startswith(folder):
            for name, value in list(vars(module).items()):
                if callable(value) and getattr(value, "__name__", "") == ROPE:
                    setattr(module, name, recording.wrapped_heads("rotated", value))


def load(request: dict[str, Any]) -> nn.Module:
    """Load the model with the student's own load_pretrained, and an edition if it takes one."""
    import llama  # the student's

    takes = inspect.signature(llama.load_pretrained).parameters
    edition = {"edition": request["edition"]} if "edition" in takes else {}
    return llama.load_pretrained(request["checkpoint"], **edition).cpu().eval()


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().float().contiguous().numpy().data).hexdigest()


def examine(request: dict[str, Any]) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """The JSON object of the answer, and its arrays."""
    tokens = torch.tensor(request["tokens"])
    recording = Recording(tokens)
    answer: dict[str, Any] = {}
    running = "load_pretrained"
    try:
        model = load(request)
        answer["state"] = {name: digest(x) for name, x in model.state_dict().items()}
        named = model.named_parameters()
        answer["nonzero"] = [name for name, parameter in named if parameter.count_nonzero()]
        wrap_model(model, request["n_layers"], recording)
        wrap_rope(os.path.join(os.path.realpath(os.getcwd()), ""), recording)
        with torch.no_grad():
            running = ""
            returned = model(tokens)
        if not (isinstance(returned, (tuple, list)) and len(returned) == 2):
            kind = type(returned).__name__
            raise TypeError(f"it returns a {kind}, not the pair (logits, hidden_states)")
        for name, value in zip(("logits", "hidden_states"), returned, strict=True):
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"it returns a {type(value).__name__} as {name}, not a tensor")
            recording.keep(name, value)
    except BaseException as error:  # a student's module may exit as well
        answer["error"] = [running or recording.running[-1], type(error).__name__, str(error)[:500]]
    arrays = recording.arrays
    answer["arrays"] = [[name, list(array.shape)] for name, array in arrays.items()]
    return answer, list(arrays.values())


def main() -> None:
    """Request: {"checkpoint", "edition", "tokens", "n_layers"}."""
    request = json.load(sys.stdin)
    # Output of the student's modules is discarded, so it cannot pass for an answer.
    channel = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    torch.set_num_threads(1)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # always on the CPU
    answer, arrays = examine(request)
    channel.write(json.dumps(answer).encode() + b"\n")
    for array in arrays:
        channel.write(array.contiguous().numpy().tobytes())
    channel.flush()
    os._exit(0)  # skip exit handlers of imported modules


if __name__ == "__main__":
    main()
