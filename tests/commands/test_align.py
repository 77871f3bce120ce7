"""align.py: fine-tuning and preferences from a file to a model, resuming, processes, refusals."""

import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import align
from llama import Llama, load_pretrained
from mini_llama.alignment import supervised
from mini_llama.assignment.adapters import load_adapters
from mini_llama.bundled import FOLDER
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.tensor_files import load_plain
from mini_llama.training import log
from mini_llama.training.log import read_metrics
from tests.helpers import ROOT, tiny_config
from tokenizer import Tokenizer

FILMS, WORDS = ("film", "story", "plot", "acting"), ("good", "bad", "dull", "great", "slow")
VOCABULARY = Tokenizer(None, FOLDER / "demo.model").n_words
SMALL = {"steps": 6, "eval_every": 2, "batch_size": 4, "lr": 1e-2, "sample_tokens": 4}
ADAPTERS = {"lora_rank": 2, "lora_targets": "compute_query,w1,output"}


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: they take longer than the steps."""
    monkeypatch.setattr(log, "plot_losses", lambda *_, **__: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 layers of width 32 with the bundled vocabulary, beside its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "tiny.model").write_bytes((FOLDER / "demo.model").read_bytes())
    size = VOCABULARY
    torch.manual_seed(0)
    config = tiny_config(vocab_size=size, max_seq_len=32, attention="causal", norm="rmsnorm")
    save_checkpoint(folder / "tiny.pt", config, Llama(config).state_dict())
    return folder / "tiny.pt"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What is good is praised, and what is not is not; of every length from one word to four."""
    rng, folder = random.Random(0), tmp_path_factory.mktemp("data")
    sft, dpo = [], []
    for film, word in itertools.product(FILMS, WORDS):
        praise, blame = (f" {x}" * rng.randint(1, 4) + " ." for x in ("charming", "clumsy"))
        good, other = (praise, blame) if word in ("good", "great") else (blame, praise)
        prompt = f"The {film} is {word} ,"
        sft.append({"prompt": prompt, "completion": good})
        dpo.append({"prompt": prompt, "chosen": good, "rejected": other, "grade": 2})
    paths = {}
    rng.shuffle(sft)
    rng.shuffle(dpo)
    for name, rows in (("sft", sft), ("dpo", dpo)):
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def arguments(stage: str, model: Path, data: dict, out: Path, **changes: object) -> list[str]:
    options = {"pretrained-model-path": model, "data": data[stage], "out": out} | SMALL | changes
    options["data"] = options.pop("file", options["data"])
    if stage == "dpo":
        options.pop("sample_tokens")
    words = [stage]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def run(*given: object, **changes: object) -> int | str:
    with pytest.raises(SystemExit) as stop:
        align.main(arguments(*given, **changes))
    return stop.value.code


def refusal(capsys: pytest.CaptureFixture, *given: object, **changes: object) -> str:
    """The error's line, of either exit status."""
    code = run(*given, **changes)
    assert code == 2 or isinstance(code, str)
    message = code if isinstance(code, str) else capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("align.py: error: ") and len(message.splitlines()) == 1
    return message


def losses(out: Path, name: str = "train_loss") -> list[float]:
    return [record[name] for record in read_metrics(out / "metrics.jsonl") if name in record]


def assert_same_model(first: Path, second: Path, tolerance: float = 0.0) -> None:
    ours, theirs = (load_plain(folder / "model.pt")["model"] for folder in (first, second))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    "changes", [{}, {"packing": True}, ADAPTERS], ids=["all", "packed", "lora"]
)
def test_sft_learns_to_answer_and_to_end(changes: dict, model, data, tmp_path, capfd):
    steps = {"steps": 60, "eval_every": 30, "val_fraction": 0.2, "tensorboard": True}
    lr = {"lr": 3e-2, "lora_alpha": 16} if "lora_rank" in changes else {}
    assert run("sft", model, data, tmp_path, **steps | changes | lr) == 0
    printed = capfd.readouterr().out
    assert "16 examples" in printed and "4 held out" in printed and printed.count("sample: ") == 4
    start, end = losses(tmp_path)[0], losses(tmp_path)[-1]
    assert start == pytest.approx(math.log(VOCABULARY), abs=0.4) and end < 0.4 * start
    llama = load_pretrained(tmp_path / "model.pt")
    folder = load_pretrained(tmp_path / "model")
    for name, tensor in llama.state_dict().items():
        torch.testing.assert_close(folder.state_dict()[name], tensor)
    tokenizer = Tokenizer(None, tmp_path / "tokenizer.model")
    prompt = torch.tensor([tokenizer.encode("The film is bad , clumsy .", bos=True, eos=False)])
    if not changes:
        assert llama.generate(prompt, 1, temperature=0.0)[0, -1] == tokenizer.eos_id
    assert list(tmp_path.glob("events.out.tfevents.*"))
    adapters = tmp_path / "model.adapters.pt"
    assert adapters.exists() == ("lora_rank" in changes)
    if adapters.exists():
        base = load_pretrained(model, norm="rmsnorm", attention="causal")
        load_adapters(base, str(adapters))
        for name, tensor in llama.state_dict().items():
            torch.testing.assert_close(base.state_dict()[name], tensor, atol=1e-6, rtol=1e-6)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize("adapters", [{}, ADAPTERS], ids=["all", "lora"])
def test_resume_is_bit_identical(stage: str, adapters: dict, model, data, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(stage, model, data, whole, **adapters) == 0
    original = supervised.RunState.take_step

    def power_cut(state, numbers):
        if state.trainer.step == 5:
            raise KeyboardInterrupt
        return original(state, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(supervised.RunState, "take_step", power_cut)
        assert run(stage, model, data, cut, **adapters) == 130
    assert run(stage, model, data, cut, resume=True, **adapters) == 0
    assert losses(cut) == losses(whole) and losses(cut, "val_loss") == losses(whole, "val_loss")
    assert_same_model(cut, whole)


KILLED = """
import os, signal, sys
import align
from mini_llama.alignment import supervised
original = supervised.RunState.take_step
def take_step(state, numbers):
    if state.trainer.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(state, numbers)
supervised.RunState.take_step = take_step
align.main(sys.argv[1:])
"""


def test_checkpointed_activations_change_nothing(model, data, tmp_path):
    plain, less = tmp_path / "plain", tmp_path / "less"
    assert run("sft", model, data, plain, packing=True) == 0
    assert run("sft", model, data, less, packing=True, checkpoint_activations=True) == 0
    assert losses(less) == losses(plain)
    assert_same_model(less, plain)


def test_kill_9_loses_only_what_came_after_the_last_save(model, data, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [sys.executable, "-c", KILLED, *arguments("sft", model, data, cut, samples=0)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert load_plain(cut / "progress.pt")["step"] == 4 and len(losses(cut)) == 5
    load_pretrained(cut / "model.pt")
    assert run("sft", model, data, whole, samples=0) == 0
    assert run("sft", model, data, cut, samples=0, resume=True) == 0
    # another process may have another number of threads, and so other last digits
    assert losses(cut) == pytest.approx(losses(whole), abs=1e-5)
    assert_same_model(cut, whole, tolerance=1e-3)


def test_two_processes_and_parts_follow_the_trajectory_of_one(model, data, tmp_path):
    one, parts, two = (tmp_path / name for name in ("one", "parts", "two"))
    assert run("sft", model, data, one, steps=4) == 0
    assert run("sft", model, data, parts, steps=4, accumulation=4) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(ROOT / "align.py")]
    done = subprocess.run(
        [*command, *arguments("sft", model, data, two, steps=4, accumulation=2)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (two / "loss.png").read_bytes().startswith(b"\x89PNG")
    for other in (parts, two):
        assert losses(other) == pytest.approx(losses(one), abs=1e-5)
        assert losses(other, "grad_norm") == pytest.approx(losses(one, "grad_norm"), rel=1e-3)
        assert_same_model(other, one, tolerance=1e-3)


def test_dpo_starts_at_log_2_and_prefers_what_is_chosen(model, data, tmp_path):
    assert run("dpo", model, data, tmp_path, steps=60, eval_every=20, val_fraction=0.2) == 0
    assert losses(tmp_path)[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses(tmp_path, "train_margin")[0] == pytest.approx(0, abs=1e-5)
    assert losses(tmp_path, "train_accuracy")[-1] > 0.9 and losses(tmp_path)[-1] < 0.4
    assert min(losses(tmp_path, "val_loss")) < math.log(2)


def test_dpo_with_a_huge_beta_of_adapters_starts_at_the_model_without_them(model, data, tmp_path):
    assert run("dpo", model, data, tmp_path, steps=1, beta=1000, **ADAPTERS) == 0
    assert losses(tmp_path)[0] == pytest.approx(math.log(2), abs=1e-2)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"file": "nothere.jsonl"}, ["nothere.jsonl"]),
        ({"lr": "nan"}, ["--lr nan"]),
        ({"accumulation": 3}, ["--batch_size 4", "--accumulation 3"]),
        ({"min_lr": 1}, ["--min_lr 1", "at most --lr"]),
        ({"template": "chatml"}, ["--template chatml", "plain"]),
        ({"max_length": 33}, ["--max_length 33", "at most 32"]),
        ({"max_length": 5}, ["sft.jsonl line 1", "the prompt is", "at most 5"]),
        ({"attention": "bidirectional"}, ["bidirectional attention", "needs a causal model"]),
        ({"lora_rank": 100}, ["--lora_rank 100", "at most 32"]),
        ({"lora_rank": 2, "lora_targets": "w9"}, ["w9", "the linear layers are"]),
        ({"lora_rank": 2, "shard": True}, ["--shard", "left out with --lora_rank"]),
        ({"pretrained-model-path": "nothere.pt"}, ["nothere.pt"]),
        ({"lr": 1e30}, ["lower --lr"]),
    ],
)
def test_bad_input_is_one_line(changes: dict, parts: list, model, data, tmp_path, capsys):
    message = refusal(capsys, "sft", model, data, tmp_path / "run", **changes)
    assert all(part in message for part in parts), message
    left = list((tmp_path / "run").iterdir()) if (tmp_path / "run").exists() else ["something"]
    assert left, "an empty folder stays behind"


def test_a_malformed_line_is_refused_before_anything_is_loaded(model, data, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(data["dpo"].read_text() + '{"prompt": "a", "chosen": "b"\n')
    damaged = tmp_path / "damaged.pt"  # whoever loaded it would say so
    damaged.write_bytes(b"")
    message = run("dpo", damaged, data, tmp_path / "run", file=bad)
    assert f"{bad} line 21: not JSON" in message and not (tmp_path / "run").exists()


def test_a_run_replaces_nothing_unasked(model, data, tmp_path, capsys):
    assert run("sft", model, data, tmp_path, steps=1) == 0
    assert "has model.pt already" in run("sft", model, data, tmp_path, steps=1)
    assert "lr 0.01, not 0.5" in run("sft", model, data, tmp_path, lr=0.5, resume=True)
    other = tmp_path / "other.jsonl"
    other.write_text(data["sft"].read_text() * 2)
    assert "data " in run("sft", model, data, tmp_path, steps=2, file=other, resume=True)
    said = run("sft", model, data, tmp_path, steps=2, resume=True)
    assert "go on with --steps 2 --decay_steps 1" in said
    assert run("sft", model, data, tmp_path, steps=2, decay_steps=1, resume=True) == 0
    assert run("sft", model, data, tmp_path, steps=1, lr=0.5, overwrite=True) == 0
    capsys.readouterr()
    assert run("sft", model, data, tmp_path / "new", steps=1, resume=True) == 0
    assert "nothing to resume" in capsys.readouterr().out
