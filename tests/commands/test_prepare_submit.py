"""prepare_submit.py: whitelist, contents, the zip that it makes, command line."""

import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import prepare_submit as ps
from config import FRANKENSTEIN, THRILLER
from mini_llama.assignment import reviews as sentiment_data
from mini_llama.submissions import rules
from mini_llama.submissions.archive import Submission
from tests.helpers import ROOT

# written out from the assignment, not taken from the module
SOURCES = (
    "run_llama.py base_llama.py llama.py rope.py lora.py classifier.py config.py optimizer.py "
    "sanity_check.py tokenizer.py utils.py"
).split()
OTHERS = "README.md structure.md checklist.md sanity_check.data setup.sh".split()
GENERATED = ["generated-sentence-temp-0.txt", "generated-sentence-temp-1.txt"]
METHODS = ("prompting", "finetuning", "lora")
WORDS = {"sst": ["awful", "bad", "average", "good", "excellent"], "cfimdb": ["bad", "good"]}
SUFFIXES = {
    "sst": " Is this movie awful, bad, average, good, or excellent? This movie is ",
    "cfimdb": " Is this movie bad or good? This movie is ",
}
LINES = {"sst-dev": 1101, "sst-test": 2210, "cfimdb-dev": 245, "cfimdb-test": 488}
SENTENCES = {
    name: [f"{name} sentence {i} , d\u00e9j\u00e0 vu ." for i in range(7)] for name in LINES
}
LORA = "sst-dev-lora-output.txt"
PROMPTING = "cfimdb-dev-prompting-output.txt"


def good_files(sentences=SENTENCES):
    """A complete submission for the sentences of some data files."""
    files = {name: f"import torch  # {name}\n".encode() for name in SOURCES}
    files |= {name: f"# {name}\n".encode() for name in OTHERS}
    files |= {name: f"{FRANKENSTEIN} {name}".encode() for name in GENERATED}
    for data_name, texts in sentences.items():
        dataset = data_name.split("-")[0]
        for method in METHODS:
            suffix = SUFFIXES[dataset] if method == "prompting" else ""
            n_labels = len(WORDS[dataset])
            lines = [f"{i % n_labels} ||| {text}{suffix}\n" for i, text in enumerate(texts)]
            files[f"{data_name}-{method}-output.txt"] = "".join(lines).encode()
    return files


def check(changes, sentences=SENTENCES):
    """The problems' lines for the good files with some changed; None takes one away."""
    files = {k: v for k, v in (good_files() | changes).items() if v is not None}
    submission = Submission("ab1", tuple(files), files, ())
    return [str(problem) for problem in rules.check_submission(submission, "ab1", sentences)]


def only(lines, *parts):
    """Exactly one line, which holds all the parts."""
    assert len(lines) == 1, lines
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Good files in `work`, their data in `data`, both in the current directory."""
    monkeypatch.chdir(tmp_path)
    files = {f"work/{name}": content for name, content in good_files().items()}
    for name, sentences in SENTENCES.items():
        files[f"data/{name}.txt"] = "".join(f"0 ||| {text}\n" for text in sentences).encode()
    for name, content in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
    return Path("work")


def run(capsys, *arguments):
    """Exit status, standard output and standard error."""
    try:
        status = ps.main(["--data", "data", *map(str, arguments)])
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


# --- the contract ---


def test_required_files_are_the_contracts():
    outputs = [f"{data}-{method}-output.txt" for data in LINES for method in METHODS]
    assert sorted(rules.REQUIRED_FILES) == sorted([*SOURCES, *OTHERS, *GENERATED, *outputs])
    assert len(rules.REQUIRED_FILES) == 30


def test_prompts_and_data_are_those_of_the_commands(folder):
    Path("data/sst-dev.txt").write_bytes(b"\xef\xbb\xbf1 |||  a ||| b \r\n0 ||| c\xc2\x85d")
    sentences = rules.read_data("data")
    for name, file in rules.PREDICTION_FILES.items():
        examples = sentiment_data.read_examples(f"data/{file.data_name}.txt")
        if "prompting" in name:
            examples = sentiment_data.with_prompt(examples, WORDS[name.split("-")[0]])
        found = [sentence + file.suffix for sentence in sentences[file.data_name]]
        assert found == [example.sentence for example in examples]


def test_check_needs_no_torch():
    code = "import sys, prepare_submit; sys.exit('torch' in sys.modules)"
    root = Path(ps.__file__).parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_good_submission_has_no_problem():
    content = good_files()[PROMPTING]
    for name, changed in [
        (PROMPTING, content),
        (PROMPTING, content.replace(b"\n", b"\r\n")),
        (PROMPTING, content.replace(b" is \n", b" is\n")),
        (PROMPTING, content.removesuffix(b"\n")),
        (GENERATED[0], f"{THRILLER} c".encode()),
        ("utils.py", b"\xef\xbb\xbfx = 1\n"),
    ]:
        assert check({name: changed}) == []


def test_known_counts_are_used_without_data():
    files = good_files({name: ["x"] * n for name, n in LINES.items()})
    assert check(files, {}) == []
    for data_name, n in LINES.items():
        name = f"{data_name}-lora-output.txt"
        longer = {name: files[name] + b"0 ||| x\n"}
        only(
            check(files | longer, {}), f"error: {name}: has {n + 1} lines, {data_name}.txt has {n}"
        )
    swapped = files | {"sst-dev-prompting-output.txt": files[LORA]}
    only(check(swapped, {}), "line 1 (and 1100 more", "sst-dev.txt and the prompt")


def test_real_data(shared):
    assert {name: len(s) for name, s in rules.read_data(shared / "data").items()} == LINES


# --- names ---


def test_missing_unasked_and_checkpoint_files():
    only(check({"rope.py": None, "setup.sh": None}), "error", "2 of 30", "rope.py", "setup.sh")
    only(check({"a.pdf": b"", "x/y": b""}), "warning: zip: not asked for", "'a.pdf', 'x/y'")
    for name in ("finetune-5-2e-05.pt", "runs/A.PTH", "m.safetensors"):
        lines = check({name: b"x", "a.pdf": b"x"})
        assert lines[0].startswith("error: zip: checkpoints are not handed in")
        assert f"remove '{name}'" in lines[0]
        assert lines[1:] == ["warning: zip: not asked for, leave out: 'a.pdf'"]
    files = {f"ab1/{name}": content for name, content in good_files().items()}
    lines = check(dict.fromkeys(good_files()) | files)  # a folder in a folder
    assert "30 of 30" in lines[0]
    assert "'ab1/run_llama.py'" in lines[1]


def test_errors_come_first():
    lines = check({"a.pdf": b"x", "README.md": b"", LORA: b"", "lora.py": b"("})
    assert [line.split(":")[0] for line in lines] == ["error", "error", "warning", "warning"]


# --- prediction files ---


@pytest.mark.parametrize(
    ("name", "old", "new", "parts"),
    [
        (LORA, b"2 |||", b"5 |||", ["line 3: label '5'", "0, 1, 2, 3, 4"]),
        (PROMPTING, b"1 |||", b"2 |||", ["line 2 (and 2 more of 7 lines): label '2'", "of 0, 1"]),
        (LORA, b"2 |||", b"2.0 |||", ["line 3: label '2.0'"]),
        (LORA, b"2 |||", b"-1 |||", ["line 3: label '-1'"]),
        (LORA, b"2 |||", "\u0662 |||".encode(), ["line 3: label '\\u0662'"]),
        (LORA, b"2 |||", b"2,", ["line 3:", "PREDICTION ||| SENTENCE"]),
        (LORA, b"sentence 2", b"Sentence 2", ["line 3: sentence differs", "'sst-dev Sentence 2"]),
        (LORA, "\u00e9".encode(), b"\xe9", ["line 1: byte 0xe9 is not UTF-8"]),
        (PROMPTING, b"bad or good", b"good or bad", ["line 1 (and 6 more", "and the prompt"]),
        (PROMPTING, b" Is this movie bad or good? This movie is ", b"", ["vu .', expected"]),
        (LORA, b"0 ||| sst", b"\n0 ||| sst", ["has 9 lines, sst-dev.txt has 7"]),
    ],
)
def test_faulty_line_is_named(name, old, new, parts):
    content = good_files()[name]
    assert old in content
    only(check({name: content.replace(old, new)}), f"error: {name}: ", *parts)


def test_shuffled_sentences():
    lines = good_files()[LORA].splitlines(keepends=True)
    lines[2], lines[5] = lines[5], lines[2]
    only(check({LORA: b"".join(lines)}), "line 3 (and 1 more of 7 lines): sentence differs")


def test_what_an_editor_did_is_a_warning():
    content = good_files()[LORA]
    only(
        check({LORA: b"\xef\xbb\xbf" + content}), f"warning: {LORA}: starts with a byte order mark"
    )
    for end, count in ((b"\n", 1), (b"\r\n\r\n\n", 3)):
        lines = check({LORA: content + end})
        only(lines, f"warning: {LORA}: empty lines at its end, which are ignored: {count}:")
    only(check({LORA: content + b" \n"}), f"error: {LORA}: has 8 lines, sst-dev.txt has 7")


def test_one_class_is_a_warning():
    content = b"".join(b"0" + line[1:] for line in good_files()[LORA].splitlines(keepends=True))
    only(check({LORA: content}), f"warning: {LORA}: only one class is predicted, 0 on all 7 lines")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        (LORA, b"", ["error", "is empty"]),
        (LORA, b"\n" * 7, ["error", "is empty"]),
        (GENERATED[0], b" \n", ["error", "is empty"]),
        ("README.md", b"", ["warning", "is empty"]),
        (GENERATED[1], b"Once upon a time", ["error", "starts with 'Once upon a time'"]),
        (GENERATED[1], THRILLER.encode() + b"\n\xff", ["error", "line 2: byte 0xff"]),
    ],
)
def test_empty_files_and_generated_texts(name, content, parts):
    only(check({name: content}), name, *parts)


# --- Python files ---


@pytest.mark.parametrize(
    ("source", "part"),
    [
        (b"x = 1\ndef f(:\n", "line 2"),
        (b"x = 1\n\xff\n", "line 2: byte 0xff"),
        (b"x = 1\x00\n", "null bytes"),
        (b"(" * 100_000, "does not parse"),
        (b"-" * 100_000 + b"1", "does not parse"),
        (b"a" + b".a" * 60_000, "does not parse"),
        (b"#" * 131_073, "131,073 bytes, allowed are 131,072"),
    ],
)
def test_python_that_does_not_parse(source, part):
    only(check({"lora.py": source}), "error: lora.py", part)


def test_python_is_never_run(tmp_path):
    trace = tmp_path / "trace"
    source = f"# coding: rot13\n'\\d'\nopen({str(trace)!r}, 'w')\nraise SystemExit".encode()
    assert check({"config.py": source}) == []
    assert not trace.exists()


def test_imports_of_modules_that_are_not_there():
    only(check({"llama.py": b"import os\nimport kv_cache\n"}), "warning", "'kv_cache'")
    only(check({"kv_cache.py": b"import torch\n"}), "warning", "not asked for", "'kv_cache.py'")
    both = {
        "llama.py": b"def f():\n  from kv_cache import C",
        "kv_cache.py": b"import torch.nn",
    }
    assert check(both) == []
    only(check(both | {"kv_cache.py": b"def ("}), "error: kv_cache.py: does not parse")


# --- making ---


def test_made_zip_holds_the_required_files_and_nothing_else(folder):
    for name in ("finetune-5-2e-05.pt", "old.zip", "notes.py", ".env"):
        (folder / name).write_bytes(b"x")
    assert rules.make_submission(folder, "ab1", SENTENCES) == []
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
    assert Path("ab1.zip").read_bytes() == rules.build_zip(backwards, "ab1")


def test_errors_leave_the_older_zip(folder):
    Path("ab1.zip").write_bytes(b"older")
    (folder / "llama.py").write_bytes(b"def (")
    (folder / "setup.sh").unlink()
    assert len(rules.make_submission(folder, "ab1", SENTENCES)) == 2
    assert Path("ab1.zip").read_bytes() == b"older"
    assert sorted(path.name for path in Path().iterdir()) == ["ab1.zip", "data", "work"]


def test_with_imports_adds_own_modules_only(folder):
    (folder / "llama.py").write_bytes(b"import torch\ndef f():\n    import kv_cache\n")
    (folder / "kv_cache.py").write_bytes(b"from sampling import greedy\nimport llama\n")
    (folder / "sampling.py").write_bytes(b"import numpy\n")
    (folder / "scratch.py").write_bytes(b"")
    assert len(rules.make_submission(folder, "ab1", SENTENCES)) == 1
    assert rules.make_submission(folder, "ab1", SENTENCES, with_imports=True) == []
    with zipfile.ZipFile("ab1.zip") as archive:
        added = {Path(name).name for name in archive.namelist()} - set(good_files())
    assert added == {"kv_cache.py", "sampling.py"}


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "a/b", "a\\b", "C:x", "a\nb", "a\x00b", "a.", "a*", "x" * 101]
)
def test_bad_ids(name):
    with pytest.raises(ValueError, match="cannot name a folder"):
        rules.validate_id(name)


@pytest.mark.parametrize("name", ["ab123_cd456-ef.7", "\u674e\u96f7", "x" * 100])
def test_good_ids(name):
    assert rules.validate_id(f" {name} ") == name


# --- command line ---


def test_make_then_check(folder, capsys):
    made = "ab1.zip written, errors: 0, warnings: 0\n"
    assert run(capsys, folder, "ab1") == (0, made, "")
    checked = "ab1.zip checked, errors: 0, warnings: 0\n"
    assert run(capsys, "ab1.zip", "ab1") == (0, checked, "")
    assert run(capsys, "ab1.zip") == (0, checked, "")
    status, out, _ = run(capsys, "ab1.zip", "other")
    assert status == 1
    only(out.splitlines()[:-1], "error: zip: its top folder is 'ab1', not 'other'")


def test_missing_data_is_announced(folder, capsys):
    Path("data/sst-test.txt").unlink()
    status, out, _ = run(capsys, folder, "ab1")
    assert status == 1  # the small outputs have not the real number of lines
    assert "no data of sst-test in" in out
    assert "error: sst-test-lora-output.txt: has 7 lines, sst-test.txt has 2210" in out
    assert "ab1.zip not written, errors: 3, warnings: 0" in out


@pytest.mark.parametrize(
    ("arguments", "expected", "part"),
    [
        (["hello.zip"], 1, "error: zip: is no zip file"),
        ([], 2, "required"),
        (["work"], 2, "ID, the student id(s), is needed"),
        (["work", "../x"], 2, "cannot name a folder"),
        (["none.zip", "ab1"], 2, "is not a file"),
        (["work", "ab1", "--data", "broken"], 2, "sst-dev.txt line 1: 'no label'"),
    ],
)
def test_exit_status(folder, capsys, arguments, expected, part):
    Path("hello.zip").write_bytes(b"hello")
    Path("broken").mkdir()
    Path("broken/sst-dev.txt").write_bytes(b"no label\n")
    status, out, err = run(capsys, *arguments)
    assert status == expected
    assert part in out + err


def test_with_imports_takes_all_that_the_options_need():
    """The project's own command line imports its options' modules only when they are asked for."""
    names = set(rules.collect_files(ROOT, True))
    modules = {"completion", "prompting", "finetune", "reviews", "options", "__init__"}
    assert {f"mini_llama/assignment/{name}.py" for name in modules} <= names
    assert "mini_llama/checkpoints/formats/llama2c.py" in names
    assert not {"pretrain.py", "download.py", "mini_llama/downloads.py"} & names
