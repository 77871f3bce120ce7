"""Probes of rope, norm, attention, feed-forward, and the layer as a whole.

Legend of shapes: B batch, T positions, H heads, D head_dim, C width.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from mini_llama.diagnosis.probes.common import (
    Cases,
    Modules,
    ResultError,
    Settings,
    Values,
    call,
    draw,
    fill,
    find,
    flags,
    make_config,
    make_layer,
    replaced,
    share,
    signature_of,
    stand_in,
    takes,
)

ROPE_TEST = "the course's rope_test"
ROPE_FACTOR = 0.8  # multiplication by it replaces the rotation
PROJECTIONS = ("compute_query", "compute_key", "compute_value", "compute_output")
# Relative to the largest value: rounding the result stays below it, low-precision angles do not.
CLOSE = 0.015


def probe_rope(modules: Modules, settings: Settings) -> Cases:
    rotate = find(modules.rope, "apply_rotary_emb")
    # Positions large enough for low-precision angles to go wrong.
    query, key = draw("query", 2, 150, 2, 8), draw("key", 2, 150, 2, 8)

    def turn(q: torch.Tensor, k: torch.Tensor, **options: float) -> tuple:
        result = call(modules, rotate, q, k, q.shape[-1], 256, **options)
        if not (isinstance(result, (tuple, list)) and len(result) == 2):
            raise ResultError(f"the rotation returned {type(result).__name__}, not (query, key)")
        return tuple(result)

    def halves(name: str, x: torch.Tensor) -> Values:
        """Even and odd features separately: the rotation has a line for each."""
        return {f"{name}, even features": x[..., 0::2], f"{name}, odd features": x[..., 1::2]}

    def rotation() -> Values:
        rotated = turn(query, key)
        return halves("query", rotated[0]) | halves("key", rotated[1])

    def fewer_key_heads() -> Values:
        return {"key of fewer heads": turn(query, key[:, :, :1])[1]}

    def other_theta() -> Values:
        rotated = turn(query, key, theta=100.0)
        return {"query, theta 100": rotated[0], "key, theta 100": rotated[1]}

    def course_test() -> Values:
        rotated = turn(2 * torch.ones(1, 2, 2, 4), 3 * torch.ones(1, 2, 2, 4))
        return {ROPE_TEST: torch.stack(rotated)}

    cases: Cases = {"rotation": rotation, "fewer key heads": fewer_key_heads}
    if takes(signature_of(rotate), "theta"):
        cases["theta 100"] = other_theta
    half = query.bfloat16(), key.bfloat16()
    cases["bfloat16 input"] = lambda: bfloat16_input(turn(*half), turn(*(x.float() for x in half)))
    return cases | {ROPE_TEST: course_test}


def bfloat16_input(rotated: tuple, exact: tuple) -> Values:
    """0 for a single rounding, 1 for low-precision angles, 0.01 in between."""
    pairs = [
        (x.bfloat16().float(), y.bfloat16().float()) for x, y in zip(rotated, exact, strict=True)
    ]
    same = torch.cat([(x == y).flatten() for x, y in pairs]).float().mean()
    gap = max((x - y).abs().max() / y.abs().max() for x, y in pairs)
    return {"bfloat16 input": flags(0.0 if same > 0.98 else 0.01 if gap < CLOSE else 1.0)}


def probe_norm(modules: Modules, settings: Settings) -> Cases:
    x = 1 + draw("x", 2, 5, 32) / 2
    names = ("weight", "bias") if settings.norm == "layernorm" else ("weight",)

    def normed(name: str) -> Values:
        is_last = name == "norm"
        make = find(modules.llama, "Llama") if is_last else None
        config = make_config(modules, settings)
        norm = find(make(config) if make else make_layer(modules, settings), name)
        extra = [n for n, _ in norm.named_parameters() if n not in ("weight", "bias")]
        if settings.norm != "layernorm" and getattr(norm, "bias", None) is not None:
            extra.append("bias")
        for parameter in extra:
            modules.note(f"the norm has a parameter that the assignment does not have: {parameter}")
        fill(norm, *names)
        return {name: call(modules, norm, x)}

    names_of_norms = ("attention_norm", "ffn_norm", "norm")
    return {name: partial(normed, name) for name in names_of_norms}


def probe_attention(modules: Modules, settings: Settings) -> Cases:
    name = "compute_query_key_value_scores"

    def attend(attention: nn.Module, *heads: torch.Tensor) -> torch.Tensor:
        return call(modules, find(attention, name), *heads)

    def scores() -> Values:
        attention = find(make_layer(modules, settings), "attention")
        heads = [draw(name, 2, 4, 5, 8) for name in ("query", "key", "value")]
        return {"scores": attend(attention, *heads)}

    def forward() -> Values:
        attention = find(make_layer(modules, settings), "attention")
        fill(attention, *PROJECTIONS)
        with rope_replaced(modules):
            return {"forward": call(modules, attention, draw("x", 2, 5, 32))}

    def dropout(mode: str, when: str) -> Values:
        # Equal scores; the values are two concatenated identity matrices, so the output is the
        # probabilities, twice. In every edition the last position attends to all others.
        attention = find(make_layer(modules, settings, dropout=0.5), "attention")
        equal, unit = torch.ones(64, 4, 4, 8), torch.eye(4).repeat(1, 2).expand(64, 4, 4, 8)
        last = attend(getattr(attention, mode)(), equal, equal, unit)[:, :, -1]  # (64, H, D)
        return {
            f"share of zeros {when}": share(last == 0),
            f"largest probability {when}": last.amax().reshape(1),
            f"one dropout of both copies {when}": flags((last[..., :4] == last[..., 4:]).all()),
        }

    return {
        "scores": scores,
        "forward": forward,
        "dropout in training": lambda: dropout("train", "in training"),
        "dropout in evaluation": lambda: dropout("eval", "in evaluation"),
    }


@contextlib.contextmanager
def rope_replaced(modules: Modules) -> Iterator[None]:
    """Replace the rotation by a factor: it shows which tensors are rotated, but not how."""
    stand_ins = {
        "apply_rotary_emb": lambda query, key, *_, **__: (ROPE_FACTOR * query, ROPE_FACTOR * key),
        "rotate": lambda x, *_, **__: ROPE_FACTOR * x,
    }
    with replaced(modules.rope, **stand_ins), replaced(modules.llama, **stand_ins):
        yield


def probe_feed_forward(modules: Modules, settings: Settings) -> Cases:
    feed_forward = find(make_layer(modules, settings), "feed_forward")
    fill(feed_forward, "w1", "w2", "w3")

    def shapes() -> Values:
        weights = [find(feed_forward, name).weight for name in ("w1", "w2", "w3")]
        return {"shapes": flags(*(size for weight in weights for size in weight.shape))}

    x = draw("x", 2, 5, 32)
    return {"shapes": shapes, "forward": lambda: {"forward": call(modules, feed_forward, x)}}


def without_gain(norm: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return 1.3 * norm(x) + 0.1


def probe_layer(modules: Modules, settings: Settings) -> Cases:
    layer = make_layer(modules, settings)
    stand_ins = {
        "attention_norm": lambda x: x.sin(),
        "attention": lambda x: 0.7 * x.roll(1, -1).cos(),
        "ffn_norm": lambda x: (2 * x).tanh(),
        "feed_forward": lambda x: 0.5 * x.flip(-1).exp(),
    }
    calls = dict.fromkeys(stand_ins, 0)

    def counted(name: str, x: torch.Tensor) -> torch.Tensor:
        calls[name] += 1
        return stand_ins[name](x)

    def forward() -> Values:
        for name in stand_ins:
            module = find(layer, name)
            stand_in(module, partial(counted, name))
            if name.endswith("norm"):  # the norm without gain and bias
                module._norm = partial(without_gain, stand_ins[name])
        result = call(modules, layer, draw("x", 2, 5, 32))
        for name in ("attention_norm", "ffn_norm"):
            modules.note(f"calls: {name} {calls[name]}")
        return {"forward": result}

    return {"forward": forward}
