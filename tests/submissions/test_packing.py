"""packing.py: the zip that is made, and what goes into it."""

import stat
import zipfile
from pathlib import Path

import pytest

from mini_llama.submissions import packing
from mini_llama.submissions.rules import Expected
from tests.helpers import ROOT
from tests.submissions.samples import SENTENCES, good_files, write_work

EXPECTED = Expected(sentences=SENTENCES)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_work(tmp_path)


def test_made_zip_holds_the_required_files_and_nothing_else(folder):
    for name in ("finetune-5-2e-05.pt", "old.zip", "notes.py", ".env"):
        (folder / name).write_bytes(b"x")
    assert packing.make_submission(folder, "ab1", EXPECTED) == []
    with zipfile.ZipFile("ab1.zip") as archive:
        infos = {info.filename: info for info in archive.infolist()}
        content = {name: archive.read(name) for name in infos}
    assert content == {f"ab1/{name}": data for name, data in good_files().items()}
    modes = {name: info.external_attr >> 16 for name, info in infos.items()}
    assert modes.pop("ab1/setup.sh") == stat.S_IFREG | 0o755
    assert set(modes.values()) == {stat.S_IFREG | 0o644}
    # the same bytes, whenever and in whatever order the files were written
    assert {info.date_time for info in infos.values()} == {(1980, 1, 1, 0, 0, 0)}
    backwards = dict(reversed(good_files().items()))
    assert Path("ab1.zip").read_bytes() == packing.build_zip(backwards, "ab1")


def test_errors_leave_the_older_zip(folder):
    Path("ab1.zip").write_bytes(b"older")
    (folder / "llama.py").write_bytes(b"def (")
    (folder / "setup.sh").unlink()
    assert len(packing.make_submission(folder, "ab1", EXPECTED)) == 2
    assert Path("ab1.zip").read_bytes() == b"older"
    assert sorted(path.name for path in Path().iterdir()) == ["ab1.zip", "data", "work"]


def test_with_imports_adds_own_modules_only(folder):
    (folder / "llama.py").write_bytes(b"import torch\ndef f():\n    import kv_cache\n")
    (folder / "kv_cache.py").write_bytes(b"from sampling import greedy\nimport llama\n")
    (folder / "sampling.py").write_bytes(b"import numpy\n")
    (folder / "scratch.py").write_bytes(b"")
    assert len(packing.make_submission(folder, "ab1", EXPECTED)) == 1
    assert packing.make_submission(folder, "ab1", EXPECTED, with_imports=True) == []
    with zipfile.ZipFile("ab1.zip") as archive:
        added = {Path(name).name for name in archive.namelist()} - set(good_files())
    assert added == {"kv_cache.py", "sampling.py"}


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "a/b", "a\\b", "C:x", "a\nb", "a\x00b", "a.", "a*", "x" * 101]
)
def test_bad_ids(name):
    with pytest.raises(ValueError, match="cannot name a folder"):
        packing.validate_id(name)


@pytest.mark.parametrize("name", ["ab123_cd456-ef.7", "\u674e\u96f7", "x" * 100])
def test_good_ids(name):
    assert packing.validate_id(f" {name} ") == name


def test_with_imports_takes_all_that_the_options_need():
    """The project's own command line imports its options' modules only when they are asked for."""
    names = set(packing.collect_files(ROOT, True))
    modules = {"completion", "prompting", "finetune", "reviews", "options", "__init__"}
    assert {f"mini_llama/assignment/{name}.py" for name in modules} <= names
    assert "mini_llama/checkpoints/formats/llama2c.py" in names
    assert not {"pretrain.py", "download.py", "mini_llama/downloads/files.py"} & names
