"""One training run's model, optimizer and progress: a step, an evaluation, and what is saved.

Next-token loss, AdamW with weight decay on matrices only. Everything that a step draws at random
follows from (seed, step), so a resumed run continues with the losses of an uninterrupted one.

Shapes: B windows of one process, T context, C the model's width.
"""

import contextlib
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import LlamaConfig
from llama import Llama
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.record import Checkpoint, fit_tensors
from mini_llama.checkpoints.tensor_files import load_plain, save_plain
from mini_llama.layers.linear_loss import linear_cross_entropy
from mini_llama.pretraining.data import TokenWindows, make_loader
from mini_llama.pretraining.model_folder import save_model_folder
from mini_llama.pretraining.options import PretrainOptions
from mini_llama.pretraining.processes import Process
from mini_llama.pretraining.run_folder import PROGRESS
from mini_llama.resume import check_same_run
from mini_llama.tokenization.base import BaseTokenizer
from optimizer import AdamW
from utils import autocast


def learning_rate(options: PretrainOptions, step: int) -> float:
    """Linear warmup over `warmup` steps to `lr`, then constant or half a cosine to `min_lr`.

    Steps count from 0. Loshchilov and Hutter 2017, eq. 5, without restarts.
    """
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    if options.schedule == "constant":
        return options.lr
    decay_steps = (options.decay_steps or options.steps) - options.warmup
    progress = min(1.0, (step - options.warmup) / max(1, decay_steps))
    return options.min_lr + (options.lr - options.min_lr) * (1 + math.cos(math.pi * progress)) / 2


def make_optimizer(model: torch.nn.Module, options: PretrainOptions) -> AdamW:
    """AdamW with weight decay on matrices, and none on norms and biases."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=options.lr, betas=(0.9, 0.95), eps=1e-8)


class NextTokenLoss(torch.nn.Module):
    """The model with its loss as output, the form that DDP and FSDP2 wrap."""

    def __init__(self, llama: Llama) -> None:
        super().__init__()
        self.llama = llama

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of token t + 1 given those up to t; windows (B, T + 1)."""
        hidden = self.llama.hidden_states(windows[:, :-1])  # (B, T, C)
        targets = windows[:, 1:].flatten()
        weight = self.llama.output.weight
        assert isinstance(weight, torch.Tensor)
        return linear_cross_entropy(hidden.flatten(0, 1), weight, targets)


def wrap(llama: Llama, options: PretrainOptions, process: Process) -> torch.nn.Module:
    """The loss as a module, sharded or compiled on request; processes share its gradients."""
    loss = NextTokenLoss(llama)
    if options.shard:
        from torch.distributed.fsdp import fully_shard

        for layer in llama.layers:
            fully_shard(layer)
        fully_shard(loss)
    if options.compile:
        loss.compile()
    if process.world_size > 1 and not options.shard:
        return torch.nn.parallel.DistributedDataParallel(loss)
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


class Trainer:
    """Model, optimizer and progress of one run. `tokenizer` goes into the folders of its models."""

    def __init__(
        self,
        options: PretrainOptions,
        process: Process,
        config: LlamaConfig,
        tokenizer: BaseTokenizer | None = None,
    ) -> None:
        self.options, self.process, self.tokenizer = options, process, tokenizer
        self.folder = Path(options.out)
        self.llama = Llama(config).to(process.device)
        self.loss = wrap(self.llama, options, process)
        self.optimizer = make_optimizer(self.llama, options)
        self.step, self.best_loss = 0, math.inf

    def autocast(self) -> contextlib.AbstractContextManager:
        return autocast(self.process.device, self.options.dtype)

    def train_step(self, windows: torch.Tensor) -> tuple[float, float]:
        """One optimizer step on this process's windows (B, T + 1): (loss, gradient norm).

        The loss is the mean over all processes. Raises ValueError if either is not finite; the
        weights are then those of the step before.
        """
        seed_step(self.options.seed, self.step, self.process.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.options, self.step)
        self.llama.train()
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.process.device)
        parts = windows.to(self.process.device).chunk(self.options.accumulation)
        for i, part in enumerate(parts):
            with synchronise(self.loss, i == len(parts) - 1), self.autocast():
                loss = self.compute_loss(part) * (len(part) / len(windows))
                loss.backward()
            total += loss.detach()
        mean = self.process.mean(total)
        gradient_norm = torch.nn.utils.clip_grad_norm_(
            self.llama.parameters(), self.options.max_grad_norm
        )
        if hasattr(gradient_norm, "full_tensor"):  # of FSDP2
            gradient_norm = gradient_norm.full_tensor()
        norm = float(gradient_norm)
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise ValueError(
                f"the loss is {mean} and the gradient norm {norm} at step {self.step}: lower --lr "
                f"{self.options.lr}; {self.last_good()}"
            )
        self.optimizer.step()
        self.step += 1
        return mean, norm

    def compute_loss(self, windows: torch.Tensor) -> torch.Tensor:
        """The loss of windows (B, T + 1). Raises ValueError where --compile cannot compile it."""
        try:
            return self.loss(windows)
        except Exception as error:
            if not self.options.compile or type(error).__module__.partition(".")[0] != "torch":
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = (lines or [type(error).__name__])[0][:200]
            raise ValueError(
                f"the model cannot be compiled ({reason}); --compile needs a C++ compiler such as "
                "g++, and a cache folder (TORCHINDUCTOR_CACHE_DIR) that can be written: or leave "
                "--compile out"
            ) from None

    @torch.no_grad()
    def evaluate(self, windows: TokenWindows) -> float:
        """Mean loss over the first `eval_batches` batches of validation windows."""
        self.llama.eval()
        total, count = 0.0, 0
        loader = make_loader(windows, self.options.batch_size, self.options.seed, shuffle=False)
        for batch in itertools.islice(loader, self.options.eval_batches):
            with self.autocast():
                total += self.compute_loss(batch.to(self.process.device)).item() * len(batch)
            count += len(batch)
        return total / count

    def save(self, name: str) -> None:
        """Write NAME.pt and NAME/ (safetensors and config.json), which run_llama.py loads."""
        tensors = training_state(self)["model"]
        if self.process.is_main:
            facts = {"step": self.step, "val_loss": self.best_loss}
            save_checkpoint(self.folder / f"{name}.pt", self.llama.config, tensors, **facts)
            save_model_folder(self.folder / name, self.llama.config, tensors, self.tokenizer)

    def last_good(self) -> str:
        """A sentence: which checkpoint a run that diverged leaves."""
        best = self.folder / "best.pt"
        return f"{best} is the last good checkpoint" if best.exists() else "nothing was saved yet"

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Start from a model instead of from random weights. Raises ValueError if it has another
        shape.
        """
        tensors = fit_tensors(checkpoint, self.llama.config)
        load_training_state(self, {"model": tensors})

    @property
    def progress_path(self) -> Path:
        return self.folder / PROGRESS

    def save_progress(self) -> None:
        """Write all that resuming needs, as one file."""
        content = training_state(self) | {
            "settings": resume_settings(self.options, self.llama.config),
            "step": self.step,
            "best_loss": self.best_loss,
        }
        if self.process.is_main:
            save_plain(self.progress_path, content)

    def load_progress(self) -> None:
        """Continue where save_progress left off. Raises ValueError as check_same_run does."""
        saved = load_plain(self.progress_path)
        check_resumed(self, saved)
        load_training_state(self, saved)
        self.step, self.best_loss = saved["step"], saved["best_loss"]


def training_state(trainer: Trainer) -> dict[str, Any]:
    """{"model": tensors, "optimizer": moments}, not sharded; every process must call it."""
    if not trainer.options.shard:
        state = trainer.llama.state_dict()
        return {"model": state, "optimizer": trainer.optimizer.state_dict()}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, moments = get_state_dict(trainer.llama, trainer.optimizer, options=options)
    return {"model": model, "optimizer": moments}


def load_training_state(trainer: Trainer, saved: dict[str, Any]) -> None:
    """The inverse of training_state; without "optimizer" the moments stay at 0."""
    if not trainer.options.shard:
        trainer.llama.load_state_dict(saved["model"])
        if "optimizer" in saved:
            trainer.optimizer.load_state_dict(saved["optimizer"])
        return
    from torch.distributed.checkpoint import state_dict as api

    whole = api.StateDictOptions(full_state_dict=True)
    api.set_model_state_dict(trainer.llama, saved["model"], options=whole)
    if "optimizer" in saved:
        api.set_optimizer_state_dict(
            trainer.llama, trainer.optimizer, saved["optimizer"], options=whole
        )


PROGRESS_KEYS = {"settings", "model", "optimizer", "step", "best_loss"}
# A resumed run may ask for more or fewer evaluations, other samples or outputs, but not for these.
FREE_TO_CHANGE = {"out", "eval_every", "eval_batches", "sample_prompt", "sample_tokens"}
FREE_TO_CHANGE |= {"use_gpu", "tensorboard", "resume", "overwrite", "plan", "compile", "shard"}
FREE_TO_CHANGE |= {"input", "preset"}  # the shape is compared, whatever names it
REMEDY = "start again with --overwrite, or in another --out"
SCHEDULED = ("steps", "decay_steps", "min_lr")


def resume_settings(options: PretrainOptions, config: LlamaConfig) -> dict[str, Any]:
    settings = dataclasses.asdict(options) | dataclasses.asdict(config)
    return {name: value for name, value in settings.items() if name not in FREE_TO_CHANGE}


def check_resumed(trainer: Trainer, saved: Any) -> None:
    """Raise ValueError unless `saved` is the progress of a run with these settings, in which the
    learning rates of all steps done are the same; of how many steps are to come nothing is asked.
    """
    options, path = trainer.options, trainer.progress_path
    wanted = resume_settings(options, trainer.llama.config)
    settings: dict[str, Any] = saved.get("settings", {}) if isinstance(saved, dict) else {}
    if isinstance(settings, dict) and settings:
        # a run of an earlier version lacks what was not an option then
        settings = {name: settings.get(name, _default(name)) for name in wanted} | settings
        saved = {**saved, "settings": settings}
        wanted = {name: value for name, value in wanted.items() if name not in SCHEDULED}
    check_same_run(path, saved, PROGRESS_KEYS, wanted, REMEDY)
    laid_out, done = settings["decay_steps"] or settings["steps"], saved["step"]
    now = options.decay_steps or options.steps
    if options.schedule == "cosine" and now != laid_out:
        raise ValueError(
            f"--resume: {path} was written with a cosine laid out for {laid_out} steps, not {now}: "
            f"go on with --steps {options.steps} --decay_steps {laid_out}, or {REMEDY}"
        )
    if options.schedule == "cosine" and options.min_lr != settings["min_lr"]:
        found = f"min_lr {settings['min_lr']}, not {options.min_lr}"
        raise ValueError(f"--resume: {path} was written with {found}; use that, or {REMEDY}")
    if done > options.steps:
        raise ValueError(f"--resume: {path} is at step {done} already; give --steps {done} or more")


def _default(name: str) -> Any:
    return getattr(PretrainOptions, name, None)
