"""graded_run.py: a graded run of the real model is compared with the references, no other."""

import dataclasses
from types import SimpleNamespace

import pytest

from config import LlamaConfig, resolve_arithmetic
from mini_llama.assignment.batches import EncodedExamples
from mini_llama.assignment.graded_run import report_predictions, report_text
from mini_llama.assignment.options import Options
from mini_llama.assignment.reference_outputs import reference_outputs
from mini_llama.assignment.reviews import read_examples, with_prompt
from mini_llama.tokenization.find import load_tokenizer

WORDS = {"sst": ["awful", "bad", "average", "good", "excellent"], "cfimdb": ["bad", "good"]}
GRADED = Options(option="prompt", batch_size=10)


def model(edition=None, recorded=None, **changes):
    """What is asked of a model: its shape and its arithmetic."""
    arithmetic = resolve_arithmetic(recorded or {}, edition)
    config = LlamaConfig(norm=arithmetic.norm, attention=arithmetic.attention)
    return SimpleNamespace(config=dataclasses.replace(config, **changes), arithmetic=arithmetic)


@pytest.fixture(scope="module")
def tokenizer(shared):
    return load_tokenizer(shared / "reference" / "tokenizer.model", None)


@pytest.fixture(scope="module")
def splits(shared):
    """Dev and test of SST, with their questions."""
    return {
        split: encoded(read_examples(shared / "data" / f"sst-{split}.txt"), WORDS["sst"])
        for split in ("dev", "test")
    }


def encoded(examples, words) -> EncodedExamples:
    return EncodedExamples(with_prompt(examples, words), [], 3)


def predictions(edition="mmia"):
    labels = reference_outputs()[edition].labels
    return {split: list(labels[f"sst-{split}"]) for split in ("dev", "test")}


@pytest.mark.parametrize(
    ("edition", "runs"), [(None, 7), ("fall2025", 7), ("fall2024", 19), ("spring2026", 4)]
)
def test_predictions_are_compared(edition, runs, tokenizer, splits, capsys):
    options = dataclasses.replace(GRADED, edition=edition)
    found = predictions(edition or "mmia")
    report_predictions(model(edition), tokenizer, options, splits, found)
    assert capsys.readouterr().out == (
        f"sst-dev: 1101 of 1101 predictions equal the reference ({runs} independent runs)\n"
        f"sst-test: 2210 of 2210 predictions equal the reference ({runs} independent runs)\n"
    )
    found["dev"][4] = (found["dev"][4] + 1) % 5
    report_predictions(model(edition), tokenizer, options, splits, found)
    first = capsys.readouterr().out.splitlines()[0]
    start = f"sst-dev: 1 of 1101 lines differ from {edition or 'mmia'} (0.1%, first in line 5): "
    assert first.startswith(start + "float drift")


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 8},
        {"mask_padding": True},
        {"dtype": "bfloat16"},
        {"quantize": "int8"},
        {"max_sentence_len": 40},
        {"adapters": "a.adapters.pt"},
        {"edition": "llama2"},
    ],
)
def test_nothing_is_said_of_other_options(changes, tokenizer, splits, capsys):
    options = dataclasses.replace(GRADED, **changes)
    report_predictions(model(options.edition), tokenizer, options, splits, predictions())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "other",
    [
        model(n_layers=6),
        model(hidden_dim=1024),
        model(layer_norm_eps=1e-6),
        model(recorded={"norm": "layernorm", "attention": "bidirectional"}),
        model(norm="rmsnorm"),
        model(attention="causal"),
    ],
)
def test_nothing_is_said_of_other_models(other, tokenizer, splits, capsys):
    report_predictions(other, tokenizer, GRADED, splits, predictions())
    report_text(other, tokenizer, Options(), "x")
    assert capsys.readouterr().out == ""


def test_nothing_is_said_of_other_data_questions_and_tokenizers(
    shared, tokenizer, splits, tokenizer_model, capsys
):
    examples = read_examples(shared / "data" / "sst-dev.txt")
    for other in (
        encoded(examples[::-1], WORDS["sst"]),
        encoded(examples[:-1], WORDS["sst"]),
        encoded(examples, WORDS["sst"][::-1]),
        encoded(examples, ["terrible", *WORDS["sst"][1:]]),
    ):
        found = {"dev": [0] * len(other.examples)}
        report_predictions(model(), tokenizer, GRADED, {"dev": other}, found)
    foreign = load_tokenizer(tokenizer_model, None)
    report_predictions(model(), foreign, GRADED, splits, predictions())
    report_text(model(), foreign, Options(), "x")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("edition", "runs"), [(None, "1 run"), ("fall2024", "39 independent")])
def test_text_is_compared(edition, runs, tokenizer, capsys):
    text = reference_outputs()[edition or "mmia"].text
    options = Options(edition=edition)
    report_text(model(edition), tokenizer, options, text)
    found = capsys.readouterr().out
    assert found.startswith(f"temperature 0: the text equals the reference ({runs}")
    report_text(model(edition), tokenizer, options, text.removesuffix("s") + " x")
    assert " words after the prompt equal those of " in capsys.readouterr().out
    for changes in ({"max_new_tokens": 80}, {"stop_at_eos": True}, {"prompt_text": "Once"}):
        report_text(model(edition), tokenizer, dataclasses.replace(options, **changes), text)
    assert capsys.readouterr().out == ""
