"""The project's own habits: ruff, short functions, the import graph, documents that are true."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from options import Options
from run_llama import HYPHENATED

MODULES = {path.stem: path for path in ROOT.glob("*.py")}
CHECKS = {"rope_test", "optimizer_test", "sanity_check"}
# Rows of the house: a module imports only from rows above its own.
ROWS = [
    {"config", "utils", "command_line", "lazy_tensors", "base_tokenizer", "numpy_llama"}
    | {"reference_figures", "limited_process", "diagnose_probes", "linear"},
    {"huggingface", "tensor_files", "meta_checkpoint", "rope", "quantized_linear", "model_plan"}
    | {"llama2c_tokenizer", "huggingface_tokenizer", "formulas"}
    | {"kv_cache", "sampling", "optimizer", "lora", "options", "training_log", "chat_template"},
    {"base_llama", "llama2c", "tokenizer", "generation", "linear_loss", "bundled", "decoding"}
    | {"memory_plan"},
    {"checkpoint", "pretrain_data", "compiled_decoding", "sentiment_data"}
    | {"explanation", "conversation"},
    {"llama", "conversion", "checkpoint_report", "download"},
    {"classifier", "task_heads", "checkpoint_commands"},
    {"evaluation", "mistakes"},
    {"prompting", "completion", "finetune", "pretrain"},
    {"run_llama"},
    {"graded_runs", "chat"},
    {"reproduction"},
    {"worst_examples", "reproduction_plots", "reproduction_page"},
    {"reproduction_report"},
    {"reproduce"},
]


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff(command: list):
    ruff = shutil.which("ruff", path=Path(sys.executable).parent) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed: bash setup.sh --dev")
    done = subprocess.run([ruff, *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def sources() -> list[Path]:
    return [*MODULES.values(), *(ROOT / "tests").glob("*.py")]


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


def is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def imported(path: Path) -> set[str]:
    """Of the project's modules, wherever the import stands; not what a file that is run as a script
    hands over to, under its main guard.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not is_main_guard(node)]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names & set(MODULES)


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_imports_come_from_rows_above(row: int):
    above = set().union(*ROWS[:row])
    for module in ROWS[row]:
        assert imported(MODULES[module]) <= above, module


def test_lora_and_checkpoint_do_not_know_the_network():
    assert imported(MODULES["lora"]) == {"config"}
    formats = {"huggingface", "llama2c", "meta_checkpoint", "tensor_files", "lazy_tensors"}
    assert imported(MODULES["checkpoint"]) == {"config", "utils"} | formats
    for command in ("conversion", "checkpoint_report", "checkpoint_commands"):
        assert "llama" not in imported(MODULES[command])


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


def test_readme_shows_every_file():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = set(re.findall(r"[\w./-]+\.(?:py|sh|md|txt|toml)\b", readme))
    missing = {path.name for path in MODULES.values()} - tree
    assert not missing, f"README.md's tree lacks {missing}"


def test_readme_names_every_option():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    flags = {f"--{n.replace('_', '-') if n in HYPHENATED else n}" for n in Options.__annotations__}
    missing = [flag for flag in flags if not re.search(rf"`{flag}[ `]", readme)]
    assert not missing, f"README.md does not mention {missing}"


def test_readme_commands_are_what_ci_runs():
    command = "bash setup.sh --dev && .venv/bin/python -m pytest"
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", ["structure.md", "checklist.md"])
def test_documents_name_only_what_is_there(document: str):
    text = (ROOT / document).read_text(encoding="utf-8")
    for name in re.findall(r"`([\w/]+\.(?:py|sh|toml))`", text):
        assert (ROOT / name).exists(), f"{document} speaks of {name}"
    if document == "structure.md":
        missing = [path.name for path in MODULES.values() if f"`{path.name}`" not in text]
        assert not missing, f"{document} lacks {missing}"
