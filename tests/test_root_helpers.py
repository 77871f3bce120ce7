"""Bounds, optional imports, tables: the small helpers that every part shares."""

import subprocess
import sys
from pathlib import Path

import pytest

from mini_llama import environment
from mini_llama.bounds import check_bound
from mini_llama.optional_imports import import_optional
from mini_llama.tables import align
from tests.helpers import ROOT


def test_align():
    rows = [("name", "loss", "steps"), ("a", "0.25", "1000"), ("long name", "-", "7")]
    assert align(rows) == [
        "name       loss  steps",
        "a          0.25   1000",
        "long name     -      7",
    ]
    assert align([("a", "b", ""), ("aa", "bb", "c")], left=3, gap=" | ") == [
        "a  | b  |",
        "aa | bb | c",
    ]
    assert align([]) == []


def test_align_wants_rows_of_one_length():
    with pytest.raises(ValueError, match="zip"):
        align([("a", "b"), ("c",)])


def test_bounds_are_named():
    check_bound("--lr 1.0", True, "at least 0")
    with pytest.raises(ValueError) as caught:
        check_bound("--lr -1.0", False, "at least 0")
    assert str(caught.value) == "--lr -1.0 is not allowed: it must be at least 0"


def test_optional_imports_name_the_command_that_installs():
    assert import_optional("os.path", "joining").join("a", "b") == "a/b"
    with pytest.raises(ValueError) as caught:
        import_optional("no_such_module_here.inner", "--tensorboard", "tensorboard")
    expected = "--tensorboard needs tensorboard, which is not installed: "
    expected += "bash setup.sh --extra, or pip install tensorboard"
    assert str(caught.value) == expected
    with pytest.raises(
        ValueError, match=r"needs no_such_module_here, .*install no_such_module_here"
    ):
        import_optional("no_such_module_here.inner", "this")


@pytest.mark.parametrize("command", ["run_llama", "sanity_check", "grade", "tokenizer", "pretrain"])
def test_a_python_without_the_packages_is_one_line(command: str):
    """As the system's is, where .venv was not activated."""
    done = subprocess.run(
        [sys.executable, "-S", "-s", str(ROOT / f"{command}.py")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{command}.py: error: {sys.executable} does not have numpy, ")
    assert "setup.sh" in done.stderr or ".venv" in done.stderr


def test_other_programs_get_pythons_own_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(environment, "PACKAGES", ("no_such_package",))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "run_llama.py")])
    environment.prepare_command()
    monkeypatch.setattr(sys, "argv", [str(ROOT / "run_llama.py")])
    with pytest.raises(SystemExit, match="does not have no_such_package"):
        environment.prepare_command()
