"""addition.py: recomputed results, comparison with the claimed ones, and the messages."""

import json

import pytest

from mini_llama.addition.options import FIXED_SHAPE
from mini_llama.submissions.addition import AdditionTask, is_right, read_addition_task
from mini_llama.submissions.grading import Grade
from mini_llama.submissions.report import addition_cell

TEST = [f"{1000 + i}+{2000 + 3 * i}={3000 + 4 * i}" for i in range(100)]
SHAPE = {"dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4}
MODEL = FIXED_SHAPE | SHAPE | {"position_embedding_type": "rotary", "use_cache": True}
TRAINING = {"capacity": 5_808_844_800_000, "n_epochs": 8, "batch_size": 1024}
TRAINING |= {"save_dir": "x", "model_parameters": 8560, "train_samples": 14_137_569}


def wrong(line: str) -> str:
    question, _, answer = line.partition("=")
    return f"{question}={int(answer) + 1}"


def experiment(name: str, n_wrong: int = 0, **summary: object) -> dict[str, bytes]:
    predictions = [wrong(line) if i < n_wrong else line for i, line in enumerate(TEST)]
    content = {
        "experiment_summary.json": {
            "model_config": MODEL,
            "train_config": TRAINING,
            "num_params": 8560,
            "accuracy": 1 - n_wrong / len(TEST),
            **summary,
        },
        "predictions.json": predictions,
        "model_config.json": MODEL,
        "training_config.json": TRAINING,
    }
    files = {file: json.dumps(value).encode() for file, value in content.items()}
    files |= {"loss_curve.png": b"\x89PNG", "log.txt": b"Epoch", "best_model.pth": b"PK"}
    return {f"addition_models/{name}/{file}": value for file, value in files.items()}


@pytest.fixture
def files() -> dict[str, bytes]:
    """best_model, and five ablations, two of them below 100%."""
    found = experiment("best_model")
    for i, n_wrong in enumerate((0, 0, 0, 3, 90), 1):
        found |= experiment(f"ablation_{i}", n_wrong)
    return found


def read(files: dict[str, bytes], test: list[str] = TEST) -> AdditionTask:
    return read_addition_task(files, list(files), test)


def messages(task: AdditionTask) -> list[str]:
    return [str(problem) for problem in task.problems]


def test_a_complete_folder(files: dict[str, bytes]):
    task = read({**files, "llama.py": b"", "data/addition_models/x.json": b"{"})
    assert messages(task) == []
    assert [found.name for found in task.ablations] == [f"ablation_{i}" for i in range(1, 6)]
    accuracies = {name: found.accuracy for name, found in task.experiments.items()}
    assert accuracies["best_model"] == accuracies["ablation_3"] == 1.0
    assert (accuracies["ablation_4"], accuracies["ablation_5"]) == (0.97, 0.10)
    assert {found.parameters for found in task.experiments.values()} == {8560}
    assert addition_cell(Grade("x", experiments=tuple(task.experiments.values()))) == (
        "100.00% of 8,560"
    )


def test_nothing_submitted():
    [message] = messages(read({"llama.py": b""}))
    assert message.startswith("error: addition_models/: holds no experiments: 5 ablations")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"best_model": None}, "error: addition_models/: holds no best_model"),
        (
            {"best_model": experiment("best_model", 1)},
            "best_model has 99.00% accuracy, it must reach 100%",
        ),
        ({"ablation_2": None}, "holds 4 ablations, at least 5 are required"),
        (
            {"ablation_5": experiment("ablation_5")},
            "1 ablation is below 100%, at least 2 are required",
        ),
        ({"ablation_2": experiment("dim_12")}, "holds 4 ablations, at least 5 are required"),
        (
            {"ablation_2": experiment("ablation_2", accuracy=0.5)},
            "claims accuracy 0.5000, predictions.json has 1.0000: test again",
        ),
        (
            {"ablation_2": experiment("ablation_2", num_params=7)},
            "claims '7' parameters, the shape has 8560",
        ),
        (
            {"ablation_2": experiment("ablation_2", model_config=MODEL | {"dim": 12})},
            "has a different shape from model_config.json",
        ),
    ],
)
def test_requirements_for_experiments(files: dict[str, bytes], change: dict, expected: str):
    for name, replaced in change.items():
        files = {k: v for k, v in files.items() if not k.startswith(f"addition_models/{name}/")}
        files |= replaced or {}
    assert any(expected in message for message in messages(read(files)))


def replaced(files: dict[str, bytes], file: str, content: object) -> AdditionTask:
    """The files with the content of one of ablation_1's files replaced."""
    value = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read(files | {f"addition_models/ablation_1/{file}": value})


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("predictions.json", TEST[:-1], "has 99 predictions, the test has 100"),
        ("predictions.json", TEST[::-1], "100 predictions do not start with the test's question"),
        ("predictions.json", [1] * 100, "is not a list of strings"),
        ("predictions.json", {"a": TEST}, "is not a JSON list"),
        ("predictions.json", b"\xff", "is not JSON (line 1: byte 0xff is not UTF-8"),
        ("predictions.json", b"[" * 100_000, "nested too deeply"),
        ("predictions.json", b"[1" + b"0" * 5000 + b"]", "is not JSON"),
        ("predictions.json", [line + "=1" for line in TEST], "an answer followed by more text"),
        ("model_config.json", MODEL | {"dim": -3}, "does not describe a model: "),
        ("model_config.json", MODEL | {"dim": 15}, "does not describe a model: "),
        ("model_config.json", MODEL | {"dim": "16"}, "dim is '16', not a whole number"),
        ("model_config.json", MODEL | {"dim": True}, "dim is 'True', not a whole number"),
        ("model_config.json", MODEL | {"n_layers": 10**9}, "n_layers is more than 1,000"),
        ("model_config.json", MODEL | {"hidden_dim": [1]}, "does not describe a model: "),
        (
            "model_config.json",
            MODEL | {"vocab_size": 20},
            "changes what the task fixes: vocab_size='20'",
        ),
        ("model_config.json", [], "is not a JSON object"),
        ("training_config.json", TRAINING | {"capacity": 10**13}, "the course allows 5,808,844,"),
        ("training_config.json", TRAINING | {"train_samples": 10**9}, "its capacity allows "),
        ("training_config.json", {"capacity": "much"}, "lacks capacity, n_epochs"),
        ("experiment_summary.json", {}, "has no accuracy from 0 to 1"),
        ("experiment_summary.json", b'{"accuracy": NaN}', "has no accuracy from 0 to 1"),
    ],
)
def test_faulty_files(files: dict[str, bytes], file: str, content: object, expected: str):
    found = [message for message in messages(replaced(files, file, content)) if expected in message]
    assert len(found) == 1, messages(replaced(files, file, content))
    assert f"addition_models/ablation_1/{file}: " in found[0] or "more text" in found[0]
    assert "\n" not in found[0] and len(found[0]) < 400


@pytest.mark.parametrize("file", ["loss_curve.png", "log.txt", "predictions.json"])
def test_missing_files(files: dict[str, bytes], file: str):
    del files[f"addition_models/ablation_1/{file}"]
    [message] = messages(read(files))
    kinds = {"loss_curve.png": "no plot (.png, ", "log.txt": "no log (.log, "}
    kind = kinds.get(file, "not all of experiment_summary.json, predictions.json, ")
    assert message.startswith(f"warning: addition_models/: {kind}")
    assert message.endswith(" in 'ablation_1'")


def test_summary_replaces_missing_configurations(files: dict[str, bytes]):
    for file in ("model_config.json", "training_config.json"):
        del files[f"addition_models/ablation_1/{file}"]
    task = read(files)
    [message] = messages(task)
    assert message.endswith("model_config.json, training_config.json in 'ablation_1'")
    assert task.experiments["ablation_1"].parameters == 8560


def test_folders_of_any_depth_and_case(files: dict[str, bytes]):
    turned = {
        name.replace("/ablation_", "/runs/Ablation-dim").replace("best_model/", "Best_Model/"): text
        for name, text in files.items()
    }
    task = read(turned)
    assert messages(task) == [] and task.best is not None
    assert [found.accuracy for found in task.ablations] == [1.0, 1.0, 1.0, 0.97, 0.1]


def test_without_predictions_the_claim_is_shown(files: dict[str, bytes]):
    del files["addition_models/best_model/predictions.json"]
    task = read(files)
    assert task.best is not None and task.best.accuracy is None
    assert addition_cell(Grade("x", experiments=(task.best,))) == "100.00%? of 8,560"
    assert addition_cell(Grade("x")) == "-"


def test_without_the_test_file_sums_are_checked():
    lines = [f"{1000 + i % 9000}+{2000 + i // 9000}=" for i in range(10_000)]
    right = [line + str(eval(line[:-1])) for line in lines]
    files = experiment("best_model")
    name = "addition_models/best_model/predictions.json"
    found = read(files | {name: json.dumps([*right[:-1], wrong(right[-1])]).encode()}, [])
    assert found.experiments["best_model"].accuracy == 0.9999
    same = read(files | {name: json.dumps(right[:1] * 10_000).encode()}, [])
    assert any("has a question more than once" in message for message in messages(same))
    others = read(files | {name: json.dumps(["nothing"] * 10_000).encode()}, [])
    assert any(
        "10000 predictions do not start with a question" in message for message in messages(others)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1+2=3", True),
        ("1+2=4", False),
        ("1+2=3=", False),
        ("1+2=3 ", False),
        ("1+2=03", False),
        ("1+2=", False),
        ("١+٢=٣", False),
        ("9" * 5000 + "+1=1", False),
        ("1+2=3\n", False),
    ],
)
def test_is_right(text: str, expected: bool):
    assert is_right(text) is expected
