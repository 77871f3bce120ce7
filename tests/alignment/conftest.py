"""Fixtures of post-training's tests."""

from collections.abc import Iterator

import pytest

from mini_llama.training import log


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Plots, of which tests/training has tests, take longer than tiny runs."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(log, "plot_losses", lambda *arguments, **others: None)
        yield
