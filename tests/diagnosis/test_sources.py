"""The files of a student's folder that are run: those its modules import, within limits."""

import zipfile
from pathlib import Path

import pytest

from mini_llama.diagnosis.diagnosis import components_of, diagnose
from mini_llama.diagnosis.limits import MAX_FILES, MAX_SOURCE_BYTES
from mini_llama.diagnosis.places import Place, find_places
from mini_llama.diagnosis.sources import TOKENIZER, copy_sources
from mini_llama.submissions.given import GIVEN
from tests.helpers import ROOT
from tests.submissions.test_platforms import DOWNLOADS, ONE, TWO, make_zip


def make(folder: Path, **files: str) -> Path:
    """A folder of files whose names have __ for /: parts__norm → parts/norm.py."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


OURS = {*GIVEN, TOKENIZER}  # where the folder has none


def copied(folder: Path, inner: str = "") -> set[str]:
    target = folder.parent / "copy"
    home = copy_sources(Place("me", folder, inner), target)
    assert home == target / inner and {path.name for path in home.iterdir()} >= OURS
    ours = {home / name for name in OURS if not (folder / inner / name).exists()}
    copies = [path for path in target.rglob("*") if path.is_file() and path not in ours]
    for path in copies:
        assert path.read_bytes() == (folder / path.relative_to(target)).read_bytes()
    return {path.relative_to(target).as_posix() for path in copies}


def test_our_own_project_is_a_correct_solution():
    (findings,) = diagnose([ROOT])
    assert [(f.component, f.verdict) for f in findings] == [
        (c, "correct") for c in components_of("mmia")
    ]


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


def test_files_that_nothing_imports_are_not_copied(tmp_path):
    """Environments, third-party packages, tests: however many files they have."""
    folder = make(tmp_path / "me", llama="import torch, rope", rope="")
    for place in (".venv/lib/site-packages/torch", "venv/numpy", "node_modules/x", "tests", ".git"):
        files = {f"m{i}": "" for i in range(MAX_FILES // 2)}
        make(folder / place, __init__="", large="#" * (MAX_SOURCE_BYTES + 1), **files)
    assert copied(folder) == {"llama.py", "rope.py"}


def test_other_files_next_to_them_are_copied_up_to_the_limit(tmp_path):
    others = {f"a{i:03}": "" for i in range(MAX_FILES)}
    folder = make(tmp_path / "me", llama="import zoo", zoo="", **others)
    (folder / "a000.py").write_text("#" * (MAX_SOURCE_BYTES + 1))
    names = copied(folder)
    assert len(names) == MAX_FILES and {"llama.py", "zoo.py"} < names and "a000.py" not in names


def test_too_many_imported_files(tmp_path):
    chain = {f"m{i}": f"import m{i + 1}" for i in range(MAX_FILES)}
    folder = make(tmp_path / "me", llama="import m0", **chain)
    message = f"its modules import more than {MAX_FILES} of its Python files: at most 200 are run"
    with pytest.raises(ValueError, match=message):
        copy_sources(Place("me", folder), tmp_path / "copy")


def test_an_imported_file_that_is_too_large(tmp_path):
    folder = make(tmp_path / "me", llama="import big", big="#" * (MAX_SOURCE_BYTES + 1))
    with pytest.raises(
        ValueError, match=r"big\.py is larger than 1048576 bytes: it is not source code"
    ):
        copy_sources(Place("me", folder), tmp_path / "copy")


def test_links_are_not_followed(tmp_path):
    outside = make(tmp_path / "outside", secret="", inner="")
    folder = make(tmp_path / "me", llama=f"import linked, secret.inner, {'a' * 300}")
    (folder / "linked.py").symlink_to(outside / "secret.py")
    (folder / "secret").symlink_to(outside)
    assert copied(folder) == {"llama.py"}


def test_a_folder_of_a_repository_is_run_with_its_imports_from_the_top(tmp_path):
    folder = make(
        tmp_path / "me",
        src__llama="from .rope import x\nimport src.parts, shared_parts",
        src__rope="",
        src__parts="",
        shared_parts="",
        other="",
    )
    names = {"src/llama.py", "src/rope.py", "src/parts.py", "shared_parts.py"}
    assert copied(folder, "src") == names


def zipped(file: Path, **files: str) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"{name.replace('__', '/')}.py", text)
    return file


def test_a_zip_is_read_at_any_depth(tmp_path):
    zipped(tmp_path / "me.zip", me__HW1__llama="import parts.norm", me__HW1__parts__norm="x = 1")
    (place,) = find_places([tmp_path / "me.zip"])
    home = copy_sources(place, tmp_path / "copy")
    assert (home / "llama.py").read_text() == "import parts.norm"
    assert (home / "parts" / "norm.py").read_text() == "x = 1"


def test_a_zip_without_sources_and_a_file_that_is_no_zip(tmp_path):
    (tmp_path / "broken.zip").write_bytes(b"PK nothing")
    zipped(tmp_path / "empty.zip")
    for name, message in (("broken", "is not a zip file"), ("empty", "holds no")):
        (place,) = find_places([tmp_path / f"{name}.zip"])
        with pytest.raises(ValueError, match=message):
            copy_sources(place, tmp_path / f"copy of {name}")


@pytest.mark.parametrize(
    ("files", "inner"),
    [
        (["llama", "src__llama"], ""),
        (["run_llama", "utils", "rope", "src__llama", "src__rope", "tests__rope_test"], "src"),
        (["homework__HW1__llama", "notes"], "homework/HW1"),
        (["hw__rope", "hw__optimizer"], "hw"),
        (["readme", "venv__lib__llama", ".hidden__llama"], ""),
    ],
)
def test_the_folder_of_a_repository_is_found(files: list[str], inner: str, tmp_path):
    folder = make(tmp_path / "me", **dict.fromkeys(files, ""))
    (place,) = find_places([folder])
    assert (place.name, place.path, place.inner) == ("me", folder, inner)


def test_a_class_has_a_place_for_each_folder_and_zip(tmp_path):
    folder = make(tmp_path / "class", ann__llama="", ben__src__llama="", ben__old__llama="")
    zipped(folder / "zoe.zip", llama="")
    (folder / "readme.txt").write_text("")
    places = [(place.name, place.path.name, place.inner) for place in find_places([folder])]
    assert places == [("ann", "ann", ""), ("ben", "ben", "old"), ("zoe", "zoe.zip", "")]
    inside = make(tmp_path / "outer", **{"class__ann__llama": "", "class__ben__llama": ""})
    assert [place.name for place in find_places([inside])] == ["ann", "ben"]


def test_places_with_the_same_name_are_named_by_their_paths(tmp_path):
    make(tmp_path / "a" / "me", llama="")
    make(tmp_path / "b" / "me", llama="")
    names = [place.name for place in find_places([tmp_path / "a" / "me", tmp_path / "b" / "me"])]
    assert names == [str(tmp_path / "a" / "me"), str(tmp_path / "b" / "me")]


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize("name", DOWNLOADS)
def test_downloads_of_platforms_are_classes(name: str, is_zip: bool, tmp_path: Path):
    """The same submissions, with the same names, that grade.py finds."""
    files, people = DOWNLOADS[name]
    path = tmp_path / "download.zip"
    path.write_bytes(make_zip(files))
    if not is_zip:
        path = tmp_path / "download"
        zipfile.ZipFile(tmp_path / "download.zip").extractall(path)
    places = {place.name: place for place in find_places([path])}
    if len(people) == 1:  # a folder of one zip keeps its own name
        assert len(places) == 1
    else:
        assert sorted(places) == sorted(people)
    for i, (place, mark) in enumerate(
        zip(map(places.get, people), ("# one", "# two"), strict=False)
    ):
        home = copy_sources(place, tmp_path / f"copy{i}")
        assert (home / "llama.py").read_text().endswith(mark)
        assert (home / "rope.py").exists()


def test_a_class_may_mix_folders_of_code_and_folders_of_zips(tmp_path: Path):
    make(tmp_path / "ada", llama="# one")
    (tmp_path / "bo" / "deeper").mkdir(parents=True)
    (tmp_path / "bo" / "hw.zip").write_bytes(TWO)
    (tmp_path / "cy.zip").write_bytes(ONE)
    places = find_places([tmp_path])
    assert [place.name for place in places] == ["ada", "bo", "cy"]
    texts = [
        (copy_sources(p, tmp_path / f"copy-{p.name}") / "llama.py").read_text() for p in places
    ]
    assert [text.rpartition("\n")[2] for text in texts] == ["# one", "# two", "# one"]
