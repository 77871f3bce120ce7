"""addition_run.py: the loss, runs of seconds with their files, resuming, the test, refusals."""

import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

import addition_run
from addition_data_generation import generate_addition_data
from addition_lib import Batches, make_dataset
from config import LlamaConfig
from llama import Llama
from mini_llama.addition import testing, training
from mini_llama.addition.options import TestOptions, TrainOptions, count_samples
from optimizer import AdamW
from tests.helpers import assert_relative, random_llama, refusal_of

SHAPE = ["--dim", "8", "--n_layers", "2", "--n_heads", "2", "--n_kv_heads", "1"]
PARAMETERS = 13 * 8 + 2 * (2 * 64 + 2 * 32 + 3 * 8 * 32 + 4 * 8) + 2 * 8
CAPACITY = 6 * PARAMETERS * 3 * 200  # 3 epochs of 200 additions
FILES = {"best_model.pth", "loss_curve.png", "training_config.json", "model_config.json"}
RESULTS = {"experiment_summary.json", "predictions.json"}


def config(**changes: int) -> LlamaConfig:
    return dataclasses.replace(TrainOptions(dim=16, n_layers=2).model_config(), **changes)


def arguments(folder: Path, *more: str, epochs: int = 3, name: str = "best_model") -> list[str]:
    given = ["train", *SHAPE, "--epochs", str(epochs), "--capacity", str(CAPACITY)]
    given += ["--batch_size", "64", "--lr", "0.01", "--save_dir", str(folder / name)]
    for flag in ("train", "val", "test"):
        given += [f"--{flag}_file", str(folder / f"{flag}.txt")]
    return [*given, *more]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a test file of 40 additions."""
    lines = generate_addition_data(40, generator=np.random.default_rng(5))
    (tmp_path / "test.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


def pairs_of(path: Path) -> set[tuple[str, ...]]:
    return {tuple(sorted(line.split("=")[0].split("+"))) for line in lines_of(path)}


# The loss


def test_the_loss_is_on_what_follows_equals():
    """Against the sum over these columns alone, written out in float64."""
    words = ["1234+5678=6912", "9000+1000=10000", "1000+1000=2000"]
    model = random_llama(config())
    x, y = make_dataset(words).batch(torch.arange(3))
    with torch.no_grad():
        logits, _ = model(x, targets=y)
    total, count = 0.0, 0
    for row, word in enumerate(words):
        scores = torch.log_softmax(logits[row].double(), dim=-1)
        answer = [int(digit) + 2 for digit in word.split("=")[1]] + [0]
        for column, target in enumerate(answer, start=10):
            total, count = total - scores[column, target].item(), count + 1
    assert count == 5 + 6 + 5
    loss = addition_run.answer_loss(model, x, y)
    assert_relative(loss.detach(), total / count, 1e-6)


def test_questions_of_any_length_carry_no_loss():
    model, words = random_llama(config()), ["5+6=11", "12345+1=12346"]
    x, y = make_dataset(words).batch(torch.arange(2))
    every = torch.nn.functional.cross_entropy(
        model(x, targets=y)[0].flatten(0, 1), y.flatten(), ignore_index=-1, reduction="none"
    ).view(2, -1)
    columns = [(0, 4, 7), (1, 8, 14)]  # after the = up to the end
    kept = torch.cat([every[row, start:end] for row, start, end in columns])
    assert_relative(addition_run.answer_loss(model, x, y).detach(), kept.mean().detach(), 1e-6)


def test_evaluation_is_the_mean_over_batches_and_changes_nothing():
    model, dataset = random_llama(config()), make_dataset(generate_addition_data(10))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = list(Batches(dataset, 4))
    expected = [addition_run.answer_loss(model, x, y).item() for x, y in batches]
    model.train()
    found = addition_run.evaluate_loss(model, batches, torch.device("cpu"))
    assert math.isclose(found, sum(expected) / 3, rel_tol=1e-6)
    assert not model.training
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_an_epoch_is_one_step_a_batch():
    """The same as a loop of its own with torch's gradients and torch.optim.SGD."""
    models = [random_llama(config()) for _ in range(2)]
    batches = list(Batches(make_dataset(generate_addition_data(10)), 4))
    optimizer = torch.optim.SGD(models[0].parameters(), lr=0.1)
    models[0].eval()
    loss = addition_run.train_one_epoch(models[0], batches, optimizer, torch.device("cpu"))
    assert models[0].training
    losses = []
    for x, y in batches:
        value = addition_run.answer_loss(models[1], x, y)
        gradients = torch.autograd.grad(value, list(models[1].parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(models[1].parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
        losses.append(value.item())
    assert math.isclose(loss, sum(losses) / 3, rel_tol=1e-6)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


# Training


@pytest.mark.parametrize(
    ("capacity", "parameters", "epochs", "expected"),
    [
        (5_808_844_800_000, 134_880, 40, (179_445, 35_889)),
        (2_000_000_000_000, 667_296, 10, (49_953, 9_991)),
        (600, 10, 10, (1, 1)),
        (601, 10, 10, (2, 1)),
    ],
)
def test_the_number_of_samples(
    capacity: int, parameters: int, epochs: int, expected: tuple[int, int]
):
    """The first two are of runs of the handout's own code."""
    assert count_samples(capacity, parameters, epochs) == expected


@pytest.mark.parametrize(
    ("dim", "n_layers", "n_heads", "parameters"),
    [(16, 6, 4, 25_200), (16, 2, 4, 8_560), (12, 3, 3, 5_508), (8, 3, 2, 3_288), (8, 1, 2, 1_176)],
)
def test_parameters_are_those_of_the_course(dim: int, n_layers: int, n_heads: int, parameters: int):
    """What students' summaries say of these shapes."""
    options = TrainOptions(dim=dim, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_heads)
    assert sum(p.numel() for p in Llama(options.model_config()).parameters()) == parameters


def test_a_run_prints_and_writes(folder: Path, capsys: pytest.CaptureFixture[str]):
    addition_run.main(arguments(folder))
    printed = capsys.readouterr().out
    assert f"\nmodel parameters are {PARAMETERS}\n" in printed
    assert f"\n200 data points saved to {folder / 'train.txt'}\n" in printed
    epochs = re.findall(
        r"^Epoch (\d\d) \| train loss: (\d\.\d{4}) \| val loss: (\d\.\d{4})$", printed, re.MULTILINE
    )
    assert [epoch for epoch, *_ in epochs] == ["01", "02", "03"]
    assert float(epochs[-1][1]) < float(epochs[0][1])
    saved = folder / "best_model"
    assert {path.name for path in saved.iterdir()} == FILES
    assert (saved / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((saved / "model_config.json").read_text()) == {
        "vocab_size": 13, "dim": 8, "dropout": 0.0, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1,
        "max_seq_len": 20, "layer_norm_eps": 1e-5, "multiple_of": 32, "hidden_dim": None,
        "position_embedding_type": "rotary", "use_cache": True,
    }  # fmt: skip
    record = json.loads((saved / "training_config.json").read_text())
    assert record.items() >= {
        "capacity": CAPACITY, "n_epochs": 3, "batch_size": 64, "save_dir": str(saved),
        "model_parameters": PARAMETERS, "train_samples": 200,
    }.items()  # fmt: skip
    content = torch.load(saved / "best_model.pth", weights_only=True)
    assert content["model"].keys() == Llama(config(dim=8, n_kv_heads=2)).state_dict().keys()
    assert min(float(val) for *_, val in epochs) == round(content["val_loss"], 4)


def test_its_files_share_no_pair(folder: Path):
    addition_run.main(arguments(folder))
    paths = [folder / f"{name}.txt" for name in ("train", "val", "test")]
    assert [len(pairs_of(path)) for path in paths] == [200, 40, 40]
    assert len(set.union(*map(pairs_of, paths))) == 280


def test_it_is_our_adamw_at_the_rate_that_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = []

    def spy(model, loader, optimizer, device):
        seen.append((type(optimizer), optimizer.defaults["lr"], optimizer.defaults["weight_decay"]))
        return addition_run_epoch(model, loader, optimizer, device)

    addition_run_epoch = addition_run.train_one_epoch
    monkeypatch.setattr(addition_run, "train_one_epoch", spy)
    addition_run.main(arguments(folder))
    assert seen == [(AdamW, 0.01, 0.0)] * 3


SCHEDULERS = {
    "none": lambda optimizer, _: lr_scheduler.ConstantLR(optimizer, factor=1.0),
    "linear": lambda optimizer, n: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=n),
    "cosine": lr_scheduler.CosineAnnealingLR,
}


@pytest.mark.parametrize("decay", SCHEDULERS)
def test_learning_rates_are_those_of_torchs_schedulers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, decay: str
):
    """Step by step over three epochs of four batches, in both parameter groups."""
    found: list[list[float]] = []

    def record(model, loader, optimizer, device):
        for _ in loader:
            optimizer.step()
            found.append([group["lr"] for group in optimizer.param_groups])
        return 1.0

    def in_two_groups(parameters, lr):
        first, *rest = parameters
        return AdamW([{"params": [first]}, {"params": rest}], lr=lr)

    monkeypatch.setattr(addition_run, "train_one_epoch", record)
    monkeypatch.setattr(training, "AdamW", in_two_groups)
    addition_run.main(arguments(folder, "--lr_decay", decay))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler = SCHEDULERS[decay](optimizer, 12)
    expected = []
    for _ in range(12):
        expected.append(scheduler.get_last_lr() * 2)
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-9)
    assert len({rate for rate, _ in found}) == (1 if decay == "none" else 12)
    record_of_run = json.loads((folder / "best_model" / "training_config.json").read_text())
    assert record_of_run["lr_decay"] == decay


def test_the_curve_shows_small_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The difference between 99 % and 100 % is one between losses of 0.01 and 0.0001."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    history = [(1.4, 1.2), (0.01, 0.02), (1e-4, 1e-5)]
    training.draw(history, tmp_path / "curve.png")
    monkeypatch.undo()
    [axes] = drawn[0].axes
    assert axes.get_yscale() == "log"
    shown = [[tuple(point) for point in line.get_xydata().tolist()] for line in axes.lines]
    assert shown == [[(i + 1, losses[k]) for i, losses in enumerate(history)] for k in (0, 1)]
    pyplot.close(drawn[0])


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_learning_rate_ends_at_0_and_stays_there(decay: str):
    """Also for a train_one_epoch that takes more steps than there are batches."""
    options = TrainOptions(lr=0.5, lr_decay=decay)
    rates = [training.learning_rate(options, step, 10) for step in (0, 5, 10, 11, 25)]
    assert rates == pytest.approx([0.5, 0.25, 0.0, 0.0, 0.0], abs=1e-12)


class InterruptedRunError(Exception):
    pass


@pytest.mark.parametrize("decay", ["none", "cosine"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], decay: str
):
    addition_run.main(arguments(folder, "--lr_decay", decay, name="whole"))
    whole = capsys.readouterr().out
    original, calls = training.run_epoch, []

    def interrupt(*given):
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedRunError
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(training, "run_epoch", interrupt)
        with pytest.raises(InterruptedRunError):
            addition_run.main(arguments(folder, "--lr_decay", decay))
    assert (folder / "best_model" / "progress.pth").exists()
    capsys.readouterr()
    torch.manual_seed(99)
    addition_run.main(arguments(folder, "--lr_decay", decay, "--resume"))
    resumed = capsys.readouterr().out
    assert "2 of 3 epochs are done" in resumed
    last = re.search("^Epoch 03.*$", whole, re.MULTILINE)
    assert last is not None and last[0] in resumed
    assert "Epoch 02" not in resumed
    models = [
        torch.load(folder / name / "best_model.pth", weights_only=True)
        for name in ("whole", "best_model")
    ]
    assert models[0]["epoch"] == models[1]["epoch"] == 3
    for name, tensor in models[0]["model"].items():
        assert torch.equal(tensor, models[1]["model"][name]), name
    curves = [(folder / name / "loss_curve.png").read_bytes() for name in ("whole", "best_model")]
    assert curves[0] == curves[1]
    assert not (folder / "best_model" / "progress.pth").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--lr", "0.02"], "with lr 0.01, not 0.02"),
        (["--lr_decay", "linear"], "with lr_decay none, not linear"),
        (["--dim", "12"], "with dim 8, not 12"),
        (["--seed", "2"], "with seed 1337, not 2"),
    ],
)
def test_another_run_is_not_resumed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, changes: list[str], message: str
):
    with monkeypatch.context() as patch:
        patch.setattr(training, "draw", lambda *_: (_ for _ in ()).throw(InterruptedRunError))
        with pytest.raises(InterruptedRunError):
            addition_run.main(arguments(folder))
    with pytest.raises(SystemExit) as error:
        addition_run.main(arguments(folder, *changes, "--resume"))
    assert message in str(error.value.code)


def test_other_data_is_not_resumed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(training, "draw", lambda *_: (_ for _ in ()).throw(InterruptedRunError))
        with pytest.raises(InterruptedRunError):
            addition_run.main(arguments(folder))
    first = lines_of(folder / "train.txt")[0]
    (folder / "test.txt").write_text("\n".join([first, *lines_of(folder / "test.txt")]))
    with pytest.raises(SystemExit) as error:
        addition_run.main(arguments(folder, "--resume"))
    assert "was written with data " in str(error.value.code)


def test_an_older_models_results_do_not_stay(folder: Path):
    addition_run.main(arguments(folder))
    checkpoint = str(folder / "best_model" / "best_model.pth")
    addition_run.main(["test", "--checkpoint", checkpoint, "--test_file", str(folder / "test.txt")])
    assert {path.name for path in (folder / "best_model").iterdir()} == FILES | RESULTS
    with pytest.raises(SystemExit) as error:
        addition_run.main(arguments(folder, "--seed", "2"))
    assert "best_model.pth is there already: --resume" in str(error.value.code)
    with pytest.raises(SystemExit) as error:
        addition_run.main(arguments(folder, "--resume"))
    assert "the run is finished; --overwrite replaces it" in str(error.value.code)
    assert {path.name for path in (folder / "best_model").iterdir()} == FILES | RESULTS
    addition_run.main(arguments(folder, "--seed", "2", "--overwrite"))
    assert {path.name for path in (folder / "best_model").iterdir()} == FILES


def test_additions_of_ones_own_are_not_replaced(folder: Path):
    (folder / "train.txt").write_text("1000+1000=2000\n")
    with pytest.raises(SystemExit) as error:
        addition_run.main(arguments(folder))
    assert "train.txt is there already: --overwrite replaces it" in str(error.value.code)
    assert (folder / "train.txt").read_text() == "1000+1000=2000\n"


def test_reused_files_lose_what_the_test_has(folder: Path, capsys: pytest.CaptureFixture[str]):
    test = lines_of(folder / "test.txt")
    drawn = generate_addition_data(100, test, np.random.default_rng(1))
    turned = "{1}+{0}={2}".format(*re.split(r"[+=]", test[0]))
    files = {"train": [*drawn[:80], turned, test[1]], "val": [*drawn[80:], test[2], drawn[0]]}
    for name, lines in files.items():
        (folder / f"{name}.txt").write_text("\n".join(lines))
    addition_run.main(arguments(folder, "--reuse_files"))
    printed = capsys.readouterr().out
    assert f"{folder / 'train.txt'}: dropped 2 of 82 lines" in printed
    assert f"{folder / 'val.txt'}: dropped 2 of 22 lines" in printed
    assert [lines_of(folder / f"{name}.txt") for name in files] == list(files.values())
    record = json.loads((folder / "best_model" / "training_config.json").read_text())
    assert record["train_samples"] == 80


def test_a_test_file_that_is_not_there_is_said(folder: Path, capsys: pytest.CaptureFixture[str]):
    test = (folder / "test.txt").read_text()
    (folder / "test.txt").unlink()
    addition_run.main(arguments(folder, epochs=1))
    assert "its pairs cannot be excluded from training" in capsys.readouterr().err
    (folder / "test.txt").write_text(test)
    run_test(folder)
    assert "training did not exclude the pairs of" in capsys.readouterr().out


def run_test(folder: Path, *more: str) -> tuple[dict, list[str]]:
    saved = folder / "best_model"
    given = ["test", "--checkpoint", str(saved / "best_model.pth")]
    addition_run.main([*given, "--test_file", str(folder / "test.txt"), *more])
    summary = json.loads((saved / "experiment_summary.json").read_text())
    return summary, json.loads((saved / "predictions.json").read_text())


# Testing


class Adder(Llama):
    """Not a network: it writes what is right, and then what `rest` says."""

    rest = ""

    def forward(self, tokens, targets=None, lengths=None, cache=None, last_only=False):
        logits = torch.zeros(len(tokens), 1, 13)
        for row, ids in enumerate(tokens.tolist()):
            text = "".join("_+0123456789="[i] for i in ids).lstrip("_")
            question, _, written = text.partition("=")
            whole = str(sum(map(int, question.split("+")))) + self.rest
            is_done = len(written) >= len(whole)
            char = "_" if is_done else whole[len(written)]
            logits[row, 0, "_+0123456789=".index(char)] = 1.0
        return logits, logits


@pytest.mark.parametrize(
    ("rest", "max_gen_len", "n_right"), [("", 10, 3), ("=1", 10, 0), ("", 5, 3), ("", 4, 2)]
)
def test_answers_are_right_as_a_whole(rest: str, max_gen_len: int, n_right: int):
    """Questions of two lengths; with 4 tokens a sum of 5 digits stays incomplete."""
    additions = ["1234+5678=6912", "5+6=11", "9000+9000=18000"]
    model = Adder(config())
    model.rest = rest
    found = testing.answer(model.eval(), additions, max_gen_len, use_cache=False)
    assert [text.partition("=")[0] for text in found] == ["1234+5678", "5+6", "9000+9000"]
    assert sum(map(str.__eq__, found, additions)) == n_right
    if rest:
        assert found[1] == "5+6=11=1"


def test_cached_answers_are_those_of_the_plain_forward_pass():
    additions = [*generate_addition_data(50), "7+8=15", "123+4=127", "12345+1=12346"]
    for seed in range(3):
        model = random_llama(config(), seed)
        plain = testing.answer(model, additions, 9, use_cache=False)
        assert testing.answer(model, additions, 9) == plain
        assert len({text.partition("=")[2] for text in plain}) > 5


def test_a_test_prints_and_writes(folder: Path, capsys: pytest.CaptureFixture[str]):
    addition_run.main(arguments(folder))
    capsys.readouterr()
    summary, predictions = run_test(folder)
    printed = capsys.readouterr().out
    n_right = sum(map(str.__eq__, predictions, lines_of(folder / "test.txt")))
    assert "\ntest length 40\n" in printed and f"\nAccuracy: {n_right / 40}\n" in printed
    assert "did not exclude" not in printed
    assert summary.keys() == {"model_config", "train_config", "num_params", "accuracy"}
    assert summary["num_params"] == PARAMETERS and summary["accuracy"] == n_right / 40
    for name in ("model_config", "training_config"):
        path = folder / "best_model" / f"{name}.json"
        recorded = summary["train_config" if name == "training_config" else name]
        assert recorded == json.loads(path.read_text())
    questions = [line.partition("=")[0] for line in lines_of(folder / "test.txt")]
    assert [text.partition("=")[0] for text in predictions] == questions
    _, some = run_test(folder, "--max_test_examples", "7", "--max_gen_len", "2")
    assert "test length 7\n" in capsys.readouterr().out
    assert len(some) == 7 and all(len(text.partition("=")[2]) <= 2 for text in some)


def test_students_checkpoints_are_tested_too(folder: Path):
    """The course's code saves no model_args, and compiled models have a prefix."""
    addition_run.main(arguments(folder))
    expected = run_test(folder)
    path = folder / "best_model" / "best_model.pth"
    model = torch.load(path, weights_only=True)["model"]
    wrapped = {f"_orig_mod.{k}": v for k, v in model.items()}
    torch.save({"model": wrapped, "args": {"a": 1}, "numpy_rng": np.random.get_state()}, path)
    assert run_test(folder) == expected
    torch.save(model, path)
    assert run_test(folder) == expected


def refusal(folder: Path) -> str:
    with pytest.raises(SystemExit) as error:
        run_test(folder)
    message = str(error.value.code)
    assert message.startswith("addition_run.py: error: ") and "\n" not in message
    return message


def test_pickled_objects_are_refused_by_name(folder: Path):
    addition_run.main(arguments(folder, epochs=1))
    path = folder / "best_model" / "best_model.pth"
    content = torch.load(path, weights_only=True)
    torch.save(content | {"model": torch.nn.Linear(1, 1)}, path)
    message = refusal(folder)
    assert "torch.nn.modules.linear.Linear" in message and "save it again without" in message


def test_checkpoints_of_other_models_are_refused(folder: Path):
    addition_run.main(arguments(folder, epochs=1))
    path = folder / "best_model" / "best_model.pth"
    content = torch.load(path, weights_only=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refusal(folder)
    lost = {k: v for k, v in content["model"].items() if "layers.1.attention.compute_key" not in k}
    torch.save(content | {"model": lost}, path)
    assert "layers.1.attention.compute_key.weight" in refusal(folder)
    record = json.loads((folder / "best_model" / "model_config.json").read_text())
    (folder / "best_model" / "model_config.json").write_text(json.dumps(record | {"dim": 12}))
    torch.save({"model": content["model"]}, path)
    assert "(13, 12)" in refusal(folder).replace("[", "(").replace("]", ")")
    path.unlink()
    assert "is not a file" in refusal(folder)


def test_a_missing_test_file_says_where_it_should_be(folder: Path):
    addition_run.main(arguments(folder, epochs=1))
    (folder / "test.txt").unlink()
    message = refusal(folder)
    assert str(folder / "test.txt") in message and "addition_data_generation.py" in message


# The command line


def test_defaults_are_the_handout_s():
    options = TrainOptions()
    assert dataclasses.asdict(options).items() >= {
        "use_gpu": False, "seed": 1337, "epochs": 10, "batch_size": 1024, "lr": 1e-3,
        "lr_decay": "none",
        "save_dir": "addition_models/best_model/", "train_file": "data/addition_train.txt",
        "val_file": "data/addition_dev.txt", "dim": 16, "n_layers": 6, "n_heads": 4,
        "n_kv_heads": 4, "capacity": 5808844800000,
    }.items()  # fmt: skip
    assert TestOptions("x") == TestOptions("x", False, 1337, "data/addition_test.txt", 10, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["train", "--capcaity", "5"], "did you mean --capacity?"),
        (["train", "--capcaity=5"], "did you mean --capacity?"),
        (["train", "--n_layer", "5"], "did you mean --n_layers?"),
        (["train", "--lr_decay", "step"], "choose from 'none', 'linear', 'cosine'"),
        (["train", "--nonsense", "5"], "unrecognized arguments: --nonsense"),
        (["test"], "the following arguments are required: --checkpoint"),
    ],
)
def test_flags_that_are_not_ours(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as error:
        addition_run.main(given)
    printed = capsys.readouterr().err
    assert error.value.code == 2 and message in printed and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--epochs", "0"], "--epochs 0 is not allowed: it must be at least 1"),
        (["--lr", "nan"], "--lr nan is not allowed: it must be above 0"),
        (["--n_heads", "3"], "dim=16 is not allowed: it must be a multiple of n_heads=3"),
        (["--epochs", "1", "--dim", "8", "--n_layers", "1", "--n_heads", "2", "--n_kv_heads", "2"],
         "lower --capacity, or raise --epochs"),
    ],
)  # fmt: skip
def test_values_out_of_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], message: str
):
    """The last would need more additions than there are: the handout's loop never ends."""
    monkeypatch.chdir(tmp_path)
    status, error = refusal_of(addition_run.main, ["train", *given])
    assert status == 2 and message in error
    assert not list(tmp_path.glob("data/*"))


def test_an_unknown_decay_is_refused():
    with pytest.raises(
        ValueError, match=r"^--lr_decay step is not allowed: it must be one of none"
    ):
        TrainOptions(lr_decay="step")


def test_inputs_are_not_overwritten(folder: Path):
    before = hashlib.sha256((folder / "test.txt").read_bytes()).digest()
    words = [*arguments(folder), "--train_file", str(folder / "test.txt")]
    status, error = refusal_of(addition_run.main, words)
    assert status == 2 and "give two names" in error
    assert hashlib.sha256((folder / "test.txt").read_bytes()).digest() == before


def test_a_loss_that_is_not_finite_stops_the_run(folder: Path):
    with pytest.raises(SystemExit) as error:
        addition_run.main(arguments(folder, "--lr", "1e30"))
    assert "lower --lr 1e+30" in str(error.value.code)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize("command", ["train", "test"])
def test_a_gpu_that_is_not_there_is_said(folder: Path, command: str):
    addition_run.main(arguments(folder, epochs=1))
    checkpoint = str(folder / "best_model" / "best_model.pth")
    test = ["test", "--checkpoint", checkpoint, "--test_file", str(folder / "test.txt")]
    given = arguments(folder) if command == "train" else test
    with pytest.raises(SystemExit) as error:
        addition_run.main([*given, "--use_gpu"])
    assert "--use_gpu: torch finds neither a CUDA nor an MPS device" in str(error.value.code)
