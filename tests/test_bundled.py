"""The bundled model and data: when they stand in, and that they are what they claim."""

import collections
import itertools
import sys
from pathlib import Path

import pytest
import torch

import reviews
import run_llama
import sanity_check
from llama import load_pretrained
from mini_llama import bundled
from mini_llama.assignment import option_parser
from mini_llama.assignment.options import Options, default_of
from mini_llama.assignment.reviews import read_examples, read_label_names
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.sizes import count_parameters
from mini_llama.command_line import flag_of
from tokenizer import Tokenizer

REAL = [default_of(name) for name in bundled.PATHS]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without any of the real files."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_stands_in_where_nothing_is_there(empty, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(run_llama, "run", seen.append)
    run_llama.main(["--option", "finetune", "--epochs", "2"])
    args = vars(seen[0])
    assert {name: Path(args[name]) for name in bundled.PATHS} == bundled.PATHS
    assert args["dev_out"] == "demo-dev-finetuning-output.txt"
    assert args["test_out"] == "demo-test-finetuning-output.txt"
    assert (args["epochs"], args["batch_size"]) == (2, 8)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "bundled" in error and "setup.sh" in error
    assert "smollm2" in error  # here or not


@pytest.mark.parametrize("name", REAL)
def test_any_real_file_keeps_it_away(empty, capsys, name: str):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).touch()
    args, _ = option_parser.parse([])
    assert [args[name] for name in bundled.PATHS] == REAL
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", bundled.PATHS)
def test_a_path_that_was_given_is_never_replaced(empty, capsys, name: str):
    flag = flag_of(Options, name)
    for value in ("mine", default_of(name)):
        args, _ = option_parser.parse([flag, value])
        assert args[name] == value
        others = {other: default_of(other) for other in bundled.PATHS if other != name}
        if name in ("train", "dev") and value == "mine":
            others["test"] = ""  # own data has a test file only where one is named
        assert {other: args[other] for other in others} == others
    assert not capsys.readouterr().err


def test_given_outputs_and_prompt_stay(empty):
    arguments = ["--option", "lora", "--dev_out", "x-dev-lora-output.txt", "--prompt_text", "Hi"]
    args, _ = option_parser.parse(arguments)
    assert args["dev_out"] == "x-dev-lora-output.txt" and args["prompt_text"] == "Hi"
    assert args["test_out"] == "demo-test-lora-output.txt"


# The files


def test_model_is_small_and_of_the_stated_kind():
    llama = load_pretrained(bundled.CHECKPOINT)
    config = llama.config
    assert (config.norm, config.attention) == ("rmsnorm", "causal")
    assert "recorded in the checkpoint" in str(llama.arithmetic)
    assert config.n_kv_heads < config.n_heads, "grouped-query attention"
    assert count_parameters(config) <= 2_000_000
    files = [bundled.CHECKPOINT, bundled.CHECKPOINT.with_suffix(".model")]
    assert sum(path.stat().st_size for path in files) <= 4_000_000
    assert Tokenizer(tokenizer_model=files[1]).n_words == config.vocab_size
    assert set(read_checkpoint(bundled.CHECKPOINT).metadata) <= {"step", "val_loss"}


def test_model_writes_words_it_knows(empty, capsys):
    run_llama.main(["--max_new_tokens", "40"])
    text = Path("generated-sentence-temp-0.txt").read_text(encoding="utf-8")
    assert text.startswith(bundled.PROMPT_TEXT)
    known = set()
    for story in itertools.islice(__import__("tales").tales(1), 2000):
        known |= set(story.split())
    new = text.removeprefix(bundled.PROMPT_TEXT).split()[:-1]
    assert len(new) > 20 and set(new) <= known


@pytest.mark.parametrize(("name", "labels"), [("demo", 5), ("demo2", 2)])
def test_data(name: str, labels: int):
    sentences = {}
    names = read_label_names(bundled.FOLDER / f"{name}-label-mapping.json")
    assert names == list(reviews.LABEL_NAMES[labels])
    for split, count in (("train", 4000), ("dev", 500), ("test", 500)):
        examples = read_examples(bundled.FOLDER / f"{name}-{split}.txt")
        assert len(examples) == count
        counts = collections.Counter(example.label for example in examples)
        assert sorted(counts) == list(range(labels))
        assert max(counts.values()) - min(counts.values()) <= 2
        sentences[split] = [example.sentence for example in examples]
        assert len(set(sentences[split])) == count
    for a, b in itertools.combinations(sentences.values(), 2):
        assert not set(a) & set(b)


def test_labels_are_what_the_rules_say():
    for example in read_examples(bundled.FOLDER / "demo-test.txt"):
        assert reviews.judge(example.sentence) == example.label - 2
    for example in read_examples(bundled.FOLDER / "demo2-test.txt"):
        assert (reviews.judge(example.sentence) > 0) == (example.label == 1)


def test_words_alone_do_not_tell():
    """A bag of words stays clearly below what the fine-tuned model reaches (README)."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    train, dev = (read_examples(bundled.FOLDER / f"demo-{s}.txt") for s in ("train", "dev"))
    vectorizer = CountVectorizer(token_pattern=r"\S+")
    features = vectorizer.fit_transform([e.sentence for e in train])
    model = LogisticRegression(max_iter=300).fit(features, [e.label for e in train])
    score = model.score(vectorizer.transform([e.sentence for e in dev]), [e.label for e in dev])
    assert 0.2 < score < 0.65


def test_sanity_check_uses_the_bundled_reference(empty, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sanity_check.py"])
    sanity_check.main()
    captured = capsys.readouterr()
    assert "is of the arithmetic of llama2." in captured.out
    assert "bundled" in captured.err


def test_sanity_check_fails_for_other_weights(empty, monkeypatch, capsys):
    """The bundled reference is data, not a formality."""
    reference = sanity_check.load_reference(bundled.REFERENCE)
    reference["hidden_states"][0, 3, 7] += 1e-2
    torch.save(reference, empty / "r.data")
    arguments = ["--checkpoint", str(bundled.CHECKPOINT), "--reference", "r.data"]
    monkeypatch.setattr(sys, "argv", ["sanity_check.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        sanity_check.main()
    assert stop.value.code not in (0, None)
