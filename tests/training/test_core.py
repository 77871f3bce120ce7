"""The trainer that pre-training and post-training share."""

import dataclasses
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lora import apply_lora
from mini_llama.training.core import Part, Recipe, TrainerCore, make_optimizer
from mini_llama.training.processes import Process
from mini_llama.training.progress import load_progress, save_progress
from tests.helpers import random_llama, random_tokens, tiny_config

RECIPE = Recipe(lr=1e-2, steps=6, warmup=2, min_lr=1e-3, max_grad_norm=0.5)


class TargetLoss(nn.Module):
    """Cross-entropy of the columns that carry a target, and a number to report."""

    def __init__(self, llama: nn.Module) -> None:
        super().__init__()
        self.llama = llama

    def forward(self, inputs: tuple) -> tuple:
        tokens, labels = inputs
        logits = self.llama(tokens, targets=labels)[0][:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return loss, {"double": 2 * loss.detach()}


def make_trainer(folder, recipe=RECIPE, rank: int = 0) -> TrainerCore:
    llama = random_llama(tiny_config())
    if rank:
        torch.manual_seed(0)
        apply_lora(llama, rank, 2.0, ("compute_query", "w1"))
    optimizer = partial(make_optimizer, llama, recipe.lr, weight_decay=0.1)
    kept = folder / "model.pt"
    return TrainerCore(recipe, Process(), llama, TargetLoss(llama), optimizer, kept)


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """8 rows with 1 to 8 targets."""
    tokens = random_tokens(tiny_config(), 8, 12)
    labels = tokens.clone()
    for row in range(8):
        labels[row, : 11 - row] = -100
    return tokens, labels


def parts(sizes: list[int]) -> list[Part]:
    tokens, labels = rows()
    groups = zip(tokens.split(sizes), labels.split(sizes), strict=True)
    return [Part(group, int((group[1] != -100).sum())) for group in groups]


@pytest.mark.parametrize("sizes", [[4, 4], [1, 6, 1], [1] * 8])
def test_parts_of_unequal_numbers_of_targets_follow_the_trajectory_of_one_batch(sizes, tmp_path):
    whole, divided = make_trainer(tmp_path), make_trainer(tmp_path)
    for _ in range(4):
        one, many = whole.update(parts([8])), divided.update(parts(sizes))
        assert many.loss == pytest.approx(one.loss, abs=1e-6)
        assert many.norm == pytest.approx(one.norm, rel=1e-5)
        assert many.metrics == pytest.approx({"double": 2 * one.loss}, rel=1e-5)
    for ours, theirs in zip(divided.network.parameters(), whole.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert divided.evaluate(parts(sizes)).loss == pytest.approx(whole.evaluate(parts([8])).loss)


def test_steps_equal_a_plain_loop_with_torch(tmp_path):
    """torch's clipping, and its AdamW, which is ours where nothing is decayed and eps is small."""
    recipe = dataclasses.replace(RECIPE, schedule="constant", warmup=0)
    trainer, llama = make_trainer(tmp_path, recipe), random_llama(tiny_config()).train()
    for group in trainer.optimizer.param_groups:
        group |= {"weight_decay": 0.0, "eps": 1e-20}
    trainer.optimizer.param_groups[1]["lr_scale"] = 0.5
    matrices = [p for p in llama.parameters() if p.ndim > 1]
    norms = [p for p in llama.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "lr": 1e-2}, {"params": norms, "lr": 5e-3}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-20, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        loss = TargetLoss(llama)(rows())[0]
        loss.backward()
        norm = nn.utils.clip_grad_norm_(llama.parameters(), 0.5)
        optimizer.step()
        step = trainer.update(parts([8]))
        assert (step.loss, step.norm) == pytest.approx((loss.item(), norm.item()), rel=1e-4)
    for ours, theirs in zip(trainer.network.parameters(), llama.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_what_cannot_be_learnt_from_changes_nothing(tmp_path):
    trainer = make_trainer(tmp_path)
    before = [p.clone() for p in trainer.network.parameters()]
    tokens, labels = rows()
    with pytest.raises(ValueError, match="a batch without a target at step 0"):
        trainer.update([Part((tokens, torch.full_like(labels, -100)), 0)])
    with pytest.raises(ValueError, match="a batch without a target"):
        trainer.update([])
    with pytest.raises(ValueError, match="an evaluation without a target"):
        trainer.evaluate([])
    with pytest.raises(ValueError, match=r"the loss is nan .*step 0: lower --lr 0.01; nothing was"):
        trainer.update([Part((tokens, torch.full_like(labels, -100)), 1)])
    assert all(map(torch.equal, before, trainer.network.parameters()))
    assert trainer.step == 0


@pytest.mark.parametrize("rank", [0, 2], ids=["all weights", "LoRA"])
def test_progress_holds_what_is_trained_and_goes_on_with_it(rank: int, tmp_path):
    whole, cut = make_trainer(tmp_path, rank=rank), make_trainer(tmp_path, rank=rank)
    settings = {"lr": 1e-2, "steps": 6, "decay_steps": None, "min_lr": 1e-3}
    for _ in range(2):
        whole.update(parts([8]))
        cut.update(parts([8]))
    save_progress(cut, tmp_path, settings, best=1.5)
    names = torch.load(tmp_path / "progress.pt", weights_only=True)["model"].keys()
    assert all(".lora_" in name for name in names) == bool(rank) and names
    resumed = make_trainer(tmp_path, rank=rank)
    assert load_progress(resumed, tmp_path, settings, {"best"}) == {"best": 1.5}
    assert resumed.step == 2
    for _ in range(2):
        assert resumed.update(parts([8])) == whole.update(parts([8]))
    assert all(map(torch.equal, resumed.network.parameters(), whole.network.parameters()))
    other = make_trainer(tmp_path, rank=rank)
    with pytest.raises(ValueError, match=r"written with lr 0.01, not 0.5"):
        load_progress(other, tmp_path, settings | {"lr": 0.5}, {"best"})
    with pytest.raises(ValueError, match="is not the state of an interrupted run"):
        load_progress(other, tmp_path, settings, {"worst"})
    assert math.isfinite(whole.evaluate(parts([8])).loss)
