"""LoRA adapters in a file of their own: what option lora writes, and generate and prompt add."""

import math
from pathlib import Path
from typing import Any

import torch

import lora
from llama import Llama
from mini_llama.assignment.options import Options
from mini_llama.checkpoints.tensor_files import load_plain, save_plain

KEYS = {"adapters", "rank", "alpha", "targets"}


def save_adapters(path: Path, llama: Llama, options: Options, facts: dict[str, Any]) -> None:
    """Write the adapters of a model that apply_lora has wrapped; `facts` is plain data."""
    adapters = {
        "adapters": lora.lora_state_dict(llama),
        "rank": options.lora_rank,
        "alpha": options.lora_alpha,
        "targets": list(options.lora_targets),
    }
    save_plain(path, adapters | facts)


def load_adapters(llama: Llama, path: str) -> None:
    """Add the adapters of a file to the model's weights, in place: W + (alpha/rank)·B A.

    Raises OSError, and ValueError for a file without adapters, or with those of another model.
    """
    content = load_plain(path)
    if not is_adapters(content):
        raise ValueError(f"{path} has no LoRA adapters; give an .adapters.pt of --option lora")
    rank, alpha, targets = content["rank"], content["alpha"], content["targets"]
    try:
        lora.apply_lora(llama, rank, alpha, targets)
        lora.load_lora_state_dict(llama, content["adapters"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}; give the model that it was trained on") from None
    lora.merge_lora_weights(llama)
    print(f"load adapters from {path}: rank {rank}, alpha {alpha}, {', '.join(targets)}")


def is_adapters(content: Any) -> bool:
    """Whether a file's content is what save_adapters writes, every value within its bounds."""
    if not (isinstance(content, dict) and content.keys() >= KEYS):
        return False
    rank, alpha, targets, tensors = (content[k] for k in ("rank", "alpha", "targets", "adapters"))
    is_scale = type(rank) is int and rank >= 1 and type(alpha) in (int, float)
    is_scale = is_scale and 0 < alpha < math.inf
    is_targets = isinstance(targets, list) and all(isinstance(name, str) for name in targets)
    is_tensors = isinstance(tensors, dict)
    return (
        is_scale
        and is_targets
        and is_tensors
        and all(_is_adapter(name, tensor, rank) for name, tensor in tensors.items())
    )


def _is_adapter(name: Any, tensor: Any, rank: int) -> bool:
    """lora_A is (rank, in), lora_B (out, rank), and every number finite."""
    if not (isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.ndim == 2):
        return False
    rows, columns = tensor.shape
    is_shape = rank == (rows if name.endswith(".lora_A") else columns)
    return is_shape and tensor.is_floating_point() and bool(tensor.isfinite().all())
