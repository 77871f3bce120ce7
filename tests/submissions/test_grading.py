"""grading.py, standard.py, agreement.py: figures and bands, placeholder labels, comparison with
reference outputs.
"""

import math

import pytest

from mini_llama.submissions import rules
from mini_llama.submissions.agreement import compare_labels, compare_text
from mini_llama.submissions.archive import Submission
from mini_llama.submissions.grading import grade_files, grade_output
from mini_llama.submissions.prediction_files import PREDICTION_FILES, read_predictions
from mini_llama.submissions.rules import GREEDY_TEXT, PROMPT_TEXTS, Expected
from mini_llama.submissions.standard import Reference, Standard, read_references, read_standard
from tests.submissions.samples import LINES, SENTENCES, good_files

DEV = "sst-dev-finetuning-output.txt"
PROMPT = "sst-dev-prompting-output.txt"
METHODS = {"prompt": "prompting", "finetune": "finetuning", "lora": "lora"}


def standard(gold, edition="mmia"):
    return Standard(edition, Expected(), gold)


@pytest.mark.parametrize(
    ("file", "edition", "accuracy", "verdict"),
    [
        (DEV, "mmia", 0.361, "within"),
        (DEV, "mmia", 0.360, "below"),
        (DEV, "mmia", 0.461, "within"),
        (DEV, "mmia", 0.462, "above"),
        (DEV, "fall2024", 0.363, "below"),
        (DEV, "spring2026", 0.411, "no figure"),
        (DEV, "llama2", 0.411, "no figure"),
        ("cfimdb-dev-lora-output.txt", "mmia", 0.360, "within"),
        ("cfimdb-dev-lora-output.txt", "mmia", 0.359, "below"),
        ("cfimdb-dev-lora-output.txt", "fall2024", 0.5, "no figure"),
        ("sst-test-prompting-output.txt", "spring2026", 0.226, "within"),
        ("sst-test-prompting-output.txt", "spring2026", 0.227, "above"),
    ],
)
def test_bands(file, edition, accuracy, verdict):
    right = round(1000 * accuracy)
    gold = {PREDICTION_FILES[file].data_name: [0, 1] * 500}
    labels = [*([0, 1] * 500)[:right], *([1, 0] * 500)[right:]]
    output = grade_output(file, True, labels, standard(gold, edition))
    assert (output.verdict, output.accuracy) == (verdict, accuracy)


def test_what_is_not_scored():
    one = standard({"sst-dev": [3, 3, 3]})
    assert grade_output(DEV, True, [3, 3, 1], one).verdict == "placeholder"
    assert grade_output(DEV, True, [3, 3, 1], one).accuracy is None
    assert grade_output(DEV, True, [3, 3, 1], standard({})).verdict == "no gold"
    assert grade_output(DEV, True, None, one).verdict == "faulty"
    assert grade_output(DEV, False, None, one).verdict == "missing"


def test_real_gold(shared):
    """The placeholder labels of cfimdb-test.txt are known by themselves."""
    real = read_standard("mmia", shared / "data", None)
    assert {name: len(labels) for name, labels in real.gold.items()} == {
        "sst-dev": 1101,
        "sst-test": 2210,
        "cfimdb-dev": 245,
        "cfimdb-test": 488,
    }
    verdicts = {
        file: grade_output(file, True, real.gold[known.data_name], real)
        for file, known in PREDICTION_FILES.items()
    }
    for file, output in verdicts.items():
        expected = ("placeholder", None) if "cfimdb-test" in file else ("above", 1.0)
        assert (output.verdict, output.accuracy) == expected
        assert output.one_class == ("cfimdb-test" in file)


def test_each_prediction_file_is_parsed_once(monkeypatch):
    """Checking and grading read the same labels."""
    files = good_files()
    parsed = []

    def count(file, content, sentences):
        parsed.append(content)
        return read_predictions(file, content, sentences)

    monkeypatch.setattr(rules, "read_predictions", count)
    gold = {name: [0, 1] * 3 + [0] for name in LINES}
    submission = Submission("ab1", tuple(files), files, ())
    known = Standard("mmia", Expected(sentences=SENTENCES), gold)
    graded = grade_files(submission, "ab1", 1, known)
    assert sorted(parsed) == sorted(files[name] for name in PREDICTION_FILES)
    right = {"sst": 2 / 7, "cfimdb": 1.0}  # labels 0 1 2 3 4 0 1, and 0 1 0 1 0 1 0
    for output in graded.outputs:
        assert output.accuracy == pytest.approx(right[output.file.split("-")[0]])


# --- reference outputs ---


def labels(n_flipped, n=1000):
    return [int(i < n_flipped) for i in range(n)]


@pytest.mark.parametrize(
    ("flipped", "verdict", "looks_like", "part"),
    [
        (0, "equal", ("mmia",), "all 1000 lines are those of mmia"),
        (10, "drift", ("mmia",), "(1.0%, first in line 1, 2, 3, 4, 5): float drift"),
        (11, "differs", (), "like none of the references (nearest is mmia, 11 differ)"),
        (300, "differs", ("spring2026",), "it looks like spring2026 (0 differ)"),
        (292, "differs", ("spring2026",), "it looks like spring2026 (8 differ)"),
        (289, "differs", (), "(nearest is spring2026, 11 differ)"),
    ],
)
def test_lines(flipped, verdict, looks_like, part):
    references = {"mmia": labels(0), "spring2026": labels(300)}
    found = compare_labels(PROMPT, labels(flipped), references, "mmia")
    assert (found.verdict, found.against, found.looks_like) == (verdict, "mmia", looks_like)
    assert found.share == pytest.approx(1 - flipped / 1000)
    assert part in found.message


def test_editions_of_one_arithmetic_are_both_named():
    references = {"fall2024": labels(0), "mmia": labels(300), "fall2025": labels(300)}
    found = compare_labels(PROMPT, labels(300), references, "fall2024")
    assert found.looks_like == ("mmia", "fall2025")
    without = compare_labels(PROMPT, labels(300), references, "llama2")
    assert (without.verdict, without.against) == ("equal", "mmia")


def test_texts():
    start, other = PROMPT_TEXTS
    texts = {"mmia": f"{start} a b c d", "fall2024": f"{other} a b x", "llama2": f"{start} a q"}

    def compare(text, edition="mmia"):
        return compare_text(text, texts, edition)

    assert compare(texts["mmia"]).verdict == "equal"
    found = compare(f"{start} a b x d")
    assert (found.file, found.verdict, found.share) == (GREEDY_TEXT, "differs", 0.5)
    assert found.message == "the first 2 of 4 words after the prompt are those of mmia"
    assert compare(texts["fall2024"]).message.endswith("it is the text of fall2024")
    assert compare(f"{start} a q r").message.endswith("nearest is llama2, with 2")
    assert compare(f"{start} a b c d", "spring2026").against == "mmia"
    assert math.isnan(compare_text("x", {"mmia": start}, "mmia").share)


def test_reference_folders(tmp_path):
    sentences = {"sst-dev": ["a", "b"]}
    suffix = PREDICTION_FILES[PROMPT].suffix
    (tmp_path / PROMPT).write_text(f"1 ||| a{suffix}\n2 ||| b{suffix}\n")
    expected = Expected(sentences=sentences)
    flat = read_references(tmp_path, "fall2024", expected)
    assert flat == {"fall2024": Reference({PROMPT: [1, 2]}, None)}
    for edition in ("mmia", "llama2"):
        (tmp_path / edition).mkdir()
        (tmp_path / edition / GREEDY_TEXT).write_bytes(b"a\r\nb\n")
    by_name = read_references(tmp_path, "fall2024", expected)
    assert by_name == dict.fromkeys(("mmia", "llama2"), Reference({}, "a\nb"))
    (tmp_path / "llama2" / GREEDY_TEXT).write_bytes(b"a\n\xff")
    with pytest.raises(ValueError, match=f"llama2/{GREEDY_TEXT}: line 2: byte 0xff"):
        read_references(tmp_path, "fall2024", expected)
    (tmp_path / "mmia" / PROMPT).write_text("9 ||| a\n")
    with pytest.raises(ValueError, match=f"mmia/{PROMPT}: has 1 lines, sst-dev.txt has 2"):
        read_references(tmp_path, "fall2024", expected)
