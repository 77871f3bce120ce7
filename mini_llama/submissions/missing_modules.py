"""Stubs for third-party modules that submitted code imports and that are not installed here.

This file imports only the standard library, so that its source can be run before a student's
modules in a process with only their folder on its path: `python -c` or exec, then
`install(folder)`. Only import statements in files of that folder get a stub, except those guarded
by a try (the code has a fallback) and those of the assignment's own modules; PyTorch's own optional
imports do not. Using a stub is an error that names the module and the line; what runs during the
import itself (a decorator, a base class, a version check) is allowed.
"""

import ast
import functools
import importlib
import importlib.util
import inspect
import os
import sys
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

# The courses' own modules get no stub: if one is missing, that is the error to report.
COURSE_MODULES = (
    *("run_llama", "base_llama", "llama", "rope", "lora", "classifier", "config", "optimizer"),
    *("sanity_check", "rope_test", "optimizer_test", "tokenizer", "utils", "mini_llama"),
    *("addition_data_generation", "addition_lib", "addition_run"),
)
BACKPORTS = {  # now in the standard library under another name
    "importlib_metadata": "importlib.metadata",
    "importlib_resources": "importlib.resources",
    "typing_extensions": "typing",
    "tomli": "tomllib",
}
IMPORT_HANDLERS = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
EXCEPTION_SUFFIXES = ("Error", "Exception", "Warning", "Timeout")
IMPORT_MACHINERY = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
MAX_SOURCE_BYTES = 128 * 1024  # larger files are not searched for guarded imports


class Stub:
    """A member of a missing module; calling it in a function is an error."""

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def __getattr__(self, name: str) -> Any:
        return _member(self.__dict__["_name"], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self.__dict__["_name"]
        caller = sys._getframe(1)
        if caller.f_code.co_flags & inspect.CO_OPTIMIZED:  # set for functions only
            raise ModuleNotFoundError(_usage_message(name, caller), name=name.partition(".")[0])
        is_decorated = len(args) == 1 and not kwargs and isinstance(args[0], DECORATED)
        return args[0] if is_decorated else Stub(f"{name}()")

    def __getitem__(self, key: object) -> "Stub":
        return self

    def __or__(self, other: object) -> "Stub":  # in annotations
        return self

    __ror__ = __or__

    def __mro_entries__(self, bases: object) -> tuple[type]:
        return (_stub_class(self.__dict__["_name"], object),)

    def __instancecheck__(self, instance: object) -> bool:
        return False

    __subclasscheck__ = __instancecheck__

    def __lt__(self, other: object) -> bool:
        return False

    __le__ = __gt__ = __ge__ = __lt__


DECORATED = (type, types.FunctionType, classmethod, staticmethod, property)


class StubModule(types.ModuleType):
    """A missing module or submodule."""

    def __getattr__(self, name: str) -> Any:
        return _member(self.__name__, name)


def _member(owner: str, name: str) -> Any:
    if name == "__version__":
        return "0"
    if name.startswith("__") and name.endswith("__"):
        raise AttributeError(name)
    if name.endswith(EXCEPTION_SUFFIXES):  # an except clause accepts only classes
        return _stub_class(f"{owner}.{name}", Exception)
    return Stub(f"{owner}.{name}")


@functools.cache
def _stub_class(name: str, base: type) -> type:
    """A class to inherit from or to catch; making an instance is an error."""

    def refuse(cls: type, *_args: Any, **_kwargs: Any) -> Any:
        raise ModuleNotFoundError(
            _usage_message(name, sys._getframe(1)), name=name.partition(".")[0]
        )

    def accept(cls: type, /, **_kwargs: Any) -> None:
        pass

    members = {"__new__": refuse, "__init_subclass__": classmethod(accept)}
    return type(name.rpartition(".")[2], (base,), members)


def _usage_message(name: str, frame: types.FrameType) -> str:
    """Worded like Python's own import error."""
    place = f"line {frame.f_lineno} of {os.path.basename(frame.f_code.co_filename)}"
    module, _, member = name.partition(".")
    return f"No module named {module!r} is installed here, and {place} uses its {member or module}"


class _Loader(Loader):
    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return StubModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        backport = BACKPORTS.get(module.__name__)
        if backport is not None:
            source = vars(importlib.import_module(backport))
            own = {name for name in source if name.startswith("__") and name != "__all__"}
            vars(module).update({k: v for k, v in source.items() if k not in own})


class Finder(MetaPathFinder):
    """The last finder on sys.meta_path: it is asked for modules that no other finder found."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.join(os.path.realpath(folder), "")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        parent = sys.modules.get(fullname.rpartition(".")[0])
        # No stubs for submodules of an installed package, unless it is a namespace package
        # (google.colab next to google.protobuf).
        is_part = parent is not None and not isinstance(parent, StubModule)
        if is_part and getattr(parent, "__file__", None) is not None:
            return None
        if fullname.partition(".")[0] in COURSE_MODULES or not self.is_submitted_import():
            return None
        return ModuleSpec(fullname, _Loader(), is_package=True)

    def is_submitted_import(self) -> bool:
        """Whether the import statement is in a file of the folder, and not guarded by a try."""
        frame: types.FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code.co_filename in IMPORT_MACHINERY:
            frame = frame.f_back
        if frame is None:
            return False
        file, line = os.path.realpath(frame.f_code.co_filename), frame.f_lineno
        is_own = file.startswith(self.folder) and os.path.isfile(file)
        return is_own and not any(first <= line <= last for first, last in guarded_lines(file))


@functools.cache
def guarded_lines(file: str) -> list[tuple[int, int]]:
    """First and last lines of the blocks of a Python file in which a failed import is caught."""
    if os.path.getsize(file) > MAX_SOURCE_BYTES:
        return []
    try:
        with open(file, "rb") as source:
            tree = ast.parse(source.read())
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    caught = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Try):
            types_of = [h.type for h in node.handlers]
        elif isinstance(node, ast.With):
            types_of = [arg for arg in map(_suppressed, node.items) if arg is not None]
        else:
            continue
        if any(t is None or IMPORT_HANDLERS & _names_in(t) for t in types_of):
            caught.append((node.body[0].lineno, node.body[-1].end_lineno or 0))
    return caught


def _suppressed(item: ast.withitem) -> ast.expr | None:
    """The argument of contextlib.suppress."""
    call = item.context_expr
    is_suppress = isinstance(call, ast.Call) and "suppress" in _names_in(call.func)
    return ast.Tuple(call.args) if is_suppress and isinstance(call, ast.Call) else None


def _names_in(expression: ast.expr) -> set[str]:
    names = {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)}
    return names | {n.attr for n in ast.walk(expression) if isinstance(n, ast.Attribute)}


def install(folder: str) -> None:
    """Use stubs from now on for modules that files in `folder` import and that are missing."""
    sys.meta_path.append(Finder(folder))
