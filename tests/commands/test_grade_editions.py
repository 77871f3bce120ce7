"""grade.py: a class in the form of each edition, correct submissions and planted faults."""

import json
import resource
import subprocess
import sys

import pytest

from tests import planted, planted_editions
from tests.commands.test_grade import said_of
from tests.helpers import ROOT

GOLD = planted.make_gold()
EDITIONS = tuple(planted_editions.N_REQUIRED)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """The students, and what one command for each edition gave: JSON, the lines about each."""
    folder = tmp_path_factory.mktemp("editions")
    students = planted_editions.write_classes(folder, GOLD)
    found, start = {}, resource.getrusage(resource.RUSAGE_CHILDREN)
    for edition in EDITIONS:
        command = [sys.executable, ROOT / "grade.py", folder / f"class-{edition}", "--jobs=2"]
        command += [f"--edition={edition}", f"--data={folder / 'data'}"]
        command += [
            f"--reference={folder / 'reference'}",
            f"--json={folder / 'json'}",
            "--overwrite",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")  # none was refused
        rows = json.loads((folder / "json").read_text(encoding="ascii"))["submissions"]
        found[edition] = {row["name"]: row for row in rows}, done.stdout
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime
    return students, found, seconds


def test_classes_are_graded_in_time(classes):
    students, found, seconds = classes
    assert sum(map(len, students.values())) >= 60
    assert {e: len(rows) for e, (rows, _) in found.items()} == {
        e: len(of) for e, of in students.items()
    }
    assert seconds < 60


@pytest.mark.parametrize("edition", EDITIONS)
def test_each_is_read_and_its_faults_are_named(edition, classes):
    students, found, _ = classes
    rows, output = found[edition]
    for file, student in students[edition].items():
        name = file.removesuffix(".zip")
        lines = said_of(name, output) if file in (name, f"{name}.zip") else []
        row = rows.get(name) or rows[next(k for k in rows if k.endswith(f"/{file}"))]
        lines = lines or said_of(row["name"], output)
        assert row["status"] == student.status, (name, lines)
        verdicts = {output["file"]: output["verdict"] for output in row["outputs"]}
        usual = {f: "placeholder" if "cfimdb-test" in f else "within" for f in verdicts}
        assert verdicts == usual | dict(student.verdicts), name
        assert len(verdicts) == {"fall2025": 12, "spring2026": 4}.get(edition, 8)
        for part in student.says:
            assert any(part in line for line in lines), (name, part, lines)
        assert bool(lines) == bool(student.says), (name, lines)
        assert not any("differs" in line[:8] for line in lines), (name, lines)
