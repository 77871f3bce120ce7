"""Make a mistake in our own modules by replacing some of their functions."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple


class Replacement(NamedTuple):
    """Set attribute `name` of `owner`, the module or class that defines it, to `value`."""

    owner: Any
    name: str
    value: Any


Variant = tuple[Replacement, ...]  # replacements that make one mistake
Variants = Mapping[str, tuple[Variant, ...]]  # all ways to make a mistake, by its name


@contextmanager
def applied(variant: Variant) -> Iterator[None]:
    """Apply a variant to our modules until the context exits, even by an exception.

    Raises KeyError if an owner does not define the name.
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
    """Mistakes in one formula. `make` implements it, correctly by default; `options` are the
    arguments that make each mistake, by its name. At most `most` mistakes are combined.
    """

    make: Callable[..., Variant]
    options: Mapping[str, tuple[Mapping[str, Any], ...]]
    most: int = 2

    @property
    def variants(self) -> Variants:
        """Variants with a single mistake."""
        return {
            name: tuple(self.make(**form) for form in forms) for name, forms in self.options.items()
        }
