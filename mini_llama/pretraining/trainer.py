"""One pre-training run's model and progress: its loss, its evaluation, and what is saved.

Shapes: B windows of one process, T context, C the model's width.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
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
from mini_llama.training.averaging import WeightAverage
from mini_llama.training.core import Optimizing, Part, TrainerCore, make_optimizer
from mini_llama.training.model_folder import save_model_folder
from mini_llama.training.muon import MuonAndAdamW
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
FREE_TO_CHANGE |= {"tokens_per_parameter", "flops"}  # the steps that they come to are compared
FREE_TO_CHANGE |= {"checkpoint_activations", "tf32"}
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


def bits_per_byte(loss: float, targets: torch.Tensor, bytes_of_tokens: torch.Tensor) -> float:
    """The mean loss of `targets` (N,), in nats a token, as bits for each byte of their text: what
    compares models of different tokenizers (Gao et al. 2020, section 3.1). NaN where there is none.
    """
    count = float(bytes_of_tokens[targets].sum())
    return loss * len(targets) / math.log(2) / count if count else math.nan


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
        self.llama.checkpoint_activations = options.checkpoint_activations
        make: Callable[..., Optimizing] = make_optimizer
        if options.optimizer == "muon":
            make = MuonAndAdamW
        optimizer = partial(make, self.llama, options.lr, options.weight_decay, eps=1e-8)
        self.core = TrainerCore(
            *(options, process, self.llama, NextTokenLoss(self.llama), optimizer),
            kept=self.folder / "best.pt",
        )
        self.average = WeightAverage(self.llama, options.ema) if options.ema else None
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
        if self.average is not None:
            self.average.update()
        return step.loss, step.norm

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Inside this the weights are the averaged ones, if --ema asks for them."""
        return self.average.in_place() if self.average is not None else contextlib.nullcontext()

    def evaluate(self, windows: TokenWindows) -> tuple[float, float]:
        """Mean loss over the first `eval_batches` batches of validation windows, and the same in
        bits for each byte of their text (bits_per_byte), of the averaged weights with --ema.
        """
        loader = make_loader(windows, self.options.batch_size, self.options.seed, shuffle=False)
        batches = list(itertools.islice(loader, self.options.eval_batches))
        parts = [Part(batch.to(self.process.device), len(batch)) for batch in batches]
        with self.averaged():
            loss = self.core.evaluate(parts).loss
        targets = torch.cat([batch[:, 1:].flatten() for batch in batches])
        return loss, bits_per_byte(loss, targets, self.bytes_of_tokens)

    @functools.cached_property
    def bytes_of_tokens(self) -> torch.Tensor:
        """(V,): how many bytes of text each token is; a control token is none."""
        if self.tokenizer is None:
            return torch.zeros(self.llama.config.vocab_size)
        ids = range(self.tokenizer.n_words)
        pieces = (self.tokenizer.token_bytes(i, at_start=False) or b"" for i in ids)
        return torch.tensor([float(len(piece)) for piece in pieces])

    def save(self, name: str) -> None:
        """Write NAME.pt and NAME/ (safetensors and config.json), which run_llama.py loads."""
        with self.averaged():
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
        extra: dict[str, Any] = {"best_loss": self.best_loss}
        if self.average is not None:
            extra["average"] = self.average.state_dict()
        save_progress(self.core, self.folder, self.resume_settings(), **extra)

    def load_progress(self) -> None:
        """Continue where save_progress left off. Raises ValueError as check_resumed does."""
        extra = {"best_loss"} | ({"average"} if self.average is not None else set())
        settings = self.resume_settings()
        saved = load_progress(self.core, self.folder, settings, extra, PretrainOptions)
        self.best_loss = saved["best_loss"]
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
