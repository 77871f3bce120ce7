"""Tiny models, data and runs for the stages with rewards."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import align
from mini_llama.alignment.start import Start
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.task_heads import LlamaForSequenceClassification
from mini_llama.tokenization.base import BaseTokenizer
from tests.helpers import random_llama, tiny_config

PROMPTS = ("the film is", "the plot", "a story that", "good", "not", "very slow but")


def tiny_start(tokenizer: BaseTokenizer, seed: int = 0, **changes: Any) -> Start:
    """A random causal model of the tokenizer's 300 pieces."""
    config = tiny_config(
        vocab_size=300, max_seq_len=64, norm="rmsnorm", attention="causal", **changes
    )
    assert tokenizer.eos_id is not None
    return Start(random_llama(config, seed), tokenizer, "plain", (tokenizer.eos_id,))


def save_reward(path: Path, vocab_size: int = 300, seed: int = 5) -> LlamaForSequenceClassification:
    """A random reward model as align.py reward leaves one."""
    config = tiny_config(vocab_size=vocab_size, max_seq_len=64, norm="rmsnorm", attention="causal")
    model = LlamaForSequenceClassification(random_llama(config, seed), ["reward"], 3).eval()
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(model.score.weight, generator=generator)
    content = {"architectures": ["LlamaForSequenceClassification"]}
    content |= json.loads(json.dumps(model.fields()))
    tensors = {name.removeprefix("llama."): t for name, t in model.state_dict().items()}
    save_checkpoint(path, config, tensors, task_head=content)
    return model


def speaking_model(folder: Path, tiny_folder: Path) -> Path:
    """A tiny model that answers PROMPTS with " good ." or " bad ." and ends there."""
    lines = [
        {"prompt": prompt, "completion": f" {word} ."}
        for prompt in PROMPTS
        for word in ("good", "bad")
    ]
    data = write_lines(folder / "sft.jsonl", lines)
    flags = {"lr": 1e-2, "steps": 25, "batch_size": 12, "val_fraction": 0, "samples": 0}
    model = {"pretrained-model-path": tiny_folder / "model.pt", "norm": "rmsnorm"}
    assert run("sft", data=data, out=folder / "sft", **flags, **model) == 0
    return folder / "sft" / "model.pt"


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def arguments_of(stage: str, **flags: object) -> list[str]:
    """A stage's command line."""
    arguments = [stage]
    for name, value in flags.items():
        values = value if isinstance(value, list | tuple) else [value]
        arguments += [f"--{name}", *(str(v) for v in values if v is not True)]
    return arguments


def run(stage: str, **flags: object) -> int | str:
    """align.py in this process: its exit status, or the line with which it ends."""
    try:
        align.main(arguments_of(stage, **flags))
    except SystemExit as stop:
        return 0 if stop.code is None else stop.code
    return 0
