"""The project's own habits: ruff, short functions, the import graph, documents that are true."""

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
COMMANDS += ("download",)
ASSIGNMENT = ("run_llama", "llama", "base_llama", "rope", "lora", "classifier", "optimizer")
ASSIGNMENT += ("tokenizer", "config", "utils", *CHECKS)
# The house, from the ground up: a module imports from its own floor and from those below it.
FLOORS = [
    ("config", "utils", "mini_llama"),
    ("rope", "optimizer", "lora", "mini_llama.layers", "mini_llama.tokenization"),
    (
        *("base_llama", "tokenizer", "mini_llama.checkpoints", "mini_llama.inference"),
        "mini_llama.tokenization.find",
    ),
    ("llama",),
    (
        *("classifier", "mini_llama.assignment", "mini_llama.pretraining"),
        *("mini_llama.task_heads", "mini_llama.bundled", "mini_llama.downloads"),
        "mini_llama.chatting",
    ),
    ("mini_llama.submissions", "mini_llama.diagnosis", "mini_llama.reproduction", *CHECKS),
    ("run_llama", *COMMANDS),
]


def name_of(path: Path) -> str:
    """mini_llama/layers/linear.py → mini_llama.layers.linear"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(p): p for p in [*ROOT.glob("*.py"), *(ROOT / "mini_llama").rglob("*.py")]}


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff(command: list):
    ruff = shutil.which("ruff", path=Path(sys.executable).parent) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed: bash setup.sh --dev")
    done = subprocess.run([ruff, *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def sources() -> list[Path]:
    return [*MODULES.values(), *(ROOT / "tests").rglob("*.py")]


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


def floor_of(module: str) -> int:
    """That of the longest name in FLOORS that is the module or holds it."""
    floors = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    while module not in floors:
        module = module.rpartition(".")[0]
    return floors[module]


def imported(path: Path) -> set[str]:
    """The project's modules that a file imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            names |= inner or {node.module}
    return names & MODULES.keys()


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


def test_no_module_needs_what_only_tests_need():
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in getattr(node, "names", [])]
            found = {*names, getattr(node, "module", None)} & {"pytest", "transformers", "ruff"}
            assert not found, f"{path.name} imports {found}"


@pytest.mark.parametrize("path", MODULES.values(), ids=lambda path: path.name)
def test_modules_say_what_they_are_for(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), path.name


def test_readme_commands_are_what_ci_runs():
    command = "bash setup.sh --dev && .venv/bin/python -m pytest"
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", ["structure.md", "checklist.md"])
def test_documents_name_only_what_is_there(document: str):
    text = (ROOT / document).read_text(encoding="utf-8")
    for name in re.findall(r"`([\w/]+\.(?:py|sh|toml))`", text):
        assert (ROOT / name).exists(), f"{document} speaks of {name}"
