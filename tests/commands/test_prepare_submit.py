"""prepare_submit.py: its command line."""

import subprocess
import sys
from pathlib import Path

import pytest

import prepare_submit
from tests.helpers import ROOT
from tests.submissions.samples import only, write_work


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_work(tmp_path)


def run(capsys, *arguments):
    """Exit status, standard output and standard error."""
    try:
        status = prepare_submit.main(["--data", "data", *map(str, arguments)])
    except SystemExit as stop:
        if isinstance(stop.code, str):  # Python prints it and exits with 1
            print(stop.code, file=sys.stderr)
        status = 1 if isinstance(stop.code, str) else stop.code
    return status, *capsys.readouterr()


def test_check_needs_no_torch():
    code = "import sys, prepare_submit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_make_then_check(folder, capsys):
    made = "ab1.zip written, errors: 0, warnings: 0\n"
    assert run(capsys, folder, "ab1") == (0, made, "")
    checked = "ab1.zip checked, errors: 0, warnings: 0\n"
    assert run(capsys, "ab1.zip", "ab1") == (0, checked, "")
    assert run(capsys, "ab1.zip") == (0, checked, "")
    status, out, _ = run(capsys, "ab1.zip", "other")
    assert status == 1
    only(out.splitlines()[:-1], "error: zip: its top folder is 'ab1', not 'other'")


def test_editions_ask_for_their_own_files(folder, capsys):
    assert run(capsys, folder, "ab1", "--edition", "fall2024")[0] == 0
    assert run(capsys, "ab1.zip", "--edition", "fall2024")[0] == 0
    status, out, _ = run(capsys, "ab1.zip")
    assert status == 1
    only(
        out.splitlines()[:-1], "6 of 30 required files are missing: lora.py, checklist.md, sst-dev"
    )
    status, out, _ = run(capsys, "ab1.zip", "--edition", "spring2026")
    assert status == 1
    assert "missing: addition_data_generation.py, addition_lib.py, addition_run.py" in out
    assert "error: addition_models/: holds no experiment" in out


def test_missing_data_is_announced(folder, capsys):
    Path("data/sst-test.txt").unlink()
    status, out, _ = run(capsys, folder, "ab1")
    assert status == 1  # the small outputs have not the real number of lines
    assert "no data for sst-test in" in out
    assert "error: sst-test-lora-output.txt: has 7 lines, sst-test.txt has 2210" in out
    assert "ab1.zip not written, errors: 3, warnings: 0" in out


@pytest.mark.parametrize(
    ("arguments", "expected", "part"),
    [
        (["hello.zip"], 1, "error: zip: is not a zip file"),
        ([], 2, "required"),
        (["work"], 2, "ID, the student id(s), is needed"),
        (["work", "../x"], 2, "is not a valid folder name"),
        (["work", "ab1", "--with_import"], 2, "did you mean --with-imports?"),
        (["work", "ab1", "--edition", "none"], 2, "invalid choice: 'none'"),
        (["none.zip", "ab1"], 1, "is not a file"),
        (["work", "ab1", "--data", "broken"], 1, "sst-dev.txt line 1: 'no label'"),
    ],
)
def test_exit_status(folder, capsys, arguments, expected, part):
    Path("hello.zip").write_bytes(b"hello")
    Path("broken").mkdir()
    Path("broken/sst-dev.txt").write_bytes(b"no label\n")
    status, out, err = run(capsys, *arguments)
    assert status == expected
    assert part in out + err
    assert err.count("\n") <= 1 and (not err or err.startswith("prepare_submit.py: error: "))


def test_dashes_and_underscores_are_the_same(folder, capsys):
    assert run(capsys, folder, "ab1", "--with_imports")[0] == 0


@pytest.mark.parametrize("name", ["other.txt", "someone-else"])
def test_only_a_zip_of_the_same_student_is_replaced(folder, capsys, name):
    """Here is ab1.zip, a file of another kind or a zip of another student."""
    target = Path("ab1.zip")
    if name == "other.txt":
        target.write_bytes(b"somebody's")
    else:
        assert run(capsys, folder, name)[0] == 0
        Path(f"{name}.zip").rename(target)
    before = target.read_bytes()
    status, out, error = run(capsys, folder, "ab1")
    expected = "prepare_submit.py: error: ab1.zip is there already, and no submission of ab1: "
    assert (status, out, error) == (1, "", expected + "move it away first\n")
    assert target.read_bytes() == before
