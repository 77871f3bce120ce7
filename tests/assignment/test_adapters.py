"""--adapters: what option lora learnt, added to the model that it was trained on."""

import contextlib
import io
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import chat
import run_llama
from classifier import load_classifier
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.tensor_files import load_plain, save_plain
from tests.helpers import random_llama, refusal_of, tiny_config

ADAPTERS = "lora.adapters.pt"
DATA = "--train data/tiny-train.txt --dev data/tiny-dev.txt --test data/tiny-test.txt "
DATA += "--label-names data/labels.json"
PROMPT = f"--option prompt {DATA} --dev_out dev-prompting-output.txt "
PROMPT += "--test_out test-prompting-output.txt"
GENERATE = "--option generate --prompt_text good --max_new_tokens 20 --num_samples 2"


@pytest.fixture(autouse=True)
def _leave_the_process_as_it_was() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    torch.set_flush_denormal(False)


def run(line: str, model: str = "model.pt") -> str:
    """What run_llama.py prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_llama.main([*line.split(), "--pretrained-model-path", model])
    return printed.getvalue()


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_folder after option lora, with its adapters, and merged.pt: the model after training."""
    folder = tmp_path_factory.mktemp("trained") / "lora"
    shutil.copytree(tiny_folder, folder)
    handler = signal.getsignal(signal.SIGTERM)
    with contextlib.chdir(folder):
        outputs = "--dev_out dev-lora-output.txt --test_out test-lora-output.txt"
        line = f"--option lora {DATA} {outputs} --checkpoint_out lora.pt --epochs 1 --lr 0.3"
        run(f"{line} --lora_rank 2 --lora_alpha 3")
    signal.signal(signal.SIGTERM, handler)
    merged = load_classifier(folder / "lora.pt").llama
    save_checkpoint(folder / "merged.pt", merged.config, merged.state_dict())
    shutil.copy(folder / "model.model", folder / "merged.model")
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained folder that is the current folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outputs(line: str, model: str) -> list[bytes]:
    run(line, model)
    return [
        path.read_bytes() for path in sorted(Path.cwd().glob("*.txt")) if "lora" not in path.name
    ]


@pytest.mark.parametrize("line", [GENERATE, PROMPT, f"{GENERATE} --dtype bfloat16"])
def test_the_model_is_the_one_that_was_trained(line: str, folder: Path) -> None:
    merged, base = outputs(line, "merged.pt"), outputs(line, "model.pt")
    before = (folder / "model.pt").read_bytes()
    assert outputs(f"{line} --adapters {ADAPTERS}", "model.pt") == merged != base
    assert (folder / "model.pt").read_bytes() == before


def test_a_line_says_what_was_added(folder: Path) -> None:
    names = "compute_query, compute_key, compute_value, compute_output"
    line = f"load adapters from {ADAPTERS}: rank 2, alpha 3.0, {names}\n"
    assert line in run(f"{GENERATE} --adapters {ADAPTERS}")


def test_a_chat_takes_them_as_well(folder: Path, monkeypatch, capsys) -> None:
    answers = {}
    for model, more in (
        ("merged.pt", []),
        ("model.pt", ["--adapters", ADAPTERS]),
        ("model.pt", []),
    ):
        lines = io.TextIOWrapper(io.BytesIO(b"good film\n"), encoding="utf-8")
        monkeypatch.setattr("sys.stdin", lines)
        words = ["--pretrained-model-path", model, "--max_new_tokens", "20", "--temperature", "0"]
        with pytest.raises(SystemExit):
            chat.main([*words, *more])
        answers[model, bool(more)] = capsys.readouterr().out
    assert answers["merged.pt", False] == answers["model.pt", True] != answers["model.pt", False]


def refusal(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a run stops, before it writes anything."""
    before = sorted(os.listdir())
    status, message = refusal_of(run, line)
    is_usage = "not allowed" in message or "two names" in message
    assert status == (2 if is_usage else 1) and sorted(os.listdir()) == before
    return message


@pytest.mark.parametrize("line", [GENERATE, PROMPT])
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("none.pt", "none.pt does not exist"),
        ("model.pt", "model.pt has no LoRA adapters"),
        ("lora.pt", "lora.pt has no LoRA adapters"),
        ("data/labels.json", "data/labels.json is damaged"),
    ],
)
def test_another_file_is_refused(line: str, name: str, part: str, folder: Path, capsys) -> None:
    assert part in refusal(f"{line} --adapters {name}", capsys)


def without_one(content: dict[str, Any]) -> None:
    del content["adapters"]["layers.1.attention.compute_key.lora_B"]


def with_one_more(content: dict[str, Any]) -> None:
    content["adapters"]["layers.2.attention.compute_key.lora_B"] = torch.ones(16, 2)


def with_a_nan(content: dict[str, Any]) -> None:
    content["adapters"]["layers.1.attention.compute_key.lora_B"][3, 1] = float("nan")


def longer(content: dict[str, Any]) -> None:
    content["adapters"]["layers.0.attention.compute_query.lora_A"] = torch.ones(2, 64)


CHANGES = [
    (without_one, "layers.1.attention.compute_key.lora_B is missing"),
    (with_one_more, "layers.2.attention.compute_key.lora_B is [16, 2], the model's is missing"),
    (with_a_nan, "has no LoRA adapters"),
    (longer, "compute_query.lora_A is [2, 64], the model's is [2, 32]"),
    (lambda content: content.pop("rank"), "has no LoRA adapters"),
    (lambda content: content.update(rank=10**9), "has no LoRA adapters"),
    (lambda content: content.update(rank="2"), "has no LoRA adapters"),
    (lambda content: content.update(alpha=float("inf")), "has no LoRA adapters"),
    (lambda content: content.update(targets=["compute_query"]), "the model's is missing"),
    (lambda content: content.update(targets=["w9"]), "w9"),
    (lambda content: content.update(adapters=[1]), "has no LoRA adapters"),
]


@pytest.mark.parametrize(("change", "part"), CHANGES)
def test_damaged_adapters_are_refused(change, part: str, folder: Path, capsys) -> None:
    content = load_plain(ADAPTERS)
    content["adapters"] = {name: tensor.clone() for name, tensor in content["adapters"].items()}
    change(content)
    save_plain("changed.pt", content)
    message = refusal(f"{GENERATE} --adapters changed.pt", capsys)
    assert "changed.pt" in message and part in message


def test_another_model_is_refused(folder: Path, capsys) -> None:
    config = tiny_config(vocab_size=300, max_seq_len=64, norm="rmsnorm", n_kv_heads=4)
    save_checkpoint(folder / "model.pt", config, random_llama(config).state_dict())
    message = refusal(f"{GENERATE} --adapters {ADAPTERS}", capsys)
    for part in (ADAPTERS, "compute_key.lora_B is [16, 2], the model's is [32, 2]", "trained on"):
        assert part in message


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (f"{GENERATE} --quantize int8", "quantized weights take no adapters"),
        (f"{PROMPT} --quantize int8", "quantized weights take no adapters"),
        (f"--option finetune {DATA}", "left out, but for --option generate and prompt"),
        (f"--option lora {DATA}", "left out, but for --option generate and prompt"),
    ],
)
def test_where_they_cannot_be_added_they_are_refused(line: str, part: str, folder, capsys) -> None:
    message = refusal(f"{line} --adapters {ADAPTERS}", capsys)
    assert f"--adapters {ADAPTERS} is not allowed: it must be {part}" in message.replace(
        "left out: quantized", "quantized"
    )


def test_they_are_never_overwritten(folder: Path, capsys) -> None:
    line = f"{GENERATE} --adapters {ADAPTERS} --generated_sentence_low_temp_out {ADAPTERS}"
    assert ADAPTERS in refusal(line, capsys)
