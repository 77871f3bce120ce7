"""Run all cases of one component; return outputs and failures as JSON-able values."""

import random
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mini_llama.diagnosis.probes.adapters import probe_lora
from mini_llama.diagnosis.probes.addition import (
    probe_addition_data,
    probe_evaluate_loss,
    probe_train_one_epoch,
)
from mini_llama.diagnosis.probes.classification import probe_classifier
from mini_llama.diagnosis.probes.common import (
    Cases,
    MissingError,
    Modules,
    OwnSignatureError,
    ResultError,
    Settings,
)
from mini_llama.diagnosis.probes.generation import probe_generate
from mini_llama.diagnosis.probes.optimization import probe_optimizer
from mini_llama.diagnosis.probes.parts import (
    probe_attention,
    probe_feed_forward,
    probe_layer,
    probe_norm,
    probe_rope,
)

PROBES: dict[str, Callable[[Modules, Settings], Cases]] = {
    "rope": probe_rope,
    "norm": probe_norm,
    "attention": probe_attention,
    "feed_forward": probe_feed_forward,
    "layer": probe_layer,
    "generate": probe_generate,
    "lora": probe_lora,
    "optimizer": probe_optimizer,
    "classifier": probe_classifier,
    "addition_data": probe_addition_data,
    "train_one_epoch": probe_train_one_epoch,
    "evaluate_loss": probe_evaluate_loss,
}
MAX_TEXT = 500
USED = " is installed here, and "  # in the message of missing_modules.py when a module is used


def examine(
    component: str, settings: Settings, without: Collection[str] = (), most: int | None = None
) -> dict[str, Any]:
    """Run the first `most` cases of a component's probe, or all, except those in `without`.

    Returns {"values": name → {"shape", "numbers"}, "failed": case → failure, "notes": texts}; if
    nothing could be measured, also the first failure's keys: {"missing": what}, {"unwritten": True,
    "where": line}, {"result": why}, {"error": what, "where": line}.
    """
    modules = Modules()
    values: dict[str, dict[str, list]] = {}
    failed: dict[str, dict[str, Any]] = {}
    try:
        cases = PROBES[component](modules, settings)
    except BaseException as error:  # also a module that calls sys.exit at import
        return failure_of(error)
    for name, case in list(cases.items())[:most]:
        if name in without:
            continue
        torch.default_generator.manual_seed(0)  # ten times as fast as torch.manual_seed
        random.seed(0)
        np.random.seed(0)  # some draw with numpy, from its one generator
        try:
            with torch.enable_grad():
                values |= {key: plain(key, value) for key, value in case().items()}
        except OwnSignatureError:
            continue  # already noted; its caller is examined instead
        except BaseException as error:
            failed[name] = failure_of(error)
    answer: dict[str, Any] = {"values": values, "failed": failed, "notes": modules.notes}
    return answer if values or not failed else answer | next(iter(failed.values()))


def failure_of(error: BaseException) -> dict[str, Any]:
    if isinstance(error, MissingError):
        return {"missing": str(error)}
    if isinstance(error, ResultError):
        return {"result": str(error)}
    if isinstance(error, NotImplementedError):
        return {"unwritten": True, "where": own_line(error)}
    message = " ".join(str(error).split())
    where = own_line(error)
    if isinstance(error, ModuleNotFoundError) and USED in message:
        return {"absent": message[:MAX_TEXT], "where": where}
    return {"error": f"{type(error).__name__}: {message}"[:MAX_TEXT], "where": where}


def plain(name: str, value: object) -> dict[str, list]:
    """A tensor as JSON-able values. Raises ResultError for anything else."""
    if not isinstance(value, torch.Tensor):
        raise ResultError(f"{name}: got {type(value).__name__}, not a tensor")
    return {"shape": list(value.shape), "numbers": value.detach().double().flatten().tolist()}


def own_line(error: BaseException) -> str | None:
    """The innermost line of the student's code in the traceback: "llama.py:12: code"."""
    folder = Path.cwd()
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}: {(error.text or '').strip()}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).parent == folder:
            return f"{Path(frame.filename).name}:{frame.lineno}: {frame.line}"
    return None
