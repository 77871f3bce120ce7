"""Option prompt, end to end: the assignment's output files, against a plain loop over its rules."""

import contextlib
import io
import json
import random
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceProcessor

import run_llama
from config import EDITIONS
from llama import Llama, load_pretrained
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from tests.helpers import WORDS, random_llama, tiny_config

# The assignment's two data sets and their questions, as the contract writes them.
LABELS = {
    "sst": ["awful", "bad", "average", "good", "excellent"],
    "cfimdb": ["bad", "good"],
}
SUFFIXES = {
    "sst": " Is this movie awful, bad, average, good, or excellent? This movie is ",
    "cfimdb": " Is this movie bad or good? This movie is ",
}
COUNTS = {"train": 12, "dev": 40, "test": 33}  # with batches of 10 the last one is smaller


@pytest.fixture(autouse=True)
def _leave_the_process_as_it_was() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@dataclass(frozen=True)
class Row:
    """A line of a data file: what it says, and how it is written."""

    label: int
    sentence: str

    def __str__(self) -> str:
        return f"{self.label} ||| {self.sentence}  \n"  # sentences are to be stripped


def make_rows(dataset: str, split: str) -> list[Row]:
    """Sentences of 1 to 14 words; the placeholder 0 as every test label of cfimdb."""
    rng = random.Random(f"{dataset} {split}")
    is_placeholder = (dataset, split) == ("cfimdb", "test")
    rows = []
    for i in range(COUNTS[split]):
        words = rng.choices([*WORDS, "café", "|||", "…"], k=rng.randint(1, 14))
        sentence = " ".join([rng.choice(WORDS), *words, rng.choice(WORDS)])
        rows.append(Row(0 if is_placeholder else i % len(LABELS[dataset]), sentence))
    return rows


ROWS = {(d, s): make_rows(d, s) for d in LABELS for s in COUNTS}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_model: Path) -> Path:
    """model.pt with a peaked output, tokenizer.model, and both data sets under data/."""
    folder = tmp_path_factory.mktemp("prompting")
    config = tiny_config(vocab_size=300, max_seq_len=128, tie_word_embeddings=False)
    llama = random_llama(config, seed=3)
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            if name.endswith("norm.bias"):  # as in stories42M.pt, so that every edition loads it
                parameter.zero_()
    save_checkpoint(folder / "model.pt", config, llama.state_dict())
    shutil.copy(tokenizer_model, folder / "tokenizer.model")
    (folder / "data").mkdir()
    for (dataset, split), rows in ROWS.items():
        text = "".join(map(str, rows))
        (folder / "data" / f"{dataset}-{split}.txt").write_text(text, encoding="utf-8")
    for dataset, words in LABELS.items():
        (folder / "data" / f"{dataset}-label-mapping.json").write_text(json.dumps(words))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def output(dataset: str, split: str) -> Path:
    return Path(f"{dataset}-{split}-prompting-output.txt")


def prompt(dataset: str, *more: str) -> str:
    """The assignment's command, and more; what it prints."""
    command = ["--option", "prompt", "--batch_size", "10", "--pretrained-model-path", "model.pt"]
    for split in COUNTS:
        command += [f"--{split}", f"data/{dataset}-{split}.txt"]
    command += ["--label-names", f"data/{dataset}-label-mapping.json"]
    for split in ("dev", "test"):
        command += [f"--{split}_out", str(output(dataset, split))]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_llama.main([*command, *more])
    return printed.getvalue()


def parse_output(path: Path) -> list[tuple[int, str]]:
    lines = path.read_bytes().decode("utf-8").split("\n")
    assert lines.pop() == ""
    pairs = [line.partition(" ||| ") for line in lines]
    return [(int(prediction), sentence) for prediction, _, sentence in pairs]


def predictions(dataset: str) -> list[int]:
    """What the files say of dev, then of test."""
    return [p for split in ("dev", "test") for p, _ in parse_output(output(dataset, split))]


@torch.no_grad()
def plain_loop(
    llama: Llama, dataset: str, split: str, batch_size: int, max_len: int | None = None
) -> list[int]:
    """The contract, word by word: batches in order, padded on the right with <0x00>; every label
    word scored by the summed log-probabilities of its tokens at the last column.
    """
    pieces = SentencePieceProcessor(model_file="tokenizer.model")
    sentences = [row.sentence.strip() + SUFFIXES[dataset] for row in ROWS[dataset, split]]
    rows = [[pieces.bos_id(), *pieces.encode(sentence)[:max_len]] for sentence in sentences]
    words = [pieces.encode(word) for word in LABELS[dataset]]
    guesses = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        width = max(len(row) for row in batch)
        pad = pieces.piece_to_id("<0x00>")
        tokens = torch.tensor([row + [pad] * (width - len(row)) for row in batch])
        logits, _ = llama(tokens, targets=tokens)
        for row_logits in logits[:, -1].double():
            log_probs = row_logits - row_logits.exp().sum().log()
            scores = [sum(float(log_probs[token]) for token in word) for word in words]
            guesses.append(scores.index(max(scores)))
    return guesses


def expected_predictions(
    dataset: str, batch_size: int, max_len: int | None = None, edition: str | None = None
) -> list[int]:
    llama = load_pretrained("model.pt", edition)
    return [
        guess
        for split in ("dev", "test")
        for guess in plain_loop(llama, dataset, split, batch_size, max_len)
    ]


# Files and printed lines


@pytest.mark.parametrize("dataset", LABELS)
def test_the_files_are_those_of_the_assignment(dataset: str, folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    prompt(dataset)
    outputs = {str(output(dataset, split)) for split in ("dev", "test")}
    assert {path.name for path in folder.iterdir()} == before | outputs
    expected = iter(expected_predictions(dataset, batch_size=10))
    for split in ("dev", "test"):
        lines = [
            f"{next(expected)} ||| {row.sentence.strip()}{SUFFIXES[dataset]}\n"
            for row in ROWS[dataset, split]
        ]
        assert output(dataset, split).read_bytes().decode("utf-8") == "".join(lines)


def macro_f1(truth: list[int], guesses: list[int]) -> float:
    """The mean of F1 = 2·tp / (2·tp + fp + fn) over the labels that occur in either list."""
    scores = []
    for label in sorted({*truth, *guesses}):
        hits = sum(t == g == label for t, g in zip(truth, guesses, strict=True))
        scores.append(2 * hits / (truth.count(label) + guesses.count(label)))
    return sum(scores) / len(scores)


def score_lines(dataset: str, split: str) -> list[str]:
    """The accuracy and macro F1 of the predictions that were written."""
    truth = [row.label for row in ROWS[dataset, split]]
    guesses = [guess for guess, _ in parse_output(output(dataset, split))]
    hits = sum(t == g for t, g in zip(truth, guesses, strict=True))
    return [
        f"{split} acc :: {hits / len(truth):.3f}",
        f"{split} macro F1 :: {macro_f1(truth, guesses):.3f}",
    ]


def test_the_printed_lines_are_those_of_the_assignment(folder: Path) -> None:
    args, *lines = prompt("sst").splitlines()
    assert re.fullmatch(r"args: \{.*\}", args)
    assert lines[:3] == [
        f"load {count} data from data/sst-{split}.txt" for split, count in COUNTS.items()
    ]
    assert lines[3].startswith("load model from model.pt: ")
    written = [f"wrote {split} predictions to {output('sst', split)}" for split in ("dev", "test")]
    assert lines[4:] == [*score_lines("sst", "dev"), *score_lines("sst", "test"), *written]


def test_an_accuracy_on_placeholder_labels_is_said_to_mean_nothing(folder: Path) -> None:
    lines = prompt("cfimdb").splitlines()[5:]
    guesses = [guess for guess, _ in parse_output(output("cfimdb", "test"))]
    dev_lines, test_accuracy = score_lines("cfimdb", "dev"), score_lines("cfimdb", "test")[0]
    assert lines[:3] == [*dev_lines, test_accuracy]
    assert test_accuracy == f"test acc :: {guesses.count(0) / len(guesses):.3f}"
    (warning,) = lines[3:-2]
    assert "test" in warning
    assert "label 0" in warning
    assert "placeholder" in warning
    assert "says nothing" in warning


@pytest.mark.parametrize("dataset", LABELS)
def test_the_same_command_writes_the_same_bytes(dataset: str, folder: Path) -> None:
    printed = prompt(dataset)
    written = [output(dataset, split).read_bytes() for split in ("dev", "test")]
    torch.rand(3)
    assert prompt(dataset) == printed
    assert prompt(dataset, "--seed", "2") != printed  # only the args line, see below
    assert [output(dataset, split).read_bytes() for split in ("dev", "test")] == written


# Predictions


@pytest.mark.parametrize("edition", EDITIONS)
def test_predictions_are_those_of_a_plain_loop(edition: str, folder: Path) -> None:
    prompt("sst", "--edition", edition)
    assert predictions("sst") == expected_predictions("sst", 10, edition=edition)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_default_reads_the_last_column_of_the_padded_batch(
    batch_size: int, folder: Path
) -> None:
    prompt("cfimdb", "--batch_size", str(batch_size))
    assert predictions("cfimdb") == expected_predictions("cfimdb", batch_size)


def test_the_default_depends_on_the_batch_size(folder: Path) -> None:
    """Else the tests above could not tell padding from no padding; and both labels occur."""
    for dataset in LABELS:
        expected = {tuple(expected_predictions(dataset, size)) for size in (1, 7, 10)}
        assert len(expected) == 3
        assert all(len(set(guesses)) > 1 for guesses in expected)


@pytest.mark.parametrize("edition", ["fall2024", "spring2026"])  # bidirectional, causal
@pytest.mark.parametrize("dataset", LABELS)
def test_mask_padding_does_not_depend_on_the_batch_size(
    dataset: str, edition: str, folder: Path
) -> None:
    alone = expected_predictions(dataset, batch_size=1, edition=edition)  # no padding at all
    for batch_size in ("1", "7", "10"):
        prompt(dataset, "--edition", edition, "--mask_padding", "--batch_size", batch_size)
        assert predictions(dataset) == alone


def test_max_sentence_len_counts_neither_bos_nor_characters(folder: Path) -> None:
    # Longer than every label word here: the assignment's tokenizer cuts those as well.
    prompt("sst", "--max_sentence_len", "11")
    expected = expected_predictions("sst", batch_size=10, max_len=11)
    assert predictions("sst") == expected
    assert expected != expected_predictions("sst", batch_size=10, max_len=10)
    assert expected != expected_predictions("sst", batch_size=10, max_len=12)
    # The files still show whole sentences.
    for split in ("dev", "test"):
        written = [sentence for _, sentence in parse_output(output("sst", split))]
        assert written == [row.sentence.strip() + SUFFIXES["sst"] for row in ROWS["sst", split]]


def test_data_from_windows_gives_the_same_predictions(folder: Path) -> None:
    prompt("sst")
    expected = predictions("sst")
    for split in COUNTS:
        path = folder / "data" / f"sst-{split}.txt"
        data = path.read_bytes()
        path.write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"))
    prompt("sst")
    assert predictions("sst") == expected
    assert b"\r" not in output("sst", "dev").read_bytes()


# What can go wrong at the end


def test_files_are_written_after_all_work_is_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt("sst")
    before = [output("sst", split).read_bytes() for split in ("dev", "test")]
    calls = []

    def fail_at_the_test_split(*args: object) -> list[int]:
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("power cut")
        return [0] * COUNTS["dev"]

    monkeypatch.setattr("mini_llama.assignment.scoring.predict", fail_at_the_test_split)
    with pytest.raises(RuntimeError, match="power cut"):
        prompt("sst")
    assert [output("sst", split).read_bytes() for split in ("dev", "test")] == before
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("edition", EDITIONS)
def test_bfloat16_agrees_where_float32_is_sure(edition: str, folder: Path) -> None:
    """Only near ties may turn; order_by_length must not change the order of the lines."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        prompt("sst", "--edition", edition, "--dtype", dtype, "--mask_padding")
        found[dtype] = predictions("sst")
    agreed = sum(a == b for a, b in zip(*found.values(), strict=True))
    assert agreed >= 0.9 * len(found["float32"])
