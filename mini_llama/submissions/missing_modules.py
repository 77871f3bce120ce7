"""Stand-ins for third-party modules that submitted code imports and that are not installed here.

It imports the standard library alone, so that its text can be run before a student's modules, in a
process that has only their folder on its path: `python -c`, or exec, and then `install(folder)`.
Only import statements in files of that folder get a stand-in: none that a try catches (the code has
another way), none for the assignment's own modules, none that PyTorch tries by itself. Using
one is an error that names the module and the place; what runs while a module is imported
(a decorator, a base class, a version that is asked for) is let pass.
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

# A course's module that is not there is no third-party one: its absence is what must be said.
COURSE = (
    *("run_llama", "base_llama", "llama", "rope", "lora", "classifier", "config", "optimizer"),
    *("sanity_check", "rope_test", "optimizer_test", "tokenizer", "utils", "mini_llama"),
    *("addition_data_generation", "addition_lib", "addition_run"),
)
BACKPORTS = {  # what the standard library has by now under another name
    "importlib_metadata": "importlib.metadata",
    "importlib_resources": "importlib.resources",
    "typing_extensions": "typing",
    "tomli": "tomllib",
}
CATCHING = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
EXCEPTIONS = ("Error", "Exception", "Warning", "Timeout")  # endings of their names
MACHINERY = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
MAX_SOURCE_BYTES = 128 * 1024  # of a file whose tries are looked for


class Unused:
    """What a missing module holds under a name, as long as nobody asks more of it."""

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def __getattr__(self, name: str) -> Any:
        return _member(self.__dict__["_name"], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self.__dict__["_name"]
        caller = sys._getframe(1)
        if caller.f_code.co_flags & inspect.CO_OPTIMIZED:  # of functions alone
            raise ModuleNotFoundError(_used(name, caller), name=name.partition(".")[0])
        is_decorated = len(args) == 1 and not kwargs and isinstance(args[0], DECORATED)
        return args[0] if is_decorated else Unused(f"{name}()")

    def __getitem__(self, key: object) -> "Unused":
        return self

    def __or__(self, other: object) -> "Unused":  # in annotations
        return self

    __ror__ = __or__

    def __mro_entries__(self, bases: object) -> tuple[type]:
        return (_missing_class(self.__dict__["_name"], object),)

    def __instancecheck__(self, instance: object) -> bool:
        return False

    __subclasscheck__ = __instancecheck__

    def __lt__(self, other: object) -> bool:
        return False

    __le__ = __gt__ = __ge__ = __lt__


DECORATED = (type, types.FunctionType, classmethod, staticmethod, property)


class UnusedModule(types.ModuleType):
    """A missing module, or a part of one."""

    def __getattr__(self, name: str) -> Any:
        return _member(self.__name__, name)


def _member(owner: str, name: str) -> Any:
    if name == "__version__":
        return "0"
    if name.startswith("__") and name.endswith("__"):
        raise AttributeError(name)
    if name.endswith(EXCEPTIONS):  # an except clause takes nothing but classes
        return _missing_class(f"{owner}.{name}", Exception)
    return Unused(f"{owner}.{name}")


@functools.cache
def _missing_class(name: str, base: type) -> type:
    """A class to inherit from, or to catch; one of its objects is a use of the module."""

    def refuse(cls: type, *_args: Any, **_kwargs: Any) -> Any:
        raise ModuleNotFoundError(_used(name, sys._getframe(1)), name=name.partition(".")[0])

    def accept(cls: type, /, **_kwargs: Any) -> None:
        pass

    members = {"__new__": refuse, "__init_subclass__": classmethod(accept)}
    return type(name.rpartition(".")[2], (base,), members)


def _used(name: str, frame: types.FrameType) -> str:
    """Said as Python says it of an import."""
    place = f"line {frame.f_lineno} of {os.path.basename(frame.f_code.co_filename)}"
    module, _, member = name.partition(".")
    return f"No module named {module!r} is installed here, and {place} uses its {member or module}"


class _Loader(Loader):
    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return UnusedModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        backport = BACKPORTS.get(module.__name__)
        if backport is not None:
            source = vars(importlib.import_module(backport))
            own = {name for name in source if name.startswith("__") and name != "__all__"}
            vars(module).update({k: v for k, v in source.items() if k not in own})


class Finder(MetaPathFinder):
    """Asked after all others have found nothing."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.join(os.path.realpath(folder), "")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        parent = sys.modules.get(fullname.rpartition(".")[0])
        # Part of a module that is there is none of ours, unless that is a mere namespace
        # (google.colab beside google.protobuf).
        is_part = parent is not None and not isinstance(parent, UnusedModule)
        if is_part and getattr(parent, "__file__", None) is not None:
            return None
        if fullname.partition(".")[0] in COURSE or not self.is_asked_for():
            return None
        return ModuleSpec(fullname, _Loader(), is_package=True)

    def is_asked_for(self) -> bool:
        """Whether an import statement of the folder's files, outside of a try, brought us here."""
        frame: types.FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code.co_filename in MACHINERY:
            frame = frame.f_back
        if frame is None:
            return False
        file, line = os.path.realpath(frame.f_code.co_filename), frame.f_lineno
        is_own = file.startswith(self.folder) and os.path.isfile(file)
        return is_own and not any(first <= line <= last for first, last in caught_lines(file))


@functools.cache
def caught_lines(file: str) -> list[tuple[int, int]]:
    """First and last lines of what a Python file tries to import, with another way if it fails."""
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
        if any(t is None or CATCHING & _names_in(t) for t in types_of):
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
    """From now on what the files of `folder` import and nobody finds is stood in for."""
    sys.meta_path.append(Finder(folder))
