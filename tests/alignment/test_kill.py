"""kill -9 within each stage, then --resume: the files are those of an uninterrupted run."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mini_llama.checkpoints.tensor_files import load_plain
from mini_llama.places import ROOT
from tests.alignment.helpers import (
    PROMPTS,
    arguments_of,
    read_lines,
    run,
    save_reward,
    speaking_model,
    write_lines,
)

# Reads runs from standard input, a line of JSON each: how many optimizer steps it may take, and its
# arguments. Each is a process of its own, which the next step ends; torch is imported once for all.
KILLER = """
import importlib, json, os, signal, sys
import align
from mini_llama.alignment.stages import STAGES
from mini_llama.training import log
from mini_llama.training.core import TrainerCore

log.plot_losses = lambda *arguments, **others: None
for stage in STAGES.values():
    importlib.import_module(stage.module)
update = TrainerCore.update
for line in sys.stdin:
    count, *arguments = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.dup2(2, 1)
        signal.alarm(300)
        taken = []

        def counted(self, parts):
            if len(taken) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            taken.append(parts)
            return update(self, parts)

        TrainerCore.update = counted
        try:
            align.main(arguments)
        finally:
            os._exit(0)
    print(os.waitpid(pid, 0)[1], flush=True)
"""
WORDS = ("good", "bad")
DEMONSTRATIONS = [{"prompt": p, "completion": f" {w} ."} for p in PROMPTS for w in WORDS]
PAIRS = [{"prompt": p, "chosen": " good .", "rejected": " bad ."} for p in PROMPTS * 2]
DIALOGUES = [{"instruction": "be good .", "questions": [p, "the plot"]} for p in PROMPTS]
STEPS = {"steps": 6, "eval_every": 2, "batch_size": 4, "lr": 1e-3, "min_lr": 0}
SAMPLED = {"max_new_tokens": 6, "reward_model": "reward.pt"}
LORA = {"packing": True, "lora_rank": 2, "samples": 0}
PPO = {"batch_size": 8, "minibatch_size": 4, "iterations": 5, "eval_every": 2, "lr": 1e-3}
# Stage, the steps it takes before it is killed, its data, flags.
CASES: dict[str, tuple[str, int, list[dict[str, Any]], dict[str, Any]]] = {
    "sft": ("sft", 5, DEMONSTRATIONS, STEPS | {"samples": 1, "sample_tokens": 4}),
    "before-any-evaluation": ("sft", 3, DEMONSTRATIONS, STEPS | LORA | {"eval_every": 9}),
    "reward": ("reward", 3, PAIRS, STEPS),
    "dpo": ("dpo", 5, PAIRS, STEPS),
    "gatt": ("gatt", 3, DIALOGUES, STEPS | {"max_new_tokens": 6, "samples": 0}),
    "rejection": ("rejection", 3, DEMONSTRATIONS, STEPS | SAMPLED | {"candidates": 2}),
    "ppo": ("ppo", 7, DEMONSTRATIONS, PPO | SAMPLED | {"value_lr_scale": 3}),
}


@pytest.fixture(scope="module")
def killer() -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", KILLER]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(words, text=True, env=environment, **pipes) as process:
        yield process


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """sft/model.pt and reward.pt."""
    folder = tmp_path_factory.mktemp("killed")
    speaking_model(folder, tiny_folder)
    save_reward(folder / "reward.pt")
    return folder


def leaves(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers, texts and tensors of nested containers, each with where it stands; to the bit."""
    if isinstance(content, torch.Tensor):
        yield name, (str(content.dtype), list(content.shape), content.numpy().tobytes())
    elif isinstance(content, dict | list | tuple):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in pairs:
            yield from leaves(value, f"{name}.{key}")
    else:
        yield name, content


def contents(folder: Path) -> dict[str, Any]:
    """All that a run left, by name: but for speeds, to the bit."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "metrics.jsonl":
            skipped = {"tokens_per_second"}
            found[name] = [{k: line[k] for k in line.keys() - skipped} for line in read_lines(path)]
        elif path.name == "progress.pt":  # equal texts in it may be one object or two
            found[name] = [*leaves(load_plain(path))]
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_resumes_to_the_same_files_to_the_bit(
    name: str, killer: subprocess.Popen[str], models: Path, tmp_path: Path
):
    stage, steps, lines, flags = CASES[name]
    data = write_lines(tmp_path / "data.jsonl", lines)
    flags = {"pretrained-model-path": models / "sft" / "model.pt", "data": data} | flags
    flags |= {"val_fraction": 0.25}
    if "reward_model" in flags:
        flags["reward_model"] = models / flags["reward_model"]
    assert run(stage, out=tmp_path / "whole", **flags) == 0
    killed = arguments_of(stage, out=tmp_path / "killed", **flags)
    assert killer.stdin is not None and killer.stdout is not None
    killer.stdin.write(json.dumps([steps, *killed]) + "\n")
    killer.stdin.flush()
    assert os.WTERMSIG(int(killer.stdout.readline())) == signal.SIGKILL
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "killed") != whole
    assert run(stage, out=tmp_path / "killed", resume=True, **flags) == 0
    found = contents(tmp_path / "killed")
    assert found.keys() == whole.keys()
    assert [n for n in whole if found[n] != whole[n]] == []


def test_without_its_best_model_a_run_does_not_resume(models: Path, tmp_path: Path):
    data = write_lines(tmp_path / "data.jsonl", DEMONSTRATIONS)
    flags = {"pretrained-model-path": models / "sft" / "model.pt", "data": data} | STEPS
    flags |= {"val_fraction": 0.25, "samples": 0}
    assert run("sft", out=tmp_path / "out", **flags) == 0
    (tmp_path / "out" / "model.pt").unlink()
    message = run("sft", out=tmp_path / "out", resume=True, **flags)
    assert "has progress.pt, and no model.pt, the best model so far: --overwrite" in str(message)
