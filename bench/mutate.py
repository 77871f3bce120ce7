"""Which small changes to a module does its own test file not notice?

    python bench/mutate.py [MODULE ...]

Every operator, constant, condition, default, keyword, decorator and statement is changed by itself
(the error messages, annotations and asserts are not), and the module's tests are run up to the
first failure in a fork of one process that has imported torch. Prints the mutants that survive,
then the figures by module. docs/mutation.md explains the survivors.
"""

import ast
import contextlib
import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).resolve().parent.parent
os.environ["OMP_NUM_THREADS"] = "1"  # a fork must not inherit torch's threads

TESTS = {
    "rope.py": ["tests/test_rope.py"],
    "optimizer.py": ["tests/test_optimizer.py"],
    "lora.py": ["tests/test_lora.py"],
    "mini_llama/inference/sampling.py": ["tests/inference/test_sampling.py"],
    "mini_llama/checkpoints/record.py": ["tests/checkpoints/test_record.py"],
    "mini_llama/assignment/predictions.py": ["tests/assignment/test_predictions.py"],
}
SLOW_IMPORTS = ("torch", "pytest", "sentencepiece", "transformers.models.llama.modeling_llama")
JOBS = 2
SECONDS = 60  # a mutant that takes longer is noticed
OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.BitOr: (ast.BitAnd,),
    ast.USub: (ast.UAdd,),
}
REMOVABLE = (ast.Assign, ast.AugAssign, ast.Expr, ast.If, ast.For, ast.Raise, ast.Delete)
REMOVABLE += (ast.Continue,)
DROPPED_FROM = ("keywords", "decorator_list", "ifs")


@dataclass(frozen=True)
class Edit:
    """`old`, in a field of `parent` (at `index` where that is a list), becomes `new`, or goes."""

    parent: ast.AST
    field: str
    index: int | None
    old: ast.AST
    new: ast.AST | None

    def apply(self) -> None:
        if self.index is None:
            setattr(self.parent, self.field, self.new)
        elif self.new is None:
            del getattr(self.parent, self.field)[self.index]
        else:
            getattr(self.parent, self.field)[self.index] = self.new

    def __str__(self) -> str:
        """The old text, what of it changes, and to what."""
        texts = ast.expr | ast.stmt | ast.keyword
        around = self.old if isinstance(self.old, ast.stmt) else self.parent
        if not isinstance(around, texts):
            around = self.old
        shown = [
            ast.unparse(node) if isinstance(node, texts) else type(node).__name__
            for node in (around, self.old, self.new)
        ]
        around_it, old, new = (text.partition("\n")[0] for text in shown)
        return f"{around_it}:  {old} → {'nothing' if self.new is None else new}"


def changed_constant(value: object) -> object:
    """Another value of the same kind; None for a kind that is left alone."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return 2 * value or 1.0
        case str():
            return f"{value}?"
    return None


def variants(node: ast.AST, field: str) -> Iterator[ast.AST | None]:
    """What may stand in the node's place; None where it may be missing."""
    for operator in OPERATORS.get(type(node), ()):
        yield operator()
    if field in DROPPED_FROM:
        yield None
    match node:
        case ast.Constant() if (value := changed_constant(node.value)) is not None:
            yield ast.Constant(value)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.Return(ast.AST()) if ast.unparse(node) != "return None":
            yield ast.Return(ast.Constant(None))
        case ast.stmt() if isinstance(node, REMOVABLE):
            yield ast.Pass()
    if field == "test" and not isinstance(node, ast.Compare):
        yield ast.UnaryOp(ast.Not(), node)  # type: ignore[arg-type]
    if field in ("defaults", "kw_defaults") and not isinstance(node, ast.Constant):
        yield ast.Constant(None)


def is_left_alone(node: ast.AST, parent: ast.AST, field: str) -> bool:
    """Annotations, asserts (mypy's narrowing), docstrings and the texts of errors."""
    is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    is_message = isinstance(parent, ast.Raise) and field == "exc"
    is_note = field in ("annotation", "returns") or isinstance(node, ast.Assert)
    return is_docstring or is_message or is_note


def edits(parent: ast.AST) -> Iterator[Edit]:
    for field, value in ast.iter_fields(parent):
        places = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, node in places:
            if isinstance(node, ast.AST) and not is_left_alone(node, parent, field):
                for new in variants(node, field):
                    yield Edit(parent, field, index, node, new)
                yield from edits(node)


class Loader(SourceFileLoader):
    """Imports one module from code that is given, and finds no other module."""

    def __init__(self, path: Path, code: CodeType) -> None:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        super().__init__(name, str(path))
        self.code = code

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def get_code(self, fullname: str) -> CodeType:
        return self.code


def start(path: Path, tree: ast.Module, edit: Edit | None, scratch: Path) -> int:
    """Run the module's tests in a new process; its id."""
    if pid := os.fork():
        return pid
    signal.alarm(SECONDS)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    status = 1
    try:
        if edit is not None:
            edit.apply()
        code = compile(ast.fix_missing_locations(tree), str(path), "exec")
        sys.meta_path.insert(0, Loader(path, code))
        options = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={scratch / str(os.getpid())}"]
        status = importlib.import_module("pytest").main([*options, *TESTS[name_of(path)]])
    finally:
        os._exit(status)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def survivors(path: Path, tree: ast.Module, mutants: Iterable[Edit], scratch: Path) -> list[Edit]:
    running: dict[int, Edit] = {}
    alive = []

    def wait() -> None:
        pid, status = os.wait()
        edit = running.pop(pid)
        if status == 0:
            alive.append(edit)
            line = getattr(edit.old, "lineno", None) or getattr(edit.parent, "lineno", "?")
            print(f"{name_of(path)}:{line}  {edit}", flush=True)

    for edit in mutants:
        if len(running) == JOBS:
            wait()
        running[start(path, tree, edit, scratch)] = edit
    while running:
        wait()
    return alive


def main() -> None:
    modules = sys.argv[1:] or list(TESTS)
    if unknown := ", ".join(set(modules) - TESTS.keys()):
        sys.exit(f"no tests are known for {unknown}: choose of {', '.join(TESTS)}")
    os.chdir(ROOT)
    for name in SLOW_IMPORTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    figures = []
    with tempfile.TemporaryDirectory() as scratch:
        for module in modules:
            path = ROOT / module
            tree = ast.parse(path.read_text(encoding="utf-8"))
            start(path, tree, None, Path(scratch))
            if os.wait()[1]:
                sys.exit(f"{module}: its tests fail without any change")
            mutants = list(edits(tree))
            alive = survivors(path, tree, mutants, Path(scratch))
            figures.append(f"{module:<40} {len(mutants):>4} mutants, {len(alive)} survive")
    print("\n".join(figures))


if __name__ == "__main__":
    main()
