"""run_llama.py with a user's own data: no test file, words for labels, CSV and JSON, questions,
files of prompts, and what is shown while it works.
"""

import contextlib
import csv
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import run_llama
from mini_llama.assignment import option_parser
from mini_llama.assignment import progress as progress_module
from mini_llama.assignment.options import Options
from mini_llama.assignment.progress import Progress
from tests.helpers import refusal_of

WORDS = ["bad", "good"]
QUESTION = "Ist dieser Film {labels}? Er ist "


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of tiny_folder that is the current folder, with its data as CSV, JSON lines and with
    words as well.
    """
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for split in ("train", "dev", "test"):
        rows = [(int(label), text) for label, text in lines(f"data/tiny-{split}.txt")]
        with open(f"my-{split}.csv", "w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows(
                [("Review", "Sentiment"), *((t, WORDS[i].title()) for i, t in rows)]
            )
        items = [json.dumps({"sentence": text, "label": i}) for i, text in rows]
        Path(f"my-{split}.jsonl").write_text("\n".join(items))
        Path(f"my-{split}.txt").write_text("".join(f"{WORDS[i]} ||| {t}\n" for i, t in rows))
    return tmp_path


def lines(path: str | Path) -> list[tuple[str, str]]:
    """What stands before and after the first separator of each line."""
    text = Path(path).read_bytes().decode()
    assert text.endswith("\n")
    pairs = [line.partition(" ||| ") for line in text[:-1].split("\n")]
    return [(label, sentence) for label, _, sentence in pairs]


def run(option: str, *arguments: str, **files: str) -> str:
    """What run_llama.py prints; `files` are --train and the like."""
    command = ["--option", option, "--pretrained-model-path", "model.pt", "--epochs", "2"]
    for flag, value in files.items():
        command += [f"--{flag}", value]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_llama.main([*command, "--lr", "0.01", *arguments])
    return printed.getvalue()


def refusal(option: str, *arguments: str, **files: str) -> str:
    status, message = refusal_of(run, option, *arguments, **files)
    assert status == (2 if "not allowed" in message else 1)
    return message


NAMES = ["--label-names", "data/labels.json"]
INDICES = {"train": "data/tiny-train.txt", "dev": "data/tiny-dev.txt", "test": "data/tiny-test.txt"}


# No test data


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("prompt", []),
        ("prompt", ["--test", ""]),
        ("prompt", ["--test", "none"]),
        ("finetune", ["--test", ""]),
        ("lora", []),
    ],
)
def test_without_test_data_only_dev_is_scored(option: str, arguments: list, folder: Path, capsys):
    ending = {"prompt": "prompting", "finetune": "finetuning"}.get(option, option)
    name = f"my-dev-{ending}-output.txt"
    before = {path.name for path in folder.iterdir()}
    files = {"train": "my-train.csv", "dev": "my-dev.csv"}
    printed = run(option, *arguments, "--dev_out", name, "--epochs", "1", **files)
    printed = printed.partition("\n")[2]  # without the options
    assert printed.startswith("load 24 data from my-train.csv\nload 10 data from my-dev.csv\nload")
    assert f"\nwrote dev predictions to {name}\n" in printed and "test" not in printed
    assert len(lines(name)) == 10
    assert not any("test" in path.name for path in folder.iterdir() if path.name not in before)


def test_the_files_of_the_default_stay_together():
    """Beside other data its test file is not scored; what is named is."""
    default = Options()

    def files(*arguments: str) -> tuple[str, str, str]:
        args, _ = option_parser.parse([*arguments, "--pretrained-model-path", "model.pt"])
        return args["train"], args["dev"], args["test"]

    assert files() == files("--dev", default.dev) == (default.train, default.dev, default.test)
    assert files("--train", "a", "--dev", "b") == ("a", "b", "")
    assert files("--train", "a", "--dev", "b", "--test", "c") == ("a", "b", "c")
    assert files("--dev", "b", "--option", "prompt") == ("", "b", "")
    assert files("--dev", "b", "--option", "finetune") == (default.train, "b", "")


@pytest.mark.parametrize(
    ("option", "files", "part"),
    [
        ("finetune", {"train": "", "dev": "my-dev.csv"}, "--train '' is not allowed"),
        ("finetune", {"train": "none", "dev": "my-dev.csv"}, "it must be a data file"),
        ("prompt", {"dev": "none"}, "--dev 'none' is not allowed"),
        ("prompt", {"dev": "my-dev.csv", "test": "gone.csv"}, "gone.csv does not exist"),
        ("prompt", {"dev": "my-dev.jsonl"}, "--label-names"),
        ("prompt", {"dev": "my-dev.txt", "text_column": "x"}, "--text_column x is not allowed"),
        ("prompt", {"dev": "my-dev.csv", "label_column": "x"}, "my-dev.csv line 1 has no column"),
        ("prompt", {"dev": "my-dev.csv", "question": "a\nb"}, "must be one line"),
        ("prompt", {"dev": "my-dev.csv", "question": ""}, "must be one line"),
        ("finetune", {"dev": "my-dev.csv", "question": "a"}, "--question a is not allowed"),
        ("prompt", {"dev": "my-dev.csv", "prompts": "a"}, "--prompts a is not allowed"),
        ("generate", {"prompts": "a", "prompt_text": "b"}, "left out with --prompt_text"),
        ("generate", {"prompts": "gone.txt"}, "gone.txt does not exist"),
        ("generate", {"prompts": "data"}, "data is a directory"),
    ],
)
def test_what_is_refused_is_one_line(option: str, files: dict, part: str, folder: Path):
    out = [] if option == "generate" else ["--dev_out", "dev-prompting-output.txt"]
    if option == "finetune":
        out = ["--dev_out", "dev-finetuning-output.txt"]
    assert part in refusal(option, *out, **files)


# Labels and formats


@pytest.mark.parametrize("option", ["prompt", "finetune"])
def test_all_forms_of_the_same_data_have_the_same_predictions(option: str, folder: Path):
    """Words where the data have words, whatever their case; indices where they have indices."""
    ending = {"prompt": "prompting", "finetune": "finetuning"}[option]
    outputs = {f"{s}_out": f"{s}-{ending}-output.txt" for s in ("dev", "test")}

    def predicted(*arguments: str, **files: str) -> dict[str, list[tuple[str, str]]]:
        run(option, *arguments, "--epochs", "1", **files, **outputs)
        return {split: lines(outputs[f"{split}_out"]) for split in ("dev", "test")}

    expected = predicted(*NAMES, **INDICES)
    as_words = {s: [(WORDS[int(i)], text) for i, text in e] for s, e in expected.items()}
    as_titles = {s: [(word.title(), text) for word, text in e] for s, e in as_words.items()}
    form = {split: f"my-{split}.csv" for split in INDICES}
    if option == "finetune":
        assert predicted(**form) == as_titles
        return
    assert predicted(*NAMES, **form) == as_words
    form = {split: f"my-{split}.txt" for split in INDICES}
    assert predicted(**form) == as_words
    form = {split: f"my-{split}.jsonl" for split in INDICES}
    assert predicted(*NAMES, **form) == expected


def test_a_training_run_names_its_own_files(folder: Path):
    """The default names are of prompt's files."""
    printed = run("finetune", "--epochs", "1", train="my-train.csv", dev="my-dev.csv")
    assert "wrote dev predictions to my-dev-finetuning-output.txt" in printed
    assert (folder / "finetune-my-1-0.01.pt").exists()


# The question


def test_the_question_is_in_every_prompt(folder: Path):
    output = {"dev_out": "dev-prompting-output.txt"}
    run("prompt", "--question", QUESTION, dev="my-dev.csv", **output)
    asked = lines(output["dev_out"])
    texts = [text for _, text in lines("data/tiny-dev.txt")]
    assert [sentence for _, sentence in asked] == [
        f"{text} Ist dieser Film Bad or Good? Er ist " for text in texts
    ]
    default = "Is this movie {labels}? This movie is "
    run("prompt", *NAMES, dev="my-dev.csv", **output)
    usual = Path(output["dev_out"]).read_bytes()
    run("prompt", *NAMES, "--question", default, dev="my-dev.csv", **output)
    assert Path(output["dev_out"]).read_bytes() == usual


# Prompts

LOW, HIGH = "generated-sentence-temp-0.txt", "generated-sentence-temp-1.txt"
RULE = "\n---------------\n"
SHORT = ("--max_new_tokens", "6", "--num_samples", "2")


def test_prompts_of_a_file_are_continued_as_each_by_itself(folder: Path, capsys):
    prompts = ["good bad film", "café"]
    texts: dict[str, list[str]] = {LOW: [], HIGH: []}
    for prompt in prompts:
        run("generate", "--prompt_text", prompt, *SHORT)
        for name, found in texts.items():
            found.append(Path(name).read_bytes().decode())
    (folder / "prompts.txt").write_text("".join(f"{p}\n" for p in prompts), encoding="utf-8")
    capsys.readouterr()
    printed = run("generate", "--prompts", "prompts.txt", *SHORT)
    for name, found in texts.items():
        assert Path(name).read_bytes().decode() == RULE.join(found)
        assert RULE.join(found) + RULE in printed
    assert re.fullmatch(r"12 tokens, .*\n24 tokens, .*\n", capsys.readouterr().err)


# What is shown


class Terminal(io.StringIO):
    """A terminal, with every piece that was written."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


def test_a_text_is_shown_as_it_comes_on_a_terminal(folder: Path, monkeypatch, capsys):
    (folder / "prompts.jsonl").write_text('"good bad"\n"film"\n')
    arguments = ["--prompts", "prompts.jsonl", "--max_new_tokens", "6"]
    plain = run("generate", *arguments)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    run_llama.main(["--pretrained-model-path", "model.pt", *arguments])
    shown, expected = (t[t.index("Temperature is 0.0") :] for t in (terminal.getvalue(), plain))
    assert shown == expected
    text = Path(LOW).read_bytes().decode().partition(RULE)[0]
    assert len(text) > 10 and text not in terminal.pieces


def test_one_bar_is_for_the_whole_run_and_fits(folder: Path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    run("finetune", "--epochs", "2", train="my-train.csv", dev="my-dev.csv")
    shown = [piece.strip("\r\n") for piece in terminal.pieces]
    bars = [piece for piece in shown if "%|" in piece]
    assert bars and max(map(len, shown)) < 80
    assert all(
        re.match(r"(start|epoch \d (train|eval train|eval dev)|eval dev): ", b) for b in bars
    )


def test_where_there_is_no_terminal_lines_say_how_far_it_is(folder: Path, monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "SECONDS", 0.0)
    run("finetune", "--epochs", "2", train="my-train.csv", dev="my-dev.csv")
    told = [line for line in capsys.readouterr().err.splitlines() if "gone" in line]
    # 3 batches of train, learned and evaluated, and 2 of dev, twice; and dev once more
    assert len(told) == 2 * (3 + 3 + 2) + 2
    shares = [int(re.search(r": (\d+)% of all, ", line)[1]) for line in told]
    assert shares == sorted(shares) and shares[-1] == 100
    assert {line.partition(":")[0] for line in told} == {
        *(f"epoch {n} {what}" for n in range(2) for what in ("train", "eval train", "eval dev")),
        "eval dev",
    }
    assert re.fullmatch(
        r"epoch 0 train: \d+% of all, 00:\d\d gone, \d\d:\d\d left, loss \d\.\d{3}, \d+ tokens/s",
        told[0],
    )
    assert max(map(len, told)) <= 80


def test_the_time_left_is_of_all_work(monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with Progress(1000) as progress:
        progress.leave_out(200)
        progress.begin("part")
        for _ in range(4):
            now += 15
            progress.advance(50, weight=2)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "part: 25% of all, 00:30 gone, 01:30 left, 3 tokens/s"
    assert last == "part: 50% of all, 01:00 gone, 01:00 left, 3 tokens/s"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.txt", "a dull film\n"),
        ("test.csv", "text\na dull film\n"),
        ("test.csv", "text,label\na dull film,\n"),
        ("test.jsonl", '{"text": "a dull film"}\n'),
    ],
)
def test_texts_without_labels_are_for_another_option(name: str, content: str, folder: Path):
    """There is no accuracy without labels; who has none learns what is for them."""
    (folder / name).write_text(content)
    message = refusal(
        "prompt", "--dev_out", "dev-prompting-output.txt", dev="data/tiny-dev.txt", test=name
    )
    assert "--option predict" in message and name in message
