"""The same figures and files on a GPU as on the CPU, where there is one (TF32 off, as by default).

MINI_LLAMA_TEST_DEVICE=cpu runs the same tests with the CPU in the GPU's place, which proves that
they can pass.
"""

import contextlib
import gc
import io
import itertools
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import align
import chat
import pretrain
import run_llama
from classifier import ClassifierConfig, LlamaEmbeddingClassifier, load_classifier
from config import EDITIONS
from llama import Attention, Llama, load_pretrained
from lora import apply_lora, get_lora_optimizer_params, merge_lora_weights
from mini_llama.alignment.chat import Tokens
from mini_llama.alignment.data import pack, parts_of
from mini_llama.alignment.sft import AnswerLoss
from mini_llama.assignment import progress
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.inference.decoding import FastDecoder
from mini_llama.inference.generation import generate
from mini_llama.inference.sampling import Sampler
from mini_llama.layers.linear_loss import linear_cross_entropy
from mini_llama.layers.quantized_linear import KINDS
from mini_llama.tf32 import has_tf32, use_tf32
from mini_llama.training import log
from mini_llama.training.core import Recipe, TrainerCore, make_optimizer
from mini_llama.training.log import read_metrics
from mini_llama.training.processes import Process
from optimizer import AdamW
from tests.alignment.helpers import PROMPTS, save_reward, speaking_model, write_lines
from tests.helpers import (
    ROOT,
    WORDS,
    assert_relative,
    random_llama,
    random_tokens,
    refusal_of,
    tiny_config,
)
from utils import autocast

DEVICE = torch.device(os.environ.get("MINI_LLAMA_TEST_DEVICE", "cuda"))
DEVICES = (torch.device("cpu"), DEVICE)
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"
)
CAUSAL = {"norm": "rmsnorm", "attention": "causal"}
needs_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="for CUDA alone")


@pytest.fixture(autouse=True)
def _leave_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MINI_LLAMA_TRACEBACK", raising=False)
    monkeypatch.setattr(log, "plot_losses", lambda *_, **__: None)
    monkeypatch.setattr(progress, "SECONDS", math.inf)
    yield
    torch.set_float32_matmul_precision("highest")
    torch.set_flush_denormal(False)


# The model


@pytest.mark.parametrize("edition", EDITIONS)
def test_forward_and_gradients_equal_the_cpus(edition: str):
    arithmetic = EDITIONS[edition]
    config = tiny_config(norm=arithmetic.norm, attention=arithmetic.attention, n_kv_heads=2)
    results = []
    for device in DEVICES:
        llama = random_llama(config).to(device)
        tokens = random_tokens(config, 3, 17).to(device)
        lengths = torch.tensor([17, 4, 11], device=device)
        logits, hidden_states = llama(tokens, targets=tokens)
        padded, _ = llama(tokens, lengths=lengths)
        (logits.logsumexp(-1).sum() + padded.logsumexp(-1).sum()).backward()
        gradients = [p.grad for p in llama.parameters()]
        results.append([t.detach().cpu() for t in (logits, hidden_states, padded, *gradients)])
    for actual, expected in zip(results[1], results[0], strict=True):
        assert_relative(actual, expected, 1e-4)


@pytest.mark.parametrize("edition", EDITIONS)
def test_greedy_tokens_equal_the_cpus(edition: str):
    arithmetic = EDITIONS[edition]
    llama = random_llama(tiny_config(norm=arithmetic.norm, attention=arithmetic.attention))
    prompt = random_tokens(llama.config, 2, 5)
    expected = llama.generate(prompt, 12, 0.0)
    assert torch.equal(llama.to(DEVICE).generate(prompt.to(DEVICE), 12, 0.0).cpu(), expected)


def test_the_same_seed_draws_the_same_tokens():
    llama = random_llama(tiny_config(**CAUSAL)).to(DEVICE)
    prompt = random_tokens(llama.config, 3, 5).to(DEVICE)
    drawn = [
        llama.generate(prompt, 9, 1.0, 0.01, 0.9, torch.Generator(DEVICE).manual_seed(7))
        for _ in range(2)
    ]
    assert torch.equal(*drawn)


def test_bfloat16_is_near_and_int8_is_refused():
    llama = random_llama(tiny_config(attention="causal")).to(DEVICE)
    tokens = random_tokens(llama.config, 2, 9).to(DEVICE)
    exact, _ = llama(tokens, targets=tokens)
    with autocast(tokens.device, "bfloat16"):
        rounded, _ = llama(tokens, targets=tokens)
    assert_relative(rounded.detach().float().cpu(), exact.detach().cpu(), 0.05)
    decoder = FastDecoder(llama, 2, "bfloat16")
    assert generate(llama, tokens, 4, Sampler(0.0), decoder=decoder).shape == (2, 13)
    if DEVICE.type != "cpu":
        with pytest.raises(ValueError, match="int8 weights are for the CPU"):
            FastDecoder(llama, precision="int8")


@torch.no_grad()
@pytest.mark.parametrize("quantize", KINDS)
def test_models_that_are_loaded_quantized_equal_the_cpus(tmp_path, quantize: str):
    if quantize == "nf4":
        pytest.importorskip("bitsandbytes")
    llama = random_llama(tiny_config(attention="causal", dim=64, hidden_dim=128))
    save_checkpoint(tmp_path / "m.pt", llama.config, llama.state_dict())
    tokens = random_tokens(llama.config, 2, 9)
    results = []
    for device in DEVICES:
        loaded = load_pretrained(tmp_path / "m.pt", quantize=quantize).to(device)
        logits, _ = loaded(tokens.to(device), targets=tokens.to(device))
        results.append(logits.cpu())
        assert loaded.generate(tokens.to(device), 4, 0.0).shape == (2, 13)
    assert_relative(results[1], results[0], 0.05)


def products(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A product of 512 columns on the device, and the exact one."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(256, 512, generator=generator) for _ in range(2))
    return (x.to(device) @ y.to(device).T).cpu(), x.double() @ y.double().T


def test_tf32_is_used_where_it_is_asked_for_and_nowhere_else():
    assert_relative(*products(DEVICE), 1e-5)
    use_tf32(DEVICE, True)
    rounded, exact = products(DEVICE)
    assert_relative(rounded, exact, 2e-3)
    if has_tf32(DEVICE):
        assert (rounded.double() - exact).abs().max() > 2e-5 * exact.abs().max()
    use_tf32(DEVICE, False)
    assert_relative(*products(DEVICE), 1e-5)


@pytest.mark.parametrize("n_kv_heads", [4, 2])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("length", [1, 64])
def test_flash_attention_takes_our_calls_in_bfloat16(n_kv_heads: int, attention: str, length: int):
    """With the other backends switched off, PyTorch raises where it cannot."""
    config = tiny_config(dim=256, n_kv_heads=n_kv_heads, attention=attention)
    module = Attention(config).to(DEVICE, torch.bfloat16)
    if DEVICE.type == "cpu":  # there it is by hand where gradients are needed
        module.requires_grad_(False)
    x = torch.randn(2, length, 256, device=DEVICE, dtype=torch.bfloat16)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        y = module(x)
        if DEVICE.type != "cpu":
            y.float().square().sum().backward()
    with sdpa_kernel(SDPBackend.MATH):
        expected = module(x)
    assert_relative(y.detach().float().cpu(), expected.detach().float().cpu(), 0.03)


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_masked", [False, True])
def test_heads_that_share_never_need_the_whole_matrix(dtype: torch.dtype, is_masked: bool):
    """With the backend that materializes it switched off."""
    module = Attention(tiny_config(dim=256, n_kv_heads=2, attention="causal")).to(DEVICE, dtype)
    x = torch.randn(2, 64, 256, device=DEVICE, dtype=dtype)
    mask = torch.ones(64, 64, dtype=torch.bool, device=DEVICE).tril() if is_masked else None
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        y = module(x, mask=mask)
        y.float().square().sum().backward()
    with sdpa_kernel(SDPBackend.MATH):
        expected = module(x, mask=mask)
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    assert_relative(y.detach().float().cpu(), expected.detach().float().cpu(), tolerance)


@pytest.mark.parametrize("rows", [7, 600])
def test_the_loss_in_chunks_equals_torchs(rows: int):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 32, generator=generator).to(DEVICE).requires_grad_()
    weight = torch.randn(96, 32, generator=generator).to(DEVICE).requires_grad_()
    targets = torch.randint(96, (rows,), generator=generator).to(DEVICE)
    targets[::5] = -100
    results = []
    for loss in (
        linear_cross_entropy(hidden, weight, targets),
        plain_loss(hidden, weight, targets),
    ):
        gradients = torch.autograd.grad(loss, (hidden, weight))
        results.append([t.detach().cpu() for t in (loss[None], *gradients)])
    for actual, expected in zip(*results, strict=True):
        assert_relative(actual, expected, 1e-5)


def plain_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets)


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_the_optimizers_steps_equal_the_cpus(max_grad_norm: float | None):
    results = []
    for device in DEVICES:
        llama = random_llama(tiny_config()).to(device)
        optimizer = AdamW(llama.parameters(), 1e-2, weight_decay=0.1, max_grad_norm=max_grad_norm)
        tokens = random_tokens(llama.config, 3, 9)
        for step in range(4):
            # The CPU's gradients for both: the smallest ones' signs are chance, and count as much.
            for i, parameter in enumerate(llama.parameters()):
                generator = torch.Generator().manual_seed(100 * step + i)
                gradient = torch.randn(parameter.shape, generator=generator)
                parameter.grad = gradient.to(device) if i or step else None
            optimizer.step()
        logits, _ = llama(tokens.to(device), targets=tokens.to(device))
        results.append([t.detach().cpu() for t in (logits, *llama.parameters())])
    for actual, expected in zip(results[1], results[0], strict=True):
        assert_relative(actual, expected, 1e-4)


def test_adapters_have_the_cpus_gradients_and_merge():
    results = []
    for device in DEVICES:
        torch.manual_seed(0)
        llama = random_llama(tiny_config(**CAUSAL))
        model = LlamaEmbeddingClassifier(ClassifierConfig("", 3), llama).eval()
        apply_lora(model.llama, 2, 4.0)
        for parameter in get_lora_optimizer_params(model):
            torch.nn.init.normal_(parameter, std=0.1)  # at 1, float32 itself errs by 1.5e-4
        model.to(device)
        tokens = random_tokens(llama.config, 4, 9).to(device)
        log_probs = model(tokens)
        log_probs[:, 1].sum().backward()
        gradients = [p.grad for p in get_lora_optimizer_params(model)]
        merged = merge_lora_weights(model)(tokens)
        results.append([t.detach().cpu() for t in (log_probs, merged, *gradients)])
    for actual, expected in zip(results[1], results[0], strict=True):
        assert_relative(actual, expected, 1e-4)
    assert_relative(results[1][1], results[1][0], 1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_answers_have_the_cpus_loss_and_gradients(dtype: str, tmp_path):
    config = tiny_config(norm="rmsnorm", attention="causal", max_seq_len=32)
    tokens = random_tokens(config, 6, 9).tolist()
    rows = pack([Tokens(ids, [False] * 3 + [True] * 6) for ids in tokens], 32)
    results = []
    for device in DEVICES:
        llama = random_llama(config).to(device)
        optimizer = partial(make_optimizer, llama, 1e-2, 0.1)
        recipe = Recipe(1e-2, 3, dtype=dtype)
        process = Process(device=device)
        trainer = TrainerCore(
            recipe, process, llama, AnswerLoss(llama), optimizer, tmp_path / "model.pt"
        )
        steps = [trainer.update(parts_of(rows, 3, 2, device)) for _ in range(2)]
        results.append([number for step in steps for number in (step.loss, step.norm)])
    assert results[1] == pytest.approx(results[0], rel=1e-4 if dtype == "float32" else 0.05)


# The commands, as a user runs them


def words_of(options: dict[str, Any]) -> list[str]:
    """{"lr": 1, "use_gpu": True} → --lr 1 --use_gpu; None is left out."""
    words: list[str] = []
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def on(device: torch.device) -> dict[str, Any]:
    return {"use_gpu": None if device.type == "cpu" else True}


def run(main: Callable, *words: object, **options: Any) -> str:
    """A command in this process, which must end well: what it prints on standard output."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            main([*map(str, words), *words_of(options)])
        except SystemExit as stop:
            assert stop.code in (None, 0), stop.code
    return printed.getvalue()


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of tiny_folder that is the current folder."""
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


MODEL = {"pretrained-model-path": "model.pt"}
DATA = {split: f"data/tiny-{split}.txt" for split in ("train", "dev", "test")}
DATA |= {"label-names": "data/labels.json"}


def outputs(option: str) -> dict[str, str]:
    return {f"{split}_out": f"{split}-{option}-output.txt" for split in ("dev", "test")}


def read(*names: str) -> list[str]:
    return [Path(name).read_text(encoding="utf-8") for name in names]


@pytest.mark.parametrize("edition", [None, *EDITIONS])
def test_generate_writes_the_cpus_text(folder: Path, edition: str | None):
    texts = []
    for device in DEVICES:
        options = {"option": "generate", "edition": edition, "max_new_tokens": 12}
        run(run_llama.main, **options, **MODEL, **on(device))
        low, high = read("generated-sentence-temp-0.txt", "generated-sentence-temp-1.txt")
        assert high
        texts.append(low)
    assert texts[1] == texts[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16"},
        {"quantize": "int8"},
        {"quantize": "int8", "dtype": "bfloat16"},
        {"tf32": True},
        {"num_samples": 4, "stop_at_eos": True},
    ],
    ids=str,
)
def test_generate_runs_in_all_its_forms(folder: Path, changes: dict):
    if DEVICE.type == "cpu":
        changes = {name: value for name, value in changes.items() if name != "tf32"}
    options = {"edition": "llama2", "max_new_tokens": 12, "prompt_text": "the plot"}
    run(run_llama.main, **MODEL, **options, **changes, **on(DEVICE))
    assert all(text.startswith("the plot") for text in read("generated-sentence-temp-0.txt"))


def test_the_bundled_model_writes_the_cpus_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    texts = []
    for device in DEVICES:
        run(run_llama.main, option="generate", max_new_tokens=20, **on(device))
        texts += read("generated-sentence-temp-0.txt")
    assert texts[1] == texts[0]


@pytest.mark.parametrize("mask", [None, True], ids=["padded", "masked"])
def test_prompt_writes_the_cpus_predictions(folder: Path, mask: bool | None):
    files = []
    for device in DEVICES:
        options = {"option": "prompt", "mask_padding": mask} | outputs("prompting") | on(device)
        run(run_llama.main, **options, **MODEL, **DATA)
        files.append(read(*outputs("prompting").values()))
    assert files[1] == files[0]


LOSSES = re.compile(r"train loss :: ([\d.]+)")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("option", ["finetune", "lora"])
def test_a_classifier_of_a_gpu_predicts_the_same_on_the_cpu(folder: Path, option: str, dtype: str):
    losses, ending = [], {"finetune": "finetuning", "lora": "lora"}[option]
    for device in DEVICES:
        options = {"option": option, "epochs": 2, "lr": 1e-3, "checkpoint_out": "best.pt"}
        options |= {"dtype": dtype, "hidden_dropout_prob": 0, "lora_targets": "compute_query,w1"}
        printed = run(run_llama.main, **options, **outputs(ending), **MODEL, **DATA, **on(device))
        losses.append([float(loss) for loss in LOSSES.findall(printed)])
    assert losses[1] == pytest.approx(losses[0], rel=0.01 if dtype == "float32" else 0.1)
    load_classifier("best.pt")
    if dtype == "float32":
        trained = {"pretrained-model-path": "best.pt", "input": "data/tiny-dev.txt"}
        run(run_llama.main, option="predict", output="predicted.txt", **trained)
        ours, theirs = read("predicted.txt", f"dev-{ending}-output.txt")
        assert labels_of(ours) == labels_of(theirs) and len(labels_of(ours)) == 10
    if option == "lora":
        adapted = {"adapters": "best.adapters.pt", "edition": "llama2", "max_new_tokens": 4}
        run(run_llama.main, **MODEL, **adapted, **on(DEVICE))


def labels_of(text: str) -> list[str]:
    return [line.partition(" ||| ")[0] for line in text.splitlines() if " ||| " in line]


def test_a_fine_tuning_that_was_stopped_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch):
    options = {"option": "finetune", "epochs": 2, "lr": 1e-3} | outputs("finetuning")
    options |= MODEL | DATA | on(DEVICE)
    whole = LOSSES.findall(run(run_llama.main, checkpoint_out="whole.pt", **options))
    calls = itertools.count()
    nll_loss = F.nll_loss

    def power_cut(*arguments: Any, **more: Any) -> torch.Tensor:
        if next(calls) == 4:  # in epoch 1, of 3 steps
            raise KeyboardInterrupt
        return nll_loss(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(F, "nll_loss", power_cut)
        words = words_of(options | {"checkpoint_out": "best.pt"})
        assert refusal_of(run_llama.main, words)[0] == 130
    rest = LOSSES.findall(run(run_llama.main, checkpoint_out="best.pt", resume=True, **options))
    assert len(whole) == 2
    assert list(map(float, rest)) == pytest.approx([float(whole[1])], abs=2e-3)


def test_a_chat_answers_as_on_the_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch):
    answers = []
    for device in DEVICES:
        typed = io.TextIOWrapper(io.BytesIO(b"a dull film\nis very slow\n"), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", typed)
        options = {"temperature": 0, "max_new_tokens": 8} | MODEL | on(device)
        answers.append(run(chat.main, **options))
    assert answers[1] == answers[0] != ""


# Pre-training

SHAPE = {"preset": "260k", "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "context": 16}
SMALL = {"batch_size": 4, "steps": 6, "eval_every": 3, "eval_batches": 2, "warmup": 2, "lr": 1e-2}
SMALL |= {"sample_tokens": 3, "decay_steps": 6} | SHAPE


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, tokenizer_model: Path) -> dict[str, Any]:
    """--input and --tokenizer."""
    generator = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    documents = torch.randint(len(WORDS), (200, 30), generator=generator).tolist()
    path.write_text("\n\n".join(" ".join(WORDS[i] for i in document) for document in documents))
    return {"input": path, "tokenizer": tokenizer_model}


def pretrained(
    text: dict[str, Any], out: Path, device: torch.device, **changes: Any
) -> list[float]:
    """The losses of a run's steps, and the last of its validations."""
    run(pretrain.main, **text, out=out, **SMALL | changes | on(device))
    return losses_of(out)


def losses_of(out: Path) -> list[float]:
    records = read_metrics(out / "metrics.jsonl")
    return [*(record["train_loss"] for record in records), records[-1]["val_loss"]]


@pytest.fixture(scope="module")
def expected(text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The CPU's losses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "plot_losses", lambda *_, **__: None)
        return pretrained(text, tmp_path_factory.mktemp("cpu") / "run", DEVICES[0])


def test_pre_training_has_the_cpus_losses_and_can_be_resumed(
    text: dict[str, Any], expected: list[float], tmp_path: Path
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    losses = pretrained(text, whole, DEVICE)
    assert losses == pytest.approx(expected, rel=1e-3)
    pretrained(text, stopped, DEVICE, steps=3)
    assert pretrained(text, stopped, DEVICE, resume=True) == pytest.approx(losses, rel=1e-4)
    for name in ("last.pt", "last"):  # read on the CPU
        ours, theirs = (load_pretrained(path / name).state_dict() for path in (stopped, whole))
        for key, tensor in ours.items():
            assert_relative(tensor, theirs[key], 0.02)


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"checkpoint_activations": True, "accumulation": 2}, 1e-3),
        ({"tf32": True}, 2e-2),
        ({"dtype": "bfloat16"}, 5e-2),
        ({"dtype": "bfloat16", "compile": True}, 5e-2),
        ({"optimizer": "muon", "ema": 0.9}, math.inf),
    ],
    ids=str,
)
def test_pre_training_in_all_its_forms(
    text: dict[str, Any], expected: list[float], tmp_path: Path, changes: dict, tolerance: float
):
    if DEVICE.type == "cpu":
        changes = {name: value for name, value in changes.items() if name != "tf32"}
    losses = pretrained(text, tmp_path / "run", DEVICE, **changes)
    assert losses == pytest.approx(expected, rel=tolerance)
    assert all(map(math.isfinite, losses))


def test_one_process_of_torchrun_with_fsdp2(
    text: dict[str, Any], expected: list[float], tmp_path: Path
):
    """As torchrun starts one: nccl on CUDA, else gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    alone |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = words_of(text | SMALL | {"out": tmp_path / "run", "shard": True} | on(DEVICE))
    done = subprocess.run(
        [sys.executable, str(ROOT / "pretrain.py"), *words],
        capture_output=True,
        text=True,
        env=os.environ | alone,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses_of(tmp_path / "run") == pytest.approx(expected, rel=1e-3)
    assert isinstance(load_pretrained(tmp_path / "run" / "last.pt"), Llama)


# Post-training


def aligned(stage: str, out: Path, device: torch.device, **options: Any) -> list[float]:
    """The losses of a stage's run."""
    run(align.main, stage, **options, out=out, **on(device))
    records = read_metrics(out / "metrics.jsonl")
    return [record["train_loss"] for record in records if "train_loss" in record]


@pytest.mark.parametrize("stage", ["sft", "sft with adapters", "reward", "dpo"])
def test_post_training_has_the_cpus_losses(folder: Path, stage: str):
    rows = [
        {"prompt": p, "completion": f" {good} .", "chosen": f" {good} .", "rejected": f" {bad} ."}
        for p, (good, bad) in itertools.product(PROMPTS, (("good", "bad"), ("great fun", "dull")))
    ]
    names = ("prompt", "completion") if "sft" in stage else ("prompt", "chosen", "rejected")
    data = write_lines(folder / "data.jsonl", [{name: row[name] for name in names} for row in rows])
    options = {"steps": 3, "batch_size": 4, "lr": 1e-3, "data": data, "norm": "rmsnorm"} | MODEL
    if "adapters" in stage:
        options |= {"lora_rank": 2}
    command = stage.partition(" ")[0]
    found = [
        aligned(command, Path(name), device, **options)
        for name, device in zip(("cpu", "gpu"), DEVICES, strict=True)
    ]
    assert len(found[0]) == 3 and found[1] == pytest.approx(found[0], rel=1e-3)
    if "sft" in stage:
        load_pretrained("gpu/model.pt")


@pytest.mark.parametrize("stage", ["ppo", "rejection"])
def test_stages_that_sample_run(tiny_folder: Path, tmp_path: Path, stage: str):
    save_reward(tmp_path / "reward.pt")
    prompts = write_lines(tmp_path / "prompts.jsonl", ({"prompt": p} for p in PROMPTS * 2))
    options = {"pretrained-model-path": speaking_model(tmp_path, tiny_folder), "data": prompts}
    options |= {"reward_model": tmp_path / "reward.pt", "max_new_tokens": 6, "lr": 1e-3}
    if stage == "ppo":
        options |= {"iterations": 2, "batch_size": 12, "minibatch_size": 6, "norm": "rmsnorm"}
        options |= {"val_fraction": 0.5}
    else:
        options |= {"steps": 2, "batch_size": 4, "candidates": 3, "samples": 0, "val_fraction": 0}
    run(align.main, stage, **options, out=tmp_path / "run", **on(DEVICE))
    load_pretrained(tmp_path / "run" / "model.pt")
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")


# Refusals


@needs_cuda
def test_a_lack_of_memory_is_one_line(folder: Path):
    config = tiny_config(dim=512, hidden_dim=2048, n_layers=4, vocab_size=300, **CAUSAL)
    save_checkpoint("large.pt", config, Llama(config).state_dict())  # 60 MB
    shutil.copy("model.model", "large.model")
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        words = words_of({"option": "finetune"} | outputs("finetuning") | DATA)
        words += ["--pretrained-model-path", "large.pt"]
        status, line = refusal_of(run_llama.main, [*words, "--use_gpu"])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert status == 1 and line.startswith("run_llama.py: error: out of memory: lower --batch_size")
