"""One pre-training run's model and progress: its loss, its evaluation, and what is saved.

Shapes: B windows of one process, T context, C the model's width.
"""

import dataclasses
import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch

from config import LlamaConfig
from llama import Llama
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.record import Checkpoint, fit_tensors
from mini_llama.layers.linear_loss import linear_cross_entropy
from mini_llama.pretraining.data import TokenWindows, make_loader
from mini_llama.pretraining.options import PretrainOptions
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.training.core import Part, TrainerCore, make_optimizer
from mini_llama.training.model_folder import save_model_folder
from mini_llama.training.processes import Process
from mini_llama.training.progress import (
    full_state,
    load_full_state,
    load_progress,
    save_progress,
)

# A resumed run may ask for more or fewer evaluations, other samples or outputs, but not for these.
FREE_TO_CHANGE = {"out", "eval_every", "eval_batches", "sample_prompt", "sample_tokens"}
FREE_TO_CHANGE |= {"use_gpu", "tensorboard", "resume", "overwrite", "plan", "compile", "shard"}
FREE_TO_CHANGE |= {"input", "preset"}  # the shape is compared, whatever names it


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
        optimizer = partial(make_optimizer, self.llama, options.lr, options.weight_decay)
        self.core = TrainerCore(
            *(options, process, self.llama, NextTokenLoss(self.llama), optimizer),
            kept=self.folder / "best.pt",
        )
        self.best_loss = math.inf

    @property
    def step(self) -> int:
        return self.core.step

    def train_step(self, windows: torch.Tensor) -> tuple[float, float]:
        """One optimizer step on this process's windows (B, T + 1): (loss, gradient norm).

        The loss is the mean over all processes. Raises ValueError as TrainerCore.update does.
        """
        parts = windows.to(self.process.device).chunk(self.options.accumulation)
        step = self.core.update([Part(part, len(part)) for part in parts])
        return step.loss, step.norm

    def evaluate(self, windows: TokenWindows) -> float:
        """Mean loss over the first `eval_batches` batches of validation windows."""
        loader = make_loader(windows, self.options.batch_size, self.options.seed, shuffle=False)
        batches = itertools.islice(loader, self.options.eval_batches)
        parts = (Part(batch.to(self.process.device), len(batch)) for batch in batches)
        return self.core.evaluate(parts).loss

    def save(self, name: str) -> None:
        """Write NAME.pt and NAME/ (safetensors and config.json), which run_llama.py loads."""
        tensors = full_state(self.core)["model"]
        if self.process.is_main:
            facts = {"step": self.step, "val_loss": self.best_loss}
            save_checkpoint(self.folder / f"{name}.pt", self.llama.config, tensors, **facts)
            save_model_folder(self.folder / name, self.llama.config, tensors, self.tokenizer)

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Start from a model instead of from random weights. Raises ValueError if it has another
        shape.
        """
        tensors = fit_tensors(checkpoint, self.llama.config)
        load_full_state(self.core, {"model": tensors})

    def resume_settings(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self.options) | dataclasses.asdict(self.llama.config)
        return {name: value for name, value in settings.items() if name not in FREE_TO_CHANGE}

    def save_progress(self) -> None:
        """Write all that resuming needs, as one file."""
        save_progress(self.core, self.folder, self.resume_settings(), best_loss=self.best_loss)

    def load_progress(self) -> None:
        """Continue where save_progress left off. Raises ValueError as check_resumed does."""
        settings, extra = self.resume_settings(), {"best_loss"}
        saved = load_progress(self.core, self.folder, settings, extra, PretrainOptions)
        self.best_loss = saved["best_loss"]
