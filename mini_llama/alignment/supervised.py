"""Stages that go over examples in epochs: data split, steps, evaluations, what is saved.

SFT, reward models and DPO differ in their examples and losses alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from mini_llama.alignment.options import DataOptions, StageOptions
from mini_llama.alignment.start import (
    MODEL,
    Start,
    check_model,
    content_of,
    export_model,
    load_start,
    recipe_of,
    remove_results,
    results_in,
    run_settings,
)
from mini_llama.bounds import check_usage
from mini_llama.checkpoints.tensor_files import import_safetensors
from mini_llama.training.core import Part, Step, TrainerCore, make_optimizer
from mini_llama.training.folder import PROGRESS, check_out, new_folder
from mini_llama.training.log import TrainingLog
from mini_llama.training.loop import Steps, exit_status, report, run_loop
from mini_llama.training.order import Shares
from mini_llama.training.processes import Process, join_processes
from mini_llama.training.progress import load_progress, save_progress
from utils import seed_everything

EPS = 1e-5  # AdamW's, with betas 0.9 and 0.95, as in pre-training (sections 2.2 and 3.2.2)
FREE_TO_CHANGE = {"eval_every", "samples", "sample_tokens", "accumulation", "epochs"}
T = TypeVar("T")
Chosen = TypeVar("Chosen", bound=DataOptions)


@dataclass
class Job(Generic[T]):
    """One stage's run: examples of any kind, how they are batched, and what is trained on them.

    `collate` makes a Part of some examples, on the process's device, `length` gives an example's
    size; `save` writes the trained model, with facts, and is called by every process; `show`
    returns lines to print after an evaluation.
    """

    options: DataOptions
    process: Process
    network: nn.Module
    loss: nn.Module
    train: Sequence[T]
    val: Sequence[T]
    collate: Callable[[Sequence[T]], Part]
    length: Callable[[T], int]
    save: Callable[..., None]
    settings: dict[str, Any]
    title: str
    loss_name: str
    show: Callable[[], list[str]] = list


def run_stage(
    options: Chosen,
    read: Callable[[tuple[str, ...]], list[T]],
    make_job: Callable[[Chosen, Process, Start, tuple[list[T], list[T]]], "Job[Any]"],
    export: Callable[[StageOptions, Start, Process], None] = export_model,
) -> int:
    """A whole run: the data are read and checked, the model is loaded, trained and exported; the
    exit status. Raises OSError or ValueError, one line each.
    """
    import_safetensors()  # if missing, fail now, not at the end
    records = split_records(options, read)
    torch.set_float32_matmul_precision("high")
    with join_processes(options.use_gpu, options.tf32) as process:
        folder = Path(options.out)
        found = partial(results_in, folder)
        if process.is_main and (
            said := check_out(folder, options.resume, options.overwrite, found)
        ):
            report(process, said)
        seed_everything(options.seed)
        start = load_start(options, process.device, process.is_main)
        with new_folder(folder):
            status = run_job(make_job(options, process, start, records))
        export(options, start, process)
        return status


class Files(Protocol):
    """Options that name a stage's data."""

    @property
    def data(self) -> tuple[str, ...]: ...
    @property
    def val_data(self) -> tuple[str, ...]: ...
    @property
    def val_fraction(self) -> float: ...


def split_records(
    options: Files, read: Callable[[tuple[str, ...]], list[T]]
) -> tuple[list[T], list[T]]:
    """(training records, held-out records): of --val_data, else every n-th of --data.

    Raises OSError and ValueError as `read` does, and ValueError if nothing is left to train on.
    """
    records = read(options.data)
    if options.val_data:
        return records, read(options.val_data)
    if options.val_fraction == 0:
        return records, []
    every = round(1 / options.val_fraction)
    val = records[every - 1 :: every]
    del records[every - 1 :: every]
    return records, val


def steps_of(options: DataOptions, count: int) -> int:
    """Optimizer steps for --epochs passes over `count` examples, or --steps."""
    return options.steps or max(1, math.ceil(options.epochs * count / options.batch_size))


def settings_of(options: DataOptions, config: Any) -> dict[str, Any]:
    """run_settings, with the content of the data files."""
    files = {name: getattr(options, name) for name in ("data", "val_data")}
    contents = {name: [content_of(path) for path in paths] for name, paths in files.items()}
    return run_settings(options, config, FREE_TO_CHANGE) | contents


def run_job(job: Job[T]) -> int:
    """Train, evaluating and saving on the way; the exit status. Raises OSError, ValueError."""
    options, process, folder = job.options, job.process, Path(job.options.out)
    check_usage(
        f"--batch_size {options.batch_size}",
        options.batch_size % process.world_size == 0,
        f"a multiple of the {process.world_size} processes",
    )
    steps = steps_of(options, len(job.train))
    optimizer = partial(make_optimizer, job.network, options.lr, options.weight_decay, EPS)
    recipe = recipe_of(options, steps)
    trainer = TrainerCore(recipe, process, job.network, job.loss, optimizer, kept=folder / MODEL)
    settings = job.settings | {"steps": steps}
    state = RunState(job, trainer, settings)
    state.begin()
    log = None
    if process.is_main:
        labels = {"title": job.title, "loss_name": job.loss_name}
        log = TrainingLog(folder, options.tensorboard, trainer.step, **labels)
    stopped = state.train(steps, log)
    status = exit_status(process, stopped, trainer.step)
    if log is not None:
        log.finish()
    return status


class RunState(Generic[T]):
    """A run's steps, evaluations and saves. `best` is the lowest held-out loss so far."""

    def __init__(self, job: Job[T], trainer: TrainerCore, settings: dict[str, Any]) -> None:
        self.job, self.trainer, self.settings = job, trainer, settings
        self.folder, self.best = Path(job.options.out), math.inf

    def begin(self) -> None:
        """Load the progress that --resume goes on from; else drop what --overwrite replaces, and
        save what a run resumes from that ends before its first evaluation.
        """
        options, folder = self.job.options, self.folder
        if options.resume and (folder / PROGRESS).exists():
            found = load_progress(self.trainer, folder, self.settings, {"best_loss"}, options)
            self.best = found["best_loss"]
            if math.isfinite(self.best):
                check_model(folder)
            report(self.job.process, f"resume {folder / PROGRESS} at step {self.trainer.step}")
            return
        if options.overwrite and self.job.process.is_main:
            remove_results(folder)
        self.save_progress()

    def train(self, steps: int, log: TrainingLog | None) -> int | None:
        """All steps; the number of the signal that stopped them, if one did."""
        job, options = self.job, self.job.options
        share = options.batch_size // job.process.world_size
        first = self.trainer.step * options.batch_size + job.process.rank * share
        order = Shares(len(job.train), first, share, options.batch_size, options.seed)
        todo = Steps(self.trainer.step, steps, options.eval_every)
        stopped = run_loop(self.trainer, todo, order, self.take_step, self.check, log)
        if not (self.folder / MODEL).exists():  # stopped before an evaluation
            self.save()
        self.save_progress()
        return stopped

    def take_step(self, numbers: list[int]) -> tuple[dict[str, float], int]:
        """One optimizer step on examples, in parts of neighbours."""
        job = self.job
        size = -(-len(numbers) // job.options.accumulation)
        parts = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        rows = [[job.train[n] for n in part] for part in parts]
        step = self.trainer.update([job.collate(part) for part in rows])
        tokens = sum(job.length(row) for part in rows for row in part) * job.process.world_size
        values = {"train_loss": step.loss, "grad_norm": step.norm}
        return values | {f"train_{name}": value for name, value in step.metrics.items()}, tokens

    def check(self) -> dict[str, float]:
        """Evaluate, show and save: the best model by held-out loss, and the progress."""
        job = self.job
        if not job.val:
            self.save()
            self.save_progress()
            return {}
        found = self.evaluate()
        is_best = found.loss < self.best
        numbers = {"loss": found.loss} | found.metrics
        said = ", ".join(f"held-out {name} {value:.4f}" for name, value in numbers.items())
        best = " (best so far)" if is_best else ""
        report(job.process, f"step {self.trainer.step}: {said}{best}")
        if is_best:
            self.best = found.loss
            self.save()
        self.save_progress()
        if job.process.is_main and not job.options.shard:
            for line in job.show():
                report(job.process, line)
        return {f"val_{name}": value for name, value in numbers.items()}

    def evaluate(self) -> Step:
        """Mean loss over all held-out examples, those of like length together."""
        job = self.job
        rows = sorted(job.val, key=job.length)
        size = max(1, job.options.batch_size // job.options.accumulation)
        found = self.trainer.evaluate(
            job.collate(rows[i : i + size]) for i in range(0, len(rows), size)
        )
        if not math.isfinite(found.loss):
            raise ValueError(
                f"the held-out loss is {found.loss} at step {self.trainer.step}: lower --lr "
                f"{job.options.lr}; {self.trainer.last_good()}"
            )
        return found

    def save(self) -> None:
        facts = {"val_loss": self.best} if math.isfinite(self.best) else {}
        self.job.save(self.trainer, **facts)

    def save_progress(self) -> None:
        save_progress(self.trainer, self.folder, self.settings, best_loss=self.best)
