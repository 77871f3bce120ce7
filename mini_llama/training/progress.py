"""What an interrupted run leaves so that --resume goes on from it, and which runs may go on."""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import nn

from config import FIELD_NAMES
from mini_llama.checkpoints.tensor_files import load_plain, save_plain
from mini_llama.resume import check_same_run
from mini_llama.training.core import TrainerCore
from mini_llama.training.folder import PROGRESS
from mini_llama.training.schedule import Scheduled, fall_begins

REMEDY = "start again with --overwrite, or in another --out"
PROGRESS_KEYS = {"settings", "model", "optimizer", "step"}
SCHEDULED = ("steps", "decay_steps", "min_lr", "cooldown")


def full_state(trainer: TrainerCore) -> dict[str, Any]:
    """{"model": tensors, "optimizer": moments}, not sharded; every process must call it."""
    if not trainer.recipe.shard:
        state = trainer.network.state_dict()
        return {"model": state, "optimizer": trainer.optimizer.state_dict()}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    assert isinstance(trainer.optimizer, torch.optim.Optimizer)
    model, moments = get_state_dict(trainer.network, trainer.optimizer, options=options)
    return {"model": model, "optimizer": moments}


def load_full_state(trainer: TrainerCore, saved: Mapping[str, Any]) -> None:
    """The inverse of full_state; without "optimizer" the moments stay at 0."""
    frozen = frozen_names(trainer.network) - saved["model"].keys()
    if not trainer.recipe.shard:
        own = trainer.network.state_dict() if frozen else {}
        trainer.network.load_state_dict({name: own[name] for name in frozen} | saved["model"])
        if "optimizer" in saved:
            trainer.optimizer.load_state_dict(saved["optimizer"])
        return
    from torch.distributed.checkpoint import state_dict as api

    whole = api.StateDictOptions(full_state_dict=True, strict=not frozen)
    api.set_model_state_dict(trainer.network, saved["model"], options=whole)
    if "optimizer" in saved:
        assert isinstance(trainer.optimizer, torch.optim.Optimizer)
        api.set_optimizer_state_dict(
            trainer.network, trainer.optimizer, saved["optimizer"], options=whole
        )


def frozen_names(network: nn.Module) -> set[str]:
    """Tensors of the state that no step changes: all but the adapters of a model with LoRA."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    return {name for name, parameter in parameters.items() if not parameter.requires_grad}


def save_progress(
    trainer: TrainerCore, folder: Path, settings: Mapping[str, Any], **extra: Any
) -> None:
    """Write all that resuming needs, as one file, atomically: what is trained, the moments, the
    step, and `extra`, tensors and plain data. Every process must call it; the first writes.
    """
    state = full_state(trainer)
    frozen = frozen_names(trainer.network)
    state["model"] = {name: t for name, t in state["model"].items() if name not in frozen}
    if trainer.process.is_main:
        facts = {"settings": dict(settings), "step": trainer.step}
        save_plain(folder / PROGRESS, state | facts | extra)


def load_progress(
    trainer: TrainerCore,
    folder: Path,
    settings: Mapping[str, Any],
    extra: Set[str],
    defaults: object = None,
) -> dict[str, Any]:
    """Continue where save_progress left off: sets the trainer's state and step, and returns
    {name: value} of `extra`.

    Raises ValueError as check_resumed does. `defaults` has as attributes the values of settings
    that a run of an earlier version did not record.
    """
    path = folder / PROGRESS
    saved = load_plain(path)
    check_resumed(path, saved, PROGRESS_KEYS | extra, settings, trainer.recipe, defaults)
    load_full_state(trainer, saved)
    trainer.step = saved["step"]
    return {name: saved[name] for name in extra}


def check_resumed(
    path: Path,
    saved: Any,
    keys: Set[str],
    wanted: Mapping[str, Any],
    options: Scheduled,
    defaults: object = None,
) -> None:
    """Raise ValueError unless `saved` is the progress of a run with the settings `wanted`, in which
    the learning rates of all steps done are the same; of how many steps are to come nothing is
    asked.
    """
    settings: dict[str, Any] = saved.get("settings", {}) if isinstance(saved, dict) else {}
    if isinstance(settings, dict) and settings:
        # a run of an earlier version lacks what was not an option then
        options_only = wanted.keys() - FIELD_NAMES  # check_same_run fills in the model's fields
        known = {name: getattr(defaults, name, None) for name in options_only}
        settings = known | settings
        saved = {**saved, "settings": settings}
        wanted = {name: value for name, value in wanted.items() if name not in SCHEDULED}
    check_same_run(path, saved, keys, wanted, REMEDY)
    check_schedule(path, settings, saved["step"], options)


def check_schedule(path: Path, settings: Mapping[str, Any], done: int, options: Scheduled) -> None:
    """Raise ValueError if the learning rates of the `done` steps were others than `options`'."""
    laid_out = settings["decay_steps"] or settings["steps"]
    now = options.decay_steps or options.steps
    if options.schedule == "cosine" and now != laid_out:
        raise ValueError(
            f"--resume: {path} was written with a cosine laid out for {laid_out} steps, not {now}: "
            f"go on with --steps {options.steps} --decay_steps {laid_out}, or {REMEDY}"
        )
    if options.schedule == "cosine" and options.min_lr != settings["min_lr"]:
        found = f"min_lr {settings['min_lr']}, not {options.min_lr}"
        raise ValueError(f"--resume: {path} was written with {found}; use that, or {REMEDY}")
    if options.schedule == "wsd":
        before = fall_begins(settings["steps"], settings["cooldown"])
        falls = fall_begins(options.steps, options.cooldown)
        if before != falls and done > min(before, falls):
            raise ValueError(
                f"--resume: {path} is at step {done}, and its learning rate falls from step "
                f"{before} on, not {falls}: stop it before that to make it longer, or {REMEDY}"
            )
    if done > options.steps:
        raise ValueError(f"--resume: {path} is at step {done} already; give --steps {done} or more")
