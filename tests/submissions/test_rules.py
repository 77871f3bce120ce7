"""rules.py, prediction_files.py, imports.py: the contract's files, and what is wrong with each."""

import pytest

from config import THRILLER
from mini_llama.assignment import reviews
from mini_llama.submissions.archive import Submission
from mini_llama.submissions.prediction_files import PREDICTION_FILES, read_data
from mini_llama.submissions.rules import REQUIRED_FILES, Expected, check_submission
from tests.submissions.samples import (
    GENERATED,
    LINES,
    LORA,
    METHODS,
    OTHERS,
    PROMPTING,
    SENTENCES,
    SOURCES,
    WORDS,
    good_files,
    only,
    write_work,
)


def check(changes, sentences=SENTENCES):
    """The problems' lines for the good files with some changed; None takes one away."""
    files = {k: v for k, v in (good_files() | changes).items() if v is not None}
    submission = Submission("ab1", tuple(files), files, ())
    checked = check_submission(submission, "ab1", Expected(sentences=sentences))
    return [str(problem) for problem in checked.problems]


# --- the contract ---


def test_required_files_are_the_contracts():
    outputs = [f"{data}-{method}-output.txt" for data in LINES for method in METHODS]
    assert sorted(REQUIRED_FILES) == sorted([*SOURCES, *OTHERS, *GENERATED, *outputs])
    assert len(REQUIRED_FILES) == 30


def test_prompts_and_data_are_those_of_the_commands(tmp_path):
    data = write_work(tmp_path).parent / "data"
    (data / "sst-dev.txt").write_bytes(b"\xef\xbb\xbf1 |||  a ||| b \r\n0 ||| c\xc2\x85d")
    sentences = read_data(data)
    for name, file in PREDICTION_FILES.items():
        examples = reviews.read_examples(data / f"{file.data_name}.txt")
        if "prompting" in name:
            examples = reviews.with_prompt(examples, WORDS[name.split("-")[0]])
        found = [sentence + file.suffix for sentence in sentences[file.data_name]]
        assert found == [example.sentence for example in examples]


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
    assert {name: len(s) for name, s in read_data(shared / "data").items()} == LINES


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
