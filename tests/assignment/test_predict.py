"""Option predict: a trained classifier on new texts, from files and pipes."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import checkpoint
import run_llama
from mini_llama.assignment.options import Options
from mini_llama.assignment.table_files import Columns
from mini_llama.assignment.texts import read_texts
from mini_llama.assignment.trained import load_trained
from tests.helpers import ROOT

WORDS = ["bad", "good"]


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finetune.pt and lora.pt, and what their runs predicted: PREFIX-dev…"""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train("finetune", "plain", "--batch_size", "3")
        train("lora", "masked", "--mask_padding", "--max_sentence_len", "6")
    return folder


def train(option: str, name: str, *more: str) -> None:
    ending = {"finetune": "finetuning", "lora": "lora"}[option]
    arguments = ["--option", option, "--pretrained-model-path", "model.pt", "--epochs", "2"]
    for split in ("train", "dev", "test"):
        arguments += [f"--{split}", f"data/tiny-{split}.txt"]
    arguments += ["--label-names", "data/labels.json", "--lr", "0.01"]
    arguments += ["--dev_out", f"{name}-dev-{ending}-output.txt"]
    arguments += ["--test_out", f"{name}-test-{ending}-output.txt"]
    run_llama.main([*arguments, "--checkpoint_out", f"{name}.pt", *more])


@pytest.fixture(autouse=True)
def inside(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)


def predict(name: str, *more: str) -> None:
    run_llama.main(["--option", "predict", "--pretrained-model-path", name, *more])


def pairs(path: str) -> list[tuple[str, str]]:
    lines = [line.partition(" ||| ") for line in Path(path).read_text().splitlines()]
    return [(label, text) for label, _, text in lines]


# The same predictions as the run's own


@pytest.mark.parametrize("split", ["dev", "test"])
def test_predictions_are_the_runs_own(split: str, tmp_path: Path):
    data, out = f"data/tiny-{split}.txt", tmp_path / "out.txt"
    predict("plain.pt", "--input", data, "--output", str(out), "--batch_size", "3")
    assert out.read_bytes() == Path(f"plain-{split}-finetuning-output.txt").read_bytes()
    # masked, no batch size changes them, and the length of the texts is remembered
    predict("masked.pt", "--input", data, "--output", str(out), "--batch_size", "5")
    assert out.read_bytes() == Path(f"masked-{split}-lora-output.txt").read_bytes()


def test_it_is_said_which_batch_size_is_the_runs(capsys: pytest.CaptureFixture):
    predict("plain.pt", "--input", "data/tiny-dev.txt")
    assert "it was trained with --batch_size 3" in capsys.readouterr().err
    predict("plain.pt", "--input", "data/tiny-dev.txt", "--mask_padding")
    assert "trained without --mask_padding" in capsys.readouterr().err
    predict("masked.pt", "--input", "data/tiny-dev.txt")
    assert "it was trained with" not in capsys.readouterr().err


def test_its_folder_predicts_as_transformers_does(tmp_path: Path, capsys: pytest.CaptureFixture):
    from transformers import AutoModelForTokenClassification

    folder = tmp_path / "hf"
    checkpoint.main(["convert", "plain.pt", str(folder), "--to", "huggingface"])
    shutil.copy("model.model", folder / "tokenizer.model")
    peer = AutoModelForTokenClassification.from_pretrained(folder).eval()
    tokenizer = load_tokenizer_of("plain.pt")
    capsys.readouterr()
    predict(str(folder), "--input", "data/tiny-dev.txt", "--format", "jsonl", "--probabilities")
    items = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for item in items:
        ids = torch.tensor([tokenizer.encode(item["text"], bos=True, eos=False)])
        with torch.no_grad():
            expected = peer(ids).logits[0, -1].softmax(-1)
        found = [item["probabilities"][word] for word in WORDS]
        assert found == pytest.approx(expected.tolist(), abs=2e-6)
        assert item["prediction"] == WORDS[int(expected.argmax())]


def load_tokenizer_of(path: str):
    from mini_llama.assignment.trained import tokenizer_of

    return tokenizer_of(load_trained(path), path, None, None)


def test_the_tokenizer_of_its_run_is_found(tmp_path: Path, capsys: pytest.CaptureFixture):
    content = torch.load("plain.pt", weights_only=True)
    there = Path("model.model").resolve()
    content["tokenizer"]["path"] = str(there)
    torch.save(content, tmp_path / "moved.pt")
    (tmp_path / "other.model").write_bytes(there.read_bytes() + b"\n")
    predict(str(tmp_path / "moved.pt"), "--input", "data/tiny-dev.txt", "--batch_size", "3")
    printed = capsys.readouterr().out
    assert printed == Path("plain-dev-finetuning-output.txt").read_text()
    content["tokenizer"]["path"] = str(tmp_path / "gone.model")
    torch.save(content, tmp_path / "moved.pt")
    with pytest.raises(SystemExit, match=r"other\.model is not the tokenizer .*, model\.model"):
        predict(str(tmp_path / "moved.pt"), "--input", "data/tiny-dev.txt")


# Input


@pytest.fixture
def texts() -> list[str]:
    return [text for _, text in pairs("data/tiny-dev.txt")]


def spelt(kind: str, labels: list[str], texts: list[str], path: Path) -> None:
    """The same texts as a file of some kind, without labels where there are none."""
    if kind in ("lines", "crlf"):
        end = "\r\n" if kind == "crlf" else "\n"
        path.write_bytes("".join(text + end for text in texts).encode())
    elif kind == "labelled":
        rows = zip(labels, texts, strict=True)
        path.write_text("".join(f"{label} ||| {text}\n" for label, text in rows))
    elif kind.endswith("csv"):
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            table = csv.writer(file)
            if kind == "csv":
                table.writerows([("id", "Review"), *enumerate(texts)])
            else:
                table.writerows([("Review", "Label"), *zip(texts, labels, strict=True)])
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("lines", "a.txt"),
        ("crlf", "a.txt"),
        ("labelled", "a.txt"),
        ("csv", "a.csv"),
        ("labelled csv", "a.csv"),
        ("jsonl", "a.jsonl"),
    ],
)
def test_input_of_every_kind(kind: str, name: str, texts, tmp_path: Path, capsys):
    labels = [WORDS[int(label)].upper() for label, _ in pairs("data/tiny-dev.txt")]
    spelt(kind, labels, texts, tmp_path / name)
    predict("masked.pt", "--input", str(tmp_path / name))
    printed, said = capsys.readouterr()
    assert printed == Path("masked-dev-lora-output.txt").read_text()
    guesses = [line.partition(" ||| ")[0] for line in printed.splitlines()]
    right = [WORDS[int(g)].upper() == label for g, label in zip(guesses, labels, strict=True)]
    accuracy = f"input acc :: {sum(right) / len(right):.3f}"
    assert (accuracy in said) == ("labelled" in kind)


def test_other_forms_of_output(texts, capsys: pytest.CaptureFixture):
    expected = [WORDS[int(label)] for label, _ in pairs("masked-dev-lora-output.txt")]
    own = [WORDS[int(label)] for label, _ in pairs("data/tiny-dev.txt")]
    predict("masked.pt", "--input", "data/tiny-dev.txt", "--format", "tsv", "--probabilities")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out), delimiter="\t"))
    assert [row["text"] for row in rows] == texts
    assert [row["prediction"] for row in rows] == expected
    assert [row["label"] for row in rows] == own
    for row in rows:
        shares = {word: float(row[f"P({word})"]) for word in WORDS}
        assert sum(shares.values()) == pytest.approx(1, abs=2e-6)
        assert max(shares, key=lambda word: shares[word]) == row["prediction"]
    predict("masked.pt", "--input", "data/tiny-dev.txt", "--format", "jsonl")
    items = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    wanted = zip(texts, expected, own, strict=True)
    assert items == [{"text": t, "prediction": p, "label": o} for t, p, o in wanted]


def test_a_pipe_is_answered_batch_by_batch(trained: Path, texts):
    command = [sys.executable, str(ROOT / "run_llama.py"), "--option", "predict", "--input", "-"]
    command += ["--pretrained-model-path", "masked.pt", "--batch_size", "2"]
    process = subprocess.Popen(
        command,
        cwd=trained,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout and process.stderr
    expected = Path("masked-dev-lora-output.txt").read_text().splitlines(keepends=True)
    for start in (0, 2):  # the second batch is written only after the first was answered
        process.stdin.write("".join(f"{text}\n" for text in texts[start : start + 2]))
        process.stdin.flush()
        assert [process.stdout.readline() for _ in range(2)] == expected[start : start + 2]
    process.stdin.write("\n".join(texts[4:9]))  # no line end, and no whole batch
    process.stdin.close()
    assert process.stdout.read() == "".join(expected[4:9])
    assert process.wait(timeout=120) == 0
    assert "classified 9 texts from standard input" in process.stderr.read()


def test_lines_are_labelled_if_the_first_is(tmp_path: Path):
    known = load_trained("masked.pt").label_of
    path = tmp_path / "a.txt"

    def read(content: str) -> list[tuple[str, int | None]]:
        path.write_text(content)
        texts = read_texts(str(path), Columns(needs_label=False), known)
        return [(text.sentence, text.label) for text in texts]

    assert read("1 ||| a\n\n0 ||| b ||| c\nGood ||| d\n") == [("a", 1), ("b ||| c", 0), ("d", 1)]
    assert read("seven ||| a\n1 ||| b") == [("seven ||| a", None), ("1 ||| b", None)]
    with pytest.raises(ValueError, match=r"a\.txt line 2 has no ' \|\|\| '"):
        read("1 ||| a\nb\n")
    with pytest.raises(ValueError, match=r"a\.txt line 2: label '2' is none of the classifier's"):
        read("1 ||| a\n2 ||| b\n")


# What is refused


@pytest.mark.parametrize(
    ("status", "model", "arguments", "parts"),
    [
        (2, "plain.pt", [], ["--input"]),
        (2, None, ["--input", "data/tiny-dev.txt"], ["--pretrained-model-path", "finetune"]),
        (1, "plain.pt", ["--input", "nowhere.txt"], ["nowhere.txt does not exist"]),
        (1, "plain.pt", ["--input", "data"], ["data is a directory"]),
        (
            1,
            "model.pt",
            ["--input", "data/tiny-dev.txt"],
            ["model.pt", "without a classifier head"],
        ),
        (1, "plain.pt", ["--input", "blank.txt"], ["blank.txt has no text"]),
        (1, "plain.pt", ["--input", "latin.txt"], ["latin.txt is not UTF-8", "offset 3"]),
        (2, "plain.pt", ["--input", "blank.txt", "--quantize", "int8"], ["--quantize int8"]),
        (2, "plain.pt", ["--input", "blank.txt", "--probabilities"], ["--probabilities", "tsv"]),
        (
            2,
            "plain.pt",
            ["--input", "blank.txt", "--output", "blank.txt"],
            ["blank.txt", "the input"],
        ),
        (1, "plain.pt", ["--input", "blank.txt", "--output", "no/a.txt"], ["no/a.txt"]),
        (1, "plain.pt", ["--input", "data/tiny-dev.txt", "--tokenizer", "other.model"], ["other"]),
    ],
)
def test_one_line_and_nothing_written(status, model, arguments, parts, capsys):
    Path("blank.txt").write_text("\n \n")
    Path("latin.txt").write_bytes("caf\u00e9\n".encode("latin-1"))
    Path("other.model").write_bytes(b"another")
    before = {path: path.read_bytes() for path in Path.cwd().iterdir() if path.is_file()}
    named = [] if model is None else ["--pretrained-model-path", model]
    with pytest.raises(SystemExit) as refused:
        run_llama.main(["--option", "predict", *named, *arguments])
    printed, said = capsys.readouterr()
    message = refused.value.code if isinstance(refused.value.code, str) else said
    line = str(message).strip().splitlines()[-1]
    found = refused.value.code if isinstance(refused.value.code, int) else 1
    assert found == status
    assert printed == "" and all(part in line for part in parts), line
    assert {path: path.read_bytes() for path in Path.cwd().iterdir() if path.is_file()} == before


def test_options_of_predict_alone():
    for name, value in {"input": "a.txt", "output": "b", "format": "tsv"}.items():
        with pytest.raises(ValueError, match=f"--{name} .* left out, but for --option predict"):
            Options(option="generate", **{name: value})


def test_a_wrong_line_leaves_the_old_file(tmp_path: Path, capsys: pytest.CaptureFixture):
    data, out = tmp_path / "a.txt", tmp_path / "out.txt"
    data.write_text("1 ||| good\n" * 2000 + "good\n")
    out.write_text("old")
    with pytest.raises(SystemExit):
        predict("masked.pt", "--input", str(data), "--output", str(out))
    assert out.read_text() == "old" and sorted(tmp_path.iterdir()) == [data, out]
