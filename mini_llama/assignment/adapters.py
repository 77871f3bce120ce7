"""LoRA adapters in a file of their own: what option lora writes, and generate and prompt add."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

import lora
from llama import Llama
from mini_llama.bounds import check_usage
from mini_llama.checkpoints.adapters import check_fit, is_adapters, is_peft, read_adapters
from mini_llama.checkpoints.tensor_files import load_plain, save_plain
from mini_llama.warning import warn


class Adapted(Protocol):
    """Whatever has these options."""

    @property
    def pretrained_model_path(self) -> str: ...
    @property
    def lora_rank(self) -> int: ...
    @property
    def lora_alpha(self) -> float: ...
    @property
    def lora_targets(self) -> tuple[str, ...]: ...


def check_rank(model: nn.Module, rank: int, targets: Sequence[str]) -> None:
    """Raise ValueError for adapters of a higher rank than the layers that they are added to."""
    shapes = [
        min(layer.weight.shape)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in targets
    ]
    if shapes:
        bound = f"at most {max(shapes)}, the full rank of the layers in --lora_targets"
        check_usage(f"--lora_rank {rank}", rank <= max(shapes), bound)


def save_adapters(path: Path, llama: Llama, options: Adapted, facts: dict[str, Any]) -> None:
    """Write the adapters of a model that apply_lora has wrapped; `facts` is plain data."""
    adapters = {
        "adapters": lora.lora_state_dict(llama),
        "rank": options.lora_rank,
        "alpha": options.lora_alpha,
        "targets": list(options.lora_targets),
        "base": {
            "name": Path(options.pretrained_model_path).name,
            "fingerprint": fingerprint(llama),
        },
    }
    save_plain(path, adapters | facts)


def fingerprint(llama: Llama) -> str:
    """SHA-256 of the model's embedding and norms, which LoRA of linear layers leaves unchanged, in
    float32: the same in every format that the model is stored in.
    """
    sha = hashlib.sha256()
    for name, tensor in llama.state_dict().items():
        if name == "tok_embeddings.weight" or name.endswith("norm.weight"):
            sha.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return sha.hexdigest()


def load_adapters(llama: Llama, path: str) -> None:
    """Add the adapters of a file, or of a folder of PEFT, to the model's weights, in place:
    W + (alpha/rank)·B A.

    Raises OSError, and ValueError for a file without adapters, or with those of another model.
    """
    if is_peft(path) or Path(path).is_dir():
        _load_peft(llama, path)
        return
    content = load_plain(path)
    if not is_adapters(content):
        raise ValueError(f"{path} has no LoRA adapters; give an .adapters.pt of --option lora")
    rank, alpha, targets = content["rank"], content["alpha"], content["targets"]
    try:
        lora.apply_lora(llama, rank, alpha, targets)
        lora.load_lora_state_dict(llama, content["adapters"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}; give the model that it was trained on") from None
    _check_base(llama, path, content.get("base"))
    lora.merge_lora_weights(llama)
    print(f"load adapters from {path}: rank {rank}, alpha {alpha}, {', '.join(targets)}")


def _check_base(llama: Llama, path: str, base: Any) -> None:
    """Warn of adapters that were trained on another model of the same shape."""
    if isinstance(base, dict) and base.get("fingerprint") != fingerprint(llama):
        warn(
            f"{path} was trained on another model, {base.get('name')}: what it adds means nothing "
            "to this one; name its own with --pretrained-model-path"
        )


def _load_peft(llama: Llama, path: str) -> None:
    adapters = read_adapters(path, llama.config)
    try:
        check_fit(llama.state_dict(), adapters)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    with torch.no_grad():
        for name, adapter in adapters.items():
            layer = llama.get_submodule(name)
            assert isinstance(layer.weight, torch.Tensor)
            # A new parameter: the old one may be tied to another layer, which is not adapted.
            layer.weight = nn.Parameter(adapter.added_to(layer.weight), requires_grad=False)
    ranks = ", ".join(str(rank) for rank in sorted({a.rank for a in adapters.values()}))
    targets = list(dict.fromkeys(name.rpartition(".")[2] for name in adapters))
    print(f"load adapters from {path}: rank {ranks}, {', '.join(targets)} (PEFT)")
