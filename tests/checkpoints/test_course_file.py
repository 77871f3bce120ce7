"""Torch files as training scripts write them: arguments and random states beside the tensors,
wrappers' prefixes, and the classifiers that a student's own code has trained.
"""

import argparse
import os
import random
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import run_llama
from classifier import ClassifierConfig, LlamaEmbeddingClassifier, load_classifier
from config import PRESETS, LlamaConfig
from llama import Llama, load_pretrained
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.reading import read_checkpoint
from tests.helpers import random_llama, tiny_config


def course_content(llama: Llama, pretrained: str) -> dict:
    """A classifier of two labels, and what lies beside it in a file of the courses' given code."""
    torch.manual_seed(0)
    classifier = LlamaEmbeddingClassifier(ClassifierConfig(pretrained, 2), llama=llama)
    config = {"hidden_dropout_prob": 0.2, "pretrained_model_path": pretrained, "num_labels": 2}
    config |= {"data_dir": ".", "option": "finetune"}
    return {
        "model": classifier.state_dict(),
        "optim": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1e-5, "params": [0]}]},
        "args": argparse.Namespace(option="finetune", batch_size=80, lr=1e-5, use_gpu=False),
        "model_config": types.SimpleNamespace(**config),
        "system_rng": random.getstate(),
        "numpy_rng": np.random.get_state(),
        "torch_rng": torch.random.get_rng_state(),
    }


@pytest.mark.parametrize("edition", ["mmia", "fall2024"])
def test_a_students_classifier_is_used_with_its_edition(
    edition, tiny_folder: Path, tmp_path, capsys
):
    pretrained = read_checkpoint(tiny_folder / "model.pt")
    llama = load_pretrained(tiny_folder / "model.pt", edition=edition)
    content = course_content(llama, "model.pt")
    torch.save(content, tmp_path / "finetune.pt")
    for name in ("model.pt", "model.model"):
        (tmp_path / name).write_bytes((tiny_folder / name).read_bytes())
    classifier = LlamaEmbeddingClassifier(ClassifierConfig("", 2), llama=llama).eval()
    classifier.load_state_dict(content["model"])
    loaded = load_classifier(tmp_path / "finetune.pt", edition=edition)
    tokens = torch.randint(3, pretrained.model_args["vocab_size"], (3, 7))
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens), classifier(tokens), atol=0, rtol=0)
    capsys.readouterr()
    arguments = ["--input", str(tiny_folder / "data" / "tiny-dev.txt"), "--edition", edition]
    path = str(tmp_path / "finetune.pt")
    run_llama.main(["--option", "predict", "--pretrained-model-path", path, *arguments])
    printed, said = capsys.readouterr()
    assert len(printed.splitlines()) == 10 and "it was trained with --batch_size 80" in said


def test_a_shape_of_a_preset_needs_no_other_file(tmp_path: Path):
    content = course_content(Llama(LlamaConfig(**PRESETS["260k"])), "stories260K.pt")
    torch.save(content, tmp_path / "finetune.pt")
    config = load_classifier(tmp_path / "finetune.pt").llama.config
    assert (config.n_heads, config.n_kv_heads, config.dim) == (8, 4, 64)


def test_an_unknown_shape_says_what_is_missing(tmp_path: Path):
    content = course_content(random_llama(tiny_config()), "models/mine.pt")
    torch.save(content, tmp_path / "finetune.pt")
    with pytest.raises(ValueError, match=r"number of heads .* put mine\.pt, .* beside it"):
        load_classifier(tmp_path / "finetune.pt")
    save_checkpoint(tmp_path / "mine.pt", tiny_config(), random_llama(tiny_config()).state_dict())
    assert load_classifier(tmp_path / "finetune.pt").llama.config.n_heads == 4


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_names_of_wrapped_models(prefix: str, tmp_path: Path):
    llama = random_llama(tiny_config(norm="rmsnorm", attention="causal"))
    tensors = {prefix + name: tensor for name, tensor in llama.state_dict().items()}
    save_checkpoint(tmp_path / "m.pt", llama.config, tensors)
    loaded = load_pretrained(tmp_path / "m.pt").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in llama.state_dict().items())


def test_numbers_of_numpy_and_arguments_beside_the_tensors(tmp_path: Path):
    llama = random_llama(tiny_config())
    args = {"vocab_size": np.int64(96), "dim": np.int32(32), "n_layers": 2, "n_heads": 4}
    args |= {"n_kv_heads": 2, "multiple_of": 8, "max_seq_len": 16, "dropout": np.float64(0)}
    content = {"model": llama.state_dict(), "model_args": args, "best": np.float32(1.5)}
    content |= {"config": argparse.Namespace(lr=1e-3, seeds=np.arange(3))}
    torch.save(content, tmp_path / "m.pt")
    assert load_pretrained(tmp_path / "m.pt").config.dim == 32


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-file",)


def test_nothing_else_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    space = types.SimpleNamespace(inner=Harmful())
    for number, value in enumerate((Harmful(), space, np.array([Harmful()], dtype=object))):
        torch.save({"model": {}, "model_args": {}, "args": value}, f"{number}.pt")
        with pytest.raises(ValueError, match="nothing in a checkpoint is ever executed"):
            read_checkpoint(Path(f"{number}.pt"))
    assert not Path("made-by-a-file").exists()
