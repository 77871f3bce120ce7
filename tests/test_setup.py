"""setup.sh as far as it can be tried without installing anything."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

SCRIPTS = ("setup.sh", ".ci/run")
BASH = shutil.which("bash")

pytestmark = pytest.mark.skipif(BASH is None, reason="setup.sh needs bash, which is not there")


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_syntax_is_bash(script: str) -> None:
    checked = run(BASH, "-n", ROOT / script)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_every_option_and_does_nothing(option: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "setup.sh", tmp_path)
    helped = run(BASH, tmp_path / "setup.sh", option)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith("usage: bash setup.sh")
    assert all(
        name in helped.stdout
        for name in ("--extra", "--dev", "--smollm2", "--no-download", "--help")
    )
    assert [path.name for path in tmp_path.iterdir()] == ["setup.sh"]


@pytest.mark.parametrize("options", [["--fast"], ["--dev", "--fast"], [""]])
def test_an_unknown_option_is_wrong_usage_and_does_nothing(
    options: list[str], tmp_path: Path
) -> None:
    shutil.copy(ROOT / "setup.sh", tmp_path)
    refused = run(BASH, tmp_path / "setup.sh", *options)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.fullmatch(r"setup\.sh: unknown option .*; usage: bash setup\.sh .*\n", refused.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["setup.sh"]


def test_without_a_new_enough_python_one_line_says_so(tmp_path: Path) -> None:
    shutil.copy(ROOT / "setup.sh", tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "dirname").symlink_to(shutil.which("dirname"))
    for name in ("python3.11", "python3"):  # too old: refuses every program it is given
        (tools / name).write_text(f"#!{BASH}\nexit 1\n")
        (tools / name).chmod(0o755)
    refused = run(BASH, tmp_path / "setup.sh", env={**os.environ, "PATH": str(tools)})
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        "setup.sh: no Python 3.11 or newer found: install one, then run setup.sh again\n"
    )
    assert not (tmp_path / ".venv").exists()


def test_every_requirement_is_pinned() -> None:
    for name in ("requirements.txt", "requirements-extra.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            assert re.fullmatch(r"-r requirements[a-z-]*\.txt|[a-z0-9-]+==[0-9.]+", line), line


@pytest.mark.parametrize("name", ["rope_test.py", "optimizer_test.py"])
def test_a_reference_of_another_kind_is_one_line(name: str):
    command = [sys.executable, str(ROOT / name), "--reference", str(ROOT / "README.md")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "is no reference data" in done.stderr and done.stderr.count("\n") == 1
