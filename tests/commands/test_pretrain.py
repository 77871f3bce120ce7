"""Pre-training: losses, schedule, resume, several processes, refusals."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import pretrain
from config import PRESETS, LlamaConfig
from llama import Llama, load_pretrained
from mini_llama.checkpoints.sizes import count_parameters, kv_cache_bytes, training_flops
from mini_llama.checkpoints.tensor_files import load_plain
from mini_llama.layers.linear_loss import linear_cross_entropy
from mini_llama.pretraining import trainer as trainer_module
from mini_llama.pretraining.data import TokenWindows, make_loader
from mini_llama.pretraining.options import PretrainOptions
from mini_llama.pretraining.run import prepare_data
from mini_llama.training.core import make_optimizer
from mini_llama.training.log import read_metrics
from mini_llama.training.processes import Process
from mini_llama.training.schedule import learning_rate
from tests.helpers import ROOT, WORDS, refusal_of
from tokenizer import Tokenizer
from utils import seed_everything

SMALL = {
    "preset": "260k",
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": 300,
    "context": 16,
    "batch_size": 4,
    "steps": 8,
    "eval_every": 4,
    "eval_batches": 2,
    "warmup": 2,
    "lr": 1e-2,
    "sample_tokens": 3,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    documents = [" ".join(rng.choice(WORDS, size=rng.integers(5, 60))) for _ in range(200)]
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n\n".join(documents))
    return path


def arguments(corpus: Path, out: Path, **changes: object) -> list[str]:
    options = {"input": corpus, "out": out} | SMALL | changes
    words = []
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def run(corpus: Path, out: Path, **changes: object) -> int | str:
    """The exit status, or the line that says what is wrong."""
    status, error = refusal_of(pretrain.main, arguments(corpus, out, **changes))
    return error if "error: " in error else status


def losses(out: Path) -> list[float]:
    return [record["train_loss"] for record in read_metrics(out / "metrics.jsonl")]


# The loss


@pytest.mark.parametrize("count", [5, 256, 600])
def test_chunked_loss_equals_torch(count: int):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(70, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(70, (count,), generator=generator)
    expected = F.cross_entropy(hidden @ weight.T, targets)
    (3 * expected).backward()
    gradients = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    actual = linear_cross_entropy(hidden, weight, targets)
    (3 * actual).backward()
    torch.testing.assert_close(actual.double(), expected, atol=1e-6, rtol=1e-6)
    for ours, theirs in zip((hidden.grad, weight.grad), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)


def test_first_steps_equal_a_plain_loop(corpus, tmp_path):
    """The same batches through F.cross_entropy, torch's clipping and torch.optim.AdamW, which is
    ours where nothing is decayed and eps is small.
    """
    constant = {"steps": 3, "warmup": 1, "schedule": "constant", "weight_decay": 0.0}
    assert run(corpus, tmp_path / "run", **constant) == 0
    options = PretrainOptions(input=(str(corpus),), out=str(tmp_path / "run"), **SMALL)
    options = dataclasses.replace(options, **constant)
    process = Process()
    _, train_file, _ = prepare_data(options, process, tmp_path / "run" / "tokenizer.model")
    seed_everything(options.seed)
    llama = Llama(options.model_config(300))
    optimizer = torch.optim.AdamW(
        llama.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
    )
    loader = make_loader(TokenWindows(train_file.open(), 16), 4, options.seed)
    expected = []
    for _, windows in zip(range(3), loader, strict=False):
        logits, _ = llama(windows[:, :-1], targets=windows[:, 1:])
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llama.parameters(), 1.0)
        optimizer.step()
        expected.append(loss.item())
    assert losses(tmp_path / "run") == pytest.approx(expected, abs=1e-4)


def test_training_learns(corpus, tmp_path):
    assert run(corpus, tmp_path, steps=60, eval_every=30) == 0
    got = losses(tmp_path)
    assert got[0] == pytest.approx(math.log(300), abs=0.3), "a fresh model guesses evenly"
    # words are drawn evenly from WORDS: nothing can do better than log of their number a word
    assert got[-1] < 3.6


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("cosine", 0, 0.1),
        ("cosine", 9, 1.0),
        ("cosine", 10, 1.0),
        ("cosine", 60, 0.6),
        ("cosine", 110, 0.2),
        ("constant", 4, 0.5),
        ("constant", 99, 1.0),
    ],
)
def test_learning_rate(schedule: str, step: int, expected: float):
    shape = {"min_lr": 0.2} if schedule == "cosine" else {}
    options = PretrainOptions(lr=1.0, warmup=10, steps=110, schedule=schedule, **shape)
    assert learning_rate(options, step) == pytest.approx(expected)


def test_weight_decay_is_on_matrices_only():
    llama = Llama(LlamaConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2))
    decayed, plain = make_optimizer(llama, lr=1e-3, weight_decay=0.1).param_groups
    assert {p.ndim for p in decayed["params"]} == {2} and {p.ndim for p in plain["params"]} == {1}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    count = sum(len(group["params"]) for group in (decayed, plain))
    assert count == len(list(llama.parameters()))


def test_accumulation_changes_nothing(corpus, tmp_path):
    run(corpus, tmp_path / "whole", steps=4)
    run(corpus, tmp_path / "parts", steps=4, accumulation=4)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


# What a run leaves


def test_outputs(corpus, tmp_path, capsys):
    assert run(corpus, tmp_path, tensorboard=True) == 0
    printed = capsys.readouterr().out
    assert re.search(r"step 8: val loss \d\.\d{4}, perplexity \d+\.\d{2}", printed)
    assert printed.count("sample: ") == 2
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 9))
    for record in (records[3], records[7]):
        assert record["val_perplexity"] == pytest.approx(math.exp(record["val_loss"]))
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert not list(tmp_path.rglob("*.tmp"))
    best = min(records[3]["val_loss"], records[7]["val_loss"])
    assert load_plain(tmp_path / "best.pt")["val_loss"] == best


def test_models_load_without_any_flag(corpus, tmp_path):
    run(corpus, tmp_path, norm="layernorm", attention="bidirectional")
    models = [load_pretrained(tmp_path / name) for name in ("last.pt", "last")]
    for model in models:
        assert (model.config.norm, model.config.attention) == ("layernorm", "bidirectional")
        assert "recorded in the checkpoint" in str(model.arithmetic)
        assert model.config.max_seq_len == 16
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert Tokenizer(tokenizer_model=tmp_path / "tokenizer.model").n_words == 300


def test_a_damaged_folder_is_one_line(corpus, tmp_path):
    run(corpus, tmp_path, steps=1)
    weights = tmp_path / "last" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_pretrained(tmp_path / "last")
    (tmp_path / "last" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load_pretrained(tmp_path / "last")


# Resume


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resume_is_bit_identical(corpus, tmp_path, monkeypatch, dropout: float):
    run(corpus, tmp_path / "whole", dropout=dropout)
    original = trainer_module.Trainer.train_step

    def power_cut(trainer, windows):
        if trainer.step == 6:
            raise KeyboardInterrupt
        return original(trainer, windows)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "train_step", power_cut)
        assert run(corpus, tmp_path / "cut", dropout=dropout) == 130
    assert len(losses(tmp_path / "cut")) == 6
    assert run(corpus, tmp_path / "cut", dropout=dropout, resume=True) == 0
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    states = [load_plain(tmp_path / name / "last.pt")["model"] for name in ("whole", "cut")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_layers_that_are_computed_again_change_nothing(corpus, tmp_path):
    """--checkpoint_activations for the second half of a run."""
    common = {"dropout": 0.2, "schedule": "constant"}
    assert run(corpus, tmp_path / "whole", **common) == 0
    assert run(corpus, tmp_path / "half", **common, steps=4) == 0
    flags = {"resume": True, "checkpoint_activations": True}
    assert run(corpus, tmp_path / "half", **common, **flags) == 0
    assert losses(tmp_path / "half") == losses(tmp_path / "whole")


def test_resume_with_other_settings_is_refused(corpus, tmp_path):
    run(corpus, tmp_path, steps=2)
    assert "lr 0.01, not 0.5" in run(corpus, tmp_path, steps=2, lr=0.5, resume=True)


def test_token_files_are_made_once(corpus, tmp_path):
    run(corpus, tmp_path, steps=1)
    tokens = tmp_path / "tokens" / "train.bin"
    before = tokens.stat().st_ino
    run(corpus, tmp_path, steps=2, decay_steps=1, resume=True)
    assert tokens.stat().st_ino == before
    content = bytearray(tokens.read_bytes())
    content[10] ^= 1
    tokens.write_bytes(content)
    again = {"steps": 1, "overwrite": True, "vocab_size": None}
    again |= {"tokenizer": tmp_path / "tokenizer.model"}
    _, said = refusal_of(pretrain.main, arguments(corpus, tmp_path, **again))
    assert "again" in said
    assert tokens.read_bytes() != content


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits(corpus, tmp_path, number: int):
    command = [sys.executable, str(ROOT / "pretrain.py")]
    command += arguments(corpus, tmp_path / "cut", steps=100_000, eval_every=100_000)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    process.send_signal(number)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    step = int(re.search(r"stopped at step (\d+); --resume", output)[1])
    assert (
        load_plain(tmp_path / "cut" / "progress.pt")["step"] == step == len(losses(metrics.parent))
    )
    load_pretrained(tmp_path / "cut" / "last.pt")


# Several processes


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_give_the_losses_of_one(corpus, tmp_path, shard: bool):
    run(corpus, tmp_path / "one", accumulation=2)
    options = arguments(corpus, tmp_path / "two", accumulation=2)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(29500 + os.getpid() % 1000), str(ROOT / "pretrain.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *options, *(["--shard"] if shard else [])],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    ours, theirs = (load_plain(tmp_path / name / "last.pt")["model"] for name in ("two", "one"))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-3)


# Refusals


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"input": "nothere.txt"}, ["nothere.txt"]),
        ({"steps": 0}, ["--steps 0", "at least 1"]),
        ({"lr": -1}, ["--lr -1", "at least 0"]),
        ({"lr": "nan"}, ["--lr nan"]),
        ({"accumulation": 3}, ["--batch_size 4", "--accumulation 3"]),
        ({"context": 100_000}, ["context 100000", "tokens"]),
        ({"vocab_size": 30_000}, ["vocab_size 30000", "at most"]),
        ({"vocab_size": 10}, ["vocab_size 10"]),
        ({"n_heads": 5}, ["n_heads=5"]),
        ({"val_fraction": 0.9}, ["--val_fraction 0.9"]),
        ({"tokenizer": "nothere.model"}, ["nothere.model"]),
    ],
)
def test_bad_input_is_one_line(corpus, tmp_path, changes: dict, parts: list):
    message = run(corpus, tmp_path / "run", **changes)
    assert isinstance(message, str) and len(message.splitlines()) == 1
    assert all(part in message for part in parts), message
    left = list((tmp_path / "run").iterdir()) if (tmp_path / "run").exists() else ["something"]
    assert left, "an empty folder stays behind"


def test_a_missing_package_is_one_line_before_any_work(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert "pip install safetensors" in run(corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_empty_corpus_is_one_line(tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n \n\n")
    assert "no text" in run(tmp_path / "empty.txt", tmp_path / "run")


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(corpus, tmp_path, monkeypatch):
    original = trainer_module.NextTokenLoss.forward

    def diverge(module, windows):
        loss = original(module, windows)
        return loss * float("nan") if module.llama.training and steps.pop(0) == 5 else loss

    steps = list(range(100))
    monkeypatch.setattr(trainer_module.NextTokenLoss, "forward", diverge)
    message = run(corpus, tmp_path)
    assert "the loss is nan" in message and "step 5" in message and "lower --lr" in message
    assert load_plain(tmp_path / "best.pt")["step"] == 4
    load_pretrained(tmp_path / "best.pt")


def test_a_full_disk_keeps_the_last_good_checkpoint(corpus, tmp_path):
    """A file system without room for more than small files: RLIMIT_FSIZE stands for it."""
    run(corpus, tmp_path, steps=4)
    before = (tmp_path / "best.pt").read_bytes()
    code = (
        "import resource, sys, pretrain\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "pretrain.main(sys.argv[1:])\n"
    )
    options = arguments(corpus, tmp_path, steps=8, decay_steps=4, resume=True)
    done = subprocess.run(
        [sys.executable, "-c", code, *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert re.search("is the disk full|File too large", done.stderr)
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "best.pt").read_bytes() == before


# Shapes on paper


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("260k", 260_032),
        ("15m", 15_191_712),
        ("42m", 41_689_600),
        ("110m", 109_529_856),
        ("smollm2-135m", 134_515_008),
        ("llama2-7b", 6_738_415_616),
        ("llama2-13b", 13_015_864_320),
        ("llama2-70b", 68_976_648_192),
    ],
)
def test_published_parameter_counts(preset: str, parameters: int):
    assert count_parameters(LlamaConfig(**PRESETS[preset])) == parameters


def test_count_equals_the_network():
    config = LlamaConfig(vocab_size=60, dim=32, n_layers=2, n_heads=4, n_kv_heads=2)
    assert count_parameters(config) == sum(p.numel() for p in Llama(config).parameters())


def test_llama2_7b_on_paper():
    config = LlamaConfig(**PRESETS["llama2-7b"])
    # 2 · 32 layers · 4096 · 2 bytes: the half megabyte a token that is known of this model
    assert kv_cache_bytes(config, 1, "bfloat16") == 524_288
    per_token = training_flops(config, 4096)
    assert per_token == 6 * (6_738_415_616 - 32000 * 4096) + 6 * 32 * 4096 * 4096


def test_plan_allocates_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        pretrain.main(["--plan", "--preset", "llama2-70b"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "68,976,648,192" in printed and "80 layers" in printed
    assert not os.listdir(tmp_path)


def test_metrics_survive_a_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "tr')
    assert read_metrics(path) == [{"step": 1}]
