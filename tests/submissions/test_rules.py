"""rules.py, prediction_files.py, imports.py: the required files and their possible faults."""

import pytest

from config import EDITIONS, THRILLER
from mini_llama.assignment import reviews
from mini_llama.submissions.archive import Submission, parse_submission
from mini_llama.submissions.prediction_files import PREDICTION_FILES, read_data
from mini_llama.submissions.rules import Expected, check_submission, expect
from tests.planted import zipped
from tests.submissions.samples import (
    GENERATED,
    LINES,
    LORA,
    METHODS,
    OTHERS,
    PROMPTING,
    SENTENCES,
    SOURCES,
    SUFFIXES,
    WORDS,
    good_files,
    only,
    write_work,
)


def check(changes, sentences=SENTENCES):
    """The problems' lines for the good files with some changes; None removes a file."""
    files = {k: v for k, v in (good_files() | changes).items() if v is not None}
    submission = Submission("ab1", tuple(files), files, ())
    checked = check_submission(submission, "ab1", Expected(sentences=sentences))
    return [str(problem) for problem in checked.problems]


# --- the contract ---


def test_required_files_are_the_contracts():
    outputs = [f"{data}-{method}-output.txt" for data in LINES for method in METHODS]
    assert sorted(expect().names) == sorted([*SOURCES, *OTHERS, *GENERATED, *outputs])
    assert len(expect().names) == 30


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


def test_good_submission_has_no_problems():
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


def test_missing_files_and_checkpoints():
    setup = "setup.sh downloads the .data file"
    only(check({"rope.py": None, "setup.sh": None}), "error", "2 of 30", ": rope.py, setup.sh")
    only(
        check({"rope.py": None, "sanity_check.data": None}), f"rope.py, sanity_check.data; {setup}"
    )
    assert check({"a.pdf": b"x", "x/y": b"x", "tokenizer.bin": b"x", "data/a.txt": b"x"}) == []
    for name in ("finetune-5-2e-05.pt", "runs/A.PTH", "m.safetensors"):
        only(check({name: b"x"}), "error: zip: checkpoints are not submitted", f"remove '{name}'")


def test_folder_in_a_folder():
    lines = grade_paths({f"ab1/ab1/{name}": content for name, content in good_files().items()})
    only(lines, "warning: zip: its files are in 'ab1/ab1': they belong directly")


def grade_paths(files, edition="mmia"):
    """The problems' lines of a zip with these paths."""
    submission = parse_submission(zipped(files, top=""))
    expected = expect(edition, SENTENCES)
    return [str(p) for p in check_submission(submission, submission.top, expected).problems]


def test_errors_come_first():
    lines = check({"README.md": b"", LORA: b"", "lora.py": b"("})
    assert [line.split(":")[0] for line in lines] == ["error", "error", "warning"]


@pytest.mark.parametrize("edition", EDITIONS)
def test_every_edition_has_its_files(edition):
    """And no file that only another edition requires."""
    names = set(expect(edition).names)
    assert {"llama.py", "rope.py", "README.md", GENERATED[0], PROMPTING} <= names
    has = {"mmia": "lcf", "llama2": "lcf", "fall2025": "lcf", "fall2024": "f", "spring2025": "f"}
    has["spring2026"] = "ca"
    marks = {"l": "lora.py", "c": "checklist.md", "f": LORA.replace("lora", "finetuning")}
    marks["a"] = "addition_run.py"
    for mark, name in marks.items():
        assert (name in names) == (mark in has[edition]), name
    assert (LORA in names) == ("l" in has[edition])
    assert expect(edition).requirements.max_bytes == (15 if edition == "spring2026" else 10) * 2**20


def test_packages_of_the_courses_may_be_imported():
    course = b"import requests, filelock, importlib_metadata, tokenizers, torchvision, PIL"
    assert check({"utils.py": course}) == []
    plots = {f"ab1/{name}": content for name, content in good_files().items()}
    plots["ab1/utils.py"] = b"import matplotlib.pyplot"
    assert any("'matplotlib'" in line for line in grade_paths(plots, "fall2024"))
    assert not any("'matplotlib'" in line for line in grade_paths(plots, "spring2026"))


# --- prediction files ---


@pytest.mark.parametrize(
    ("name", "old", "new", "parts"),
    [
        (LORA, b"2 |||", b"5 |||", ["line 3: label '5'", "0, 1, 2, 3, 4"]),
        (PROMPTING, b"1 |||", b"2 |||", ["line 2 (and 2 more of 7 lines): label '2'", "of 0, 1"]),
        (LORA, b"2 |||", b"2.0 |||", ["line 3: label '2.0'"]),
        (LORA, b"2 |||", b"-1 |||", ["line 3: label '-1'"]),
        (LORA, b"2 |||", "\u0662 |||".encode(), ["line 3: label '\u0662'"]),
        (LORA, b"2 |||", b"2,", ["line 3:", "PREDICTION ||| SENTENCE"]),
        (LORA, b"sentence 2", b"Sentence 2", ["line 3: sentence differs", "'sst-dev Sentence 2"]),
        (LORA, "\u00e9".encode(), b"\xe9", ["line 1: byte 0xe9 is not UTF-8"]),
        (PROMPTING, b" Is this movie bad or good? This movie is ", b"", ["vu .', expected"]),
        (LORA, b"0 ||| sst", b"\n0 ||| sst", ["has 9 lines, sst-dev.txt has 7"]),
    ],
)
def test_faulty_line_is_named(name, old, new, parts):
    content = good_files()[name]
    assert old in content
    only(check({name: content.replace(old, new)}), f"error: {name}: ", *parts)


PROMPTS = [
    (b"", b" Is this movie good or bad? This movie is "),
    (b"Review: ", b"\nSentiment: "),
    (b"0 stars or 1?\n", b"\n\nAnswer:"),
]


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize(("before", "after"), PROMPTS)
def test_different_prompt(before, after, is_known):
    """It may span lines; the labels are read even without the data."""
    sentences = {name: [f"{i} {i}" for i in range(n)] for name, n in LINES.items()}
    files = good_files(sentences)
    own = SUFFIXES["cfimdb"].encode()
    files[PROMPTING] = files[PROMPTING].replace(own, after).replace(b" ||| ", b" ||| " + before)
    submission = Submission("ab1", tuple(files), files, ())
    known = sentences if is_known else {}
    checked = check_submission(submission, "ab1", expect(sentences=known))
    lines = [str(problem) for problem in checked.problems]
    only(lines, f"warning: {PROMPTING}: uses a different prompt: ", " after the sentence, not")
    assert checked.labels[PROMPTING][:3] == [0, 1, 0]
    assert PROMPTING not in checked.comparable
    if is_known:
        files[PROMPTING] = files[PROMPTING].replace(b"17 17", b"18 17")
        number = 17 * (1 + before.count(b"\n") + after.count(b"\n")) + 1
        only(
            check(files, known),
            f"error: {PROMPTING}: a different prompt, ",
            f"line {number}: sentence",
        )


def checked_of(changes):
    files = good_files() | changes
    submission = Submission("ab1", tuple(files), files, ())
    return check_submission(submission, "ab1", Expected(sentences=SENTENCES))


@pytest.mark.parametrize("name", [LORA, PROMPTING])
def test_shuffled_lines_are_scored_by_sentence(name):
    content = good_files()[name]
    lines = content.splitlines(keepends=True)
    lines[2], lines[5] = lines[5], lines[2]
    found = checked_of({name: b"".join(lines)})
    parts = (
        "line 3 (and 1 more of 7 lines): sentence differs",
        "in another order, so it is scored",
    )
    only(list(map(str, found.problems)), f"error: {name}: ", *parts)
    assert found.labels == checked_of({}).labels


def test_a_sentence_that_is_there_twice_may_be_ambiguous():
    sentences = {"sst-dev": ["same", "same", "other"]}
    for labels, wanted in (("123", None), ("121", [1, 1, 2]), ("221", None)):
        lines = zip(labels, ("same", "other", "same"), strict=True)
        files = {LORA: "".join(f"{label} ||| {text}\n" for label, text in lines).encode()}
        submission = Submission("ab1", tuple(files), files, ())
        found = check_submission(submission, "ab1", Expected(sentences=sentences))
        assert found.labels.get(LORA) == wanted
        line = next(str(p) for p in found.problems if p.where == LORA)
        assert "its lines are those of sst-dev in another order" in line
        assert ("equal sentences have different labels" in line) == (wanted is None)


@pytest.mark.parametrize("method", METHODS)
def test_swapped_files_are_scored_as_what_they_hold(method):
    dev, test = (f"sst-{split}-{method}-output.txt" for split in ("dev", "test"))
    files = good_files()
    found = checked_of({dev: files[test], test: files[dev]})
    lines = [str(problem) for problem in found.problems]
    assert len(lines) == 2
    assert f"error: {dev}: its lines are those of sst-test, and {test} has those of sst" in lines[0]
    assert found.labels == checked_of({}).labels
    only(
        [str(p) for p in checked_of({dev: files[test]}).problems],
        f"error: {dev}: ",
        "its lines are those of sst-test",
    )
    assert dev not in checked_of({dev: files[test]}).labels


def test_editor_artifacts_are_warnings():
    content = good_files()[LORA]
    only(
        check({LORA: b"\xef\xbb\xbf" + content}), f"warning: {LORA}: starts with a byte order mark"
    )
    for end, count in ((b"\n", 1), (b"\r\n\r\n\n", 3)):
        lines = check({LORA: content + end})
        only(lines, f"warning: {LORA}: ends with empty lines ({count}), which are ignored:")
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
        (
            GENERATED[1],
            THRILLER[:30].encode() + b"?",
            [f"{THRILLER[20:30]}?' at character 21"],
        ),
        (
            GENERATED[1],
            THRILLER[:30].encode(),
            [f"ends after '{THRILLER[10:30]}' where"],
        ),
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
        (b"#" * 131_073, "131,073 bytes, at most 131,072"),
    ],
)
def test_python_that_does_not_parse(source, part):
    only(check({"lora.py": source}), "error: lora.py", part)


def test_python_is_never_run(tmp_path):
    trace = tmp_path / "trace"
    source = f"# coding: rot13\n'\\d'\nopen({str(trace)!r}, 'w')\nraise SystemExit".encode()
    assert check({"config.py": source}) == []
    assert not trace.exists()


def test_imports_for_types_only_are_no_imports():
    source = b"import typing\nif typing.TYPE_CHECKING:\n    import no_such_module\n"
    assert check({"llama.py": source}) == []


def test_imports_of_missing_modules():
    only(check({"llama.py": b"import os\nimport kv_cache\n"}), "warning", "'kv_cache'")
    assert check({"kv_cache.py": b"import torch\n"}) == []
    both = {
        "llama.py": b"def f():\n  from kv_cache import C",
        "kv_cache.py": b"import torch.nn",
    }
    assert check(both) == []
    only(check(both | {"kv_cache.py": b"def ("}), "error: kv_cache.py: does not parse")
