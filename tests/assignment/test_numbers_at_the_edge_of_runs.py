"""run_llama.py and chat.py with numbers at their limits: a run, or one line that says why not."""

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import chat
import run_llama


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outcome(main: Any, command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which a command stops, or nothing."""
    status: object = None
    try:
        main(shlex.split(f"{command} --pretrained-model-path model.pt"))
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    message = status if isinstance(status, str) else error.splitlines()[-1] if status else ""
    assert "Traceback" not in error and message.strip().count("\n") == 0
    return message


TINY = "--train data/tiny-train.txt --dev data/tiny-dev.txt --label-names data/labels.json"
LORA = f"--option lora {TINY} --epochs 1 --dev_out dev-lora-output.txt"
FINETUNE = f"--option finetune {TINY} --epochs 1 --dev_out dev-finetuning-output.txt"


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (f"{LORA} --lora_rank 100000", "--lora_rank 100000 is not allowed: it must be at most 32"),
        (f"{LORA} --lora_rank 32 --lora_alpha 1e-50 --lr 1e-50", ""),
        (f"{FINETUNE} --batch_size 1048576 --hidden_dropout_prob 1e-50", ""),
        (f"{FINETUNE} --lr 1000000", "lower --lr 1000000.0"),
        ("--max_new_tokens 2 --temperature 1e50 --top_p 1e-50 --epsilon 1e-50 --seed 0", ""),
        ("--max_new_tokens 2 --temperature 1e-50 --max_sentence_len 1000000000", ""),
    ],
)
def test_what_is_accepted_runs_or_says_why_not(command: str, part: str, folder: Path, capsys):
    found = outcome(run_llama.main, command, capsys)
    assert part in found if part else found == ""


def test_a_chat_says_what_its_context_allows(folder: Path, capsys, monkeypatch):
    found = outcome(chat.main, "--max_new_tokens 1000000", capsys)
    assert "--max_new_tokens 1000000 is not allowed" in found and "at most 63" in found
