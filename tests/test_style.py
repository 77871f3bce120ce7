"""The project's own habits: ruff, mypy, short functions, import directions, true documents."""

import ast
import graphlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

CHECKS = ("sanity_check", "rope_test", "optimizer_test")
COMMANDS = ("chat", "checkpoint", "pretrain", "reproduce", "grade", "diagnose", "prepare_submit")
COMMANDS += ("download", "addition_run", "align", "see")
ADDITION = ("addition_data_generation", "addition_lib")
ASSIGNMENT = ("run_llama", "llama", "base_llama", "rope", "lora", "classifier", "optimizer")
ASSIGNMENT += ("tokenizer", "config", "utils", *ADDITION, *CHECKS)
# The house, from the ground up: a module imports from its own floor and from those below it.
FLOORS = [
    ("config", "utils", "mini_llama"),
    ("rope", "optimizer", "lora", "mini_llama.layers", "mini_llama.tokenization"),
    (
        *("base_llama", "tokenizer", "mini_llama.checkpoints", "mini_llama.inference"),
        *("mini_llama.tokenization.find", "mini_llama.tokenization.gguf"),
        "mini_llama.tokenization.gguf_export",
    ),
    ("llama",),
    (
        *("classifier", "mini_llama.assignment", "mini_llama.pretraining"),
        *("mini_llama.training", "mini_llama.alignment"),
        *(*ADDITION, "addition_run", "mini_llama.addition"),  # students fill addition_run, too
        *("mini_llama.task_heads", "mini_llama.bundled", "mini_llama.downloads"),
        "mini_llama.chatting",
    ),
    (
        *("mini_llama.submissions", "mini_llama.diagnosis", "mini_llama.reproduction"),
        *("mini_llama.inside", *CHECKS),
    ),
    ("run_llama", *(name for name in COMMANDS if name != "addition_run")),
]


def name_of(path: Path) -> str:
    """mini_llama/layers/linear.py → mini_llama.layers.linear"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PATHS = sorted([*ROOT.glob("*.py"), *(ROOT / "mini_llama").rglob("*.py")])
MODULES = {name_of(path): path for path in PATHS}


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_static_checks(command: str):
    name, *arguments = command.split()
    program = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed: bash setup.sh --dev")
    done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_runs_before_a_commit_is_pinned():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    programs = re.findall(r"entry: \.venv/bin/(\w+)", hooks)
    assert programs == ["ruff", "ruff", "mypy"] and hooks.count("entry:") == len(programs)
    pinned = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
    assert all(f"\n{program}==" in pinned for program in programs)


def sources() -> list[Path]:
    return [*PATHS, *sorted((ROOT / "tests").rglob("*.py"))]


def length(node: ast.FunctionDef | ast.ClassDef) -> int:
    """Lines without the docstring."""
    docstring = ast.get_docstring(node, clean=False)
    return node.end_lineno - node.lineno + 1 - (len(docstring.splitlines()) if docstring else 0)


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.name)
def test_functions_fit_on_a_screen(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert length(node) <= 45, f"{node.name} has {length(node)} lines"
        if isinstance(node, ast.ClassDef):
            assert length(node) <= 150, f"{node.name} has {length(node)} lines"


@pytest.mark.parametrize("module", MODULES)
def test_functions_take_at_most_7_parameters(module: str):
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            parts = node.args
            names = [arg.arg for arg in (*parts.posonlyargs, *parts.args, *parts.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            assert count <= 7, f"{node.name} takes {count}"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_parser_and_main_only(command: str):
    assert len((ROOT / f"{command}.py").read_text(encoding="utf-8").splitlines()) < 100


def test_the_model_is_the_network_and_nothing_else():
    text = (ROOT / "llama.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    statements = [node for node in ast.walk(ast.parse(text)) if imported_by(node)]
    assert len(statements) <= 8


HELP = """
import contextlib, runpy, sys
path, *sys.argv[1:] = sys.argv[1:]
with contextlib.suppress(SystemExit):
    runpy.run_path(path, run_name="__main__")
print("torch" in sys.modules, file=sys.stderr)
"""


HELPFUL = ("run_llama", "tokenizer", "addition_data_generation", *COMMANDS)
HELPFUL += ("checkpoint convert", "addition_run train", "addition_run test", "align sft")


@pytest.mark.parametrize("command", HELPFUL)
def test_help_needs_no_torch(command: str):
    """Importing it takes seconds."""
    name, *words = command.split()
    arguments = [sys.executable, "-c", HELP, str(ROOT / f"{name}.py"), *words, "--help"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("usage: ")
    assert done.stderr == "False\n"


def floor_of(module: str) -> int:
    """That of the longest name in FLOORS that is the module or holds it."""
    floors = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    while module not in floors:
        module = module.rpartition(".")[0]
    return floors[module]


def imported_by(node: ast.AST) -> set[str]:
    """The project's modules that an import statement names; none for any other statement."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names} & MODULES.keys()
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
        return inner or {node.module} & MODULES.keys()
    return set()


def imported(path: Path) -> set[str]:
    """The project's modules that a file imports, wherever the import stands."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return set().union(*map(imported_by, nodes))


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_the_same_floor_or_below(module: str):
    for other in imported(MODULES[module]):
        assert floor_of(other) <= floor_of(module), f"{module} imports {other}"


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: imported(path) for module, path in MODULES.items()}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_the_top_level_is_the_assignment_and_the_commands():
    assert {path.stem for path in ROOT.glob("*.py")} == {*ASSIGNMENT, *COMMANDS}


TEST_ONLY = {"pytest", "transformers", "ruff", "mypy", "unittest.mock"}


def test_no_module_needs_what_only_tests_need():
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in getattr(node, "names", [])]
            found = {*names, getattr(node, "module", None)} & TEST_ONLY
            assert not found, f"{path.name} imports {found}"


@pytest.mark.parametrize("path", MODULES.values(), ids=lambda path: path.name)
def test_modules_say_what_they_are_for(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), path.name
