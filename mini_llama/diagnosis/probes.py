"""What is asked of each component: small fixed inputs, and what comes back, as plain numbers.

The same is asked of a student's modules, in a limited process (worker.py), and of our own and their
variants, in this one; so nothing here says what is right, and nothing of the project is imported:
`llama` or `config` means the modules that are examined. Wherever one component uses another, a
known function stands in for the latter, so that a fault shows in one place only.

Of our own modules the probes call the plain path, which a student's have as well, and none of the
faster ones that stand beside it:

    rope           apply_rotary_emb
    norm           LayerNorm or RMSNorm, called
    attention      compute_query_key_value_scores, and Attention called with x alone
    feed_forward   FeedForward, called
    layer          LlamaLayer, called with x alone
    generate       Llama.generate of a model in float64, where no faster decoder takes the place of
                   the model's own forward pass; the logits are a table's that stands in for it
    lora           LoRALayer, apply_lora, merge_lora_weights
    optimizer      AdamW.step
    classifier     LlamaEmbeddingClassifier, called; Llama called with tokens and targets

How these multiply (oneDNN's product in Linear, PyTorch's attention and layer norm, complex numbers
in rope) makes no difference beyond float32's rounding: mistakes/ has each formula written out, and
tests/diagnosis/test_mistakes.py holds ours to it within comparison.EXACT.

Shapes: B batch, T positions, H heads, D head_dim, C width, V vocabulary.
"""

import contextlib
import importlib
import inspect
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, SupportsFloat

import torch
from torch import nn

ROPE_MARK = 0.8  # what stands in for a rotation multiplies by it
N_LABELS = 3
PROJECTIONS = ("compute_query", "compute_key", "compute_value", "compute_output")

Values = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """What an edition fixes: config.Edition's fields, and whether AdamW clips gradients."""

    norm: str
    attention: str
    epsilon: float
    top_p: float
    clips: bool


class MissingError(Exception):
    """The message names the file, function, class or attribute that is not there."""


class ResultError(Exception):
    """The message says what came back that cannot be measured."""


class Modules:
    """The course's modules, each imported when it is first asked for."""

    def __getattr__(self, name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name == name:
                raise MissingError(f"{name}.py") from error
            raise


def find(owner: Any, name: str) -> Any:
    """owner.name. Raises MissingError."""
    try:
        return getattr(owner, name)
    except AttributeError:
        is_module = isinstance(owner, ModuleType)
        place = f"{owner.__name__}.py" if is_module else f"class {type(owner).__name__}"
        raise MissingError(f"{name} in {place}") from None


def draw(name: str, *shape: int) -> torch.Tensor:
    """Normally distributed numbers that depend on the name and the shape only."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator)


def fill(module: nn.Module, only: str = "") -> None:
    """Give every parameter whose name holds `only` numbers that depend on its last name."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if only in name:
                names = [part for part in name.split(".") if part not in ("weight", "0")]
                stem = names[-1] if names else "weight"
                parameter.copy_(draw(stem, *parameter.shape) * parameter.shape[-1] ** -0.5)


def flags(*values: SupportsFloat) -> torch.Tensor:
    return torch.tensor([float(value) for value in values])


def share(mask: torch.Tensor) -> torch.Tensor:
    """To one decimal: draws from other random numbers give the same."""
    return flags(round(mask.float().mean().item(), 1))


@contextlib.contextmanager
def replaced(owner: Any, **attributes: object) -> Iterator[None]:
    """Attributes that `owner` has are other ones for a while."""
    old = {name: getattr(owner, name) for name in attributes if hasattr(owner, name)}
    try:
        for name in old:
            setattr(owner, name, attributes[name])
        yield
    finally:
        for name, value in old.items():
            setattr(owner, name, value)


def accepted(function: Callable, **options: object) -> dict[str, object]:
    """Those of the options that the function's signature names."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in parameters}


def make_config(modules: Modules, settings: Settings, **changes: object) -> Any:
    """The examined modules' own configuration of a tiny model: C = 32, H = 4, 2 key/value heads.

    A large eps, so that its place shows.
    """
    config_class = find(modules.config, "LlamaConfig")
    shape: dict[str, object] = dict(
        vocab_size=8, dim=32, n_layers=1, n_heads=4, n_kv_heads=2, multiple_of=8
    )
    shape |= dict(max_seq_len=16, layer_norm_eps=0.1, dropout=0.0) | changes
    edition = accepted(config_class, norm=settings.norm, attention=settings.attention)
    return config_class(**shape, **edition)


def make_layer(modules: Modules, settings: Settings, **changes: object) -> nn.Module:
    config = make_config(modules, settings, **changes)
    return find(modules.llama, "LlamaLayer")(0, config).eval()


# --- one probe a component ---


def probe_rope(modules: Modules, settings: Settings) -> Values:
    rotate = find(modules.rope, "apply_rotary_emb")
    # Positions far enough for angles of few bits to go wrong.
    query, key = draw("query", 1, 150, 2, 8), draw("key", 1, 150, 1, 8)
    rotated = rotate(query, key, 8, 256)
    half = query.bfloat16(), key.bfloat16()
    exact = rotate(half[0].float(), half[1].float(), 8, 256)
    pairs = zip(rotate(*half, 8, 256), exact, strict=True)
    rounded = [x.bfloat16() == y.bfloat16() for x, y in pairs]
    is_float32 = torch.cat([same.flatten() for same in rounded]).float().mean() > 0.98
    return {"query": rotated[0], "key": rotated[1], "bfloat16 input": flags(is_float32)}


def probe_norm(modules: Modules, settings: Settings) -> Values:
    x = 1 + draw("x", 2, 5, 32) / 2
    layer = make_layer(modules, settings)
    llama = find(modules.llama, "Llama")(make_config(modules, settings))
    values = {}
    for name, owner in (("attention_norm", layer), ("ffn_norm", layer), ("norm", llama)):
        norm = find(owner, name)
        fill(norm)
        values[name] = norm(x)
    return values


def probe_attention(modules: Modules, settings: Settings) -> Values:
    attention = find(make_layer(modules, settings), "attention")
    heads = [draw(name, 2, 4, 5, 8) for name in ("query", "key", "value")]
    values = {"scores": find(attention, "compute_query_key_value_scores")(*heads)}
    fill(attention)
    with rope_marked(modules):
        values["forward"] = attention(draw("x", 2, 5, 32))
    # Equal scores; the values are a unit matrix, so what comes out is the probabilities. The
    # last position sees all others in every edition.
    dropping = find(make_layer(modules, settings, dropout=0.5), "attention")
    equal, unit = torch.ones(64, 4, 8, 8), torch.eye(8).expand(64, 4, 8, 8)
    for mode in ("train", "eval"):
        getattr(dropping, mode)()
        last = dropping.compute_query_key_value_scores(equal, equal, unit)[:, :, -1]
        values[f"share of zeros, {mode}"] = share(last == 0)
        values[f"largest probability, {mode}"] = last.amax().reshape(1)
    return values


@contextlib.contextmanager
def rope_marked(modules: Modules) -> Iterator[None]:
    """A factor stands in for rotation: what is rotated shows, and how it is rotated does not."""
    stand_ins = {
        "apply_rotary_emb": lambda query, key, *_, **__: (ROPE_MARK * query, ROPE_MARK * key),
        "rotate": lambda x, *_, **__: ROPE_MARK * x,
    }
    with replaced(modules.rope, **stand_ins), replaced(modules.llama, **stand_ins):
        yield


def probe_feed_forward(modules: Modules, settings: Settings) -> Values:
    feed_forward = find(make_layer(modules, settings), "feed_forward")
    fill(feed_forward)
    shapes = [size for name in ("w1", "w2", "w3") for size in find(feed_forward, name).weight.shape]
    return {"shapes": flags(*shapes), "forward": feed_forward(draw("x", 2, 5, 32))}


def probe_layer(modules: Modules, settings: Settings) -> Values:
    layer = make_layer(modules, settings)
    stand_ins = {
        "attention_norm": lambda x: x.sin(),
        "attention": lambda x: 0.7 * x.roll(1, -1).cos(),
        "ffn_norm": lambda x: (2 * x).tanh(),
        "feed_forward": lambda x: 0.5 * x.flip(-1).exp(),
    }
    for name, function in stand_ins.items():
        stand_in(find(layer, name), function)
    return {"forward": layer(draw("x", 2, 5, 32))}


def stand_in(module: nn.Module, function: Callable) -> None:
    """The module's forward becomes a function of its first argument."""
    module.forward = lambda x, *_, **__: function(x)


def probe_generate(modules: Modules, settings: Settings) -> Values:
    model = find(modules.llama, "Llama")(make_config(modules, settings)).eval()
    model.double()  # the plain path: see above
    filters = {"epsilon": settings.epsilon, "top_p": settings.top_p}
    options = accepted(find(model, "generate"), **filters)
    probs = torch.tensor([0.38, 0.25, 0.16, 0.09, 0.06, 0.03, 0.02, 0.01])
    rows = torch.stack([probs.roll(5 * i + 2).log() for i in range(8)])

    def run(table: torch.Tensor, idx: torch.Tensor, new: int, **more: float) -> torch.Tensor:
        """The logits are the row of `table` that the last token names."""
        model.forward = lambda tokens, *_, **__: (table[tokens[:, -1:]], tokens.float()[..., None])
        return tokens_of(model.generate(idx, new, **(options | more)), idx, new)

    idx = torch.arange(8)[:, None].expand(8, 3)
    tied = torch.tensor([1.0, 2, 2, 0, 2, 2, 2, 2]).expand(8, 8)
    greedy = run(rows, idx, 4, temperature=0.0).float()
    ties = run(tied, idx, 1, temperature=0.0)[:, -1]
    values = {"greedy": greedy, "greedy ties": flags((ties == 1).all())}
    one = torch.zeros(8, 3, dtype=torch.long)
    cases = {"tempered": (rows, {"temperature": 2.0}), "sharpened": (rows, {"temperature": 0.5})}
    if settings.epsilon > 0 and "epsilon" in options:
        cases["epsilon reached exactly"] = (torch.zeros(8, 8), {"epsilon": 0.125})
        cases["none left"] = (rows, {"epsilon": 0.9})
    for name, (table, more) in cases.items():
        with recorded_draws() as draws:
            new = run(table, one, 1, **({"temperature": 1.0} | more))[:, -1]
        if draws:
            values[name] = probabilities(draws, new)
    new = run(rows, one[:1].expand(20_000, 3), 1, temperature=2.0)[:, -1]
    return values | {"frequencies": new.bincount(minlength=8)[:8] / 20_000}


def tokens_of(result: object, idx: torch.Tensor, new: int) -> torch.Tensor:
    """What generate gave: the prompt and `new` tokens. Raises ResultError for anything else."""
    expected = (idx.shape[0], idx.shape[1] + new)
    if not isinstance(result, torch.Tensor) or result.shape != expected:
        got = tuple(getattr(result, "shape", [])) or type(result).__name__
        raise ResultError(f"generate gave {got}, not {expected}: the prompt and {new} new tokens")
    return result.clone()


@contextlib.contextmanager
def recorded_draws() -> Iterator[list[torch.Tensor]]:
    """torch.multinomial notes what it is given, and picks column i in row i."""
    draws: list[torch.Tensor] = []

    def pick(probs: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        count = sum(len(rows) for rows in draws)
        rows = probs.reshape(-1, probs.shape[-1])
        draws.append(rows)
        picked = (count + torch.arange(len(rows))) % rows.shape[-1]
        return picked.view(*probs.shape[:-1], 1)

    with replaced(torch, multinomial=pick), replaced(torch.Tensor, multinomial=pick):
        yield draws


def probabilities(draws: list[torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """(V,): how probable each token was, in whatever order the columns stood."""
    rows = torch.cat(draws)
    total = torch.zeros(8)
    for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        if i < len(row):
            total[token] += row[i]
    return total


class Projections(nn.Module):
    """Linear layers with the names that LoRA looks for, and one that it leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        for name in (*PROJECTIONS, "w1"):
            self.add_module(name, nn.Linear(12, 10, bias=False))


def probe_lora(modules: Modules, settings: Settings) -> Values:
    layer_class = find(modules.lora, "LoRALayer")
    fresh = layer_class(nn.Linear(400, 300), rank=4, alpha=6.0)
    a, b = (parameter_of(find(fresh, name)) for name in ("lora_A", "lora_B"))
    base = [p for name, p in fresh.named_parameters() if "lora_" not in name]
    values = {
        "shapes of A, B": flags(*a.shape, *b.shape),
        "A, B are 0": flags(not a.any(), not b.any()),
        "A's deviation": flags(round(a.std().item(), 2)),
        "W, A, B train": flags(
            any(p.requires_grad for p in base), a.requires_grad, b.requires_grad
        ),
    }
    linear, x = nn.Linear(12, 10), draw("x", 2, 3, 12)
    fill(linear)
    layer = layer_class(linear, rank=4, alpha=6.0)
    fill(layer, only="lora_")
    values["forward"] = layer(x)
    net = Projections()
    fill(net)
    net = find(modules.lora, "apply_lora")(net, rank=4, alpha=6.0)
    wrapped = [isinstance(getattr(net, name), layer_class) for name in (*PROJECTIONS, "w1")]
    values["wrapped by apply_lora"] = flags(*wrapped)
    fill(net, only="lora_")
    net = find(modules.lora, "merge_lora_weights")(net)
    return values | {"merged": net.compute_query(x)}


def parameter_of(value: Any) -> torch.Tensor:
    """lora_A may be a parameter or a linear layer."""
    return value if isinstance(value, torch.Tensor) else find(value, "weight")


def probe_optimizer(modules: Modules, settings: Settings) -> Values:
    optimizer_class = find(modules.optimizer, "AdamW")

    def train(**options: object) -> torch.Tensor:
        """Two weights after each of 4 steps, as one row."""
        weights = [nn.Parameter(draw("first", 3, 4)), nn.Parameter(draw("second", 5))]
        options = accepted(optimizer_class, **options)
        optimizer = optimizer_class(weights, lr=0.1, betas=(0.8, 0.95), eps=0.3, **options)
        states = []
        for step in range(4):
            for i, weight in enumerate(weights):
                weight.grad = draw(f"gradient {step} of {i}", *weight.shape) * (1 + step) / (1 + i)
            optimizer.step()
            states += [weight.detach().flatten().clone() for weight in weights]
        return torch.cat(states)

    values = {
        "plain": train(),
        "with decay": train(weight_decay=0.5),
        "without correct_bias": train(correct_bias=False),
    }
    return values | ({"clipped": train(max_grad_norm=0.9)} if settings.clips else {})


class Backbone(nn.Module):
    """Stands in for a pretrained Llama: its hidden states are an embedding of the tokens."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.states = nn.Parameter(draw("states", 8, 32))

    def forward(self, tokens: torch.Tensor, *_: object, **__: object) -> tuple:
        """Logits (B, 1, V) and hidden states (B, T, C)."""
        hidden = self.states[tokens]
        return hidden[:, -1:, :8], hidden

    def last_hidden_state(self, tokens: torch.Tensor, *_: object) -> torch.Tensor:
        """(B, 1, C): the last column of forward's, which is what our classifier asks for."""
        return self.states[tokens[:, -1:]]


def probe_classifier(modules: Modules, settings: Settings) -> Values:
    config = make_config(modules, settings)
    tokens = torch.tensor([[1, 2, 3, 4, 5], [6, 5, 0, 2, 7]])
    values = probe_network(modules, config, tokens)
    model = make_classifier(modules, config, hidden_dropout_prob=0.0).eval()
    head = head_of(model)
    fill(head)
    values["log-probabilities"] = model(tokens)
    model = make_classifier(modules, config, hidden_dropout_prob=0.5)
    inputs: list[torch.Tensor] = []
    head_of(model).register_forward_hook(lambda _module, args, _output: inputs.append(args[0]))
    for mode in ("train", "eval"):
        getattr(model, mode)()(tokens.repeat(50, 1))
        values[f"share of zeros, {mode}"] = share(inputs[-1] == 0)
    return values


def probe_network(modules: Modules, config: Any, tokens: torch.Tensor) -> Values:
    """Llama.forward, with functions in the place of layers and norm."""
    llama = find(modules.llama, "Llama")(config).eval()
    fill(find(llama, "tok_embeddings"))
    fill(find(llama, "output"))
    for layer in find(llama, "layers"):
        stand_in(layer, lambda x: x.flip(-1) + 1)
    stand_in(find(llama, "norm"), lambda x: x.tanh())
    logits, hidden = llama(tokens)
    all_logits, _ = llama(tokens, targets=tokens)
    return {"logits": logits, "logits with targets": all_logits, "hidden states": hidden}


def make_classifier(modules: Modules, config: Any, **options: object) -> nn.Module:
    names = dict(num_labels=N_LABELS, pretrained_model_path="", option="finetune")
    load = {"load_pretrained": lambda *_, **__: Backbone(config)}
    with replaced(modules.classifier, **load), replaced(modules.llama, **load):
        classifier = find(modules.classifier, "LlamaEmbeddingClassifier")
        return classifier(SimpleNamespace(**names, **options))


def head_of(model: nn.Module) -> nn.Linear:
    """The linear layer with one output a label. Raises MissingError."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features == N_LABELS:
            return module
    raise MissingError(
        f"a linear layer from the hidden state to {N_LABELS} labels in classifier.py"
    )


PROBES: dict[str, Callable[[Modules, Settings], Values]] = {
    "rope": probe_rope,
    "norm": probe_norm,
    "attention": probe_attention,
    "feed_forward": probe_feed_forward,
    "layer": probe_layer,
    "generate": probe_generate,
    "lora": probe_lora,
    "optimizer": probe_optimizer,
    "classifier": probe_classifier,
}


def examine(component: str, settings: Settings) -> dict[str, Any]:
    """What a probe gives, as JSON: {"values": name → {"shape", "numbers"}}, or what went
    wrong: {"missing": what}, {"unwritten": where}, {"result": why}, {"error": what, "where": line}.
    """
    torch.manual_seed(0)
    try:
        with torch.enable_grad():
            values = PROBES[component](Modules(), settings)
        return {"values": {name: plain(name, value) for name, value in values.items()}}
    except MissingError as error:
        return {"missing": str(error)}
    except ResultError as error:
        return {"result": str(error)}
    except NotImplementedError as error:
        return {"unwritten": True, "where": own_line(error)}
    except BaseException as error:  # a module that calls sys.exit when it is imported, too
        message = " ".join(str(error).split())
        return {"error": f"{type(error).__name__}: {message}"[:500], "where": own_line(error)}


def plain(name: str, value: object) -> dict[str, list]:
    """Raises ResultError for what is no tensor of numbers."""
    if not isinstance(value, torch.Tensor):
        raise ResultError(f"{name}: got {type(value).__name__}, not a tensor")
    return {"shape": list(value.shape), "numbers": value.detach().double().flatten().tolist()}


def own_line(error: BaseException) -> str | None:
    """The last line of the examined folder that the error passed through: "llama.py:12: code"."""
    folder = Path.cwd()
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}: {(error.text or '').strip()}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).parent == folder:
            return f"{Path(frame.filename).name}:{frame.lineno}: {frame.line}"
    return None
