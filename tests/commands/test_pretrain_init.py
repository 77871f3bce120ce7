"""pretrain.py: continuing from a checkpoint, longer runs, folders that hold something already."""

import dataclasses
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import pretrain
from config import LlamaConfig, RopeScaling
from llama import load_pretrained
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.tensor_files import load_plain
from mini_llama.pretraining.data import TokenWindows, make_loader, train_tokenizer
from mini_llama.pretraining.options import PretrainOptions
from mini_llama.training import log as log_module
from mini_llama.training.log import read_metrics
from tests.checkpoints.helpers import write_llama2c
from tests.helpers import WORDS, assert_relative, random_llama, refusal_of, tiny_config

VOCABULARY = 300
SHORT = {"context": 8, "batch_size": 2, "warmup": 0, "sample_tokens": 0, "eval_batches": 1}
FRESH = {"preset": "260k", "dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1}
LLAMA = {"norm": "rmsnorm", "attention": "causal"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n\n".join(" ".join(rng.choices(WORDS, k=30)) for _ in range(100)))
    train_tokenizer(path.read_text().split("\n\n"), VOCABULARY, path.with_name("pieces"))
    return path


def run(corpus: Path, out: Path, **options: object) -> int | str:
    given = {"input": corpus, "out": out} | SHORT | options
    words = []
    for name, value in given.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    status, error = refusal_of(pretrain.main, words)
    return error if "error: " in error else status


def fresh(corpus: Path, out: Path, **options: object) -> int | str:
    changes = {"tokenizer": corpus.with_name("pieces"), "eval_every": 2, **FRESH} | options
    return run(corpus, out, **changes)


def losses(out: Path) -> list[float]:
    return [record["train_loss"] for record in read_metrics(out / "metrics.jsonl")]


# --init: the model is the checkpoint's


def own(**changes: object) -> object:
    return random_llama(tiny_config(vocab_size=VOCABULARY, max_seq_len=16, **changes))


SCALING = RopeScaling("llama3", 4.0, 8, 1.0, 4.0)
SHAPE = {"head_dim": 12, "attention_bias": True, "mlp_bias": True}


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "layernorm", "attention": "bidirectional"},
        {**LLAMA, "rope_theta": 5e5, "layer_norm_eps": 1e-2, "tie_word_embeddings": False},
        {**LLAMA, "rope_scaling": SCALING},
        {**LLAMA, "rope_scaling": RopeScaling("dynamic", 2.0, 8)},
        {**LLAMA, "rope_scaling": RopeScaling("yarn", 2.0, 8, attention_factor=1.3), **SHAPE},
    ],
    ids=["layernorm", "theta", "llama3", "dynamic", "yarn, heads and biases"],
)
def test_init_trains_the_arithmetic_that_the_checkpoint_records(corpus, tmp_path, changes):
    llama = own(**changes)
    save_checkpoint(tmp_path / "m.pt", llama.config, llama.state_dict())
    shutil.copy(corpus.with_name("pieces"), tmp_path / "m.model")
    assert run(corpus, tmp_path / "out", init=tmp_path / "m.pt", lr=0, steps=1) == 0
    tokens = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    for name in ("last.pt", "last"):
        written = load_pretrained(tmp_path / "out" / name)
        written_config = dataclasses.replace(written.config, multiple_of=llama.config.multiple_of)
        assert written_config == llama.config
        with torch.no_grad():
            assert_relative(written(tokens, tokens)[0], llama(tokens, tokens)[0], 1e-6)


def test_init_from_a_file_that_records_nothing_is_a_true_llama(corpus, tmp_path, capsys):
    llama = own(**LLAMA)
    shutil.copy(corpus.with_name("pieces"), tmp_path / "m.model")
    write_llama2c(tmp_path / "m.bin", llama)
    assert run(corpus, tmp_path / "out", init=tmp_path / "m.bin", lr=0, steps=1) == 0
    assert "does not record its norm and attention: taken for a true" in capsys.readouterr().out
    written = load_pretrained(tmp_path / "out" / "last.pt")
    assert (written.config.norm, written.config.attention) == ("rmsnorm", "causal")


@pytest.fixture
def checkpoint(corpus, tmp_path) -> Path:
    llama = own(**LLAMA)
    save_checkpoint(tmp_path / "m.pt", llama.config, llama.state_dict())
    shutil.copy(corpus.with_name("pieces"), tmp_path / "m.model")
    return tmp_path / "m.pt"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"dim": 64}, ["dim 32", "--dim asks for 64"]),
        ({"preset": "15m"}, ["dim 32", "--preset 15m asks for 288"]),
        ({"vocab_size": 400}, ["vocab_size 300", "--vocab_size asks for 400"]),
        ({"tokenizer": "nothere"}, ["nothere"]),
    ],
)
def test_options_that_contradict_init_are_refused(corpus, checkpoint, options, parts):
    message = run(corpus, checkpoint.with_name("out"), init=checkpoint, steps=1, **options)
    assert all(part in str(message) for part in parts), message


def test_init_without_a_tokenizer_says_what_to_give(corpus, checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    checkpoint.with_suffix(".model").unlink()
    message = run(corpus, Path("out"), init=checkpoint, steps=1)
    assert "--tokenizer" in message and "--vocab_size" in message


def test_a_run_from_init_is_resumed_without_the_checkpoint(corpus, checkpoint):
    out, whole = checkpoint.with_name("out"), checkpoint.with_name("whole")
    assert run(corpus, whole, init=checkpoint, steps=4) == 0
    assert run(corpus, out, init=checkpoint, steps=2, decay_steps=4) == 0
    checkpoint.unlink()
    assert run(corpus, out, init=checkpoint, steps=4, resume=True) == 0
    assert losses(out) == losses(whole)


def test_transformers_reads_the_run_folder(corpus, tmp_path):
    transformers = pytest.importorskip("transformers")
    assert fresh(corpus, tmp_path / "out", steps=2) == 0
    folder = tmp_path / "out" / "best"
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([[1, 5, 9, 20, 7, 40]])
    ours = load_pretrained(tmp_path / "out" / "best.pt")
    with torch.no_grad():
        assert_relative(ours(ids, ids)[0], theirs(ids).logits, 1e-5)
    assert theirs.generation_config.eos_token_id == 2


# Longer runs


def test_a_run_is_made_longer(corpus, tmp_path):
    assert fresh(corpus, tmp_path / "whole", steps=6, decay_steps=4) == 0
    assert fresh(corpus, tmp_path / "out", steps=4) == 0
    refused = fresh(corpus, tmp_path / "out", steps=6, resume=True)
    assert "--steps 6 --decay_steps 4" in refused
    assert fresh(corpus, tmp_path / "out", steps=6, decay_steps=4, resume=True) == 0
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
    assert "--steps 6 or more" in fresh(
        corpus, tmp_path / "out", steps=5, decay_steps=4, resume=True
    )


def test_a_constant_rate_may_always_go_on(corpus, tmp_path):
    constant = {"schedule": "constant"}
    assert fresh(corpus, tmp_path / "out", steps=2, **constant) == 0
    assert fresh(corpus, tmp_path / "out", steps=4, resume=True, **constant) == 0
    assert len(losses(tmp_path / "out")) == 4


# What is there already


def test_a_run_is_replaced_only_on_request(corpus, tmp_path):
    out = tmp_path / "out"
    assert fresh(corpus, out, steps=4) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for options in ({"steps": 2}, {"steps": 2, "dim": 32}):
        message = fresh(corpus, out, **options)
        assert "--resume" in message and "--overwrite" in message and "best.pt" in message
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert fresh(corpus, out, steps=2, overwrite=True) == 0
    assert len(losses(out)) == 2 and load_plain(out / "best.pt")["step"] == 2


@pytest.mark.parametrize(
    "name", ["best.pt", "last/model.safetensors", "tokenizer.model", "metrics.jsonl", "loss.png"]
)
def test_a_strangers_file_is_never_replaced(corpus, tmp_path, name: str):
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    for options in ({}, {"resume": True}):
        if (name, options) != ("tokenizer.model", {"resume": True}):  # it may be the run's own
            assert name in fresh(corpus, tmp_path / "out", steps=1, **options)
    assert file.read_text() == "mine"


def test_nothing_to_resume_is_said(corpus, tmp_path, capsys):
    assert fresh(corpus, tmp_path / "out", steps=1, resume=True) == 0
    assert "nothing to resume at" in capsys.readouterr().out


def test_a_first_step_that_diverges_promises_no_checkpoint(corpus, tmp_path):
    message = fresh(corpus, tmp_path / "out", steps=9, lr=1e6)
    assert "nothing was saved yet" in message and "last good" not in message
    assert fresh(corpus, tmp_path / "out", steps=1) == 0, "the remedy is to run it again"


def test_the_curve_is_drawn_at_every_evaluation(corpus, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        log_module, "plot_losses", lambda records, *_, **__: drawn.append(records[-1]["step"])
    )
    assert fresh(corpus, tmp_path / "out", steps=4) == 0
    assert drawn == [2, 4, 4]


# Options


@pytest.mark.parametrize(
    ("given", "meant"),
    [(r"\n\n", "\n\n"), (r"a\tb", "a\tb"), (r"\\n", r"\n"), ("<|end|>", "<|end|>"), ("\n", "\n")],
)
def test_separators_have_escapes(given: str, meant: str):
    assert PretrainOptions(separator=given).separator == meant


@pytest.mark.parametrize(
    "options",
    [
        {"vocab_size": 999, "tokenizer": "x"},
        {"min_lr": 1.0, "lr": 0.1},
        {"decay_steps": -1},
        {"decay_steps": 5, "schedule": "constant"},
        {"min_lr": 1e-5, "schedule": "constant"},
        {"resume": True, "overwrite": True},
    ],
)
def test_contradictions_are_refused(options: dict):
    with pytest.raises(ValueError, match="is not allowed: it must be"):
        PretrainOptions(**options)


def test_random_offsets_cover_every_place_and_follow_from_seed_and_step():
    tokens = np.arange(60, dtype=np.uint16)
    windows = TokenWindows(tokens, 8, at_any_offset=True)
    assert len(windows) == 52 and windows[51].tolist() == list(range(51, 60))
    batches = [batch for batch, _ in zip(make_loader(windows, 4, 7), range(400), strict=False)]
    later = next(iter(make_loader(windows, 4, 7, start_step=5)))
    assert torch.equal(later, batches[5])
    halves = [next(iter(make_loader(windows, 4, 7, 5, rank, 2))) for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), batches[5])
    starts = torch.cat(batches)[:, 0].bincount(minlength=52)
    assert len(starts) == 52 and starts.min() > 0, "1,600 draws of 52 leave none out"


def test_a_run_with_random_offsets_is_resumed_exactly(corpus, tmp_path):
    options = {"random_offsets": True, "decay_steps": 4}
    assert fresh(corpus, tmp_path / "whole", steps=4, **options) == 0
    for steps, resume in ((2, {}), (4, {"resume": True})):
        assert fresh(corpus, tmp_path / "out", steps=steps, **options, **resume) == 0
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
    assert isinstance(load_pretrained(tmp_path / "out" / "last.pt").config, LlamaConfig)
