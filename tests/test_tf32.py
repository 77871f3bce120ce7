"""--tf32: what it sets on a GPU, and where it is refused or said to change nothing."""

from pathlib import Path

import pytest
import torch

import align
import chat
import pretrain
import run_llama
from mini_llama import warning
from mini_llama.tf32 import has_tf32, use_tf32
from tests.helpers import refusal_of

CUDA = torch.device("cuda")


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch):
    """A card of this capability, where there is none."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    warning.warn.cache_clear()
    yield lambda *numbers: monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda _: numbers
    )
    torch.set_float32_matmul_precision("highest")
    warning.warn.cache_clear()


def test_a_gpu_multiplies_in_tf32_if_asked_to_and_exactly_otherwise(capability, capsys):
    for is_asked, precision in ((True, "high"), (False, "highest")):
        use_tf32(CUDA, is_asked)
        assert torch.get_float32_matmul_precision() == precision
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("device", "numbers"), [("cuda", (7, 5)), ("mps", (0, 0))])
def test_what_has_no_tf32_says_so_in_one_line(device: str, numbers, capability, capsys):
    capability(*numbers)
    use_tf32(torch.device(device), False)
    assert capsys.readouterr().err == ""
    use_tf32(torch.device(device), True)
    line = "--tf32 changes nothing here: it is for NVIDIA cards from Ampere (2020) on"
    assert capsys.readouterr().err == f"warning: {line}\n"
    assert not has_tf32(torch.device(device))


def test_the_cpus_products_are_left_alone():
    torch.set_float32_matmul_precision("high")
    use_tf32(torch.device("cpu"), False)
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (run_llama.main, ["--option", "generate"]),
        (chat.main, []),
        (pretrain.main, ["--input", "tales:2"]),
        (align.main, ["sft", "--data", "none.jsonl"]),
    ],
    ids=["run_llama", "chat", "pretrain", "align"],
)
def test_without_a_gpu_it_is_refused(main, words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    status, line = refusal_of(main, [*words, "--tf32"])
    assert status == 2
    assert line.endswith("--tf32 True is not allowed: it must be left out without --use_gpu")
