"""reference_outputs.py, batch_size.py, agreement.py: what is shipped, and what differences show."""

import base64
import json
import random
import zlib

import pytest
from sklearn.metrics import cohen_kappa_score

from config import EDITIONS
from mini_llama.assignment import reference_data
from mini_llama.assignment.agreement import LabelComparison, compare_labels, compare_text
from mini_llama.assignment.batch_size import same_padding
from mini_llama.assignment.figures import MEASURED, REFERENCE
from mini_llama.assignment.reference_outputs import (
    MAX_DRIFT,
    real_data_set,
    reference_outputs,
    token_counts,
)
from tests.assignment import pack_reference_outputs
from tests.submissions.samples import LINES

SST = ("sst-dev", "sst-test")
CFIMDB = ("cfimdb-dev", "cfimdb-test")


# --- what is shipped ---


def test_outputs_are_those_of_the_independent_runs(shared):
    found = reference_outputs()
    paths = sorted((shared / "reference" / "outputs").glob("*.json"))
    assert {path.stem for path in paths} == found.keys()
    for path in paths:
        expected = json.loads(path.read_text(encoding="utf-8"))
        ours = found[path.stem]
        assert (ours.text, ours.text_runs) == (
            expected["greedy_text"],
            expected["greedy_text_runs"],
        )
        assert list(ours.labels) == list(LINES)
        for name, known in expected["predictions"].items():
            assert "".join(map(str, ours.labels[name])) == known["labels"]
            assert ours.runs[name] == known["identical_runs"]


def test_editions_that_share_predictions_share_the_lists():
    found = reference_outputs()
    assert found["mmia"].labels["sst-dev"] is found["fall2025"].labels["sst-dev"]
    assert found["fall2024"].labels["sst-test"] is found["spring2025"].labels["sst-test"]


def unpacked(value):
    """Compressed bytes differ between builds of zlib."""
    is_packed = isinstance(value, str) and value.startswith("\n")
    return zlib.decompress(base64.b85decode("".join(value.split()))) if is_packed else value


def test_token_counts_and_sentences_are_those_of_the_real_files(shared):
    """Counted by the tokenizer itself; the module that is shipped has what the builder writes."""
    folder = shared / "reference"
    text = pack_reference_outputs.module_text(
        folder / "outputs", shared / "data", folder / "tokenizer.model"
    )
    built: dict = {}
    exec(text, built)
    for name in ("LABELS", "LABEL_RUNS", "TEXTS", "TEXT_RUNS", "SENTENCES", "TOKENS"):
        expected, found = built[name], getattr(reference_data, name)
        assert list(found) == list(expected)
        for key, value in found.items():
            assert unpacked(value) == unpacked(expected[key]), (name, key)
    assert {name: len(counts) for name, counts in token_counts().items()} == LINES
    for name in LINES:
        questions = pack_reference_outputs.prompted(shared / "data", name)
        assert real_data_set(questions) == name
        assert real_data_set(questions[1:]) is None
        assert real_data_set([*questions[:-1], questions[-1].rstrip()]) is None


def test_figures_are_those_of_the_predictions(shared):
    """The courses' prompting figures, but for the one that is measured otherwise."""
    for edition, reference in reference_outputs().items():
        for name, labels in reference.labels.items():
            lines = (shared / "data" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
            right = sum(line.startswith(f"{a} ") for a, line in zip(labels, lines, strict=True))
            key = (edition, "prompt", *name.split("-"))
            published = REFERENCE[key][0] if key in REFERENCE else None
            expected = MEASURED.get(key, published)
            if expected is not None:
                assert round(right / len(lines), 3) == expected, key


# --- batches ---


def padded(tokens: tuple[int, ...], size: int) -> list[int]:
    return [max(tokens[i // size * size :][:size]) for i in range(len(tokens))]


@pytest.mark.parametrize("size", [1, 8, 16, 128, 4096])
def test_lines_of_the_same_padding(size: int):
    tokens = token_counts()["cfimdb-dev"]
    pairs = zip(padded(tokens, 10), padded(tokens, size), strict=True)
    assert same_padding(tokens, size) == {i for i, (a, b) in enumerate(pairs) if a == b}


# --- what differences show ---


def changed(labels, lines, n_labels: int) -> list[int]:
    return [(label + 1) % n_labels if i in lines else label for i, label in enumerate(labels)]


def compared(found: dict, edition: str):
    """Agreements by data set."""
    known = reference_outputs()
    files = [
        LabelComparison(
            name,
            labels,
            {e: reference.labels[name] for e, reference in known.items()},
            {e: reference.runs[name] for e, reference in known.items()},
            name,
            token_counts()[name],
        )
        for name, labels in found.items()
    ]
    return {agreement.file: agreement for agreement in compare_labels(files, edition)}


def with_changes(edition: str, names, choose) -> dict:
    """The reference with the lines changed that `choose` picks of a data set."""
    labels = reference_outputs()[edition].labels
    return {name: changed(labels[name], choose(name), 5 if name in SST else 2) for name in names}


def other_batch(size: int, share: float, rng: random.Random):
    """A choice among the lines that batches of `size` pad to another length, and no others."""

    def choose(name: str) -> set[int]:
        tokens = token_counts()[name]
        pairs = zip(padded(tokens, 10), padded(tokens, size), strict=True)
        return {i for i, (a, b) in enumerate(pairs) if a != b and rng.random() < share}

    return choose


@pytest.mark.parametrize("edition", reference_outputs())
def test_untouched_reference_is_equal(edition: str):
    reference = reference_outputs()[edition]
    for name, found in compared(dict(reference.labels), edition).items():
        n, runs = LINES[name], reference.runs[name]
        assert (found.verdict, found.cause) == ("equal", "")
        assert found.message == (
            f"{n} of {n} predictions equal the reference ({runs} independent runs)"
        )


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("edition", reference_outputs())
def test_few_lines_are_float_drift(edition: str, name: str):
    most = MAX_DRIFT[name]
    lines = random.Random(name).sample(range(LINES[name]), most + 1)
    found = compared(with_changes(edition, [name], lambda _: lines[:most]), edition)[name]
    assert found.verdict == "drift"
    assert f"{most} of {LINES[name]} lines differ from {edition} (" in found.message
    assert f"float drift; correct runs on other machines differ in at most {most}" in found.message
    one_more = compared(with_changes(edition, [name], lambda _: lines), edition)[name]
    assert (one_more.verdict, one_more.cause) == ("differs", "small error")


@pytest.mark.parametrize("edition", [e for e in EDITIONS if e in reference_outputs()])
@pytest.mark.parametrize(
    ("names", "size", "share"),
    [
        *((SST, size, 0.4) for size in (2, 4, 7, 8, 9, 12, 16, 20, 32, 64, 100, 128)),
        *((CFIMDB, size, 0.15) for size in (4, 8, 16, 32)),
        (["sst-dev"], 8, 0.4),
    ],
)
def test_another_batch_size_is_proved(edition: str, names, size: int, share: float):
    """Lines differ only where batches of that size are padded to another length."""
    rng = random.Random(size)
    found = compared(with_changes(edition, names, other_batch(size, share, rng)), edition)
    for name, agreement in found.items():
        same = len(same_padding(token_counts()[name], size))
        assert agreement.verdict == "differs"
        assert agreement.cause == f"batch {size}"
        assert f": batch size {size} instead of 10: all {same} lines that" in agreement.message
        assert "arithmetic" not in agreement.message


def test_batch_size_is_seen_through_drift():
    rng = random.Random(3)
    found = with_changes("mmia", SST, other_batch(8, 0.4, rng))
    same = sorted(same_padding(token_counts()["sst-dev"], 8))
    found["sst-dev"] = changed(found["sst-dev"], rng.sample(same, 4), 5)
    agreement = compared(found, "mmia")["sst-dev"]
    assert agreement.cause == "batch 8"
    assert f"{len(same) - 4} of {len(same)} lines that are padded" in agreement.message


def test_lines_without_padding_alone_agree():
    found = compared(with_changes("mmia", SST, other_batch(1, 0.4, random.Random(0))), "mmia")
    message = found["sst-dev"].message
    assert "batch size 1 instead of 10, or padding that is masked, on the left" in message


def test_another_edition_with_another_batch_size():
    rng = random.Random(0)
    found = compared(with_changes("fall2024", SST, other_batch(8, 0.4, rng)), "mmia")["sst-dev"]
    assert found.cause == "batch 8"
    assert "the arithmetic of fall2024, and batch size 8 instead of 10" in found.message


@pytest.mark.parametrize("share", [0.01, 0.018, 0.04, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("names", [SST, CFIMDB])
def test_no_batch_size_is_seen_in_differences_anywhere(names, share: float):
    for seed in range(40):
        rng = random.Random(seed)
        lines = {name: {i for i in range(LINES[name]) if rng.random() < share} for name in names}
        for agreement in compared(with_changes("mmia", names, lines.get), "mmia").values():
            assert "batch size" not in agreement.message.replace("perhaps batch size", "")


@pytest.mark.parametrize(
    ("edition", "theirs", "like", "contrast"),
    [
        ("mmia", "spring2026", "spring2026", "causal attention instead of bidirectional"),
        ("spring2026", "mmia", "mmia, fall2025", "bidirectional attention instead of causal"),
        ("mmia", "fall2024", "fall2024", "rmsnorm instead of layernorm"),
        ("fall2024", "fall2025", "mmia, fall2025", "layernorm instead of rmsnorm"),
    ],
)
def test_another_editions_arithmetic_is_named(edition, theirs, like, contrast):
    labels = reference_outputs()[theirs].labels
    for name, found in compared(dict(labels), edition).items():
        assert found.verdict == "differs"
        assert f"a different arithmetic; it looks like {like}" in found.message, name
        assert found.message.endswith(contrast)


def test_causal_attention_of_a_norm_without_a_reference():
    """What RMSNorm and a causal mask give is not known line by line; a public output of that kind
    has 0.43 of Cohen's kappa with the causal edition, and 0.17 with its own.
    """
    rng = random.Random(0)
    labels = reference_outputs()["spring2026"].labels["sst-dev"]
    found = [label if rng.random() < 0.55 else 0 for label in labels]
    agreement = compared({"sst-dev": found}, "fall2024")["sst-dev"]
    assert agreement.cause == "causal?"
    assert "differ): probably causal attention" in agreement.message


def test_count_alone_proves_no_mask():
    lines = random.Random(0).sample(range(1101), 651)
    agreement = compared(with_changes("mmia", ["sst-dev"], lambda _: lines), "mmia")["sst-dev"]
    assert agreement.cause == ""
    assert "651 of 1101 lines differ from mmia" in agreement.message
    assert "like none of the references" in agreement.message
    assert "about as many lines as a causal mask changes" in agreement.message


@pytest.mark.parametrize("edition", reference_outputs())
def test_unrelated_predictions(edition: str):
    """As many classes as one likes, but no relation: random attention."""
    rng = random.Random(1)
    found = rng.choices(range(5), [2, 1, 6, 3, 1], k=1101)
    agreement = compared({"sst-dev": found}, edition)["sst-dev"]
    assert agreement.cause == "unrelated"
    assert "another checkpoint loaded with strict=False?" in agreement.message


@pytest.mark.parametrize("label", range(2))
@pytest.mark.parametrize("edition", reference_outputs())
def test_one_class(edition: str, label: int):
    found = compared({name: [label] * n for name, n in LINES.items()}, edition)
    assert {agreement.cause for agreement in found.values()} == {"one class"}


def test_eps_outside_the_root():
    lines = random.Random(0).sample(range(1101), 20)
    agreement = compared(with_changes("mmia", ["sst-dev"], lambda _: lines), "mmia")["sst-dev"]
    assert agreement.cause == "small error"
    assert "such as eps outside the norm's square root" in agreement.message


def test_the_four_kinds_have_four_sentences():
    lines = random.Random(0).sample(range(1101), 5)
    batch = other_batch(8, 0.4, random.Random(0))
    reference = reference_outputs()
    found = [
        reference["mmia"].labels["sst-dev"],
        with_changes("mmia", ["sst-dev"], lambda _: lines)["sst-dev"],
        with_changes("mmia", ["sst-dev"], batch)["sst-dev"],
        reference["spring2026"].labels["sst-dev"],
    ]
    messages = [compared({"sst-dev": labels}, "mmia")["sst-dev"].message for labels in found]
    parts = ("equal the reference", "float drift", "batch size 8", "causal attention instead")
    for i, message in enumerate(messages):
        assert [part in message for part in parts] == [i == j for j in range(4)], message


def test_kappa_is_cohens():
    known = reference_outputs()
    ours, theirs = known["mmia"].labels["sst-dev"], known["spring2026"].labels["sst-dev"]
    file = LabelComparison("a", ours, {"spring2026": theirs}, {"spring2026": 0})
    assert file.kappa("spring2026") == pytest.approx(cohen_kappa_score(ours, theirs), abs=1e-12)


def test_text_of_another_edition():
    known = {name: (r.text, r.text_runs) for name, r in reference_outputs().items()}
    prompts = [edition.prompt_text for edition in EDITIONS.values()]
    one = compare_text("t", known["fall2024"][0], known, "fall2025", prompts)
    parted = "the first 30 of 62 words after the prompt equal those of fall2025"
    assert one.message == f"{parted}; it is the text of fall2024, spring2025"
    same = compare_text("t", known["mmia"][0], known, "mmia", prompts)
    assert same.message == "the text equals the reference (1 run)"
