"""Imports of optional packages, at the place of use."""

import importlib
from typing import Any


def import_optional(module: str, purpose: str, package: str | None = None) -> Any:
    """The module. Raises ValueError if it is not installed, with the command that installs
    `package`, by default the first part of the module's name: "--tensorboard needs tensorboard, …".
    """
    package = package or module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(
            f"{purpose} needs {package}, which is not installed: bash setup.sh --extra, or "
            f"pip install {package}"
        ) from None
