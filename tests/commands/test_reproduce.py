"""reproduce.py: which commands are run, what is kept of them, how they are scored, compared and
shown. Most tests put a small program that needs no torch in run_llama.py's place.
"""

import base64
import contextlib
import html.parser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from sentencepiece import SentencePieceProcessor
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

import reproduce
import run_llama
from classifier import load_classifier
from mini_llama import bundled
from mini_llama.assignment import figures as reference_figures
from mini_llama.assignment import option_parser
from mini_llama.assignment.options import Options
from mini_llama.assignment.reference_outputs import reference_outputs
from mini_llama.assignment.reviews import read_examples
from mini_llama.checkpoints.record import Checkpoint
from mini_llama.command_line import parse_given
from mini_llama.downloads.files import STORIES42M_ARGS
from mini_llama.reproduction import plots as reproduction_plots
from mini_llama.reproduction import processes, reference
from mini_llama.reproduction import report as reproduction_report
from mini_llama.reproduction.estimate import Estimate, format_duration
from mini_llama.reproduction.outputs import read_epochs
from mini_llama.reproduction.results import Misclassified
from mini_llama.reproduction.runs import Run, Settings, make_runs
from tests.helpers import ROOT, refusal_of

# What run_llama.py does, in small: the label predicted for the example in line i is
# (i * i + seed) % 3 % labels. FAKE, a JSON object, says what goes wrong, by a run's folder.
FAKE_PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
words = sys.argv[1:]
args = {w[2:]: words[i + 1] for i, w in enumerate(words[:-1]) if w.startswith("--")}
fake = json.loads(os.environ.get("FAKE", "{}"))
if args["option"] == "generate":
    outs = [Path(args[f"generated_sentence_{k}_temp_out"]) for k in ("low", "high")]
else:
    outs = [Path(args["dev_out"]), Path(args["test_out"])]
folder = outs[0].parent
Path("calls.txt").open("a").write(" ".join([folder.name, *words]) + "\\n")
(folder / "pid").write_text(str(os.getpid()))
todo = fake.get(folder.name, "")
if todo == "fail":
    print("load 3 data"); print("run_llama.py: error: <i>no</i> such thing", file=sys.stderr)
    sys.exit(1)
if todo == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if todo == "quiet":
    sys.exit(3)
if todo == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
if args["option"] in ("finetune", "lora"):
    prefix = "LoRA epoch" if args["option"] == "lora" else "epoch"
    Path(args["checkpoint_out"]).touch()
    state = Path(args["checkpoint_out"].removesuffix(".pt") + ".resume.pt")
    state.touch()
    for epoch in range(int(args["epochs"])):
        print(f"{prefix} {epoch}: train loss :: {2 - epoch / 8:.3f}, train acc :: 0.300, "
              f"dev acc :: {0.25 + epoch / 8:.3f}", flush=True)
if todo in ("sleep", "stubborn"):
    (folder / "asleep").touch()
    time.sleep(30)
if todo == "nothing":
    sys.exit(0)
names = ["bad", "good"]
suffix = " Is this movie bad or good? This movie is " if args["option"] == "prompt" else ""
for split, out in zip(("dev", "test"), outs):
    if args["option"] == "generate":
        out.write_text("once <script>alert(1)</script> & \\u202e " + out.name, encoding="utf-8")
        continue
    lines = Path(args[split]).read_text(encoding="utf-8").splitlines()
    sentences = [line.partition(" ||| ")[2].strip() for line in lines]
    if todo == "other":
        sentences[0] += "!"
    seed = int(args.get("seed", 0))
    with open(out, "w", encoding="utf-8") as file:
        for i, sentence in enumerate(sentences):
            file.write(f"{(i * i + seed) % 3 % 2} ||| {sentence}{suffix}\\n")
if args["option"] in ("finetune", "lora"):
    state.unlink()
"""
DRAW = reproduction_plots.draw
EVIL = '"><img src=x onerror=alert(1)> $\\frac{x$ <b>café</b>'


def predicted(count: int, seed: int) -> list[int]:
    return [(i * i + seed) % 3 % 2 for i in range(count)]


def gold(folder: Path, dataset: str, split: str) -> list[int]:
    return [e.label for e in read_examples(folder / "data" / f"{dataset}-{split}.txt")]


@pytest.fixture(autouse=True)
def _leave_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MINI_LLAMA_TRACEBACK", raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_flush_denormal(False)


@pytest.fixture
def here(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: model.pt, its tokenizer, both data sets under data/ (cfimdb-test with
    placeholder labels), with an evil sentence, and the fake program in run_llama.py's place.
    """
    for name in ("model.pt", "model.model"):
        shutil.copy(tiny_folder / name, tmp_path)
    (tmp_path / "data").mkdir()
    for dataset in ("sst", "cfimdb"):
        for split in ("train", "dev", "test"):
            text = (tiny_folder / "data" / f"tiny-{split}.txt").read_text(encoding="utf-8")
            if split == "dev":
                text += f"1 ||| {EVIL}\n"
            if (dataset, split) == ("cfimdb", "test"):
                text = re.sub(r"^\d", "0", text, flags=re.M)
            (tmp_path / "data" / f"{dataset}-{split}.txt").write_text(text, encoding="utf-8")
        names = tmp_path / "data" / f"{dataset}-label-mapping.json"
        names.write_text('["bad", "good"]')
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE_PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "COMMAND", (sys.executable, "-S", str(fake)))
    monkeypatch.delenv("FAKE", raising=False)
    monkeypatch.setattr(reproduction_plots, "draw", lambda folder, groups: [])  # it takes seconds
    return tmp_path


def run(*words: str) -> int:
    """reproduce.py with the tiny model; its exit status."""
    try:
        reproduce.main(["--out", "out", "--pretrained-model-path", "model.pt", *words])
    except SystemExit as stop:
        return stop.code
    return 0


def calls() -> list[str]:
    path = Path("calls.txt")
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def results() -> dict:
    return json.loads(Path("out/results.json").read_text(encoding="utf-8"))


def records() -> dict[str, dict]:
    return {entry["name"]: entry for entry in results()["runs"]}


ALL = [
    *("generate", "sst-prompt", "cfimdb-prompt", "sst-finetune-1337", "cfimdb-finetune-1337"),
    *("sst-lora-1337", "cfimdb-lora-1337"),
]


# The figures


def test_figures_are_those_of_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    columns = [("sst", "dev"), ("sst", "test"), ("cfimdb", "dev"), ("cfimdb", "test")]
    expected = {}
    for editions, option, rest in re.findall(
        r"^\| (mmia / fall2025|fall2024 / spring2025|spring2026) (\w+) \|(.*)\|$", text, flags=re.M
    ):
        for edition in editions.split(" / "):
            for column, cell in zip(columns, rest.split("|"), strict=True):
                numbers = [float(n) for n in re.findall(r"\d\.\d+", cell)]
                if numbers:
                    pair = (numbers[0], numbers[1] if len(numbers) > 1 else None)
                    expected[edition, option, *column] = pair
    assert len(expected) == 2 * 12 + 2 * 6 + 4
    assert expected == reference_figures.REFERENCE


def test_figures_of_the_contract():
    figures = reference_figures.REFERENCE
    assert figures["mmia", "finetune", "sst", "dev"] == (0.411, 0.025)
    assert figures["fall2025", "lora", "cfimdb", "test"] == (0.506, 0.239)
    assert figures["fall2024", "prompt", "sst", "dev"] == (0.213, None)
    assert ("fall2024", "finetune", "cfimdb", "test") not in figures
    assert not any(edition == "llama2" for edition, *_ in figures)
    assert reference_figures.BANDS == {"sst": 0.05, "cfimdb": 0.15}


@pytest.mark.parametrize(
    ("labels", "expected"), [([0, 0, 0], True), ([1], True), ([0, 1], False), ([], False)]
)
def test_placeholders(labels: list, expected: bool):
    assert reference_figures.is_placeholder(labels) is expected


@pytest.mark.parametrize(
    ("accuracy", "reference", "dataset", "expected"),
    [
        (0.461, 0.411, "sst", "within"),
        (0.361, 0.411, "sst", "within"),
        (0.4611, 0.411, "sst", "above"),
        (0.3609, 0.411, "sst", "below"),
        (0.683, 0.833, "cfimdb", "within"),
        (0.682, 0.833, "cfimdb", "below"),
    ],
)
def test_verdicts(accuracy: float, reference: float, dataset: str, expected: str):
    assert reference_figures.verdict(accuracy, reference, dataset) == expected


# The commands


def test_runs_are_the_graded_commands():
    """Those of the document, except for where their files go."""
    text = (ROOT / "docs" / "assignment.md").read_text(encoding="utf-8")
    section = text.partition("## The graded commands")[2].partition("The first writes")[0]
    graded = [
        Options(**parse_given(option_parser.make_parser(), shlex.split(line)[2:]))
        for line in section.split("\n")
        if "run_llama.py" in line
    ]
    runs = make_runs(Settings(Path("x"), pretrained_model_path="stories42M.pt"))
    assert len(graded) == len(runs) == 7
    for run_ in runs:
        args = vars(Options(**parse_given(option_parser.make_parser(), run_.arguments)))
        (same,) = (
            vars(g)
            for g in graded
            if g.option == run_.options.option and (run_.dataset is None or run_.dataset in g.train)
        )
        for name, value in same.items():
            if name.endswith("_out") and name != "checkpoint_out":
                used = run_.dataset is None or name in ("dev_out", "test_out")
                if used and (name in ("dev_out", "test_out")) != (run_.dataset is None):
                    assert args[name] == f"x/runs/{run_.name}/{value}"
            elif name != "checkpoint_out":
                assert args[name] == value, name
    assert [run_.name for run_ in runs] == ALL


def test_plan_prints_and_writes_nothing(here: Path, capsys):
    before = sorted(here.rglob("*"))
    assert run("--plan", "--only", "lora", "prompt", "--data", "sst", "--seeds", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["python", "run_llama.py", "--option", option] for option in ("prompt", "lora", "lora")
    ]
    assert "--seed 1337 " in lines[1] and "--seed 1338 " in lines[2]
    assert sorted(here.rglob("*")) == before


def test_plan_needs_no_torch():
    code = "import sys, reproduce, mini_llama.reproduction.runs; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_flags_reach_the_runs(here: Path):
    settings = Settings(
        here / "x",
        seeds=3,
        epochs=2,
        edition="fall2024",
        max_sentence_len=9,
        mask_padding=True,
        dtype="bfloat16",
        use_gpu=True,
        pretrained_model_path="m.pt",
        tokenizer="t.model",
        data_dir="d",
    )
    runs = make_runs(settings)
    assert [r.name for r in runs if r.dataset == "sst"] == [
        "sst-prompt",
        *(f"sst-{option}-{seed}" for option in ("finetune", "lora") for seed in (1337, 1338, 1339)),
    ]
    for run_ in runs:
        options: Options = run_.options
        is_trained = options.option in ("finetune", "lora")
        assert (options.edition, options.dtype, options.use_gpu) == ("fall2024", "bfloat16", True)
        assert (options.pretrained_model_path, options.tokenizer) == ("m.pt", "t.model")
        if run_.dataset is not None:
            assert options.train == f"d/{run_.dataset}-train.txt" and options.mask_padding
        assert options.max_sentence_len == (9 if is_trained else None)
        assert options.epochs == (2 if is_trained else 5)


@pytest.mark.parametrize(
    ("given", "folder", "datasets"),
    [
        ({"data": ["d"]}, "d", {"sst", "cfimdb"}),
        ({"data": ["./sst"], "datasets": ["cfimdb"]}, "sst", {"cfimdb"}),
        ({"data": ["sst"]}, "data", {"sst"}),
        ({"data": ["sst", "cfimdb"], "data_dir": "d"}, "d", {"sst", "cfimdb"}),
        ({"datasets": ["sst"], "data_dir": "d"}, "d", {"sst"}),
    ],
)
def test_data_is_a_folder_or_as_before_names_of_data_sets(given, folder: str, datasets: set):
    runs = make_runs(Settings(Path("x"), pretrained_model_path="m.pt", **given))
    assert {run_.dataset for run_ in runs} == {None, *datasets}
    folders = {str(Path(run_.options.train).parent) for run_ in runs if run_.dataset}
    assert folders == {folder}


def test_bundled_files_stand_in_where_no_real_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = make_runs(Settings(Path("x")))
    assert runs[0].options.prompt_text == bundled.PROMPT_TEXT
    assert {Path(r.options.train).name for r in runs[1:]} == {"demo-train.txt", "demo2-train.txt"}
    assert {r.options.pretrained_model_path for r in runs} == {str(bundled.CHECKPOINT)}
    assert {r.name: r.options.batch_size for r in runs}["demo-finetune-1337"] == 80
    for given in ({"data_dir": "d"}, {"pretrained_model_path": "m.pt"}):
        assert not Settings(Path("x"), **given).is_bundled
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sst-train.txt").touch()
    assert not Settings(Path("x")).is_bundled


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "0"], "--epochs 0 is not allowed: it must be at least 1"),
        (["--seeds", "0"], "--seeds 0 is not allowed: it must be at least 1 and at most 1000"),
        (["--max_sentence_len", "0"], "--max_sentence_len 0 is not allowed"),
        (["--only", "train"], "invalid choice: 'train'"),
        (["--edition", "fall2023"], "invalid choice: 'fall2023'"),
        (["--datasets", "imdb"], "invalid choice: 'imdb'"),
        (["--data", "a", "b"], "--data a b is not allowed: it must be one folder"),
        (["--data", "a", "--data_dir", "b"], "without --data_dir"),
        (["--seeds", "x"], "invalid int value: 'x'"),
    ],
)
def test_refusals_are_one_line(here: Path, capsys, words: list, message: str):
    status = run(*words)
    error = capsys.readouterr().err
    line = error or f"{status}\n"
    assert message in line and line.count("\n") == 1 and status != 0
    assert not Path("out").exists()


# Scores and the table


def test_scores_are_scikit_learns(here: Path, capsys):
    assert run("--seeds", "3", "--epochs", "2") == 0
    rows = {(r["data"], r["option"], r["split"]): r for r in results()["summary"]}
    assert len(rows) == 12
    for (data, option, split), row in rows.items():
        labels = gold(here, data, split)
        seeds = [1337, 1338, 1339] if option in ("finetune", "lora") else [0]
        guesses = [predicted(len(labels), seed) for seed in seeds]
        expected = [accuracy_score(labels, guess) for guess in guesses]
        assert row["accuracies"] == pytest.approx(expected, abs=1e-12)
        f1s = [f1_score(labels, guess, average="macro", zero_division=0) for guess in guesses]
        is_placeholder = (data, split) == ("cfimdb", "test")
        assert row["macro_f1s"] == ([] if is_placeholder else pytest.approx(f1s, abs=1e-12))
        assert row["verdict"] == ("placeholder" if is_placeholder else "not judged")
    printed = capsys.readouterr().out
    row = rows["sst", "finetune", "dev"]
    mean, deviation = np.mean(row["accuracies"]), np.std(row["accuracies"], ddof=1)
    line = re.search(r"^sst +finetune +dev +3 +(.*)$", printed, flags=re.M)[1]
    cells = [f"{mean:.3f} ({deviation:.3f})", "0.411 (0.025)", "not judged"]
    assert re.split("  +", line)[:3] == cells
    assert "model.pt is not stories42M.pt (dim 32, not 512)" in printed
    assert "prompt is deterministic: one run is enough" in printed
    assert results()["epochs"]["sst-lora-1338"] == [
        {"epoch": 0.0, "train_loss": 2.0, "train_accuracy": 0.3, "dev_accuracy": 0.25},
        {"epoch": 1.0, "train_loss": 1.875, "train_accuracy": 0.3, "dev_accuracy": 0.375},
    ]


def test_table_by_hand():
    row = reproduction_report.Row(
        *("sst", "finetune", "dev", [0.40, 0.42, 0.44], [0.3, 0.3, 0.3], (0.411, 0.025)),
        *("within (+0.009)", 125.4, 812_400_000),
    )
    assert row.cells() == (
        *("sst", "finetune", "dev", "3", "0.420 (0.020)", "0.411 (0.025)", "within (+0.009)"),
        *("0.300 (0.000)", "2:05", "812"),
    )
    one = reproduction_report.Row(
        *("sst", "prompt", "test", [0.25], [0.2], (0.224, None), "within (+0.026)", 3.0, None)
    )
    assert one.cells()[3:8] == ("1", "0.250", "0.224", "within (+0.026)", "0.200")
    header, first, second = reproduction_report.table([row, one])
    assert header.split()[:4] == ["data", "option", "split", "runs"]
    assert first.index("0.411 (0.025)") + 8 == second.index("0.224")  # right-aligned


def judge_as_if_real(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setattr(reproduction_report, "why_no_figures_apply", lambda settings: None)
    files = {f"data/{p.name}": p for p in (here / "data").iterdir()}
    files["tokenizer.model"] = here / "model.model"
    sums = {name: processes.digest(path) for name, path in files.items()}
    monkeypatch.setattr(reproduction_report, "PUBLISHED", sums)


def test_verdicts_where_the_figures_apply(here: Path, monkeypatch, capsys):
    judge_as_if_real(monkeypatch, here)
    assert run("--only", "prompt", "finetune") == 0
    for row in results()["summary"]:
        if (row["data"], row["split"]) == ("cfimdb", "test"):
            assert row["verdict"] == "placeholder"
            continue
        labels = gold(here, row["data"], row["split"])
        seed = 1337 if row["option"] == "finetune" else 0
        value = accuracy_score(labels, predicted(len(labels), seed))
        difference = value - row["reference"][0]
        band = {"sst": 0.05, "cfimdb": 0.15}[row["data"]]
        word = "within" if abs(difference) <= band else "below" if difference < 0 else "above"
        assert row["verdict"] == f"{word} ({difference:+.3f})"
    assert {row["verdict"].split()[0] for row in results()["summary"]} >= {"within", "above"}
    assert "do not apply" not in capsys.readouterr().out


def write_real_run(folder: Path, shared: Path, option: str, labels: Mapping) -> Run:
    """A run that ended well, and its outputs, with predictions given by data set."""
    settings = Settings(folder, [option], ["sst"], edition="fall2024", data_dir=shared / "data")
    (made,) = make_runs(settings)
    made.folder.mkdir(parents=True)
    for split in ("dev", "test") if labels else ():
        asked = reference.questions(made.options, split)
        pairs = zip(labels[f"sst-{split}"], asked, strict=True)
        text = "".join(f"{label} ||| {question}\n" for label, question in pairs)
        Path(getattr(made.options, f"{split}_out")).write_text(text, encoding="utf-8")
    return made


def test_runs_are_compared_with_the_reference(shared: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = reference_outputs()["fall2024"]
    changed = dict(known.labels)
    changed["sst-dev"] = [4 - label for label in changed["sst-dev"][:3]] + [*changed["sst-dev"][3:]]
    shutil.copy(shared / "reference" / "tokenizer.model", tmp_path)
    Path("stories42M.pt").touch()
    prompted = write_real_run(tmp_path / "a", shared, "prompt", changed)
    generated = write_real_run(tmp_path / "b", shared, "generate", {})
    generated.outputs[0].write_text(known.text, encoding="utf-8")
    text, dev, test = reference.compare_runs([generated, prompted])
    assert text.message == "the text equals the reference (39 independent runs)"
    n = sum(a != b for a, b in zip(changed["sst-dev"], known.labels["sst-dev"], strict=True))
    assert dev.message.startswith(f"{n} of 1101 lines differ from fall2024 (")
    assert "float drift" in dev.message
    assert test.message == "2210 of 2210 predictions equal the reference (19 independent runs)"


def test_only_graded_runs_of_the_real_model_are_compared(here: Path, monkeypatch, capsys):
    assert run("--only", "generate", "prompt") == 0
    assert results()["agreements"] == []  # not the real model
    compared = []
    monkeypatch.setattr(
        reproduction_report, "compare_runs", lambda runs: compared.extend(runs) or ()
    )
    judge_as_if_real(monkeypatch, here)
    assert run("--only", "generate", "prompt", "--resume") == 0
    assert [one.name for one in compared] == ["generate", "sst-prompt", "cfimdb-prompt"]
    compared.clear()
    assert run("--only", "prompt", "--resume", "--mask_padding") == 0
    assert compared == []


def test_two_figures_stand_side_by_side():
    one = reproduction_report.Row(
        *("cfimdb", "prompt", "dev", [0.502], [0.4], (0.498, None), "within (+0.004)", 3.0, None),
        measured=0.502,
    )
    assert one.cells()[5] == "0.498 or 0.502"
    settings = Settings(Path("out"), edition="fall2024")
    (note,) = reproduction_report.figure_notes(settings, [one])
    assert note.startswith("fall2024 cfimdb-dev prompt: 0.498 in the course's text, 0.502 by the")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--epochs", "1"], "the graded commands have --epochs 5, not 1"),
        (["--mask_padding"], "the graded commands have --mask_padding False, not True"),
        (["--dtype", "bfloat16"], "the graded commands have --dtype float32, not bfloat16"),
        (["--max_sentence_len", "9"], "the graded commands have --max_sentence_len None, not 9"),
        (["data"], "data/sst-test.txt is not the courses' file"),
        (["tokenizer"], "model.model is not the courses' tokenizer.model"),
    ],
)
def test_no_verdict_for_other_commands_and_files(
    here: Path, monkeypatch, capsys, words: list, reason: str
):
    judge_as_if_real(monkeypatch, here)
    if words == ["data"]:
        with open(here / "data" / "sst-test.txt", "a", encoding="utf-8") as file:
            file.write("1 ||| one more\n")
        words = []
    elif words == ["tokenizer"]:
        reproduction_report.PUBLISHED["tokenizer.model"] = "0" * 64
        words = []
    assert run("--only", "finetune", "--data", "sst", *words) == 0
    assert {row["verdict"] for row in results()["summary"]} == {"not judged"}
    assert f"the reference figures do not apply: {reason}" in capsys.readouterr().out


def test_no_verdict_without_a_figure(here: Path, monkeypatch):
    judge_as_if_real(monkeypatch, here)
    assert run("--only", "lora", "--data", "sst", "--edition", "fall2024") == 0
    assert {row["verdict"] for row in results()["summary"]} == {"-"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"n_layers": 6}, "x.pt is not stories42M.pt (n_layers 6, not 8)"),
        ({"norm": "rmsnorm"}, "x.pt is not stories42M.pt (it records its own norm or attention)"),
    ],
)
def test_stories42m_is_known_by_its_shape(monkeypatch, changes: dict, reason: str | None):
    saved = Checkpoint(Path("x.pt"), STORIES42M_ARGS | {"multiple_of": 32} | changes, {})
    monkeypatch.setattr(reproduction_report, "read_checkpoint", lambda path: saved)
    settings = Settings(Path("out"), pretrained_model_path="x.pt")
    assert reproduction_report.why_no_figures_apply(settings) == reason


def test_outputs_of_other_sentences_are_a_failure(here: Path, monkeypatch, capsys):
    monkeypatch.setenv("FAKE", '{"sst-prompt": "other"}')
    assert run("--only", "prompt") == 1
    assert "is not of the sentences of data/sst-dev.txt" in capsys.readouterr().out


# Keeping and resuming


def test_finished_runs_are_kept(here: Path, capsys):
    assert run() == 0
    assert calls() == ALL
    first = results()
    message = str(run())
    assert "out/results.json has the results of earlier runs: continue them with" in message
    assert run("--resume") == 0
    assert calls() == ALL
    assert results() == first
    out = capsys.readouterr().out
    assert "[7/7] cfimdb-lora-1337: already done, dev acc" in out


def test_what_changed_is_done_again(here: Path):
    """Each change on top of those before it."""
    sst = ["sst-prompt", "sst-finetune-1337", "sst-lora-1337"]
    words = ["--data", "sst", "--resume"]
    assert run(*words) == 0
    for change, again in (
        ("--epochs 3", sst[1:]),
        ("--edition llama2", ["generate", *sst]),
        ("data/sst-test.txt", sst),
        ("model.model", ["generate", *sst]),
        ("out/runs/sst-prompt/sst-dev-prompting-output.txt", sst[:1]),
        ("out/runs/generate/generated-sentence-temp-1.txt", ["generate"]),
        ("--seeds 2", ["sst-finetune-1338", "sst-lora-1338"]),
        ("model.pt", ["generate", *sst, "sst-finetune-1338", "sst-lora-1338"]),
    ):
        Path("calls.txt").unlink()
        if change.startswith("--"):
            words += change.split()
        else:
            with open(change, "ab") as file:
                file.write(b"1 ||| one more\n")
        assert run(*words) == 0
        assert sorted(calls()) == sorted(again), change


def test_a_file_that_is_gone_is_made_again(here: Path):
    assert run("--only", "generate") == 0
    Path("out/runs/generate/generated-sentence-temp-0.txt").unlink()
    assert run("--only", "generate", "--resume") == 0
    assert calls() == ["generate", "generate"]


def test_runs_of_an_earlier_call_stay_in_the_file(here: Path):
    assert run("--only", "generate") == 0
    assert run("--only", "prompt", "--data", "sst", "--resume") == 0
    assert list(records()) == ["generate", "sst-prompt"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"version": 2, "runs": []}',
        '{"version": 1, "runs": [7]}',
        '{"version": 1, "runs": [{"name": "generate"}]}',
        '{"version": 1, "runs": [{"name": "g", "settings": {}, "inputs": {}, "seconds": "1"}]}',
        '{"version": 1, "runs": [{"name": "g", "settings": {}, "inputs": {}, "seconds": 1e999}]}',
        '{"version": 1, "runs": [{"name": "g", "settings": {}, "inputs": {}, "worst": [{}]}]}',
        "[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_strange_results_file_is_refused(here: Path, content: str | bytes):
    Path("out").mkdir()
    data = content if isinstance(content, bytes) else content.encode()
    Path("out/results.json").write_bytes(data)
    message = str(run("--only", "generate", "--resume"))
    assert "out/results.json is not a results file of this program" in message
    assert "\n" not in message and calls() == []
    assert Path("out/results.json").read_bytes() == data


# What goes wrong in a run


def test_a_failing_run_does_not_stop_the_others(here: Path, monkeypatch, capsys):
    fake = {"sst-prompt": "fail", "cfimdb-prompt": "kill", "sst-lora-1337": "nothing"}
    fake |= {"generate": "quiet"}
    monkeypatch.setenv("FAKE", json.dumps(fake))
    assert run() == 1
    assert calls() == ALL
    printed = capsys.readouterr().out
    line = "run_llama.py: error: <i>no</i> such thing (exit status 1)"
    assert f"[2/7] sst-prompt: failed: {line}" in printed
    assert f"- sst-prompt failed: {line}" in printed
    assert "cfimdb-prompt: failed: killed by signal 9; did it run out of memory?" in printed
    assert (
        "sst-lora-1337: failed: it succeeded but did not write sst-dev-lora-output.txt, " in printed
    )
    assert "generate: failed: it printed nothing (exit status 3)" in printed
    assert re.search(r"^sst +prompt +dev +0 +- +\S+ .*failed", printed, flags=re.M)
    statuses = {name: entry["status"] for name, entry in records().items()}
    assert statuses == dict.fromkeys(ALL, "done") | dict.fromkeys(fake, "failed")
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "&lt;i&gt;no&lt;/i&gt; such thing" in page and "<i>" not in page
    monkeypatch.delenv("FAKE")
    assert run("--resume") == 0
    assert sorted(calls()[len(ALL) :]) == sorted(fake)


def interrupt_when(path: Path, number: int) -> threading.Thread:
    """Send this process a signal once `path` is there."""

    def send() -> None:
        while not path.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("how", "number", "status"),
    [
        ("sleep", signal.SIGINT, 130),
        ("stubborn", signal.SIGINT, 130),
        ("sleep", signal.SIGTERM, 143),
    ],
)
def test_ctrl_c_stops_the_child_and_keeps_the_rest(
    here: Path, monkeypatch, capsys, how: str, number: int, status: int
):
    monkeypatch.setenv("FAKE", json.dumps({"sst-finetune-1337": how}))
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.3)
    folder = Path("out/runs/sst-finetune-1337")
    interrupt_when(folder / "asleep", number)
    assert run("--data", "sst", "--epochs", "2") == status
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)
    assert ": use --resume" in capsys.readouterr().err
    statuses = {name: entry["status"] for name, entry in records().items()}
    assert statuses == {
        "generate": "done",
        "sst-prompt": "done",
        "sst-finetune-1337": "interrupted",
    }
    assert records()["sst-finetune-1337"]["seconds"] > 0
    monkeypatch.delenv("FAKE")
    Path("calls.txt").unlink()
    assert run("--data", "sst", "--epochs", "2", "--resume") == 0
    lines = Path("calls.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["sst-finetune-1337", "sst-lora-1337"]
    assert lines[0].endswith("--resume") and not lines[1].endswith("--resume")
    assert records()["sst-finetune-1337"]["is_resumed"]
    assert "resumed run" in capsys.readouterr().out


def test_interrupted_training_with_other_settings_starts_again(here: Path, monkeypatch):
    monkeypatch.setenv("FAKE", '{"sst-lora-1337": "sleep"}')
    interrupt_when(Path("out/runs/sst-lora-1337/asleep"), signal.SIGINT)
    common = ["--only", "lora", "--data", "sst"]
    assert run(*common, "--epochs", "2") == 130
    monkeypatch.delenv("FAKE")
    assert run(*common, "--epochs", "3", "--resume") == 0
    assert not Path("calls.txt").read_text().splitlines()[1].endswith("--resume")
    assert [e["epoch"] for e in results()["epochs"]["sst-lora-1337"]] == [0, 1, 2]


def test_epochs_that_are_printed_twice_count_once(tmp_path: Path):
    (run_,) = make_runs(Settings(tmp_path, only=["lora"], data=["sst"]))
    run_.folder.mkdir(parents=True)
    run_.log.write_text(
        "LoRA epoch 0: train loss :: 1.500, train acc :: 0.200, dev acc :: 0.300\n"
        "LoRA epoch 1: train loss :: 9.000, train acc :: 0.900, dev acc :: 0.900\n"
        "resume from model.resume.pt: 1 of 2 epochs are done\n"
        "LoRA epoch 1: train loss :: 1.250, train acc :: 0.400, dev acc :: 0.500\n"
        "dev acc :: 0.500\n",
    )
    assert [tuple(epoch.values()) for epoch in read_epochs(run_)] == [
        (0, 1.5, 0.2, 0.3),
        (1, 1.25, 0.4, 0.5),
    ]


# Time and memory


def test_peak_memory_is_the_childs(tmp_path: Path):
    """Measured from a fresh process: a figure begins with the peak of the one that starts the run,
    which is below any run's.
    """
    pytest.importorskip("resource")
    size = 400_000_000
    child = f"x = bytearray({size}); x[::4096] = bytes(len(x[::4096]))"
    code = "import sys\nfrom mini_llama.reproduction import processes, report\n"
    code += f"processes.COMMAND = (sys.executable, '-S', '-c', {child!r})\n"
    code += f"print(*processes.run_process([], {str(tmp_path / 'log.txt')!r}, False))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    status, peak = map(int, done.stdout.split())
    assert status == 0 and size <= peak <= size + 40_000_000


def test_without_wait4_the_memory_is_said_to_be_unknown(here: Path, monkeypatch, capsys):
    monkeypatch.delattr(os, "wait4")
    assert run("--only", "prompt", "--data", "sst") == 0
    assert records()["sst-prompt"]["peak_bytes"] is None
    assert "peak memory is not measured: it is unknown on this system" in capsys.readouterr().out


def test_estimate():
    """By like runs where there were any, else by bytes: start-up aside, twice the text, twice the
    time.
    """
    rest = Estimate()
    folder = bundled.FOLDER
    settings = Settings(Path("x"), pretrained_model_path="m.pt", data_dir=str(folder))
    generate, prompt, _, finetune, *_ = make_runs(settings)
    for run_ in (prompt, finetune):
        names = {s: str(folder / f"demo-{s}.txt") for s in ("train", "dev", "test")}
        for name, value in names.items():
            object.__setattr__(run_.options, name, value)
    assert rest.describe([prompt]) == "no estimate yet of the remaining time"
    rest.update(generate, 50.0)
    assert rest.describe([prompt]) == "no estimate yet of the remaining time"
    rest.update(prompt, 14.0)
    assert rest.describe([prompt, generate]) == "about 1:04 remaining"
    size = {name: Path(path).stat().st_size for name, path in names.items()}
    evaluated = size["dev"] + size["test"]
    passes = 5 * (4 * size["train"] + size["dev"]) + evaluated
    assert (
        rest.describe([finetune])
        == f"about {format_duration(4 + 10 * passes / evaluated)} remaining"
    )


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0:00"), (75.2, "1:15"), (3599.7, "1:00:00"), (36125, "10:02:05")]
)
def test_clock(seconds: float, shown: str):
    assert format_duration(seconds) == shown


# Plots and the page


class PageReader(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def test_page_is_self_contained_and_escaped(here: Path, monkeypatch):
    monkeypatch.setattr(reproduction_plots, "draw", DRAW)
    for dataset in ("sst", "cfimdb"):
        names = here / "data" / f"{dataset}-label-mapping.json"
        names.write_text(json.dumps(["bad", EVIL]))
    wrong = Misclassified(EVIL, 1, 7, 0.9, 0.05)
    monkeypatch.setattr(reproduction_report, "find_worst_examples", lambda *args: [wrong])
    monkeypatch.setenv("FAKE", '{"cfimdb-lora-1337": "fail"}')
    # the question holds the label's word, which the fake program does not know
    assert run("--only", "generate", "finetune", "lora", "--epochs", "2") == 1
    page = Path("out/report.html").read_text(encoding="utf-8")
    reader = PageReader(page)
    allowed = "html head meta title style body h1 h2 h3 p small br div table tr th td ul li img"
    assert reader.tags <= {*allowed.split(), "details", "summary", "code"}
    names = {name for name, _ in reader.attributes}
    assert names <= {"lang", "charset", "http-equiv", "content", "name", "class", "alt", "src"}
    sources = [value for name, value in reader.attributes if name == "src"]
    assert len(sources) == 4  # curves and matrices of two data sets
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        picture = base64.b64decode(data, validate=True)
        assert picture.startswith(b"\x89PNG")
        width, height = np.frombuffer(picture[16:24], dtype=">u4")
        assert 200 < width < 4000 and 200 < height < 4000
    assert "url(" not in page and "http:" not in page and "https:" not in page
    assert any("default-src 'none'" in (value or "") for _, value in reader.attributes)
    text = "".join(reader.said)
    assert text.count(EVIL) >= 2  # the sentence and the label's word
    assert "once <script>alert(1)</script> & \u202e generated-sentence-temp-0.txt" in text
    assert "<i>no</i> such thing" in text


def test_without_matplotlib_the_rest_is_there(here: Path, monkeypatch, capsys):
    monkeypatch.setattr(reproduction_plots, "draw", DRAW)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("--only", "prompt", "--data", "sst") == 0
    note = (
        "no plots: drawing plots needs matplotlib, which is not installed: "
        "bash setup.sh --extra, or pip install matplotlib"
    )
    assert note in capsys.readouterr().out
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert note in page and "<img" not in page


def test_confusion_is_scikit_learns(here: Path):
    words = ["--only", "finetune", "--data", "sst", "--seeds", "2"]
    assert run(*words) == 0
    settings = Settings(
        Path("out"), only=["finetune"], data=["sst"], seeds=2, pretrained_model_path="model.pt"
    )
    labels = gold(here, "sst", "dev")
    expected = sum(
        confusion_matrix(labels, predicted(len(labels), seed), labels=[0, 1])
        for seed in (1337, 1338)
    )
    counts = reproduction_plots.confusion(make_runs(settings), "dev", 2)
    assert counts.tolist() == expected.tolist()


# The real program


def spawn_here(words: list, log: Path, is_appended: bool) -> tuple[int, None]:
    """Within this process: each start would take as long as the rest of the test."""
    with open(log, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        run_llama.main(words)
    return 0, None


def test_all_options_with_the_real_program(here: Path, monkeypatch, capsys):
    script = (sys.executable, str(ROOT / "run_llama.py"))
    monkeypatch.setattr(processes, "COMMAND", script)
    real = processes.run_process
    monkeypatch.setattr(
        processes,
        "run_process",
        lambda words, *more: (real if "lora" in words else spawn_here)(words, *more),
    )
    assert run("--data", "sst", "--epochs", "1") == 0
    out = Path("out/runs")
    for run_name, kind in (
        ("sst-prompt", "prompting"),
        ("sst-finetune-1337", "finetuning"),
        ("sst-lora-1337", "lora"),
    ):
        for split in ("dev", "test"):
            path = out / run_name / f"sst-{split}-{kind}-output.txt"
            guesses = [
                int(line.partition(" ")[0])
                for line in path.read_text(encoding="utf-8").splitlines()
            ]
            value = accuracy_score(gold(here, "sst", split), guesses)
            log = (out / run_name / "log.txt").read_text(encoding="utf-8")
            assert f"\n{split} acc :: {value:.3f}\n" in log
            (row,) = (
                r
                for r in results()["summary"]
                if (r["option"], r["split"]) == (run_name.split("-")[1], split)
            )
            assert row["accuracies"] == pytest.approx([value])
    assert "dev acc" in capsys.readouterr().out
    check_worst(here, records()["sst-finetune-1337"]["worst"])
    assert records()["sst-prompt"]["worst"] is not None
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "Worst examples" in page and "Generated texts" in page


@torch.inference_mode()
def check_worst(here: Path, worst: list) -> None:
    """Against one batch of all dev sentences, padded by hand as the run's batches of 80 are."""
    model = load_classifier("out/runs/sst-finetune-1337/model.pt")
    pieces = SentencePieceProcessor(model_file="model.model")
    examples = read_examples(here / "data" / "sst-dev.txt")
    rows = [[pieces.bos_id(), *pieces.encode(e.sentence)] for e in examples]
    width, pad = max(map(len, rows)), pieces.piece_to_id("<0x00>")
    tokens = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    chances = model(tokens).double().exp()
    wrong = [
        (chances[i].max().item(), e.sentence, e.label, int(chances[i].argmax()))
        for i, e in enumerate(examples)
        if int(chances[i].argmax()) != e.label
    ]
    assert 0 < len(worst) == min(5, len(wrong))
    for entry, expected in zip(worst, sorted(wrong, reverse=True), strict=False):
        assert (entry["sentence"], entry["gold"], entry["predicted"]) == expected[1:]
        assert entry["confidence"] == pytest.approx(expected[0], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("results.json", "has the results of earlier runs: continue them with --resume, or give"),
        ("report.html", "is there already, and "),
        ("runs", "is there already, and "),
    ],
)
def test_what_is_in_the_folder_is_not_replaced(tmp_path, monkeypatch, name, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("somebody's")
    status, error = refusal_of(reproduce.main, ["--out", "out"])
    assert status == 1 and error.startswith(f"reproduce.py: error: out/{name} {part}")
    assert error.endswith("give another --out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    assert (tmp_path / "out" / name).read_text() == "somebody's"
