"""platforms.py, finding.py, archive.py: the downloads of learning platforms, and zips in zips."""

import io
import random
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from mini_llama.submissions import archive
from mini_llama.submissions.archive import parse_submission, read_folder
from mini_llama.submissions.finding import Part, find_submissions
from mini_llama.submissions.platforms import recognize
from mini_llama.submissions.reading import read_source
from mini_llama.submissions.rules import check_submission, expect
from tests.submissions.samples import entry, only

CODE = {"llama.py": b"import torch\n", "rope.py": b"import torch\n"}


def make_zip(files, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def work(mark, top="ab1/"):
    return make_zip({top + name: content + mark for name, content in CODE.items()})


ONE, TWO = work(b"# one"), work(b"# two")
METADATA = """---
submission_71:
  :submitters:
  - :name: Ada Example
    :sid: '1'
  - :name: Bo Sample
    :sid: '2'
  :created_at: 2026-01-31 10:00:00
  :results:
    tests:
    - name: not a person
submission_72:
  :submitters:
  - :name: "Zo\\u00eb O'Test"
"""


def unpacked(top, mark):
    return {f"{top}/{name}": content + mark for name, content in CODE.items()}


# Download's files, and who handed in what; the names and numbers are made up.
DOWNLOADS = {
    "moodle": (
        {
            "Zoë Müller_101_assignsubmission_file_/hw.zip": ONE,
            "李 雷_102_assignsubmission_file_/my work.ZIP": TWO,
            "Zoë Müller_101_assignsubmission_onlinetext_/onlinetext.html": b"<p>hello",
        },
        ["Zoë Müller", "李 雷"],
    ),
    "moodle 4": ({"Ada B. C_7_assignsubmission_file/hw.zip": ONE}, ["Ada B. C"]),
    "moodle without folders": (
        {
            "Ada Example_101_assignsubmission_file_a_1_2_b.zip": ONE,
            "Participant 12_102_assignsubmission_file_hw.zip": TWO,
        },
        ["Ada Example", "Participant 12"],
    ),
    "moodle unpacked": (
        unpacked("Ada_1_assignsubmission_file_", b"# one")
        | unpacked("Bo_2_assignsubmission_file_/deeper", b"# two"),
        ["Ada", "Bo"],
    ),
    "canvas": (
        {
            "exampleada_LATE_11_901_hw-2.zip": ONE,
            "samplebo_12_902_hw.zip": TWO,
            "samplebo_12_903_report.pdf": b"%PDF",
            "grades.csv": b"",
        },
        ["exampleada", "samplebo"],
    ),
    "canvas loose": (
        {
            "exampleada_11_901_llama-1.py": b"import torch\n# one",
            "exampleada_11_902_rope.py": b"# one",
        }
        | {"samplebo_12_903_hw.zip": TWO},
        ["exampleada", "samplebo"],
    ),
    "gradescope": (
        unpacked("assignment_9_export/submission_71", b"# one")
        | unpacked("assignment_9_export/submission_72", b"# two")
        | {"assignment_9_export/submission_metadata.yml": METADATA.encode()},
        ["Ada Example & Bo Sample", "Zoë O'Test"],
    ),
    "blackboard": (
        {
            "Min_Llama 1_aexample1_attempt_2026-01-30-09-00-00_hw.zip": b"an earlier one",
            "Min_Llama 1_aexample1_attempt_2026-01-31-09-00-00_hw.zip": ONE,
            "Min_Llama 1_aexample1_attempt_2026-01-31-09-00-00.txt": b"Name: ",
            "Min_Llama 1_bsample2_attempt_2026-01-31-10-00-00_hw.zip": TWO,
        },
        ["aexample1", "bsample2"],
    ),
    "brightspace": (
        {
            "11-22 - Ada Example - Dec 9, 2025 1159 PM/hw.zip": b"an earlier one",
            "11-22 - Ada Example - Jan 31, 2026 1201 AM/hw.zip": ONE,
            "12-22 - Bo Sample - Jan 30, 2026 900 AM/hw.zip": TWO,
            "index.html": b"",
        },
        ["Ada Example", "Bo Sample"],
    ),
    "zips": ({"ada.zip": ONE, "bo.zip": TWO}, ["ada", "bo"]),
    "zips in a folder": ({"class/ada.zip": ONE, "class/bo.zip": TWO}, ["ada", "bo"]),
    "a zip in each folder": ({"ada/hw.zip": ONE, "bo/hw.zip": TWO}, ["ada", "bo"]),
    "folders": (unpacked("ada", b"# one") | unpacked("bo", b"# two"), ["ada", "bo"]),
}


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize("name", DOWNLOADS)
def test_downloads(name, is_zip, tmp_path):
    files, people = DOWNLOADS[name]
    path = tmp_path / "download.zip"
    path.write_bytes(make_zip(files))
    if not is_zip:
        path = tmp_path / "download"
        zipfile.ZipFile(tmp_path / "download.zip").extractall(path)
    found = find_submissions([path])
    assert sorted(found) == sorted(people)
    for person, mark in zip(people, (b"# one", b"# two"), strict=False):
        submission = read_source(found[person])
        assert submission.files["llama.py"].endswith(mark)
        assert {"llama.py", "rope.py"} <= set(submission.names)
        assert not [p for p in submission.problems if p.severity == "error" or p.is_fatal]
    late = [who for who, source in found.items() if isinstance(source, Part) and source.is_late]
    assert late == (["exampleada"] if name == "canvas" else [])


def test_students_of_one_name_get_their_numbers(tmp_path):
    names = [f"Ada_{number}_assignsubmission_file_/hw.zip" for number in (1, 2)]
    (tmp_path / "a.zip").write_bytes(make_zip(dict.fromkeys(names, ONE)))
    assert list(find_submissions([tmp_path / "a.zip"])) == ["Ada (1)", "Ada (2)"]


@pytest.mark.parametrize(
    "files",
    [
        {f"ab1/{name}": content for name, content in CODE.items()},
        {"src/llama.py": b"", "data/x.txt": b"", "old_1_2_run.py": b""},
        {"code.zip": ONE, "outputs.zip": make_zip({"sst-dev-lora-output.txt": b"0 ||| a\n"})},
        {"ab1/llama.py": b"", "ab1/model_1_2_x.pt": b"", "ab1/old.zip": ONE},
        {"hw.zip": ONE},
    ],
)
def test_what_one_student_hands_in_is_one_submission(files, tmp_path):
    path = tmp_path / "ab1.zip"
    path.write_bytes(make_zip(files))
    assert find_submissions([path]) == {"ab1": path}
    assert recognize(list(files)) is None
    assert "llama.py" in read_source(path).files


def test_hostile_names_in_a_download_are_refused(tmp_path):
    files = {"Ada_1_assignsubmission_file_/hw.zip": ONE, "../Bo_2_assignsubmission_file_/x": b""}
    (tmp_path / "a.zip").write_bytes(make_zip(files))
    (source,) = find_submissions([tmp_path / "a.zip"]).values()
    assert any(problem.is_fatal for problem in read_source(source).problems)


# --- zips in zips ---


def test_zip_in_a_zip():
    submission = parse_submission(make_zip({"hw.zip": ONE, "__MACOSX/._hw.zip": b"x"}))
    only(list(map(str, submission.problems)), "warning: zip: is a zip around 'hw.zip': submit what")
    assert submission.top == "ab1"
    assert submission.files == parse_submission(ONE).files


def test_zip_in_a_students_folder(tmp_path):
    (tmp_path / "hw.zip").write_bytes(ONE)
    assert read_folder(tmp_path) == parse_submission(ONE)
    (tmp_path / "hw.zip").unlink()
    (tmp_path / "link.zip").symlink_to("/etc/passwd")
    assert read_folder(tmp_path).names == ()


def test_several_zips_are_joined_and_rivals_named():
    outputs = make_zip({"out/sst-dev-lora-output.txt": b"x"})
    submission = parse_submission(make_zip({"a.zip": outputs, "b.zip": ONE}))
    assert set(submission.names) == {"llama.py", "rope.py", "sst-dev-lora-output.txt"}
    submission = parse_submission(make_zip({"a.zip": ONE, "b.zip": TWO}))
    lines = [str(p) for p in submission.problems if p.severity == "error"]
    only(lines, "error: zip: 2 zips in it hold code, 'a.zip', 'b.zip': 'a.zip' is read")
    assert submission.files == parse_submission(ONE).files


def nest(data, depth):
    for _ in range(depth):
        data = make_zip({"x.zip": data}, zipfile.ZIP_STORED)
    return data


def test_nesting_is_bounded():
    assert "llama.py" in parse_submission(nest(ONE, 3)).files
    submission = parse_submission(nest(ONE, 4))
    assert submission.problems[-1].is_fatal
    assert "nested more than 3 deep" in submission.problems[-1].message
    wide = make_zip({f"{i}.zip": b"x" for i in range(21)})
    assert "holds more than 20 zips" in parse_submission(wide).problems[-1].message
    tree = make_zip({f"{i}.zip": make_zip({f"{j}.zip": ONE for j in range(6)}) for i in range(6)})
    assert any(
        "more than 20 zips" in p.message and p.is_fatal for p in parse_submission(tree).problems
    )


def test_zips_in_a_zip_unpack_within_bounds(monkeypatch):
    bomb = make_zip({"x.zip": bytes(60_000_000)})
    tracemalloc.start()
    submission = parse_submission(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "more than 100 times its size" in submission.problems[-1].message
    assert submission.problems[-1].is_fatal and peak < 5_000_000
    monkeypatch.setattr(archive.Budget, "__init__", lambda self: self.__dict__.update(LITTLE))
    submission = parse_submission(make_zip({"x.zip": ONE}))
    assert f"unpacks to {len(ONE)} bytes, more than the 100 allowed" in str(submission.problems[-1])


LITTLE = {"depth": 0, "zips": 20, "size": 100}


def test_locked_zip_in_a_zip():
    info = entry("hw.zip", method=zipfile.ZIP_LZMA)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as outer:
        outer.writestr(info, ONE)
    submission = parse_submission(buffer.getvalue())
    assert "method 14: only stored" in submission.problems[-1].message
    assert submission.problems[-1].is_fatal


def test_other_archives_are_named(tmp_path):
    (tmp_path / "hw.tar.xz").write_bytes(b"x")
    content = make_zip({"Ada_1_assignsubmission_file_/hw.rar": b"x"})
    for found, name in (
        (read_folder(tmp_path), "hw.tar.xz"),
        (parse_submission(content), "hw.rar"),
    ):
        fatal = [problem.message for problem in found.problems if problem.is_fatal]
        assert len(fatal) == 1 and "holds no usable file, only '" in fatal[0] and name in fatal[0]


def test_a_zip_too_large_names_its_largest_files():
    weights = random.Random(0).randbytes(11_000_000)
    content = make_zip(CODE | {"stories42M.pt": weights}, zipfile.ZIP_STORED)
    problems = check_submission(parse_submission(content), "", expect("mmia")).problems
    only(
        [str(p) for p in problems if " are allowed" in p.message],
        "bytes, at most 10,485,760 (10 MB) are allowed; the largest in it: 'stories42M.pt' (11.0",
    )


def test_the_largest_files_are_kept():
    files = {"ab1/llama.py": b"", "ab1/.git/pack": bytes(range(256)) * 40, "ab1/a.pt": b"1234567"}
    submission = parse_submission(make_zip(files, zipfile.ZIP_STORED))
    assert submission.largest[:2] == (("ab1/.git/pack", 10_240), ("ab1/a.pt", 7))


def test_an_unreadable_class_is_one_submission(tmp_path):
    path = Path(tmp_path / "a.zip")
    path.write_bytes(b"junk")
    assert find_submissions([path]) == {"a": path}
