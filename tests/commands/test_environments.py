"""Environments that nobody thinks of: locales without accents, paths of any bytes, no home."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

LOCALES = (
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
    {"HOME": "/nonexistent", "TMPDIR": "/nonexistent"},
)
FOLDERS = ("näh", "two words", "line\nend", os.fsdecode(b"caf\xe9"))


def run(words: list[str], folder: Path, **changes: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / words[0]), *words[1:]]
    environment = os.environ | changes
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=120)


@pytest.mark.parametrize("changes", LOCALES, ids=str)
def test_locales(changes: dict[str, str], tmp_path: Path, tokenizer_model: Path):
    """A missing file of an accented name is one line; a real one is read and written."""
    done = run(["tokenizer.py", "export", "nö.model", "t.bin"], tmp_path, **changes)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1, done.stderr
    assert done.stderr.startswith(b"tokenizer.py: error: ")
    (tmp_path / "né.model").write_bytes(tokenizer_model.read_bytes())
    done = run(["tokenizer.py", "export", "né.model", "tö.bin"], tmp_path, **changes)
    assert (done.returncode, done.stderr) == (0, b"") and (tmp_path / "tö.bin").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has names of any bytes")
@pytest.mark.parametrize("name", FOLDERS, ids=ascii)
def test_paths(name: str, tmp_path: Path, tokenizer_model: Path):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "a.model").write_bytes(tokenizer_model.read_bytes())
    words = ["tokenizer.py", "export", f"{name}/a.model", f"{name}/b.bin"]
    for place, given in ((tmp_path, words), (folder, [*words[:2], "a.model", "c.bin"])):
        done = run(given, place)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.count(b"\n") == 1
    done = run([*words[:2], f"{name}/no.model", f"{name}/d.bin"], tmp_path)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1
    done = run(["prepare_submit.py", name, "someone"], tmp_path)
    assert done.returncode == 1 and b"Traceback" not in done.stderr
