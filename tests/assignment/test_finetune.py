"""Options finetune and lora, end to end: what is printed, saved and predicted; and that a run which
is stopped anywhere can be resumed with the result that it would have had.
"""

import contextlib
import copy
import hashlib
import io
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sentencepiece import SentencePieceProcessor
from torch.utils.data import DataLoader

import run_llama
from classifier import LlamaEmbeddingClassifier, load_classifier
from llama import load_pretrained
from mini_llama.assignment import finetune, progress, scoring
from mini_llama.assignment.batches import order_by_length
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from optimizer import AdamW
from tests.helpers import ROOT, random_llama, refusal_of, tiny_config
from tokenizer import Tokenizer

ENDINGS = {"finetune": "finetuning", "lora": "lora"}
PREFIXES = {"finetune": "epoch", "lora": "LoRA epoch"}
EPOCHS, LR = 3, 0.01
ATTENTION = ("compute_query", "compute_key", "compute_value", "compute_output")


@pytest.fixture(autouse=True)
def _leave_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MINI_LLAMA_TRACEBACK", raising=False)
    monkeypatch.setattr(progress, "SECONDS", math.inf)  # no lines on a busy machine either
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    torch.set_flush_denormal(False)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of tiny_folder that is the current folder."""
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(option: str, *more: str, dataset: str = "tiny") -> list[str]:
    words = ["--option", option, "--epochs", str(EPOCHS), "--lr", str(LR)]
    words += ["--pretrained-model-path", "model.pt", "--label-names", "data/labels.json"]
    for split in ("train", "dev", "test"):
        words += [f"--{split}", f"data/{dataset}-{split}.txt"]
    for split in ("dev", "test"):
        words += [f"--{split}_out", output_name(option, split, dataset)]
    return [*words, *more]


def output_name(option: str, split: str, dataset: str = "tiny") -> str:
    return f"{dataset}-{split}-{ENDINGS[option]}-output.txt"


def train(option: str, *more: str, dataset: str = "tiny") -> str:
    """Run the option in the current folder; what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_llama.main(command(option, *more, dataset=dataset))
    return printed.getvalue()


def refusal(option: str, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The one line with which a run stops."""
    status, message = refusal_of(train, option, *more)
    assert status in (1, 2) and capsys.readouterr().err == ""
    return message


@dataclass
class Result:
    """What a whole run left: its printed lines and every file it wrote."""

    option: str
    folder: Path
    lines: list[str]
    start: LlamaEmbeddingClassifier
    losses: list[float] = field(default_factory=list)
    states: list[dict[str, torch.Tensor]] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.option}-tiny-{EPOCHS}-{LR}.pt"

    def epoch_lines(self) -> list[str]:
        return [line for line in self.lines if line.startswith(PREFIXES[self.option] + " ")]


@contextlib.contextmanager
def spy(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Record the model that training starts from, and loss and weights after every epoch."""
    record: dict[str, Any] = {"losses": [], "states": []}
    build, train_epoch = finetune.build, finetune.train_epoch

    def build_and_copy(*args: object) -> LlamaEmbeddingClassifier:
        model = build(*args)
        record["start"] = copy.deepcopy(model)
        return model

    def train_and_copy(model: LlamaEmbeddingClassifier, *args: object) -> float:
        record["losses"].append(train_epoch(model, *args))
        record["states"].append(copy.deepcopy(model.state_dict()))
        return record["losses"][-1]

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "build", build_and_copy)
        patch.setattr(finetune, "train_epoch", train_and_copy)
        yield record


@pytest.fixture(scope="module", params=["finetune", "lora"])
def whole(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    """An uninterrupted run. Its folder is not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / request.param
    shutil.copytree(tiny_folder, folder)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder), spy(patch) as record:
        printed = train(request.param)
    signal.signal(signal.SIGTERM, handler)
    return Result(request.param, folder, printed.splitlines(), **record)


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    return {path.name: file_hash(path) for path in folder.iterdir() if path.is_file()}


def read_examples(path: Path) -> list[tuple[int, str]]:
    """Label or prediction, and sentence, of every line of a file."""
    lines = path.read_bytes().decode("utf-8").split("\n")
    assert lines.pop() == ""
    pairs = [line.partition(" ||| ") for line in lines]
    return [(int(number), sentence) for number, _, sentence in pairs]


def share_equal(truth: list[int], guesses: list[int]) -> float:
    return sum(t == g for t, g in zip(truth, guesses, strict=True)) / len(truth)


def padded(rows: list[list[int]], pad: int) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows])


def encode(path: Path, model: Path) -> tuple[list[list[int]], list[int], int]:
    """Rows of BOS + sentence, labels, and the padding's id."""
    pieces = SentencePieceProcessor(model_file=str(model))
    examples = read_examples(path)
    rows = [[pieces.bos_id(), *pieces.encode(sentence.strip())] for _, sentence in examples]
    return rows, [label for label, _ in examples], pieces.piece_to_id("<0x00>")


@torch.no_grad()
def plain_predictions(
    model: LlamaEmbeddingClassifier, path: Path, tokenizer: Path, batch_size: int = 8
) -> list[int]:
    """The contract: batches in order, the last column's hidden state, the head, the argmax."""
    rows, _, pad = encode(path, tokenizer)
    guesses = []
    for start in range(0, len(rows), batch_size):
        _, hidden = model.llama(padded(rows[start : start + batch_size], pad))
        scores = hidden[:, -1] @ model.classifier_head.weight.T + model.classifier_head.bias
        guesses += scores.argmax(dim=-1).tolist()
    return guesses


# What is printed and written


def test_the_printed_lines_are_those_of_the_assignment(whole: Result) -> None:
    number = r"\d\.\d{3}"
    patterns = [r"args: \{.*\}"]
    patterns += [
        f"load {count} data from data/tiny-{split}.txt"
        for split, count in (("train", 24), ("dev", 10), ("test", 10))
    ]
    patterns += [r"load model from model\.pt: rmsnorm, causal attention.*"]
    if whole.option == "lora":
        patterns += [r"LoRA: trains [\d,]+ of [\d,]+ parameters \(\d+\.\d %\)"]
    saved = rf"save the model to {re.escape(whole.checkpoint.name)}"
    for epoch in range(EPOCHS):
        patterns += [
            rf"({saved}\n)?{PREFIXES[whole.option]} {epoch}: train loss :: {number}, "
            rf"train acc :: {number}, dev acc :: {number}"
        ]
    patterns += [rf"load model from {re.escape(whole.checkpoint.name)}"]
    for split in ("dev", "test"):
        patterns += [rf"{split} acc :: {number}", rf"{split} macro F1 :: {number}"]
    patterns += [
        f"wrote {split} predictions to {output_name(whole.option, split)}"
        for split in ("dev", "test")
    ]
    assert re.fullmatch("\n".join(patterns), "\n".join(whole.lines))


def test_only_the_documented_files_are_written(whole: Result, tiny_folder: Path) -> None:
    expected = {path.name for path in tiny_folder.iterdir()}
    expected |= {output_name(whole.option, split) for split in ("dev", "test")}
    expected |= {f"{whole.option}-tiny-{EPOCHS}-{LR}.pt"}
    if whole.option == "lora":
        expected |= {f"lora-tiny-{EPOCHS}-{LR}.adapters.pt"}
    assert {path.name for path in whole.folder.iterdir()} == expected


@pytest.mark.parametrize("split", ["dev", "test"])
def test_predictions_are_those_of_the_saved_checkpoint(split: str, whole: Result) -> None:
    model = load_classifier(whole.checkpoint)
    data = whole.folder / "data" / f"tiny-{split}.txt"
    guesses = plain_predictions(model, data, whole.folder / "model.model")
    truth = read_examples(data)
    expected = "".join(
        f"{guess} ||| {sentence}\n" for guess, (_, sentence) in zip(guesses, truth, strict=True)
    )
    written = (whole.folder / output_name(whole.option, split)).read_bytes().decode("utf-8")
    assert written == expected
    accuracy = share_equal([label for label, _ in truth], guesses)
    assert f"{split} acc :: {accuracy:.3f}" in whole.lines


def test_the_final_dev_accuracy_is_the_best_of_all_epochs(whole: Result) -> None:
    per_epoch = [line.rpartition(" :: ")[2] for line in whole.epoch_lines()]
    assert f"dev acc :: {max(per_epoch)}" in whole.lines


def test_the_printed_losses_are_those_of_the_epochs(whole: Result) -> None:
    printed = [re.search(r"train loss :: (\S+),", line)[1] for line in whole.epoch_lines()]
    assert printed == [f"{loss:.3f}" for loss in whole.losses]
    assert len(printed) == EPOCHS


def test_the_same_command_has_the_same_result(whole: Result, folder: Path) -> None:
    torch.rand(3)
    assert train(whole.option).splitlines() == whole.lines
    assert_same_result(whole, folder)


def assert_same_result(whole: Result, folder: Path) -> None:
    """Prediction files byte for byte, checkpoints bit for bit, and nothing else left."""
    for split in ("dev", "test"):
        name = output_name(whole.option, split)
        assert (folder / name).read_bytes() == (whole.folder / name).read_bytes()
    for path in whole.folder.glob("*.pt"):
        assert_same_content(load_plain(folder / path.name), load_plain(path))
    assert {path.name for path in folder.iterdir()} == {p.name for p in whole.folder.iterdir()}


def load_plain(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def assert_same_content(actual: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_same_content(actual[key], expected[key])
    else:
        assert actual == expected


# The checkpoint


def assert_plain(content: Any) -> None:
    """Tensors, and what JSON has."""
    if isinstance(content, dict):
        assert all(isinstance(key, str) for key in content)
        for value in content.values():
            assert_plain(value)
    elif isinstance(content, list):
        for value in content:
            assert_plain(value)
    else:
        assert content is None or type(content) in (torch.Tensor, str, int, float, bool)


def test_checkpoints_hold_plain_data_alone(whole: Result) -> None:
    paths = [whole.checkpoint, *whole.folder.glob("*.adapters.pt")]
    assert len(paths) == (2 if whole.option == "lora" else 1)
    for path in paths:
        assert_plain(load_plain(path))
    content = load_plain(whole.checkpoint)
    assert (content["model_args"]["norm"], content["model_args"]["attention"]) == (
        "rmsnorm",
        "causal",
    )


@pytest.mark.parametrize("option", ENDINGS)
def test_two_data_sets_do_not_share_a_checkpoint(option: str, folder: Path) -> None:
    for dataset in ("sst", "cfimdb"):
        for split in ("train", "dev", "test"):
            data = folder / "data"
            shutil.copy(data / f"tiny-{split}.txt", data / f"{dataset}-{split}.txt")
    train(option, "--epochs", "1", dataset="sst")
    saved = {path.name: path.read_bytes() for path in folder.glob(f"{option}-*.pt")}
    assert f"{option}-sst-1-{LR}.pt" in saved
    train(option, "--epochs", "1", dataset="cfimdb")
    names = {path.name for path in folder.glob(f"{option}-*.pt")}
    assert names == set(saved) | {name.replace("sst", "cfimdb") for name in saved}
    assert {name: (folder / name).read_bytes() for name in saved} == saved


def test_the_checkpoint_can_be_named(folder: Path) -> None:
    (folder / "models").mkdir()
    before = set(folder.iterdir())
    train("lora", "--epochs", "1", "--checkpoint_out", "models/best.pt")
    assert {p.name for p in (folder / "models").iterdir()} == {"best.pt", "best.adapters.pt"}
    outputs = {folder / output_name("lora", split) for split in ("dev", "test")}
    assert set(folder.iterdir()) == before | outputs


def test_checkpoints_of_different_names_share_no_other_file(folder: Path) -> None:
    for name in ("lora-0.5", "lora-0.7"):
        train("lora", "--epochs", "1", "--checkpoint_out", name)
    assert len(list(folder.glob("lora-0*"))) == 4  # each has its checkpoint and its adapters


DEV_ACCURACIES = [
    ([0.4, 0.6, 0.5, 0.6], 1),  # the first of equals
    ([0.4, 0.5, 0.6, 0.7], 3),
    ([0.0, 0.0, 0.0, 0.0], 0),
]


@pytest.mark.parametrize("option", ENDINGS)
@pytest.mark.parametrize(("accuracies", "best"), DEV_ACCURACIES)
def test_the_first_epoch_of_the_highest_dev_accuracy_is_saved(
    accuracies: list[float],
    best: int,
    option: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted = iter(accuracies)
    monkeypatch.setattr(  # 10 examples: dev
        finetune, "accuracy", lambda examples, _: next(scripted) if len(examples) == 10 else 0.5
    )
    with spy(monkeypatch) as record:
        train(option, "--epochs", "4", "--checkpoint_out", "best.pt")
    saved = load_plain(folder / "best.pt")
    assert saved["epoch"] == best
    heads = [state["classifier_head.weight"] for state in record["states"]]
    equal = [torch.equal(saved["model"]["classifier_head.weight"], head) for head in heads]
    assert equal == [epoch == best for epoch in range(4)]
    if option == "finetune":
        assert_same_content(saved["model"], record["states"][best])
    else:
        adapters = load_plain(folder / "best.adapters.pt")["adapters"]
        state = {f"llama.{name}": tensor for name, tensor in adapters.items()}
        expected = {k: v for k, v in record["states"][best].items() if ".lora_" in k}
        assert_same_content(state, expected)


@pytest.mark.parametrize("option", ENDINGS)
def test_training_leaves_the_pretrained_file_alone(option: str, folder: Path) -> None:
    before = file_hash(folder / "model.pt")  # it is mapped into memory, not copied
    train(option)
    assert file_hash(folder / "model.pt") == before


@pytest.mark.parametrize("name", ["stories260K.bin", "stories260K-cmu.pt"])
def test_training_leaves_the_course_files_alone(name: str, shared: Path, folder: Path) -> None:
    shutil.copyfile(shared / "checkpoints" / name, folder / name)
    before = file_hash(folder / name)
    tokenizer = str(shared / "checkpoints" / "tok512.model")
    train("finetune", "--pretrained-model-path", name, "--tokenizer", tokenizer, "--epochs", "1")
    assert file_hash(folder / name) == before
    saved = load_plain(folder / f"finetune-tiny-1-{LR}.pt")["model"]
    original = load_pretrained(str(folder / name)).state_dict()
    key = "layers.0.attention.compute_query.weight"
    assert not torch.equal(saved[f"llama.{key}"], original[key])


# The arithmetic of training


def plain_epoch(
    start: LlamaEmbeddingClassifier,
    folder: Path,
    dropout: float,
    mask_padding: bool = False,
    batch_size: int = 7,
    seed: int = 5,
    lr: float = 1e-3,
) -> tuple[float, LlamaEmbeddingClassifier]:
    """One epoch by the contract's words: the mean loss over batches and the trained model."""
    model = copy.deepcopy(start).train()
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    rows, labels, pad = encode(folder / "data" / "tiny-train.txt", folder / "model.model")
    order = finetune.seed_epoch(seed, 0)
    losses = []
    batches = DataLoader(range(len(rows)), batch_size, shuffle=True, generator=order)
    if mask_padding:
        batches = map(torch.tensor, order_by_length(list(map(len, rows)), batch_size, order))
    for batch in batches:
        indices = batch.tolist()
        batch_rows = [rows[i] for i in indices]
        if mask_padding:  # each row as if it were alone, without padding
            last = torch.cat([model.llama(torch.tensor([row]))[1][:, -1] for row in batch_rows])
        else:
            last = model.llama(padded(batch_rows, pad))[1][:, -1]
        scores = (
            F.dropout(last, dropout) @ model.classifier_head.weight.T + model.classifier_head.bias
        )
        log_probs = F.log_softmax(scores, dim=-1)
        nll = -sum(log_probs[row, labels[i]] for row, i in enumerate(indices))
        loss = nll / batch_size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses), model


@pytest.mark.parametrize(
    ("edition", "dropout", "mask_padding"),
    [
        ("mmia", 0.0, False),
        ("spring2026", 0.3, False),
        ("llama2", 0.9, False),
        ("fall2024", 0.3, True),
        ("llama2", 0.3, True),
    ],
)
@pytest.mark.parametrize("option", ENDINGS)
def test_the_first_epoch_is_that_of_a_plain_loop(
    option: str,
    edition: str,
    dropout: float,
    mask_padding: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["--epochs", "1", "--lr", "1e-3", "--batch_size", "7", "--seed", "5"]
    arguments += ["--hidden_dropout_prob", str(dropout), "--edition", edition]
    arguments += ["--mask_padding"] * mask_padding
    with spy(monkeypatch) as record:
        train(option, *arguments)
    loss, model = plain_epoch(record["start"], folder, dropout, mask_padding)
    assert record["losses"] == pytest.approx([loss], abs=1e-5)
    expected = model.state_dict()
    (state,) = record["states"]
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)
    start = record["start"].state_dict()
    assert any((state[name] - start[name]).abs().max() > 1e-3 for name in state)


@pytest.mark.parametrize("option", ENDINGS)
def test_bfloat16_learns_about_the_same(option: str, folder: Path) -> None:
    losses = {}
    for dtype in ("float32", "bfloat16"):
        printed = train(option, "--dtype", dtype, "--hidden_dropout_prob", "0")
        losses[dtype] = [float(x) for x in re.findall(r"train loss :: ([\d.]+)", printed)]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.05)
    assert losses["bfloat16"] != losses["float32"]
    model = load_classifier(folder / f"{option}-tiny-{EPOCHS}-{LR}.pt")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("option", ENDINGS)
def test_mask_padding_trains_and_does_not_depend_on_the_batch(option: str, folder: Path) -> None:
    train(option, "--mask_padding")
    model = load_classifier(folder / f"{option}-tiny-{EPOCHS}-{LR}.pt")
    for split in ("dev", "test"):
        data = folder / "data" / f"tiny-{split}.txt"
        alone = plain_predictions(model, data, folder / "model.model", batch_size=1)
        written = [guess for guess, _ in read_examples(folder / output_name(option, split))]
        assert written == alone


def test_labels_are_those_of_the_data_where_the_default_names_are_another_set(
    folder: Path,
) -> None:
    lines = "".join(f"{label % 3} ||| film {label}\n" for label in range(9))
    (folder / "data" / "tiny-train.txt").write_text(lines)
    train("finetune", "--label-names", "data/cfimdb-label-mapping.json", "--epochs", "1")
    saved = load_plain(folder / f"finetune-tiny-1-{LR}.pt")
    assert saved["model"]["classifier_head.weight"].shape == (3, 32)


# LoRA

TARGETS = {
    "default": ((), ATTENTION),
    "query and value": (
        ("--lora_targets", "compute_query,compute_value"),
        ("compute_query", "compute_value"),
    ),
    "rank and alpha": (("--lora_rank", "2", "--lora_alpha", "8"), ATTENTION),
    "feed-forward": (("--lora_targets", "w1,w2"), ("w1", "w2")),
}


@pytest.mark.parametrize(("arguments", "targets"), TARGETS.values(), ids=TARGETS)
def test_lora_changes_its_targets_alone_and_by_its_adapters(
    arguments: tuple[str, ...],
    targets: tuple[str, ...],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with spy(monkeypatch) as record:
        train("lora", *arguments)
    base = load_pretrained("model.pt").state_dict()
    merged = load_plain(folder / f"lora-tiny-{EPOCHS}-{LR}.pt")["model"]
    saved = load_plain(folder / f"lora-tiny-{EPOCHS}-{LR}.adapters.pt")
    rank, alpha = (2, 8.0) if "--lora_rank" in arguments else (4, 1.0)
    assert (saved["rank"], saved["alpha"], saved["targets"]) == (rank, alpha, list(targets))
    head = {"classifier_head.weight", "classifier_head.bias"}
    assert merged.keys() == {f"llama.{name}" for name in base} | head
    changed = set()
    for name, tensor in base.items():
        expected, module = tensor.clone(), name.removesuffix(".weight")
        if module.rpartition(".")[2] in targets:
            down = saved["adapters"].pop(f"{module}.lora_A")
            up = saved["adapters"].pop(f"{module}.lora_B")
            assert (down.shape, up.shape) == ((rank, tensor.shape[1]), (tensor.shape[0], rank))
            expected += alpha / rank * (up @ down)
            torch.testing.assert_close(merged[f"llama.{name}"], expected, atol=1e-6, rtol=0)
        else:
            assert torch.equal(merged[f"llama.{name}"], tensor)
        if not torch.equal(merged[f"llama.{name}"], tensor):
            changed.add(name)
    assert changed == {name for name in base if name.split(".")[-2] in targets}
    assert saved["adapters"] == {}
    start = record["start"].classifier_head
    assert not torch.equal(merged["classifier_head.weight"], start.weight)


@pytest.mark.parametrize("targets", ["output", "compute_query,output", "output,output"])
def test_adapters_that_would_learn_nothing_are_refused(
    targets: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever else gets some: the classifier reads hidden states, never the output layer."""
    message = refusal("lora", capsys, "--lora_targets", targets)
    for part in ("--lora_targets output is not allowed", "never reads llama.output", "leave it"):
        assert part in message
    assert not list(folder.glob("lora-*"))


@pytest.mark.parametrize("whole", ["lora"], indirect=True)
def test_the_printed_number_of_parameters_that_lora_trains(whole: Result) -> None:
    """Adapters and head, of these and the model, whose two embeddings are one tensor or two."""
    saved = load_plain(next(whole.folder.glob("*.adapters.pt")))
    trained = sum(tensor.numel() for tensor in saved["adapters"].values()) + 2 * 32 + 2
    base = load_pretrained(whole.folder / "model.pt")
    every = trained + sum({p.data_ptr(): p.numel() for p in base.parameters()}.values())
    share = 100 * trained / every
    assert f"LoRA: trains {trained:,} of {every:,} parameters ({share:.1f} %)" in whole.lines


# Interruption


def call_that_fails(function: Callable, at: int, error: BaseException) -> Callable:
    """`function`, but its call number `at`, counted from 1, raises."""
    calls = 0

    def counted(*args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error
        return function(*args, **options)

    return counted


def resume(whole: Result, folder: Path, first_epoch: int) -> None:
    """Resume in `folder`, and compare with the run that was never interrupted."""
    with contextlib.chdir(folder):
        lines = train(whole.option, "--resume").splitlines()
    prefix = PREFIXES[whole.option] + " "
    epoch_lines = [line for line in lines if line.startswith(prefix)]
    assert epoch_lines == whole.epoch_lines()[first_epoch:]
    assert lines[-4:] == whole.lines[-4:]
    assert_same_result(whole, folder)


# With batches of 8 an epoch has 3 steps: call 5 is in the middle of epoch 1.
@pytest.mark.parametrize(("step", "epochs_done"), [(2, 0), (4, 1), (5, 1), (9, 2)])
def test_an_error_in_the_middle_of_an_epoch_can_be_resumed(
    step: int, epochs_done: int, whole: Result, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        failing = call_that_fails(F.nll_loss, step, RuntimeError("power cut"))
        patch.setattr(F, "nll_loss", failing)
        train(whole.option)
    resume(whole, folder, first_epoch=epochs_done)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_an_error_after_the_last_epoch_can_be_resumed(
    split: str, whole: Result, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ["dev", "test"].index(split) + 1
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        failing = call_that_fails(scoring.write_predictions, at, RuntimeError("power cut"))
        patch.setattr(scoring, "write_predictions", failing)
        train(whole.option)
    resume(whole, folder, first_epoch=EPOCHS)


@pytest.mark.parametrize("save", [1, 2, 3, 4, 5, 6])
def test_a_full_disk_can_be_resumed(
    save: int,
    whole: Result,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every state between the files of an epoch: each save in turn fails."""
    with monkeypatch.context() as patch:
        failing = call_that_fails(torch.save, save, OSError(28, "No space left on device"))
        patch.setattr(torch, "save", failing)
        try:
            train(whole.option)
        except SystemExit as stop:
            assert "No space left on device" in str(stop.code)
            assert not list(folder.glob(".*"))
            done = epochs_done_in(folder)
        else:  # fewer saves than that: epochs that are not the best save one file
            assert save > EPOCHS
            done = None
    assert capsys.readouterr().err == ""
    if done is not None:
        resume(whole, folder, first_epoch=done)


def epochs_done_in(folder: Path) -> int:
    states = list(folder.glob("*.resume.pt"))
    return load_plain(states[0])["epochs_done"] if states else 0


def test_resuming_where_nothing_was_interrupted_begins_at_epoch_0(
    whole: Result, folder: Path
) -> None:
    resume(whole, folder, first_epoch=0)


# A run whose save number argv[1] gets half a file and then waits to be killed.
WAITING_RUN = """
import signal, sys, time
import torch
import run_llama

signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have it ignored
save, saves = torch.save, 0

def save_or_wait(content, file):
    global saves
    saves += 1
    if saves == int(sys.argv[1]):
        file.write(b"half a file")
        file.flush()
        print("waiting", flush=True)
        time.sleep(100)
    save(content, file)

torch.save = save_or_wait
run_llama.main(sys.argv[2:])
"""


@dataclass
class Stopped:
    """A process that a signal has ended while it was writing a file of epoch 1."""

    folder: Path
    returncode: int
    printed: str
    error: str
    before: dict[str, str]  # hashes of the folder's files just before the signal


def start(folder: Path, option: str, save: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WAITING_RUN, str(save), *command(option)],
        cwd=folder,
        # Other string hashes than here: no result may depend on the order of a set.
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop(process: subprocess.Popen[str], folder: Path, number: signal.Signals) -> Stopped:
    printed = ""
    while not printed.endswith("waiting\n"):
        line = process.stdout.readline()
        assert line, process.stderr.read()
        printed += line
    before = file_hashes(folder)
    process.send_signal(number)
    rest, error = process.communicate(timeout=60)
    return Stopped(folder, process.returncode, printed + rest, error, before)


# In epoch 0 finetune saves twice (best model, state to resume from) and lora three times (adapters
# too): these are the first saves of epoch 1.
STOPS = [
    ("finetune", 3, signal.SIGTERM),
    ("finetune", 3, signal.SIGINT),
    ("lora", 4, getattr(signal, "SIGKILL", None)),  # Windows has none
]


@pytest.fixture(scope="module")
def stopped(
    tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[signal.Signals, Stopped]:
    """Three runs that a signal has ended; they start together, for most of it is importing."""
    folders = [tmp_path_factory.mktemp("stopped") / option for option, *_ in STOPS]
    processes = []
    try:
        for folder, (option, save, _) in zip(folders, STOPS, strict=True):
            shutil.copytree(tiny_folder, folder)
            processes.append(start(folder, option, save))
        return {
            number: stop(process, folder, number)
            for process, folder, (_, _, number) in zip(processes, folders, STOPS, strict=True)
        }
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.skipif(os.name != "posix", reason="the signals are those of POSIX")
@pytest.mark.parametrize(
    ("whole", "number", "status", "error"),
    [
        ("finetune", signal.SIGTERM, 143, ""),
        ("finetune", signal.SIGINT, 130, r"[^\n]*interrupted\n"),
        ("lora", STOPS[2][2], -9, ""),
    ],
    indirect=["whole"],
)
def test_a_killed_process_can_be_resumed(
    whole: Result,
    number: signal.Signals,
    status: int,
    error: str,
    stopped: dict[signal.Signals, Stopped],
) -> None:
    run = stopped[number]
    assert run.returncode == status
    assert re.fullmatch(error, run.error)
    temporary = {name for name in run.before if name.endswith(".tmp")}
    assert len(temporary) == 1
    is_kill = status < 0  # nothing can be cleaned up then, before the next run
    kept = {k: v for k, v in run.before.items() if is_kill or k not in temporary}
    assert file_hashes(run.folder) == kept
    assert load_plain(run.folder / whole.checkpoint.name)["epoch"] == 0
    (epoch_line,) = [line for line in run.printed.splitlines() if "train loss" in line]
    assert epoch_line == whole.epoch_lines()[0]
    resume(whole, run.folder, first_epoch=1)


# Resuming with something else


@pytest.fixture(scope="module")
def interrupted(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a lora run with --checkpoint_out best.pt ended in epoch 1."""
    folder = tmp_path_factory.mktemp("interrupted") / "lora"
    shutil.copytree(tiny_folder, folder)
    failing = call_that_fails(F.nll_loss, 5, RuntimeError("power cut"))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setattr(F, "nll_loss", failing)
        with pytest.raises(RuntimeError, match="power cut"):
            train("lora", "--checkpoint_out", "best.pt")
    signal.signal(signal.SIGTERM, handler)
    return folder


@pytest.fixture
def stopped_folder(interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


OTHER_SETTINGS = [
    ("--seed 7", ["seed 1337", "7"]),
    ("--batch_size 4", ["batch_size 8", "4"]),
    ("--lr 0.02", ["lr 0.01", "0.02"]),
    ("--hidden_dropout_prob 0.1", ["hidden_dropout_prob 0.3", "0.1"]),
    ("--mask_padding", ["mask_padding False", "True"]),
    ("--dtype bfloat16", ["dtype float32", "bfloat16"]),
    ("--max_sentence_len 9", ["max_sentence_len None", "9"]),
    ("--norm layernorm", ["norm rmsnorm", "layernorm"]),
    ("--edition fall2024", ["attention causal", "bidirectional"]),
    ("--lora_rank 2", ["lora_rank 4", "2"]),
    ("--lora_alpha 2", ["lora_alpha 1.0", "2.0"]),
    ("--lora_targets compute_query", ["lora_targets", "compute_query"]),
    ("--option finetune", ["option lora", "finetune"]),
    ("--train data/tiny-dev.txt", ["train"]),
    ("--dev data/tiny-test.txt", ["dev"]),
]


@pytest.mark.parametrize(("arguments", "parts"), OTHER_SETTINGS)
def test_resuming_with_other_settings_is_refused(
    arguments: str, parts: list[str], stopped_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file_hashes(stopped_folder)
    option = "finetune" if "finetune" in arguments else "lora"
    more = [] if option == "finetune" else arguments.split()
    message = refusal(option, capsys, "--checkpoint_out", "best.pt", "--resume", *more)
    for part in ("--resume", "best.resume.pt", "same settings", *parts):
        assert part in message
    assert file_hashes(stopped_folder) == before


def test_resuming_with_another_number_of_labels_is_refused(
    stopped_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stopped_folder / "data" / "labels.json").write_text('["bad", "good", "great"]')
    with pytest.raises(SystemExit) as stop:
        train("lora", "--checkpoint_out", "best.pt", "--resume")
    assert "--resume" in str(stop.value.code)


def test_resuming_on_another_pretrained_model_is_refused(
    stopped_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(vocab_size=300, max_seq_len=64, norm="rmsnorm", attention="causal")
    save_checkpoint(stopped_folder / "model.pt", config, random_llama(config, seed=9).state_dict())
    message = refusal("lora", capsys, "--checkpoint_out", "best.pt", "--resume")
    assert "model.pt" in message


def test_a_run_that_starts_again_forgets_the_state_of_an_older_one(
    stopped_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else resuming the older run could end with the newer one's checkpoint; but not before the
    newer run has a checkpoint.
    """
    older = (stopped_folder / "best.resume.pt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(F, "nll_loss", call_that_fails(F.nll_loss, 1, RuntimeError("power cut")))
        with pytest.raises(RuntimeError, match="power cut"):
            train("lora", "--checkpoint_out", "best.pt", "--seed", "7")
    assert (stopped_folder / "best.resume.pt").read_bytes() == older
    failing = call_that_fails(finetune.save_progress, 1, RuntimeError("power cut"))
    monkeypatch.setattr(finetune, "save_progress", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        train("lora", "--checkpoint_out", "best.pt", "--seed", "7")
    assert not (stopped_folder / "best.resume.pt").exists()


def test_more_epochs_can_be_had_by_resuming(stopped_folder: Path, tmp_path: Path) -> None:
    more = ("--checkpoint_out", "best.pt", "--epochs", "5")
    names = [output_name("lora", split) for split in ("dev", "test")] + ["best.pt"]
    train("lora", *more, "--resume")
    resumed = [file_hash(Path(name)) for name in names]
    assert not list(stopped_folder.glob("*.resume.pt"))
    train("lora", *more)
    assert [file_hash(Path(name)) for name in names] == resumed


def test_the_state_to_resume_from_holds_plain_data_alone(interrupted: Path) -> None:
    state = load_plain(interrupted / "best.resume.pt")
    optimizer = state.pop("optimizer")
    assert_plain(state)
    assert_plain({str(key): value for key, value in optimizer["state"].items()})
    assert state["epochs_done"] == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"half a file",
        None,
    ],
    ids=["empty", "noise", "a checkpoint"],
)
def test_a_damaged_state_to_resume_from_is_refused(
    content: bytes | None, stopped_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is None:
        content = (stopped_folder / "model.pt").read_bytes()
    (stopped_folder / "best.resume.pt").write_bytes(content)
    message = refusal("lora", capsys, "--checkpoint_out", "best.pt", "--resume")
    assert "best.resume.pt" in message


def test_resuming_without_the_best_checkpoint_says_so_before_training(
    stopped_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (stopped_folder / "best.pt").unlink()
    # As if no later epoch were better.
    monkeypatch.setattr(finetune, "accuracy", lambda *_: 0.0)
    message = refusal("lora", capsys, "--checkpoint_out", "best.pt", "--resume")
    assert "best.pt" in message
    assert load_plain(stopped_folder / "best.resume.pt")["epochs_done"] == 1


# What stops a run


def test_a_loss_that_is_not_a_number_stops_the_first_epoch(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name for path in folder.iterdir()}
    message = refusal("finetune", capsys, "--lr", "1e30")
    assert re.search(r"the loss is (nan|inf)", message)
    assert "epoch 0" in message
    assert "lower --lr 1e+30" in message
    assert {path.name for path in folder.iterdir()} == before


@pytest.mark.parametrize("option", ENDINGS)
def test_a_loss_that_is_not_a_number_keeps_the_last_good_checkpoint(
    option: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = 0
    nll_loss = F.nll_loss

    def nan_in_epoch_1(*args: object, **options: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return nll_loss(*args, **options) * (float("nan") if calls == 5 else 1)

    monkeypatch.setattr(F, "nll_loss", nan_in_epoch_1)
    with spy(monkeypatch) as record:
        message = refusal(option, capsys)
    assert "the loss is nan in epoch 1" in message
    saved = load_plain(folder / f"{option}-tiny-{EPOCHS}-{LR}.pt")
    assert saved["epoch"] == 0
    head = record["states"][0]["classifier_head.weight"]
    assert torch.equal(saved["model"]["classifier_head.weight"], head)
    load_classifier(folder / f"{option}-tiny-{EPOCHS}-{LR}.pt")
    assert not list(folder.glob("*-output.txt"))


@pytest.mark.parametrize("option", ENDINGS)
def test_weights_that_are_not_numbers_are_never_saved(
    option: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One batch an epoch: its loss is finite, and the weights after its step are not."""

    def spoil(self: AdamW) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.fill_(float("inf"))

    monkeypatch.setattr(AdamW, "step", spoil)
    message = refusal(option, capsys, "--lr", "0.5", "--batch_size", "100", "--epochs", "1")
    assert "lower --lr 0.5" in message
    assert not list(folder.glob(f"{option}-*.pt"))


DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.mark.parametrize("option", ENDINGS)
def test_too_little_free_disk_is_refused_before_training(
    option: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {path.name for path in folder.iterdir()}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**12, 10**12 - 1000, 1000))
    monkeypatch.setattr(finetune, "train", None)  # calling it would be a TypeError
    message = refusal(option, capsys)
    assert "MB free" in message
    assert "--checkpoint_out" in message
    assert str(folder) in message
    assert {path.name for path in folder.iterdir()} == before


def least_free_disk(path: Path, model: torch.nn.Module, patch: pytest.MonkeyPatch) -> int:
    """The fewest free bytes with which training would start."""
    refused, accepted = 0, 2**40
    while accepted - refused > 1:
        free = (refused + accepted) // 2
        patch.setattr(shutil, "disk_usage", lambda _, free=free: DiskUsage(free, 0, free))
        try:
            finetune.check_free_disk(path, model)
        except ValueError:
            refused = free
        else:
            accepted = free
    return accepted


def tensor_bytes(content: Any) -> int:
    """What a file's tensors take; a tied embedding is in it once."""
    storages = {}

    def walk(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            storages[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
        for value in part.values() if isinstance(part, dict) else ():
            walk(value)

    walk(content)
    return sum(storages.values())


def test_the_disk_that_is_asked_for_is_enough(
    whole: Result, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(F, "nll_loss", call_that_fails(F.nll_loss, 5, RuntimeError("power cut")))
        train(whole.option)
    sizes = [tensor_bytes(load_plain(path)) for path in folder.glob(f"{whole.option}-*.pt")]
    assert len(sizes) == {"finetune": 2, "lora": 3}[whole.option]
    # At the most there are all files, and one of them a second time, unfinished.
    needed = least_free_disk(Path("best.pt"), whole.start, monkeypatch)
    assert needed >= sum(sizes) + max(sizes)


# The cost


@pytest.mark.parametrize("option", ENDINGS)
def test_every_text_is_tokenised_once_a_run(
    option: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    encode = Tokenizer.encode

    def encode_and_count(self: Tokenizer, text: str, *args: Any, **options: Any) -> list[int]:
        seen.append(text)
        return encode(self, text, *args, **options)

    monkeypatch.setattr(Tokenizer, "encode", encode_and_count)
    train(option)
    texts = [
        sentence.strip()
        for split in ("train", "dev", "test")
        for _, sentence in read_examples(folder / "data" / f"tiny-{split}.txt")
    ]
    assert sorted(seen) == sorted(texts)


def test_the_checkpoint_says_what_whoever_uses_it_must_know(whole: Result) -> None:
    """Labels, mask, tokenizer, data: of finetune and of lora, in the model and in the adapters."""
    model = whole.folder / "model.model"
    facts = {
        "option": whole.option,
        "dataset": "tiny",
        "label_names": ["bad", "good"],
        "mask_padding": False,
        "max_sentence_len": None,
        "batch_size": 8,
        "dtype": "float32",
    }
    tokenizer = {"name": "model.model", "path": "model.model", "sha256": file_hash(model)}
    files = [whole.checkpoint, *whole.folder.glob("*.adapters.pt")]
    assert len(files) == (2 if whole.option == "lora" else 1)
    for path in files:
        saved = load_plain(path)
        assert saved | facts == saved and saved["tokenizer"] == tokenizer, path.name


@pytest.mark.parametrize("option", ["finetune", "lora"])
def test_a_checkpoint_says_that_its_padding_was_masked(option: str, folder: Path) -> None:
    train(option, "--mask_padding", "--max_sentence_len", "5", "--epochs", "1")
    for path in folder.glob(f"{option}-tiny-*.pt"):
        saved = load_plain(path)
        assert saved["mask_padding"] is True and saved["max_sentence_len"] == 5, path.name
