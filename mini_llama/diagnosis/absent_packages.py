"""Stand-ins for packages that an examined module imports and that are not installed.

The courses' utils.py imports packages for downloading, which no component uses. An import statement
of an examined file gets a stand-in for what is not there; it may be read, called and subscripted
while modules are imported, and raises AbsentPackageError when a component uses it. The course's own
modules, and imports inside a try that catches their failure, fail as always.
"""

import ast
import builtins
import importlib.metadata
import linecache
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

CAUGHT = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
SAME = {"importlib_metadata": importlib.metadata}  # the backport of what Python has


class AbsentPackageError(ImportError):
    """The message names the package."""

    absent_package = True


class StandIn(ModuleType):
    """A package, or anything of it, that is not installed."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__all__: list[str] = []

    def _used(self, *arguments: Any) -> Any:
        name = self.__name__
        if not is_importing():
            package = name.partition(".")[0]
            raise AbsentPackageError(f"{name} is used, and {package} is not installed here")
        if len(arguments) == 1 and isinstance(arguments[0], (type, type(is_importing))):
            return arguments[0]  # a decorator
        return StandIn(name)

    def __getattr__(self, name: str) -> "StandIn":
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return StandIn(f"{self.__name__}.{name}")

    def __call__(self, *arguments: Any, **_: Any) -> Any:
        return self._used(*arguments)

    def __getitem__(self, _: object) -> Any:
        return self._used()

    def __or__(self, _: object) -> Any:
        return self._used()

    def __enter__(self) -> Any:
        return self._used()

    def __exit__(self, *_: object) -> None: ...

    def __iter__(self) -> Any:
        self._used()
        return iter(())

    __ror__ = __or__

    def __mro_entries__(self, _: object) -> tuple[type, ...]:
        return ()


def is_importing() -> bool:
    """Whether a module's own statements are running, further up the stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def allow_absent(folder: Path, own: Collection[str]) -> Callable[[], None]:
    """From now on files below `folder` get stand-ins, but never for the modules `own`.

    Returns what ends it.
    """
    original = builtins.__import__

    def import_or_stand_in(
        name: str,
        globals: dict[str, Any] | None = None,
        locals: Any = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        try:
            return original(name, globals, locals, fromlist or (), level)
        except ModuleNotFoundError as error:
            root = name.partition(".")[0]
            is_absent = (error.name or "").partition(".")[0] == root and level == 0
            caller = sys._getframe(1)
            if not is_absent or root in own or root in sys.modules:
                raise
            if not Path(caller.f_code.co_filename).is_relative_to(folder) or is_caught(caller):
                raise
            if root in SAME:
                return SAME[root]
            return StandIn(name if fromlist else root)

    builtins.__import__ = import_or_stand_in  # type: ignore[assignment]

    def end() -> None:
        builtins.__import__ = original

    return end


def is_caught(frame: FrameType) -> bool:
    """Whether the line that runs stands in a try whose handlers expect a failed import."""
    lines = linecache.getlines(frame.f_code.co_filename)
    try:
        tree = ast.parse("".join(lines))
    except (SyntaxError, ValueError, RecursionError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, ast.Try):
            continue
        end = node.body[-1].end_lineno or node.body[-1].lineno
        if node.body[0].lineno <= frame.f_lineno <= end and any(map(catches, node.handlers)):
            return True
    return False


def catches(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    names = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
    return bool(names & CAUGHT)
