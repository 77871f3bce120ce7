"""grading.py, answer_key.py, agreement.py: figures and bands, placeholder labels, comparison with
reference outputs.
"""

import csv
import io
import json
import math

import pytest

from mini_llama.assignment import agreement
from mini_llama.assignment.reference_outputs import ReferenceOutputs, reference_outputs
from mini_llama.submissions import report, rules
from mini_llama.submissions.agreement import compare_with_references
from mini_llama.submissions.answer_key import AnswerKey, read_answer_key, read_references
from mini_llama.submissions.archive import Submission
from mini_llama.submissions.grading import (
    Grade,
    Output,
    flag_identical_outputs,
    grade_files,
    grade_output,
)
from mini_llama.submissions.page import html_page
from mini_llama.submissions.prediction_files import PREDICTION_FILES, read_predictions
from mini_llama.submissions.rules import GREEDY_TEXT, PROMPT_TEXTS, Expected
from mini_llama.submissions.terminal import table
from tests.submissions.samples import LINES, SENTENCES, good_files

DEV = "sst-dev-finetuning-output.txt"
PROMPT = "sst-dev-prompting-output.txt"
METHODS = {"prompt": "prompting", "finetune": "finetuning", "lora": "lora"}


def answer_key(gold, edition="mmia"):
    return AnswerKey(edition, Expected(), gold)


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
    output = grade_output(file, True, labels, answer_key(gold, edition))
    assert (output.verdict, output.accuracy) == (verdict, accuracy)


def test_files_that_are_not_scored():
    one = answer_key({"sst-dev": [3, 3, 3]})
    assert grade_output(DEV, True, [3, 3, 1], one).verdict == "placeholder"
    assert grade_output(DEV, True, [3, 3, 1], one).accuracy is None
    assert grade_output(DEV, True, [3, 3, 1], answer_key({})).verdict == "no gold"
    assert grade_output(DEV, True, None, one).verdict == "faulty"
    assert grade_output(DEV, False, None, one).verdict == "missing"


def test_real_gold(shared):
    """The labels of cfimdb-test.txt are recognized as placeholders."""
    real = read_answer_key("mmia", shared / "data", None)
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
    known = AnswerKey("mmia", Expected(sentences=SENTENCES), gold)
    graded = grade_files(submission, "ab1", 1, known)
    assert sorted(parsed) == sorted(files[name] for name in PREDICTION_FILES)
    right = {"sst": 2 / 7, "cfimdb": 1.0}  # labels 0 1 2 3 4 0 1, and 0 1 0 1 0 1 0
    for output in graded.outputs:
        assert output.accuracy == pytest.approx(right[output.file.split("-")[0]])


# --- identical outputs ---


def graded(name, file, minority, digest="x"):
    output = Output(file, "within", one_class=not minority, minority=minority, digest=digest)
    return Grade(name, outputs=(output,))


@pytest.mark.parametrize(
    ("file", "minority", "why"),
    [
        ("sst-dev-finetuning-output.txt", 700, "independent runs differ in 83 to 391 of 1,101"),
        ("sst-test-lora-output.txt", 90, "independent runs differ in 83 to 391 of 1,101 lines"),
        ("cfimdb-dev-finetuning-output.txt", 110, "at least 110 lines are outside the most common"),
        # Unrelated runs converge to nearly one class: equal ones are no news.
        ("cfimdb-dev-finetuning-output.txt", 0, None),
        ("cfimdb-dev-finetuning-output.txt", 7, None),
        ("cfimdb-dev-lora-output.txt", 60, None),
        ("sst-dev-lora-output.txt", 40, None),
        ("sst-dev-prompting-output.txt", 700, None),  # they have to be equal
    ],
)
def test_identical_outputs_are_flagged_if_chance_is_unlikely(file, minority, why):
    grades = [graded("a", file, minority), graded("b", file, minority), graded("c", file, 9, "y")]
    first, second, third = (grade.shared for grade in flag_identical_outputs(grades))
    assert third == ()
    if why is None:
        assert first == second == ()
    else:
        assert why in first[0] and "the same trained predictions as 'b' in 1 file" in first[0]
        assert "but the same code and seed on similar machines give equal outputs" in second[0]


def test_minority_is_counted():
    output = grade_output(DEV, True, [0, 0, 1, 4, 0], answer_key({}))
    assert (output.minority, output.one_class) == (2, False)
    assert grade_output(DEV, True, [3, 3], answer_key({})).minority == 0


# --- reference outputs ---


def labels(n_flipped, n=1000):
    return [int(i < n_flipped) for i in range(n)]


def compare_labels(file, found, references, edition):
    runs = dict.fromkeys(references, 0)
    (one,) = agreement.compare_labels(
        [agreement.LabelComparison(file, found, references, runs)], edition
    )
    return one


@pytest.mark.parametrize(
    ("flipped", "verdict", "looks_like", "part"),
    [
        (0, "equal", ("mmia",), "1000 of 1000 predictions equal the reference"),
        (10, "drift", ("mmia",), "(1.0%, first in line 1, 2, 3, 4, 5): float drift"),
        (11, "differs", (), "like none of the references (nearest is mmia, 11 differ)"),
        (300, "differs", ("spring2026",), "it looks like spring2026 (0 differ)"),
        (292, "differs", ("spring2026",), "it looks like spring2026 (8 differ)"),
        (289, "differs", (), "nearest is spring2026, which has causal attention (11 differ)"),
    ],
)
def test_lines(flipped, verdict, looks_like, part):
    references = {"mmia": labels(0), "spring2026": labels(300)}
    found = compare_labels(PROMPT, labels(flipped), references, "mmia")
    assert (found.verdict, found.against, found.looks_like) == (verdict, "mmia", looks_like)
    assert found.share == pytest.approx(1 - flipped / 1000)
    assert part in found.message


def test_editions_with_the_same_arithmetic_are_all_named():
    references = {"fall2024": labels(0), "mmia": labels(300), "fall2025": labels(300)}
    found = compare_labels(PROMPT, labels(300), references, "fall2024")
    assert found.looks_like == ("mmia", "fall2025")
    without = compare_labels(PROMPT, labels(300), references, "llama2")
    assert (without.verdict, without.against) == ("equal", "mmia")


def test_texts():
    start, other = PROMPT_TEXTS
    texts = {"mmia": f"{start} a b c d", "fall2024": f"{other} a b x", "llama2": f"{start} a q"}
    known = {name: (text, len(name)) for name, text in texts.items()}

    def compare(text, edition="mmia"):
        return agreement.compare_text(GREEDY_TEXT, text, known, edition, PROMPT_TEXTS)

    assert compare(texts["mmia"]).verdict == "equal"
    assert compare(texts["mmia"]).message == "the text equals the reference (4 independent runs)"
    found = compare(f"{start} a b x d")
    assert (found.file, found.verdict, found.share) == (GREEDY_TEXT, "differs", 0.5)
    assert found.message == "the first 2 of 4 words after the prompt equal those of mmia"
    assert compare(texts["fall2024"]).message.endswith("it is the text of fall2024")
    assert compare(f"{start} a q r").message.endswith("nearest is llama2, with 2")
    assert compare(f"{start} a b c d", "spring2026").against == "mmia"
    known["mmia"] = (start, 0)
    assert math.isnan(compare("x").share)


def test_reference_folders(tmp_path):
    sentences = {"sst-dev": ["a", "b"]}
    suffix = PREDICTION_FILES[PROMPT].suffix
    (tmp_path / PROMPT).write_text(f"1 ||| a{suffix}\n2 ||| b{suffix}\n")
    expected = Expected(sentences=sentences)
    flat = read_references(tmp_path, "fall2024", expected)
    assert flat == {"fall2024": ReferenceOutputs({PROMPT: [1, 2]}, None)}
    for edition in ("mmia", "llama2"):
        (tmp_path / edition).mkdir()
        (tmp_path / edition / GREEDY_TEXT).write_bytes(b"a\r\nb\n")
    by_name = read_references(tmp_path, "fall2024", expected)
    assert by_name == dict.fromkeys(("mmia", "llama2"), ReferenceOutputs({}, "a\nb"))
    (tmp_path / "llama2" / GREEDY_TEXT).write_bytes(b"a\n\xff")
    with pytest.raises(ValueError, match=f"llama2/{GREEDY_TEXT}: line 2: byte 0xff"):
        read_references(tmp_path, "fall2024", expected)
    (tmp_path / "mmia" / PROMPT).write_text("9 ||| a\n")
    with pytest.raises(ValueError, match=f"mmia/{PROMPT}: has 1 lines, sst-dev.txt has 2"):
        read_references(tmp_path, "fall2024", expected)


def test_built_in_references_need_the_courses_data(shared, tmp_path):
    real = read_answer_key("mmia", shared / "data", None)
    assert list(real.references) == list(reference_outputs())
    assert real.references["mmia"].runs[PROMPT] == 7
    assert {name: len(tokens) for name, tokens in real.tokens.items()} == LINES
    assert (
        read_answer_key("llama2", shared / "data", None).references == {}
    )  # it has none of its own
    lines = (shared / "data" / "sst-dev.txt").read_text(encoding="utf-8").splitlines()
    for name, changed in {
        "whole": lines,
        "turned": lines[::-1],
        "other": [*lines[:-1], lines[-1] + " really"],
        "short": lines[:-1],
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "sst-dev.txt").write_text("\n".join(changed), encoding="utf-8")
        assert bool(read_answer_key("mmia", tmp_path / name, None).references) == (name == "whole")


def test_references_of_a_folder_replace_the_built_in(shared, tmp_path):
    known = reference_outputs()["mmia"]
    real = read_answer_key("mmia", shared / "data", None)
    sentences, suffix = real.expected.sentences["sst-dev"], PREDICTION_FILES[PROMPT].suffix
    text = "".join(f"4 ||| {sentence}{suffix}\n" for sentence in sentences)
    (tmp_path / PROMPT).write_text(text, encoding="utf-8")
    over = read_answer_key("mmia", shared / "data", tmp_path).references
    assert list(over["mmia"].labels[PROMPT]) == [4] * 1101
    assert over["mmia"].runs.get(PROMPT, 0) == 0
    test = "sst-test-prompting-output.txt"
    assert over["mmia"].labels[test] == known.labels["sst-test"]
    assert (over["mmia"].text, over["mmia"].runs[test]) == (known.text, 7)
    assert over["fall2025"] == real.references["fall2025"]
    (tmp_path / PROMPT).unlink()
    (tmp_path / GREEDY_TEXT).write_text("mine", encoding="utf-8")
    over = read_answer_key("llama2", shared / "data", tmp_path).references
    assert over == {"llama2": ReferenceOutputs({}, "mine")}


def test_both_figures_are_shown_if_the_predictions_differ(shared):
    """The course's text has 0.498; the predictions of 32 equal runs have 0.502."""
    real = read_answer_key("fall2024", shared / "data", None)
    file = "cfimdb-dev-prompting-output.txt"
    output = grade_output(file, True, real.references["fall2024"].labels[file], real)
    assert (output.figure, output.measured, output.verdict) == (0.498, 0.502, "within")
    assert output.accuracy == pytest.approx(0.502, abs=5e-4)
    (note,) = report.figure_notes(real)
    assert "0.498 in the course's text, 0.502 by the identical predictions of 32" in note
    assert note in table([Grade("a", outputs=(output,))], real)
    assert "figure 0.498 (0.502 by independent runs)" in html_page([full(real)], real, "t")


def full(real):
    """A grade whose outputs are those of the reference."""
    known = real.references[real.edition].labels
    outputs = [grade_output(f, f in known, known.get(f), real) for f in real.expected.predictions]
    agreements = tuple(compare_with_references(known, real.references[real.edition].text, real))
    return Grade("a", outputs=tuple(outputs), agreements=agreements)


def test_equal_outputs_are_listed_only_for_a_single_submission(shared):
    real = read_answer_key("fall2024", shared / "data", None)
    one = full(real)
    line = "equal: sst-dev-prompting-output.txt: 1101 of 1101 predictions equal the reference (19"
    assert line in table([one], real)
    assert line not in table([one, one], real)
    for text in (html_page([one], real, "t"), report.json_text([one, one], real)):
        assert "1101 of 1101 predictions equal the reference (19 independent runs)" in text


def test_cause_is_in_table_csv_and_page(shared):
    real = read_answer_key("mmia", shared / "data", None)
    causal = real.references["spring2026"]
    agreements = tuple(compare_with_references(causal.labels, causal.text, real))
    grade = Grade("a", outputs=full(real).outputs, agreements=agreements)
    assert report.agreement_cells(grade)[0] == ("differs", "spring2026")
    assert "causal attention instead of bidirectional" in table([grade], real)
    assert '<td class="warn">spring2026</td>' in html_page([grade], real, "t")
    header, row = csv.reader(io.StringIO(report.csv_text([grade], real)))
    cells = dict(zip(header, row, strict=True))
    assert cells[f"{PROMPT} against reference"] == "differs"
    assert cells[f"{PROMPT} cause"] == "spring2026"
    assert float(cells[f"{PROMPT} share equal"]) == pytest.approx(1 - 780 / 1101)
    (found,) = json.loads(report.json_text([grade], real))["submissions"]
    assert found["agreements"][0]["cause"] == "spring2026"
