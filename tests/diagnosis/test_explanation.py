"""Planted faults in a model that was written without ours: each is found where it is."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from config import LlamaConfig
from mini_llama.diagnosis.explanation import Explanation, explain
from mini_llama.diagnosis.formulas import Formulas
from mini_llama.diagnosis.mistakes.variants import VARIANTS
from mini_llama.diagnosis.registry import MISTAKES
from tests.helpers import numpy_weights, random_llama, random_tokens, tiny_config

CONFIG = tiny_config(norm="layernorm", attention="bidirectional")
TOKENS = random_tokens(CONFIG, 2, 8)


def interleaved(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    even, odd = x[..., ::2], x[..., 1::2]
    pairs = even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()
    return torch.stack(pairs, dim=-1).flatten(-2)


def split_halves(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, dim=-1)
    pairs = left * angles.cos() - right * angles.sin(), left * angles.sin() + right * angles.cos()
    return torch.cat(pairs, dim=-1)


class Norm(nn.Module):
    eps, unbiased, rms = 1e-5, False, False

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        if self.rms:
            return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * self.weight
        var = x.var(-1, keepdim=True, unbiased=self.unbiased)
        return (x - x.mean(-1, keepdim=True)) / (var + self.eps).sqrt() * self.weight + self.bias


class Attention(nn.Module):
    scale, causal, first, direction = 1 / math.sqrt(8), False, 0, 1
    rope = staticmethod(interleaved)

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.compute_query = nn.Linear(config.dim, config.dim, bias=False)
        self.compute_key = nn.Linear(config.dim, config.dim // 2, bias=False)
        self.compute_value = nn.Linear(config.dim, config.dim // 2, bias=False)
        self.compute_output = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x):
        q = self.compute_query(x).unflatten(-1, (4, 8)).transpose(1, 2)
        k = self.compute_key(x).unflatten(-1, (2, 8)).transpose(1, 2).repeat_interleave(2, 1)
        v = self.compute_value(x).unflatten(-1, (2, 8)).transpose(1, 2).repeat_interleave(2, 1)
        positions = self.first + self.direction * torch.arange(x.shape[1])
        angles = positions[:, None] / 10000 ** (torch.arange(4) / 4)
        scores = self.rope(q, angles) @ self.rope(k, angles).mT * self.scale
        if self.causal:
            scores = scores + torch.full_like(scores, -math.inf).triu(1)
        return self.compute_output((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    activation = staticmethod(F.silu)

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)

    def forward(self, x):
        return self.w2(self.activation(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(config), FeedForward(config)
        self.attention_norm, self.ffn_norm = Norm(config.dim), Norm(config.dim)

    def forward(self, x):
        x += self.attention(self.attention_norm(x))  # in place, as a student may
        return x + self.feed_forward(self.ffn_norm(x))


class Student(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.norm = Norm(config.dim)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(self, tokens, targets=None):
        h = self.tok_embeddings(tokens)
        for layer in self.layers:
            h = layer(h)
        h = self.norm(h)
        return self.output(h[:, [-1]]), h


TRUTH = random_llama(CONFIG)


def student() -> Student:
    model = Student(CONFIG)
    model.load_state_dict(TRUTH.state_dict())
    return model


def explained(model: nn.Module, **changes: torch.Tensor) -> Explanation:
    tensors = {**TRUTH.state_dict(), **changes}
    arrays = {**numpy_weights(TRUTH), **{k: t.double().numpy() for k, t in changes.items()}}
    return explain(model, TOKENS, Formulas(arrays, CONFIG), tensors)


def first(model: nn.Module, **changes: torch.Tensor) -> tuple[str, str]:
    place = explained(model, **changes).first
    return place.name, place.problem


def setting(part: str, **values: object) -> Callable[[Student], None]:
    """Plants attributes into a module; a function `forward(module, x)` replaces its forward."""

    def plant(model: Student) -> None:
        module = model.get_submodule(part)
        for name, value in values.items():
            is_forward = name == "forward"
            object.__setattr__(module, name, value.__get__(module) if is_forward else value)

    return plant


def normed(x):
    return F.layer_norm(x, (32,), eps=1e-5)


def no_residual(self, x):
    h = self.attention(self.attention_norm(x))
    return h + self.feed_forward(self.ffn_norm(h))


def normed_residual(self, x):
    x = self.attention_norm(x)
    h = x + self.attention(x)
    return h + self.feed_forward(self.ffn_norm(h))


def post_norm(self, x):
    h = self.attention_norm(x + self.attention(x))
    return self.ffn_norm(h + self.feed_forward(h))


def norm_behind(self, x):
    h = x + self.attention_norm(self.attention(x))
    return h + self.ffn_norm(self.feed_forward(h))


def no_second_residual(self, x):
    return self.feed_forward(self.ffn_norm(x + self.attention(self.attention_norm(x))))


def no_attention(self, x):
    self.attention(self.attention_norm(x))
    return x + self.feed_forward(self.ffn_norm(x))


def no_feed_forward(self, x):
    h = x + self.attention(self.attention_norm(x))
    self.feed_forward(self.ffn_norm(h))
    return h


def unused_norm(self, x):
    self.attention_norm(x)
    h = x + self.attention(x)
    return h + self.feed_forward(self.ffn_norm(h))


def skips_h(self, x):
    return x + self.feed_forward(self.ffn_norm(x + self.attention(self.attention_norm(x))))


def one_norm(self, x):
    h = x + self.attention(self.attention_norm(x))
    return h + self.feed_forward(h + 0 * self.ffn_norm(h))


def bypasses_hooks(self, x):
    h = x + self.attention.forward(self.attention_norm(x))
    return h + self.feed_forward(self.ffn_norm(h))


def run(model: Student, tokens, scale=1.0, norm=True, logits_of=None, all_logits=False):
    h = model.tok_embeddings(tokens) * scale
    for layer in model.layers:
        h = layer(h)
    raw, h = h, model.norm(h) if norm else h
    logits = model.output(raw if logits_of == "raw" else h)
    return (logits if all_logits else logits[:, [-1]]), (raw if logits_of == "hidden" else h)


FAULTS = [
    ("layers.0.attention_norm", "eps 1e-06", setting("layers.0.attention_norm", eps=1e-6)),
    ("layers.1.ffn_norm", "rmsnorm gives", setting("layers.1.ffn_norm", rms=True)),
    ("layers.0.ffn_norm", "unbiased variance", setting("layers.0.ffn_norm", unbiased=True)),
    (
        "layers.0.attention_norm",
        "without its weight",
        setting("layers.0.attention_norm", forward=lambda self, x: normed(x) + self.bias),
    ),
    ("norm", "its input", setting("norm", forward=lambda self, x: x)),
    ("layers.0.attention", "without 1/sqrt(head_dim)", setting("layers.0.attention", scale=1)),
    ("layers.1.attention", "not its root", setting("layers.1.attention", scale=1 / 8)),
    ("layers.0.attention", "over sqrt(dim)", setting("layers.0.attention", scale=32**-0.5)),
    ("layers.1.attention", "causal attention", setting("layers.1.attention", causal=True)),
    ("layers.0.attention", "split halves", setting("layers.0.attention", rope=split_halves)),
    (
        "layers.0.attention",
        "without RoPE",
        setting("layers.0.attention", rope=lambda x, angles: x),
    ),
    ("layers.0.attention", "other direction", setting("layers.0.attention", direction=-1)),
    (
        "layers.0.attention",
        "without compute_output",
        setting("layers.0.attention.compute_output", forward=lambda self, x: x),
    ),
    (
        "layers.0.feed_forward",
        "w1 and w3 exchanged",
        setting("layers.0.feed_forward", forward=lambda f, x: f.w2(F.silu(f.w3(x)) * f.w1(x))),
    ),
    (
        "layers.1.feed_forward",
        "relu for silu",
        setting("layers.1.feed_forward", activation=F.relu),
    ),
    (
        "layers.1.feed_forward",
        "sigmoid for silu",
        setting("layers.1.feed_forward", activation=F.sigmoid),
    ),
    (
        "layers.1.feed_forward",
        "gate without silu",
        setting("layers.1.feed_forward", activation=lambda x: x),
    ),
    (
        "layers.0: residual (attention)",
        "attention's output alone",
        setting("layers.0", forward=no_residual),
    ),
    (
        "layers.1: residual (attention)",
        "normed input",
        setting("layers.1", forward=normed_residual),
    ),
    (
        "layers.0: residual (attention)",
        "a norm behind it",
        setting("layers.0", forward=post_norm),
    ),
    (
        "layers.0: residual (attention)",
        "what attention_norm reads",
        setting("layers.0", forward=norm_behind),
    ),
    (
        "layers.1: residual (feed_forward)",
        "feed_forward's output alone",
        setting("layers.1", forward=no_second_residual),
    ),
    (
        "layers.0: residual (feed_forward)",
        "the layer's input instead of h",
        setting("layers.0", forward=skips_h),
    ),
    (
        "layers.1: residual (feed_forward)",
        "h, without the norm",
        setting("layers.1", forward=one_norm),
    ),
    (
        "layers.1: residual (attention)",
        "attention is left out",
        setting("layers.1", forward=no_attention),
    ),
    (
        "layers.0: residual (feed_forward)",
        "feed_forward is left out",
        setting("layers.0", forward=no_feed_forward),
    ),
    (
        "layers.0: residual (attention)",
        "the layer's input, without the norm",
        setting("layers.0", forward=unused_norm),
    ),
    ("layers.0.attention", "never called", setting("layers.0", forward=bypasses_hooks)),
    (
        "tok_embeddings",
        "what layers.0 reads",
        setting("", forward=lambda model, tokens: run(model, tokens, scale=32**0.5)),
    ),
    (
        "tok_embeddings",
        "token ids",
        setting("", forward=lambda model, tokens: run(model, tokens.flip(1))),
    ),
    ("norm", "never called", setting("", forward=lambda m, tokens: run(m, tokens, norm=False))),
    (
        "output",
        "it is what norm reads",
        setting("", forward=lambda model, tokens: run(model, tokens, logits_of="raw")),
    ),
    (
        "forward",
        "hidden_states",
        setting("", forward=lambda model, tokens: run(model, tokens, logits_of="hidden")),
    ),
    (
        "forward",
        "shape [2, 8, 96], not [2, 1, 96]",
        setting("", forward=lambda model, tokens: run(model, tokens, all_logits=True)),
    ),
    (
        "layers.1.attention",
        "its output holds numbers that are not finite",
        setting("layers.1.attention", forward=lambda self, x: x / 0),
    ),
    (
        "layers.1.attention",
        "its output differs by 2 of",
        setting("layers.1.attention", forward=lambda self, x: -Attention.forward(self, x)),
    ),
]


# The known mistakes among them, by the problem.
KNOWN = {
    "eps 1e-06": "norm: another eps",
    "rmsnorm gives": "norm: RMSNorm in place of LayerNorm",
    "unbiased variance": "norm: unbiased variance",
    "without its weight": "norm: no gain",
    "its input": "norm: norm left out",
    "without 1/sqrt(head_dim)": "attention: no scale",
    "not its root": "attention: scaled by d",
    "over sqrt(dim)": "attention: scaled by the root of dim",
    "causal attention": "attention: causal where the edition is not",
    "split halves": "rope: split halves",
    "without RoPE": "attention: RoPE is not applied",
    "other direction": "rope: wrong sign",
    "without compute_output": "attention: compute_output left out",
    "w1 and w3 exchanged": "feed_forward: w1 and w3 swapped",
    "relu for silu": "feed_forward: relu in place of silu",
    "sigmoid for silu": "feed_forward: sigmoid in place of silu",
    "gate without silu": "feed_forward: silu left out",
    "attention's output alone": "layer: missing residual",
    "normed input": "layer: residual from the normalised input",
    "a norm behind it": "layer: post-norm",
    "feed_forward's output alone": "layer: missing residual",
    "the layer's input instead of h": "layer: residual from the layer's input twice",
    "attention is left out": "layer: half of the layer left out",
    "feed_forward is left out": "layer: half of the layer left out",
    "h, without the norm": "layer: norm not used",
    "the layer's input, without the norm": "layer: norm not used",
    "it is what norm reads": "network: final norm left out",
}


@pytest.mark.parametrize(
    ("name", "problem", "plant"), FAULTS, ids=[f"{f[0]}-{f[1]}" for f in FAULTS]
)
def test_names_the_planted_fault(name: str, problem: str, plant: Callable[[Student], None]):
    model = student()
    plant(model)
    explanation = explained(model)
    place, (line, *remedy) = explanation.first, explanation.verdict()
    assert place.name == name and problem in place.problem, place
    assert line.startswith(f"First difference: {name}: {place.problem}.")
    mistake = MISTAKES[KNOWN[problem]] if problem in KNOWN else None
    assert place.mistake == mistake
    assert remedy == ([f"Fix: {mistake.remedy}"] if mistake else [])


def test_each_mistake_is_known_to_one_of_the_commands():
    assert {problem for _, problem, _ in FAULTS} >= KNOWN.keys()
    assert VARIANTS.keys() | set(KNOWN.values()) == MISTAKES.keys()


@pytest.mark.parametrize("full", [False, True], ids=["last column", "all logits, then the last"])
def test_a_right_model_agrees_everywhere(full: bool):
    model = student()
    if full:
        setting("", forward=run)(model)
    explanation = explained(model)
    assert explanation.first is None and not explanation.follows
    assert len(explanation.places) == 5 + 2 * 6
    for place in explanation.places[1:]:
        assert place.alone < 2e-6 and place.from_start < 1e-5, place
    assert not any("first difference" in line for line in explanation.lines())


def test_a_fault_is_seen_once_alone_and_from_there_on_from_the_start():
    model = student()
    setting("layers.0.attention", scale=1.0)(model)
    explanation = explained(model)
    at = explanation.places.index(explanation.first)
    assert [place.name for place in explanation.places if place.problem] == ["layers.0.attention"]
    assert all((place.from_start or 0) < 1e-5 for place in explanation.places[:at])
    assert all(place.from_start > 1e-3 for place in explanation.places[at:])
    lines = list(explanation.lines())
    assert [i for i, line in enumerate(lines) if line.endswith("<- first difference")] == [at + 1]


@pytest.mark.parametrize(("rms", "causal"), [(True, False), (False, True), (True, True)])
def test_says_whose_formulas_the_model_follows(rms: bool, causal: bool):
    model = student()
    for module in model.modules():
        if isinstance(module, Norm):
            module.rms = rms
        if isinstance(module, Attention):
            module.causal = causal
    explanation = explained(model)
    assert explanation.first.name == ("layers.0.attention_norm" if rms else "layers.0.attention")
    assert explanation.follows == [
        ("rmsnorm" if rms else "layernorm", "causal" if causal else "bidirectional")
    ]


# Weights


@pytest.mark.parametrize(
    "name", ["output.weight", "layers.1.attention.compute_query.weight", "norm.bias"]
)
def test_a_weight_that_was_not_loaded(name: str):
    model = student()
    with torch.no_grad():
        model.get_parameter(name).add_(0.1)
    assert first(model) == ("weights", f"{name} is not what the checkpoint holds")


def test_a_bias_that_no_checkpoint_has():
    model = student()
    old = model.layers[0].attention.compute_key
    model.layers[0].attention.compute_key = nn.Linear(32, 16)
    model.layers[0].attention.compute_key.weight = old.weight
    name, problem = first(model)
    assert (
        name == "weights" and "the checkpoint has no layers.0.attention.compute_key.bias" in problem
    )


def test_a_parameter_of_another_name():
    model = student()
    layer = model.layers[1].feed_forward
    layer.gate, layer.w1 = layer.w1, None
    layer.forward = lambda x: layer.w2(F.silu(layer.gate(x)) * layer.w3(x))
    name, problem = first(model)
    assert name == "weights" and problem.startswith("layers.1.feed_forward.w1.weight of the check")
    assert problem.endswith("(and 1 more)")


def test_a_norm_without_bias_is_no_fault_where_the_checkpoint_has_none():
    model = student()
    zeros = {k: torch.zeros_like(t) for k, t in TRUTH.state_dict().items() if k.endswith("bias")}
    for module in model.modules():
        if isinstance(module, Norm):
            del module.bias
            object.__setattr__(module, "bias", 0.0)
    assert explained(model, **zeros).first is None
    assert first(model)[0] == "weights"


def test_nan_in_the_checkpoint():
    weight = TRUTH.state_dict()["layers.0.feed_forward.w2.weight"].clone()
    weight[0, 0] = math.nan
    model = student()
    model.layers[0].feed_forward.w2.weight = nn.Parameter(weight)
    name, problem = first(model, **{"layers.0.feed_forward.w2.weight": weight})
    assert name == "weights" and "w2.weight of the checkpoint holds numbers that are not" in problem


# Models that cannot be examined


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (
            lambda model: delattr(model, "layers"),
            r"no module layers\.0, layers\.1, layers\.0\.attention_norm and others: --explain",
        ),
        (
            lambda model: delattr(model.layers[1], "ffn_norm"),
            r"^the model has no module layers\.1\.ffn_norm: --explain finds",
        ),
        (
            lambda model: (
                setting("layers.0", forward=lambda self, x: (Layer.forward(self, x),))(model)
                or setting("layers.1", forward=lambda self, x: Layer.forward(self, x[0]))(model)
            ),
            "the output of layers.0 is a tuple, not a tensor",
        ),
        (
            setting(
                "layers.1.attention", forward=lambda self, x: Attention.forward(self, x)[..., :7]
            ),
            r"^the model fails in layers\.1: RuntimeError: .*size.*\(7\)",
        ),
        (
            setting("layers.0.feed_forward", forward=lambda self, x: self.w1(self.w1(x))),
            r"the model fails in layers\.0\.feed_forward: RuntimeError: mat1 and mat2",
        ),
        (
            setting("", forward=lambda model, tokens: run(model, tokens)[0]),
            r"the model returns a Tensor, not the pair \(logits, hidden_states\)",
        ),
        (
            setting("", forward=lambda model, tokens: (run(model, tokens)[0], None)),
            "what the model returns is a NoneType, not a tensor",
        ),
    ],
)
def test_one_line_where_it_cannot_be_examined(plant: Callable[[Student], None], message: str):
    model = student()
    plant(model)
    with pytest.raises(ValueError, match=message) as error:
        explained(model)
    assert "\n" not in str(error.value)


def test_the_first_of_several_calls_counts():
    def calls_twice(self, x):
        return Layer.forward(self, x) + 0 * self.attention(self.attention_norm(2 * x))

    model = student()
    setting("layers.0", forward=calls_twice)(model)
    assert explained(model).first is None


def test_another_order_of_axes_is_one_line():
    def sequence_first(self, x):
        return self.attention(self.attention_norm(x).transpose(0, 1)).transpose(0, 1) + x

    model = student()
    setting("layers.0", forward=sequence_first)(model)
    with pytest.raises(ValueError, match=r"layers\.0\.attention reads shape \[8, 2, 32\], not"):
        explained(model)


def test_hooks_are_gone_afterwards():
    model = student()
    explained(model)
    setting("layers.0.attention", forward=lambda self, x: 1 / 0)(model)
    with pytest.raises(ValueError, match=r"in layers\.0\.attention: ZeroDivisionError"):
        explained(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
