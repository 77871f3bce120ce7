"""What a run's recipe adds to AdamW and a cosine: wsd, weight averages, Muon, budgets, speed."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from mini_llama.addition.options import CAPACITY, count_samples
from mini_llama.bounds import UsageError
from mini_llama.checkpoints.sizes import count_parameters
from mini_llama.pretraining.budget import with_budget
from mini_llama.pretraining.options import PretrainOptions
from mini_llama.pretraining.trainer import Trainer, bits_per_byte
from mini_llama.training.averaging import WeightAverage
from mini_llama.training.core import TrainerCore
from mini_llama.training.loop import Steps
from mini_llama.training.muon import MuonAndAdamW
from mini_llama.training.processes import Process
from mini_llama.training.schedule import learning_rate
from mini_llama.training.throughput import peak_of
from tests.helpers import random_llama, random_tokens, tiny_config
from tests.training.test_core import RECIPE, TargetLoss, parts
from tokenizer import Tokenizer


@pytest.mark.parametrize(("steps", "cooldown"), [(40, 0.25), (33, 0.5), (30, 0.01)])
def test_wsd_is_torchs_constant_and_linear_schedules_in_a_row(steps: int, cooldown: float):
    recipe = dataclasses.replace(
        RECIPE, lr=0.5, min_lr=0.1, warmup=0, steps=steps, schedule="wsd", cooldown=cooldown
    )
    last = max(1, round(cooldown * steps))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    constant = lr_scheduler.ConstantLR(optimizer, factor=1.0)
    fall = lr_scheduler.LinearLR(optimizer, 1.0, 0.2, total_iters=last)
    scheduler = lr_scheduler.SequentialLR(optimizer, [constant, fall], milestones=[steps - last])
    for step in range(steps):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(recipe, step) == pytest.approx(expected, abs=1e-12), step
        optimizer.step()
        scheduler.step()


def test_averages_are_the_closed_form_of_the_recursion():
    llama = random_llama(tiny_config())
    average = WeightAverage(llama, decay=0.4)
    values = [llama.norm.weight.detach().double().numpy().copy()]
    rng = np.random.default_rng(0)
    for _ in range(5):
        with torch.no_grad():
            llama.norm.weight.copy_(torch.tensor(rng.normal(size=32)))
        values.append(llama.norm.weight.detach().double().numpy().copy())
        average.update()
    decays = [min(0.4, (1 + n) / (10 + n)) for n in range(1, 6)]
    assert decays[0] < 0.4 == decays[-1], "both parts of the rule are used"
    shares = [math.prod(decays)]
    shares += [(1 - d) * math.prod(decays[n + 1 :]) for n, d in enumerate(decays)]
    expected = np.einsum("n,nd->d", shares, np.stack(values))
    own = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    with average.in_place():
        found = llama.state_dict()["norm.weight"].clone()
    torch.testing.assert_close(found.double(), torch.tensor(expected), atol=1e-6, rtol=1e-6)
    assert all(torch.equal(own[name], tensor) for name, tensor in llama.state_dict().items())
    other = WeightAverage(random_llama(tiny_config(), seed=1), decay=0.4)
    other.load_state_dict(average.state_dict())
    assert other.updates == 5 and torch.equal(other.average["norm.weight"], found)


def test_muon_takes_the_steps_of_torchs_optimizers(tmp_path):
    """Hidden matrices by torch.optim.Muon, the rest by torch.optim.AdamW, which decays first."""
    recipe = dataclasses.replace(RECIPE, schedule="constant", warmup=0, max_grad_norm=1e9)
    llama, peer = random_llama(tiny_config()), random_llama(tiny_config())
    make = partial(MuonAndAdamW, llama, recipe.lr, weight_decay=0.0, eps=1e-20)
    trainer = TrainerCore(recipe, Process(), llama, TargetLoss(llama), make, tmp_path / "m.pt")
    hidden = [p for n, p in peer.named_parameters() if p.ndim == 2 and "layers" in n]
    rest = [p for n, p in peer.named_parameters() if p.ndim < 2 or "layers" not in n]
    assert len(hidden) == 14 and len(rest) == len(list(peer.parameters())) - 14
    muon = torch.optim.Muon(hidden, recipe.lr, 0.0, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, recipe.lr, (0.9, 0.95), 1e-20, 0.0)
    loss = TargetLoss(peer)
    for _ in range(3):
        trainer.update(parts([8]))
        for optimizer in (muon, adamw):
            optimizer.zero_grad()
        loss(parts([8])[0].inputs)[0].backward()
        for optimizer in (muon, adamw):
            optimizer.step()
    for ours, theirs in zip(llama.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def trained(tmp_path, name: str, steps: list[int]) -> Trainer:
    """A trainer with all of it, stopped and resumed at each of `steps`."""
    options = PretrainOptions(
        input=("x",), out=str(tmp_path / name), steps=12, warmup=1, lr=1e-2, batch_size=4
    )
    options = dataclasses.replace(options, optimizer="muon", ema=0.5, schedule="wsd", context=12)
    (tmp_path / name).mkdir()
    done = 0
    for stop in steps:
        torch.manual_seed(7)
        trainer = Trainer(options, Process(), tiny_config())
        if done:
            trainer.load_progress()
        for step in range(done, stop):
            trainer.train_step(random_tokens(tiny_config(), 4, 13, seed=step))
        trainer.save_progress()
        done = stop
    return trainer


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(tmp_path):
    whole, resumed = trained(tmp_path, "whole", [12]), trained(tmp_path, "resumed", [3, 11, 12])
    for ours, theirs in zip(resumed.llama.parameters(), whole.llama.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert whole.average is not None and resumed.average is not None
    for name, tensor in whole.average.average.items():
        assert torch.equal(resumed.average.average[name], tensor)
    resumed.save("last")
    saved = torch.load(tmp_path / "resumed" / "last.pt", weights_only=True)["model"]
    assert torch.equal(saved["norm.weight"], whole.average.average["norm.weight"])


def test_a_longer_wsd_run_may_go_on_from_before_the_fall(tmp_path):
    trainer = trained(tmp_path, "out", [6])
    longer = dataclasses.replace(trainer.options, steps=30)
    Trainer(longer, Process(), tiny_config()).load_progress()
    trained(tmp_path, "late", [11])
    longer = dataclasses.replace(longer, out=str(tmp_path / "late"))
    with pytest.raises(ValueError, match=r"is at step 11, .* falls from step 10 on, not 24"):
        Trainer(longer, Process(), tiny_config()).load_progress()


def test_bits_per_byte_are_those_of_the_text(tokenizer_model):
    """-log2 of the text's probability, over its bytes in UTF-8."""
    tokenizer = Tokenizer(None, tokenizer_model)
    trainer = Trainer(PretrainOptions(input=("x",)), Process(), tiny_config(), tokenizer)
    text = "the film was café ünlikely"
    ids = tokenizer.encode(text, bos=False, eos=True)
    probabilities = np.random.default_rng(0).uniform(0.1, 0.9, size=len(ids))
    loss = float(-np.log(probabilities).mean())
    expected = -np.log2(probabilities).sum() / len(f" {text}".encode())  # SentencePiece's space
    found = bits_per_byte(loss, torch.tensor(ids), trainer.bytes_of_tokens)
    assert found == pytest.approx(expected, rel=1e-12)
    assert math.isnan(
        bits_per_byte(loss, torch.tensor([tokenizer.eos_id]), trainer.bytes_of_tokens)
    )


def test_budgets_buy_steps():
    config = tiny_config()
    parameters = count_parameters(config)
    options = PretrainOptions(input=("x",), batch_size=4, context=16)
    by_tokens = with_budget(dataclasses.replace(options, tokens_per_parameter=20), config)
    assert by_tokens.steps == math.ceil(20 * parameters / 64)
    by_flops = with_budget(dataclasses.replace(options, flops=6.0 * parameters * 640), config)
    assert by_flops.steps == 10 and by_flops.flops is None
    # Spring 2026's rule, where a sample counts as one: so many windows of one token
    samples, _ = count_samples(CAPACITY // 10**6, parameters, 1)
    ones = PretrainOptions(input=("x",), batch_size=1, context=1, flops=float(CAPACITY // 10**6))
    assert with_budget(ones, config).steps == samples
    assert with_budget(options, config) is options


@pytest.mark.parametrize(
    "changes",
    [
        {"flops": 1e9, "tokens_per_parameter": 20.0},
        {"flops": 1e9, "steps": 10},
        {"cooldown": 0.5},
        {"schedule": "wsd", "decay_steps": 5},
        {"schedule": "wsd", "cooldown": 0.95, "steps": 1000, "warmup": 100},
        {"ema": 1.0},
        {"ema": 0.9, "shard": True},
        {"optimizer": "muon", "shard": True},
    ],
)
def test_contradictions_are_refused(changes: dict):
    with pytest.raises(UsageError, match="is not allowed: it must be"):
        PretrainOptions(input=("x",), **changes)


def test_utilization_is_the_share_of_the_cards_peak():
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12 and peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA L40S") == 362e12 and peak_of("Tesla K80") is None
    assert peak_of("NVIDIA H200", "float32") == 67e12
    assert peak_of("NVIDIA H200", "float32", tf32=True) == 989e12 / 2
    speed = Steps(0, 1, 1, flops_a_token=2e9, peak=989e12).speed(100_000)
    assert speed["flops_per_second"] == 2e14 and speed["mfu"] == pytest.approx(0.2022, abs=1e-4)
    assert Steps(0, 1, 1).speed(5.0) == {"tokens_per_second": 5.0}
