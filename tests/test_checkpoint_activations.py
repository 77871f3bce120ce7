"""--checkpoint_activations: the same losses, gradients and files, from less memory."""

import copy
import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import lora
import run_llama
from classifier import ClassifierConfig, LlamaEmbeddingClassifier
from config import LlamaConfig
from llama import Llama
from mini_llama import allocator
from mini_llama.assignment import training_memory
from mini_llama.assignment.batches import EncodedExamples
from mini_llama.assignment.options import Options
from mini_llama.assignment.training_memory import prepare_memory
from mini_llama.checkpoints.sizes import (
    TrainingShape,
    activation_bytes,
    describe,
    layer_activation_bytes,
)
from tests.helpers import ROOT, random_llama, random_tokens, tiny_config

TRUE = {"norm": "rmsnorm", "attention": "causal", "dropout": 0.2}
LENGTHS = torch.tensor([3, 9, 12, 1])


@pytest.fixture(autouse=True)
def _leave_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training_memory, "give_back_large_blocks", lambda: True)
    yield
    torch.set_flush_denormal(False)


# Gradients


def make_classifier(config: LlamaConfig, is_lora: bool) -> LlamaEmbeddingClassifier:
    torch.manual_seed(0)
    model = LlamaEmbeddingClassifier(ClassifierConfig("", 3), llama=random_llama(config))
    if is_lora:
        lora.apply_lora(model.llama)
        for parameter in lora.get_lora_optimizer_params(model):
            torch.nn.init.normal_(parameter)
    return model.train()


def step(model: torch.nn.Module, loss: Any, dtype: str) -> tuple[torch.Tensor, dict, torch.Tensor]:
    """Loss, gradients, and the next random number: what is drawn afterwards is the same, too."""
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        value = loss(model)
    value.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert gradients
    return value.detach(), gradients, torch.rand(1)


def assert_same_step(model: Any, llama: Llama, loss: Any, dtype: str) -> None:
    """Bit for bit."""
    plain = step(copy.deepcopy(model), loss, dtype)
    llama.checkpoint_activations = True
    value, gradients, following = step(model, loss, dtype)
    assert torch.equal(value, plain[0]) and torch.equal(following, plain[2])
    assert gradients.keys() == plain[1].keys()
    assert all(torch.equal(gradients[name], plain[1][name]) for name in gradients)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("is_lora", [False, True], ids=["all weights", "lora"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["padding seen", "padding masked"])
def test_a_classifier_has_the_same_gradients(dtype, is_lora, lengths):
    attention = "causal" if lengths is None else "bidirectional"  # where lengths make a mask
    config = tiny_config(**{**TRUE, "attention": attention, "n_layers": 3})
    model = make_classifier(config, is_lora)
    tokens, labels = random_tokens(config, 4, 12), torch.tensor([0, 2, 1, 2])
    assert_same_step(
        model, model.llama, lambda m: F.nll_loss(m(tokens, lengths=lengths), labels), dtype
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_language_model_has_the_same_gradients(dtype):
    config = tiny_config(**TRUE)
    model, tokens = random_llama(config).train(), random_tokens(config, 4, 13)

    def loss(llama: Llama) -> torch.Tensor:
        logits, _ = llama(tokens[:, :-1], targets=tokens[:, 1:])
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    assert_same_step(model, model, loss, dtype)


def test_dropout_differs_between_steps():
    """The stored random state belongs to one forward pass."""
    config = tiny_config(**TRUE)
    model, tokens = random_llama(config).train(), random_tokens(config, 2, 8)
    model.checkpoint_activations = True
    assert not torch.equal(model.hidden_states(tokens), model.hidden_states(tokens))


def test_without_gradients_nothing_is_stored():
    config = tiny_config(**TRUE)
    model, tokens = random_llama(config), random_tokens(config, 2, 8)
    expected = model.hidden_states(tokens)
    model.checkpoint_activations = True
    with torch.no_grad():
        assert torch.equal(model.hidden_states(tokens), expected)


# Memory


class MostBytes(TorchDispatchMode):
    """The most bytes that results of operations, still alive, had together."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {k: v for k, v in self.alive.items() if not v[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return result


def most_bytes(config: LlamaConfig, rows: int, context: int, is_checkpointed: bool) -> int:
    """Of a forward and a backward pass; weights are frozen, so that activations are all there is.
    Only the embedded tokens want a gradient.
    """
    llama = random_llama(config).train().requires_grad_(False)
    llama.tok_embeddings.requires_grad_(True)
    llama.checkpoint_activations = is_checkpointed
    tokens = random_tokens(config, rows, context)
    with MostBytes() as mode:
        llama.hidden_states(tokens).sum().backward()
    return mode.most


def test_the_peak_falls_to_what_is_planned():
    """To all layers' inputs and one layer's activations, and the gradients on their way."""
    config = tiny_config(**{**TRUE, "dropout": 0.0, "n_layers": 10, "hidden_dim": 128})
    planned = layer_activation_bytes(config, TrainingShape(32, 16, checkpoint_activations=True))
    peak = most_bytes(config, 32, 16, is_checkpointed=True)
    assert planned < peak < 1.7 * planned
    assert peak < 0.3 * most_bytes(config, 32, 16, is_checkpointed=False)


def test_the_plan_by_hand():
    """A float32 input for each of three layers, one layer of 480 numbers, and 2 · 11 logits."""
    config = tiny_config(n_layers=3, hidden_dim=40, vocab_size=11)
    shape = TrainingShape(5, 7, "bfloat16", checkpoint_activations=True)
    assert activation_bytes(config, shape) == 5 * 7 * (3 * 32 * 4 + (480 + 22) * 2)
    assert "5 x 7 tokens, bfloat16, checkpointed" in describe(config, shape)


PATTERN = """
import sys
from mini_llama.allocator import give_back_large_blocks, keep_freed_blocks
assert (give_back_large_blocks if sys.argv[1] == "give" else keep_freed_blocks)()
def resident():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(l.split()[1]) for l in lines if l.startswith("VmRSS"))
def filled(size):
    block = bytearray(size)
    block[::4096] = b"x" * len(block[::4096])
    return block
del [filled(30 << 20) for _ in range(2)][:]  # glibc then keeps blocks of this size
blocks = [filled(16 << 20) for _ in range(20)]
before = resident()
del blocks[:-1]
print((before - resident()) >> 20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc and glibc are Linux's")
def test_freed_blocks_go_back_to_the_system():
    """19 of 20 blocks of 16 MiB, though the last one is still in use."""
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("this C library has no mallopt")
    line = [sys.executable, "-c", PATTERN, "give"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 300


FAULTS = """
import resource, sys
from mini_llama.allocator import keep_freed_blocks
if sys.argv[1] == "keep": assert keep_freed_blocks()
def fill():
    blocks = [bytearray(size << 20) for size in (8, 48, 100)]
    for block in blocks: block[::4096] = b"x" * len(block[::4096])
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_freed_blocks_are_kept_for_the_next_step():
    """156 MiB are 39,936 pages of 4 KiB, which the system hands out once, or again and again."""
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("this C library has no mallopt")
    faults = {}
    for way in ("default", "keep"):
        line = [sys.executable, "-c", FAULTS, way]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
        faults[way] = int(done.stdout)
    assert faults["keep"] < 1000 and faults["keep"] < faults["default"] / 5


@pytest.mark.parametrize(
    ("free", "checkpointed", "kept"), [(10.0, False, 1), (10.0, True, 0), (1.5, False, 0)]
)
def test_blocks_are_kept_only_where_memory_is_ample(
    monkeypatch: pytest.MonkeyPatch, free: float, checkpointed: bool, kept: int
):
    model, calls = make_classifier(tiny_config(), is_lora=False), []
    train = EncodedExamples([], [[1, 2, 3]], 0)
    options = Options(
        option="finetune",
        dev_out="dev-finetuning-output.txt",
        test="none",
        checkpoint_activations=checkpointed,
    )
    needed = training_memory.needed_bytes(options, model, train)
    monkeypatch.setattr(training_memory, "WORTH_KEEPING", needed)
    monkeypatch.setattr(training_memory, "available_bytes", lambda _: int(free * needed))
    monkeypatch.setattr(training_memory, "keep_freed_blocks", lambda: calls.append(1))
    prepare_memory(options, model, train)
    assert len(calls) == kept
    monkeypatch.setattr(training_memory, "WORTH_KEEPING", needed + 1)
    prepare_memory(options, model, train)
    assert len(calls) == kept


def test_another_systems_malloc_is_left_alone(monkeypatch):
    def refuse(_: object) -> Any:
        raise TypeError("Windows has no name for this process")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert not allocator.give_back_large_blocks() and not allocator.keep_freed_blocks()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert not allocator.give_back_large_blocks() and not allocator.keep_freed_blocks()


# The command


def train(option: str, *more: str) -> dict[str, Any]:
    """Run in the current folder: all tensors saved, and the predictions."""
    ending = {"finetune": "finetuning", "lora": "lora"}[option]
    words = ["--option", option, "--epochs", "1", "--lr", "0.01", "--test", "none"]
    words += ["--pretrained-model-path", "model.pt", "--label-names", "data/labels.json"]
    words += ["--train", "data/tiny-train.txt", "--dev", "data/tiny-dev.txt", *more]
    run_llama.main([*words, "--dev_out", f"dev-{ending}-output.txt", "--checkpoint_out", "out.pt"])
    saved = torch.load("out.pt", weights_only=True)["model"]
    return saved | {"predictions": Path(f"dev-{ending}-output.txt").read_text()}


@pytest.mark.parametrize("option", ["finetune", "lora"])
@pytest.mark.parametrize("more", [(), ("--mask_padding", "--dtype", "bfloat16")], ids=["", "own"])
def test_the_command_has_the_same_result(
    option, more, tiny_folder, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    plain = train(option, *more)
    flagged = train(option, *more, "--checkpoint_activations")
    assert plain.keys() == flagged.keys()
    for name, value in plain.items():
        other = flagged[name]
        assert torch.equal(value, other) if torch.is_tensor(value) else value == other


@pytest.mark.parametrize("option", ["generate", "prompt"])
def test_what_does_not_train_refuses_it(option):
    with pytest.raises(ValueError, match=r"^--checkpoint_activations True .*finetune and lora"):
        Options(option=option, checkpoint_activations=True)


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize(("free", "is_warned"), [(10**4, True), (10**9, False), (None, False)])
def test_too_little_memory_is_said_before_training(
    is_checkpointed, free, is_warned, monkeypatch, capsys
):
    """Gradients and moments of all weights, and 2 rows of 9 tokens through 2 layers."""
    config = tiny_config(**TRUE, hidden_dim=40)
    model = make_classifier(config, is_lora=False)
    options = Options(
        option="finetune",
        dev_out="dev-finetuning-output.txt",
        test="none",
        checkpoint_activations=is_checkpointed,
    )
    monkeypatch.setattr(training_memory, "available_bytes", lambda device: free)
    prepare_memory(options, model, EncodedExamples([], [[1] * 4, [1] * 9], 0))
    assert model.llama.checkpoint_activations == is_checkpointed
    error = capsys.readouterr().err
    assert error.count("\n") == is_warned
    if is_warned:
        weights = 3 * 4 * sum(p.numel() for p in model.parameters())
        plain, less = (weights + 18 * 4 * n for n in (1.3 * 2 * 480, 480 + 2 * 32))
        needed = less if is_checkpointed else plain
        assert f"needs about {needed / 1e6:.2f} MB for 8 texts of up to 9 tokens" in error
        assert "0.01 MB are free: " in error and "--batch_size" in error
        remedy = f"with --checkpoint_activations about {less / 1e6:.2f} MB"
        assert (remedy in error) != is_checkpointed
