"""The same figures on a GPU as on the CPU, where there is one (TF32 off, as it is by default)."""

from functools import partial

import pytest
import torch

from config import EDITIONS
from llama import load_pretrained
from mini_llama.alignment.chat import Tokens
from mini_llama.alignment.data import pack, parts_of
from mini_llama.alignment.sft import AnswerLoss
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.inference.decoding import FastDecoder
from mini_llama.inference.generation import generate
from mini_llama.inference.sampling import Sampler
from mini_llama.layers.quantized_linear import KINDS
from mini_llama.training.core import Recipe, TrainerCore, make_optimizer
from mini_llama.training.processes import Process
from tests.helpers import assert_relative, random_llama, random_tokens, tiny_config
from utils import autocast

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("edition", EDITIONS)
def test_forward_and_gradients_equal_the_cpus(edition: str):
    arithmetic = EDITIONS[edition]
    config = tiny_config(norm=arithmetic.norm, attention=arithmetic.attention, n_kv_heads=2)
    results = []
    for device in ("cpu", "cuda"):
        llama = random_llama(config).to(device)
        tokens = random_tokens(config, 3, 17).to(device)
        logits, hidden_states = llama(tokens, targets=tokens)
        logits.logsumexp(-1).sum().backward()
        gradient = llama.layers[0].attention.compute_key.weight.grad
        results.append([t.detach().cpu() for t in (logits, hidden_states, gradient)])
    for actual, expected in zip(results[1], results[0], strict=True):
        assert_relative(actual, expected, 1e-4)


def test_greedy_tokens_equal_the_cpus():
    llama = random_llama(tiny_config(attention="causal"))
    prompt = random_tokens(llama.config, 2, 5)
    expected = llama.generate(prompt, 12, 0.0)
    assert torch.equal(llama.cuda().generate(prompt.cuda(), 12, 0.0).cpu(), expected)


def test_bfloat16_is_near_and_int8_is_refused():
    llama = random_llama(tiny_config(attention="causal")).cuda()
    tokens = random_tokens(llama.config, 2, 9).cuda()
    exact, _ = llama(tokens, targets=tokens)
    with autocast(tokens.device, "bfloat16"):
        rounded, _ = llama(tokens, targets=tokens)
    assert_relative(rounded.detach().float().cpu(), exact.detach().cpu(), 0.05)
    decoder = FastDecoder(llama, 2, "bfloat16")
    assert generate(llama, tokens, 4, Sampler(0.0), decoder=decoder).shape == (2, 13)
    with pytest.raises(ValueError, match="int8 weights are for the CPU"):
        FastDecoder(llama, precision="int8")


@torch.no_grad()
@pytest.mark.parametrize("quantize", KINDS)
def test_models_that_are_loaded_rounded_equal_the_cpus(tmp_path, quantize: str):
    if quantize == "nf4":
        pytest.importorskip("bitsandbytes")
    llama = random_llama(tiny_config(attention="causal", dim=64, hidden_dim=128))
    save_checkpoint(tmp_path / "m.pt", llama.config, llama.state_dict())
    tokens = random_tokens(llama.config, 2, 9)
    results = []
    for device in ("cpu", "cuda"):
        loaded = load_pretrained(tmp_path / "m.pt", quantize=quantize).to(device)
        logits, _ = loaded(tokens.to(device), targets=tokens.to(device))
        results.append(logits.cpu())
        assert loaded.generate(tokens.to(device), 4, 0.0).shape == (2, 13)
    assert_relative(results[1], results[0], 0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_answers_have_the_cpus_loss_and_gradients(dtype: str, tmp_path):
    config = tiny_config(norm="rmsnorm", attention="causal", max_seq_len=32)
    tokens = random_tokens(config, 6, 9).tolist()
    rows = pack([Tokens(ids, [False] * 3 + [True] * 6) for ids in tokens], 32)
    results = []
    for device in map(torch.device, ("cpu", "cuda")):
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
