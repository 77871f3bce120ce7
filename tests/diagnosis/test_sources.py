"""What of a student's folder is run: what its modules import, and no more than is allowed."""

from pathlib import Path

import pytest

from mini_llama.diagnosis.diagnosis import COMPONENTS, diagnose
from mini_llama.diagnosis.limits import MAX_FILES, MAX_SOURCE_BYTES
from mini_llama.diagnosis.sources import copy_sources
from tests.helpers import ROOT


def make(folder: Path, **files: str) -> Path:
    """A folder of files whose names have __ for /: parts__norm → parts/norm.py."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def copied(folder: Path) -> set[str]:
    target = folder.parent / "copy"
    copy_sources(folder, target)
    copies = [path for path in target.rglob("*") if path.is_file()]
    for path in copies:
        assert path.read_bytes() == (folder / path.relative_to(target)).read_bytes()
    return {path.relative_to(target).as_posix() for path in copies}


def test_our_own_project_is_a_right_solution():
    (findings,) = diagnose([ROOT])
    assert [(f.component, f.verdict) for f in findings] == [(c, "correct") for c in COMPONENTS]


def test_imports_are_followed(tmp_path):
    folder = make(
        tmp_path / "me",
        llama="import parts.norm\ndef late():\n    from helpers import *\n",
        helpers="import rope_tables",
        rope_tables="",
        parts__norm="from . import eps\nfrom .deep.inner import x\n",
        parts__eps="",
        parts__deep__inner="from ..outer import y\nfrom ....above import z\n",
        parts__outer="",
        parts__unused="",
        lora__layer="",
        above="",
    )
    (folder / "lora" / "__init__.py").write_text("from .layer import LoRALayer\n")
    (folder / "optimizer.py").write_text("def step(:\n")
    assert copied(folder) == {
        "llama.py",
        "helpers.py",
        "rope_tables.py",
        "parts/norm.py",
        "parts/eps.py",
        "parts/deep/inner.py",
        "parts/outer.py",
        "lora/__init__.py",
        "lora/layer.py",
        "optimizer.py",
        "above.py",
    }


def test_what_is_imported_by_nothing_is_left_where_it_is(tmp_path):
    """Environments, other people's packages, tests: however many files they hold."""
    folder = make(tmp_path / "me", llama="import torch, rope", rope="")
    for place in (".venv/lib/site-packages/torch", "venv/numpy", "node_modules/x", "tests", ".git"):
        files = {f"m{i}": "" for i in range(MAX_FILES // 2)}
        make(folder / place, __init__="", large="#" * (MAX_SOURCE_BYTES + 1), **files)
    assert copied(folder) == {"llama.py", "rope.py"}


def test_other_files_beside_are_copied_as_far_as_there_is_room(tmp_path):
    others = {f"a{i:03}": "" for i in range(MAX_FILES)}
    folder = make(tmp_path / "me", llama="import zoo", zoo="", **others)
    (folder / "a000.py").write_text("#" * (MAX_SOURCE_BYTES + 1))
    names = copied(folder)
    assert len(names) == MAX_FILES and {"llama.py", "zoo.py"} < names and "a000.py" not in names


def test_too_many_imported_files(tmp_path):
    chain = {f"m{i}": f"import m{i + 1}" for i in range(MAX_FILES)}
    folder = make(tmp_path / "me", llama="import m0", **chain)
    message = f"its modules import more than {MAX_FILES} Python files of it: at most 200 are run"
    with pytest.raises(ValueError, match=message):
        copy_sources(folder, tmp_path / "copy")


def test_an_imported_file_that_is_too_large(tmp_path):
    folder = make(tmp_path / "me", llama="import big", big="#" * (MAX_SOURCE_BYTES + 1))
    with pytest.raises(ValueError, match=r"big\.py is larger than 1048576 bytes: it is no source"):
        copy_sources(folder, tmp_path / "copy")


def test_links_are_not_followed(tmp_path):
    outside = make(tmp_path / "outside", secret="", inner="")
    folder = make(tmp_path / "me", llama=f"import linked, secret.inner, {'a' * 300}")
    (folder / "linked.py").symlink_to(outside / "secret.py")
    (folder / "secret").symlink_to(outside)
    assert copied(folder) == {"llama.py"}
