"""Shared by all probes: access to the student's modules, calls, and numbers to fill them with.

Legend of shapes: C width, H heads, V vocabulary.
"""

import contextlib
import importlib
import inspect
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, SupportsFloat

import torch
from torch import nn

Values = dict[str, torch.Tensor]
Cases = dict[str, Callable[[], Values]]  # each runs independently


@dataclass(frozen=True)
class Settings:
    """The settings of an edition: fields of config.Edition, and whether AdamW clips gradients."""

    norm: str
    attention: str
    epsilon: float
    top_p: float
    clips: bool


class MissingError(Exception):
    """The message names the missing file, function, class or attribute."""


class ResultError(Exception):
    """The message describes a result that cannot be measured."""


class OwnSignatureError(Exception):
    """A function requires an argument unknown to the assignment, and fails if it is None."""


class Modules:
    """The course's modules, each imported on first access.

    `notes` are the probes' remarks, in addition to the values.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []

    def __getattr__(self, name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name == name:
                raise MissingError(f"{name}.py") from error
            raise
        except ImportError as error:
            if "relative import" not in str(error):
                raise
            return importlib.import_module(f"{Path.cwd().name}.{name}")  # they form a package

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def find(owner: Any, name: str) -> Any:
    """owner.name. Raises MissingError."""
    try:
        return getattr(owner, name)
    except AttributeError:
        is_module = isinstance(owner, ModuleType)
        place = f"{owner.__name__}.py" if is_module else f"class {type(owner).__name__}"
        raise MissingError(f"{name} in {place}") from None


def call(modules: Modules, function: Any, *arguments: object, **options: object) -> Any:
    """Call the function, or module, with these arguments and the options that it accepts.

    Other required arguments are None, which is noted. Raises OwnSignatureError if that fails.
    """
    signature = signature_of(function)
    parameters = list(signature.parameters.values())
    known = {k: v for k, v in options.items() if takes(signature, k)}
    own = {
        p.name: None
        for p in parameters[len(arguments) :]
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in known
    }
    if not own:
        return function(*arguments, **known)
    name = getattr(function, "__name__", type(function).__name__)
    text = f"{name} requires an argument that the assignment does not have: {', '.join(own)}"
    modules.note(text)
    try:
        return function(*arguments, **known, **own)
    except Exception as error:
        raise OwnSignatureError(text) from error


def signature_of(function: Any) -> inspect.Signature:
    return inspect.signature(function.forward if isinstance(function, nn.Module) else function)


def takes(signature: inspect.Signature, name: str) -> bool:
    """True if the signature names the option; **kwargs does not count."""
    return name in signature.parameters


def accepted(function: Callable, **options: object) -> dict[str, object]:
    """The options that the function's signature names."""
    signature = inspect.signature(function)
    return {name: value for name, value in options.items() if takes(signature, name)}


def draw(name: str, *shape: int) -> torch.Tensor:
    """Normally distributed numbers that depend only on the name and the shape."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator)


def fill(module: nn.Module, *names: str) -> None:
    """Fill the parameters `names` (a.weight → a) with numbers that depend on their last names.

    Others keep their initial values: a student's own parameters that start at 0 change nothing.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parts = [part for part in name.split(".") if part not in ("weight", "0")]
            stem = parts[-1] if parts else "weight"
            if stem in names:
                parameter.copy_(draw(stem, *parameter.shape) * parameter.shape[-1] ** -0.5)


def flags(*values: SupportsFloat) -> torch.Tensor:
    return torch.tensor([float(value) for value in values])


def share(mask: torch.Tensor) -> torch.Tensor:
    """Share of True values, to the nearest quarter, so that the random seed does not matter."""
    return flags(round(4 * mask.float().mean().item()) / 4)


@contextlib.contextmanager
def replaced(owner: Any, **attributes: object) -> Iterator[None]:
    """Replace attributes that `owner` has, until the context exits."""
    old = {name: getattr(owner, name) for name in attributes if hasattr(owner, name)}
    try:
        for name in old:
            setattr(owner, name, attributes[name])
        yield
    finally:
        for name, value in old.items():
            setattr(owner, name, value)


def stand_in(module: nn.Module, function: Callable[..., torch.Tensor]) -> None:
    """Replace the module's forward by a function of its first argument."""
    module.forward = lambda x, *_, **__: function(x)


def make_config(modules: Modules, settings: Settings, **changes: object) -> Any:
    """The student's LlamaConfig for a tiny model: C = 32, H = 4, 2 key/value heads.

    eps is large, so that its position in the formula makes a difference.
    """
    config_class = find(modules.config, "LlamaConfig")
    shape: dict[str, object] = dict(
        vocab_size=8, dim=32, n_layers=1, n_heads=4, n_kv_heads=2, multiple_of=8
    )
    shape |= dict(max_seq_len=16, layer_norm_eps=0.1, dropout=0.0) | changes
    edition = accepted(config_class, norm=settings.norm, attention=settings.attention)
    return config_class(**shape, **edition)


def make_layer(modules: Modules, settings: Settings, **changes: object) -> nn.Module:
    """The first layer of a model, since some models initialise their layers' parameters; or a
    single layer if the model cannot be created.
    """
    config = make_config(modules, settings, **changes)
    with contextlib.suppress(Exception):
        return find(modules.llama, "Llama")(config).layers[0].eval()
    return find(modules.llama, "LlamaLayer")(0, config).eval()
