"""One optimizer step over the parts of a batch, on one process or several, and an evaluation.

AdamW with weight decay on matrices only. Everything that a step draws at random follows from
(seed, step, rank), so a resumed run continues with the losses of an uninterrupted one.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from llama import LlamaLayer
from mini_llama.training.processes import Process
from mini_llama.training.schedule import Scheduled, learning_rate
from optimizer import AdamW
from utils import autocast


class Trained(Scheduled, Protocol):
    """Whatever has the fields of a Recipe."""

    @property
    def max_grad_norm(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def compile(self) -> bool: ...
    @property
    def shard(self) -> bool: ...


class Optimizing(Protocol):
    """What a trainer asks of an optimizer."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    def zero_grad(self) -> None: ...
    def step(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Any, /) -> None: ...


@dataclass(frozen=True)
class Recipe:
    """How a run changes the weights: learning rates (schedule.py), clipping, precision."""

    lr: float
    steps: int
    min_lr: float = 0.0
    decay_steps: int | None = None
    warmup: int = 0
    schedule: str = "cosine"
    cooldown: float = 0.2
    max_grad_norm: float = 1.0
    seed: int = 1337
    dtype: str = "float32"
    compile: bool = False
    shard: bool = False


@dataclass(frozen=True)
class Part:
    """A part of a batch: the loss module's argument, and how many targets its mean is over."""

    inputs: Any
    count: int


@dataclass(frozen=True)
class Step:
    """Means over all targets of a batch, of all processes; the norm is that before clipping."""

    loss: float
    norm: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


def make_optimizer(network: nn.Module, lr: float, weight_decay: float, eps: float = 1e-8) -> AdamW:
    """AdamW for what requires gradients, with weight decay on matrices, and none on norms and
    biases.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    vectors = [p for p in trained if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=eps)


def wrap(loss: nn.Module, recipe: Trained, process: Process) -> nn.Module:
    """The loss, sharded or compiled on request; processes share its gradients."""
    if recipe.shard:
        from torch.distributed.fsdp import fully_shard

        for layer in loss.modules():
            if isinstance(layer, LlamaLayer):
                fully_shard(layer)
        fully_shard(loss)
    if recipe.compile:
        loss.compile()
    if process.world_size > 1 and not recipe.shard:
        return nn.parallel.DistributedDataParallel(loss)
    return loss


def synchronise(loss: Any, is_last: bool) -> contextlib.AbstractContextManager:
    """Let processes exchange gradients only after the last part of an accumulated batch."""
    if hasattr(loss, "set_requires_gradient_sync"):  # FSDP2
        loss.set_requires_gradient_sync(is_last)
    elif hasattr(loss, "no_sync") and not is_last:  # DDP
        return loss.no_sync()
    return contextlib.nullcontext()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed dropout from these three alone."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))


class TrainerCore:
    """Network, loss, optimizer and number of steps of one run.

    `loss` is a module around `network`; called with a Part's inputs it returns the mean loss, or
    (mean loss, {name: mean}). `optimizer` makes the one for the network's parameters, once they are
    sharded. `kept` is the file that holds the last good model, once there is one.
    """

    def __init__(
        self,
        recipe: Trained,
        process: Process,
        network: nn.Module,
        loss: nn.Module,
        optimizer: Callable[[], Optimizing],
        kept: Path,
    ) -> None:
        self.recipe, self.process, self.kept = recipe, process, kept
        self.network, self.loss = network, wrap(loss, recipe, process)
        self.optimizer = optimizer()  # now that FSDP2 has put its own parameters into the network
        self.step = 0

    def autocast(self) -> contextlib.AbstractContextManager:
        return autocast(self.process.device, self.recipe.dtype)

    def update(self, parts: Sequence[Part]) -> Step:
        """One optimizer step on the parts of this process's share of a batch.

        All processes must have as many parts. Raises ValueError for a part without a target, and
        if the loss or its gradient is not finite; the weights are then those of the step before.
        """
        seed_step(self.recipe.seed, self.step, self.process.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step) * group.get("lr_scale", 1.0)
        self.network.train()
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.process.device)
        metrics: dict[str, torch.Tensor] = {}
        shares = self._shares(parts)
        for i, (part, share) in enumerate(zip(parts, shares, strict=True)):
            with synchronise(self.loss, i == len(parts) - 1), self.autocast():
                mean, found = self.compute_loss(part.inputs)
                loss = mean * share
                loss.backward()
            total += loss.detach()
            for name, value in found.items():
                metrics[name] = metrics.get(name, 0) + value.detach().float() * share
        norm = self._clip()  # a GPU computes it before the first number is asked for
        step = Step(
            self.process.mean(total),
            float(norm),
            {name: self.process.mean(value) for name, value in metrics.items()},
        )
        self._check_finite(step)
        self.optimizer.step()
        self.step += 1
        return step

    def _shares(self, parts: Sequence[Part]) -> list[float]:
        """Each part's weight in the mean that processes take of their gradients: its targets, of
        those that all parts of all processes have, times the number of processes.
        """
        if any(part.count < 1 for part in parts) or not parts:
            raise ValueError(f"a batch without a target at step {self.step}: check the data")
        everywhere = float(sum(part.count for part in parts))
        if self.process.world_size > 1:
            counts = torch.tensor(everywhere, device=self.process.device)
            everywhere = self.process.mean(counts) * self.process.world_size
        return [part.count * self.process.world_size / everywhere for part in parts]

    def _clip(self) -> torch.Tensor:
        """Scale the gradients down to `max_grad_norm`; their norm before that."""
        trained = [p for p in self.network.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(trained, self.recipe.max_grad_norm)
        if hasattr(norm, "full_tensor"):  # of FSDP2
            norm = norm.full_tensor()
        return norm

    def _check_finite(self, step: Step) -> None:
        if not (math.isfinite(step.loss) and math.isfinite(step.norm)):
            raise ValueError(
                f"the loss is {step.loss} and the gradient norm {step.norm} at step {self.step}: "
                f"lower --lr {self.recipe.lr}; {self.last_good()}"
            )

    def compute_loss(self, inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The mean loss of a part, and what else its loss module reports.

        Raises ValueError where --compile cannot compile it.
        """
        try:
            output = self.loss(inputs)
        except Exception as error:
            if not self.recipe.compile or type(error).__module__.partition(".")[0] != "torch":
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = (lines or [type(error).__name__])[0][:200]
            raise ValueError(
                f"the model cannot be compiled ({reason}); --compile needs a C++ compiler such as "
                "g++, and a cache folder (TORCHINDUCTOR_CACHE_DIR) that can be written: or leave "
                "--compile out"
            ) from None
        return output if isinstance(output, tuple) else (output, {})

    @torch.no_grad()
    def evaluate(self, parts: Iterable[Part]) -> Step:
        """Mean loss and metrics over the targets of all parts, without dropout; every process
        that calls it takes the same parts. Raises ValueError if they have no target.
        """
        self.network.eval()
        total, count = 0.0, 0
        metrics: dict[str, float] = {}
        for part in parts:
            with self.autocast():
                mean, found = self.compute_loss(part.inputs)
            total += mean.item() * part.count
            for name, value in found.items():
                metrics[name] = metrics.get(name, 0.0) + value.item() * part.count
            count += part.count
        if count == 0:
            raise ValueError("an evaluation without a target: check the held-out data")
        return Step(total / count, metrics={name: sum_ / count for name, sum_ in metrics.items()})

    def last_good(self) -> str:
        """A sentence: which checkpoint a run that diverged leaves."""
        is_there = self.kept.exists()
        return f"{self.kept} is the last good checkpoint" if is_there else "nothing was saved yet"
