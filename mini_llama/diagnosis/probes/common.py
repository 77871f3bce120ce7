"""What all probes share: the examined modules, how they are called, and numbers to fill them with.

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
Cases = dict[str, Callable[[], Values]]  # what is asked, each by itself


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


class OwnSignatureError(Exception):
    """A function needs an argument that the assignment does not have, and does not do with None."""


class Modules:
    """The course's modules, each imported when it is first asked for.

    `notes` is what the probes remark on besides the values.
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
    """The function, or module, with these arguments and those of the options that it takes.

    What it needs besides is None, and is noted. Raises OwnSignatureError where None will not do.
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
    text = f"{name} needs an argument that the assignment does not have: {', '.join(own)}"
    modules.note(text)
    try:
        return function(*arguments, **known, **own)
    except Exception as error:
        raise OwnSignatureError(text) from error


def signature_of(function: Any) -> inspect.Signature:
    return inspect.signature(function.forward if isinstance(function, nn.Module) else function)


def takes(signature: inspect.Signature, name: str) -> bool:
    """Whether the signature names the option; **others alone promises nothing."""
    return name in signature.parameters


def accepted(function: Callable, **options: object) -> dict[str, object]:
    """Those of the options that the function's signature names."""
    signature = inspect.signature(function)
    return {name: value for name, value in options.items() if takes(signature, name)}


def draw(name: str, *shape: int) -> torch.Tensor:
    """Normally distributed numbers that depend on the name and the shape only."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator)


def fill(module: nn.Module, *names: str) -> None:
    """Give the parameters `names` (a.weight → a) numbers that depend on their last names.

    Others stay as they start: a student's own that start at 0 change nothing.
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
    """To a quarter: draws from other random numbers give the same."""
    return flags(round(4 * mask.float().mean().item()) / 4)


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


def stand_in(module: nn.Module, function: Callable[..., torch.Tensor]) -> None:
    """The module's forward becomes a function of its first argument."""
    module.forward = lambda x, *_, **__: function(x)


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
    """The first layer of a model, because some start their layers' parameters there; by itself
    where no model can be made.
    """
    config = make_config(modules, settings, **changes)
    with contextlib.suppress(Exception):
        return find(modules.llama, "Llama")(config).layers[0].eval()
    return find(modules.llama, "LlamaLayer")(0, config).eval()
