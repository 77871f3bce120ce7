"""packing.py: the zip and its files."""

import io
import json
import os
import random
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mini_llama.submissions import packing
from mini_llama.submissions.archive import parse_submission
from mini_llama.submissions.rules import Expected, check_submission, expect
from tests.helpers import ROOT
from tests.submissions.samples import GENERATED, METHODS, SENTENCES, good_files, only, write_work

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


def pack(folder, edition):
    """The problems' lines, and the files in the zip."""
    problems = packing.make_submission(folder, "ab1", expect(edition, SENTENCES))
    names = zipfile.ZipFile("ab1.zip").namelist() if Path("ab1.zip").exists() else []
    return [str(problem) for problem in problems], {name.removeprefix("ab1/") for name in names}


MORE = {"feedback.txt", "sst-dev-advanced-output.txt", "cfimdb-test-advanced-output.txt"}


def test_optional_files_are_added(folder):
    more = {*MORE, "ab1-report.pdf"}
    for name in (*more, "finetune-5-2e-05.pt", "assignment.pdf"):
        (folder / name).write_bytes(b"x")
    assert pack(folder, "fall2025") == ([], {*good_files(), *more})
    lines, names = pack(folder, "spring2025")
    left_out = ["checklist.md", "lora.py", *(n for n in good_files() if "-lora-" in n)]
    assert names == {*good_files(), *more} - {*left_out}
    only(
        lines,
        "warning: zip: not in the zip, this edition does not require it",
        "'checklist.md'",
        "'lora.py'",
    )
    lines, names = pack(folder, "mmia")
    assert names == {*good_files()}
    only(lines, "'ab1-report.pdf', 'cfimdb-test-advanced", "choose another with --edition")


def test_report_with_another_name(folder):
    (folder / "Final Report.pdf").write_bytes(b"x")
    lines, names = pack(folder, "fall2025")
    assert "Final Report.pdf" in names
    only(lines, "warning: Final Report.pdf: a report must be named ab1-report.pdf")


def test_experiments_are_added_as_a_whole(folder):
    additions = {f"addition_{name}.py" for name in ("data_generation", "lib", "run")}
    experiments = {
        f"addition_models/{name}/{file}"
        for name in ("best_model", *(f"ablation_{i}" for i in range(5)))
        for file in ("best_model.pth", "loss_curve.png", "train.log")
    }
    caches = {"addition_models/__pycache__/a.pyc", "addition_models/all.zip"}
    for name in {*additions, *experiments, *caches}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"#")
    lines, names = pack(folder, "spring2026")
    assert lines[0].startswith("warning: addition_models/: not all of experiment_summary.json, ")
    only(lines[1:], "does not require it", "'lora.py'")
    assert {name for name in names if name.startswith("addition")} == additions | experiments
    assert not any("lora" in name or "finetuning" in name for name in names)
    for name in experiments:
        if "ablation_4" in name:
            (folder / name).unlink()
    assert pack(folder, "spring2026")[0][0].startswith("error: addition_models/: holds 4 ablations")


def test_zip_that_is_too_large_is_not_written(folder):
    noise = random.Random(0).randbytes(11 * 2**20)
    (folder / "ab1-report.pdf").write_bytes(noise)
    lines, names = pack(folder, "fall2025")
    assert lines[0].startswith("error: zip: has 11,")
    assert "at most 10,485,760 (10 MB)" in lines[0]
    assert not names


def test_errors_keep_the_existing_zip(folder):
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
    with pytest.raises(ValueError, match="is not a valid folder name"):
        packing.validate_id(name)


@pytest.mark.parametrize("name", ["ab123_cd456-ef.7", "\u674e\u96f7", "x" * 100])
def test_good_ids(name):
    assert packing.validate_id(f" {name} ") == name


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The project itself, packed with its imports and good outputs, and unpacked elsewhere."""
    files = good_files() | packing.collect_files(ROOT, True)
    content = packing.build_zip(files, "ab1")
    assert len(content) < 10_000_000
    checked = check_submission(parse_submission(content), "ab1", EXPECTED)
    assert [str(problem) for problem in checked.problems] == []
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder)
    return folder / "ab1"


def run_there(folder, calls, cwd=None):
    """Call run_llama.main several times in one process without access to the project
    but the unpacked folder; an exit status for each, and what was printed.
    """
    code = f"""
import json, sys
sys.path.insert(0, {str(folder)!r})
import run_llama
statuses = []
for arguments in {calls!r}:
    try:
        statuses.append(run_llama.main(arguments) or 0)
    except SystemExit as stop:
        print(stop.code, file=sys.stderr)
        statuses.append(stop.code if isinstance(stop.code, int | None) else 1)
ours = [m.__file__ for n, m in sys.modules.items() if n.split(".")[0] in ("mini_llama", "llama")]
assert ours and all(path.startswith({str(folder)!r}) for path in ours), ours
print("statuses", json.dumps(statuses))
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd or folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "statuses" in done.stdout, done.stderr
    return json.loads(done.stdout.rpartition("statuses ")[2]), done.stdout, done.stderr


def test_all_options_run_from_the_zip_alone(unpacked, tiny_folder, tmp_path):
    """Including what is imported lazily; the bundled model is not in the zip."""
    data = tiny_folder / "data"
    common = ["--pretrained-model-path", tiny_folder / "model.pt", "--label-names"]
    common += [data / "labels.json", "--batch_size", 10, "--epochs", 1, "--max_new_tokens", 5]
    for split in ("train", "dev", "test"):
        common += [f"--{split}", data / f"tiny-{split}.txt"]
    calls = [["--help"], ["--plan", *common], ["--option", "generate", *common]]
    for option, ending in (("prompt", "prompting"), ("finetune", "finetuning"), ("lora", "lora")):
        outs = [f"--dev_out=dev-{ending}-output.txt", f"--test_out=test-{ending}-output.txt"]
        calls.append(["--option", option, *outs, *common])
    calls = [[str(argument) for argument in call] for call in calls]
    statuses, out, err = run_there(unpacked, calls, tmp_path)
    assert statuses == [0] * len(calls), err
    assert out.startswith("usage: run_llama.py")
    assert "LoRA epoch 0: train loss :: " in out
    for name in GENERATED:
        assert (tmp_path / name).stat().st_size > 0
    for ending in METHODS:
        for split in ("dev", "test"):
            path = tmp_path / f"{split}-{ending}-output.txt"
            assert len(path.read_text(encoding="utf-8").splitlines()) == 10


def test_without_a_checkpoint_it_says_how_to_get_one(unpacked):
    statuses, _, err = run_there(unpacked, [["--option", "generate"]])
    assert statuses == [1]
    assert "checkpoint stories42M.pt does not exist; check the path, or get the file again" in err


def test_with_imports_leaves_other_commands_out():
    names = set(packing.collect_files(ROOT, True))
    assert {"run_llama.py", "mini_llama/__init__.py", "mini_llama/assignment/finetune.py"} <= names
    assert not {"pretrain.py", "download.py", "grade.py", "tests/conftest.py"} & names
    assert not any(name.startswith("mini_llama/pretraining/") for name in names)
    # sanity_check.py --code reads a student's folder or zip and runs its modules.
    graders = ("classes", "grading", "packing", "rules", "student_code")
    assert not {f"mini_llama/submissions/{name}.py" for name in graders} & names


def test_the_state_of_an_unfinished_run_is_left_out(folder):
    runs = folder / "addition_models" / "ablation_1"
    runs.mkdir(parents=True)
    for name in ("progress.pth", "model_config.json"):
        (runs / name).write_bytes(b"{}")
    files = packing.collect_files(folder, False, expect("spring2026").requirements)
    assert "addition_models/ablation_1/model_config.json" in files
    assert "addition_models/ablation_1/progress.pth" not in files
    lines, _ = pack(folder, "spring2026")
    assert any("runs that have not ended: 'addition_models/ablation_1/progress" in x for x in lines)


def test_own_code_gives_no_warning_of_its_imports():
    """Of an edition without this solution's own extras."""
    files = packing.collect_files(ROOT, True, expect("fall2025").requirements)
    submission = parse_submission(packing.build_zip(files, "ab1"))
    problems = check_submission(submission, "ab1", expect("fall2025")).problems
    assert not [str(p) for p in problems if "imports modules" in p.message]
