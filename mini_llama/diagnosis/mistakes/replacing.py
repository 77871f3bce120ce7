"""A mistake is made in our own modules by putting other functions in the place of theirs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple


class Replacement(NamedTuple):
    """`owner`, a module or class, has `value` under `name`, which it defines itself."""

    owner: Any
    name: str
    value: Any


Variant = tuple[Replacement, ...]  # what is replaced together
Variants = Mapping[str, tuple[Variant, ...]]  # by the mistake's name: each way of making it


@contextmanager
def made(variant: Variant) -> Iterator[None]:
    """Our own modules make the mistake until the context is left, by an exception, too.

    Raises KeyError for a name that its owner does not define.
    """
    originals: list[Replacement] = []
    try:
        for owner, name, value in variant:
            originals.append(Replacement(owner, name, vars(owner)[name]))
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, original in reversed(originals):
            setattr(owner, name, original)


class Family(NamedTuple):
    """Mistakes of one formula: `make` writes it out, by default as it should be, and `options` are
    the arguments of each mistake, by its name. `most`: how many are made together.
    """

    make: Callable[..., Variant]
    options: Mapping[str, tuple[Mapping[str, Any], ...]]
    most: int = 2

    @property
    def variants(self) -> Variants:
        """Each mistake by itself."""
        return {
            name: tuple(self.make(**form) for form in forms) for name, forms in self.options.items()
        }
