"""Find the modules that a Python program imports by parsing its source, without running it."""

import ast
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from mini_llama.submissions.untrusted_text import decode_text

# A syntax tree takes up to 800 times the memory of its source, and a long f-string quadratic time.
MAX_SOURCE_BYTES = 128 * 1024


@dataclass(frozen=True)
class Source:
    """The modules that a Python file imports, with their packages, or why it cannot be parsed."""

    imports: frozenset[str] = frozenset()
    fault: str | None = None


def follow_imports(start: Iterable[str], read: Callable[[str], bytes | None]) -> dict[str, Source]:
    """Parse the files of `start` that exist and, recursively, the local modules that they import,
    at the top or in functions.

    `read` returns a file's content by its name, None if there is no such file.
    """
    sources: dict[str, Source] = {}
    waiting = list(start)
    while waiting:
        name = waiting.pop(0)
        data = None if name in sources else read(name)
        if data is not None:
            sources[name] = parse_source(data, name.split("/")[:-1])
            waiting += sorted(path for m in sources[name].imports for path in paths_of(m))
    return sources


def paths_of(module: str) -> tuple[str, str]:
    """The paths that a module may have, as a file or a package: a.b → a/b.py, a/b/__init__.py."""
    path = module.replace(".", "/")
    return f"{path}.py", f"{path}/__init__.py"


def parse_source(data: bytes, package: Sequence[str] = ()) -> Source:
    """Parse a Python file; `package` are the folders that it is in."""
    if len(data) > MAX_SOURCE_BYTES:
        return Source(fault=f"has {len(data):,} bytes, at most {MAX_SOURCE_BYTES:,} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as invalid escapes
            tree = ast.parse(decode_text(data).removeprefix("\ufeff"))
    except SyntaxError as error:
        return Source(fault=f"does not parse as Python: line {error.lineno}: {error.msg}")
    except (ValueError, RecursionError, MemoryError) as error:
        return Source(fault=f"does not parse as Python: {error or 'it is nested too deeply'}")
    names: set[str] = set()
    unused = {id(node) for test in ast.walk(tree) if _is_for_types(test) for node in test.body}
    for node in ast.walk(tree):
        if id(node) in unused:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level <= len(package):
            outer = package[: len(package) + 1 - node.level] if node.level else ()
            module = [*outer, node.module] if node.module else outer
            names.update(".".join([*module, alias.name]) for alias in node.names)
    parts = [name.split(".") for name in names]
    return Source(frozenset(".".join(p[:end]) for p in parts for end in range(1, len(p) + 1)))


def _is_for_types(node: ast.AST) -> TypeGuard[ast.If]:
    """Whether it is `if TYPE_CHECKING:`, whose imports never run."""
    if not isinstance(node, ast.If):
        return False
    test = node.test
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return name == "TYPE_CHECKING"
