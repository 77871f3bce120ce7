"""LoRA adapters in files: our own .adapters.pt, and folders of PEFT (github.com/huggingface/peft).

Both say W + scale·B A of some linear layers. Theirs are for Hugging Face's order of RoPE's rows:
the rows of lora_B of query and key are permuted as the projections' own are.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from config import LlamaConfig
from mini_llama.checkpoints.foreign import PEFT_CONFIG, PEFT_WEIGHTS
from mini_llama.checkpoints.formats.huggingface import (
    interleave_rows,
    is_rotated,
    our_names,
    split_rows,
    their_name,
)
from mini_llama.checkpoints.lazy_tensors import LazyTensors, meta_tensors
from mini_llama.checkpoints.tensor_files import (
    check_tensors,
    load_plain,
    load_safetensors,
    save_plain,
    save_safetensors,
    write_json,
)
from utils import atomic_folder, read_json

KEYS = {"adapters", "rank", "alpha", "targets"}
PEFT_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(\.default)?\.weight")
PEFT_OUTPUT = "base_model.model.lm_head.base_layer.weight"
# What adapter_config.json may say without a change of the arithmetic: the rest is refused by name.
USED = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"}
WITHOUT_EFFECT = {
    *("target_modules", "base_model_name_or_path", "task_type", "inference_mode", "revision"),
    *("lora_dropout", "init_lora_weights", "auto_mapping", "peft_version", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "corda_config", "eva_config", "loftq_config"),
    *("megatron_core", "qalora_group_size", "runtime_config", "lora_ga_config", "velora_config"),
    *("ensure_weight_tying", "parent_library"),
}
NEUTRAL_BIAS = (None, "none")
# Initial values that also changed the base's weights, which a merged sum would have to know.
CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")


@dataclass(frozen=True)
class Adapter:
    """lora_A (rank, in) and lora_B (out, rank) of one layer, in our order of rows."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    base: torch.Tensor | None = None  # the layer's own weight, where the file has that as well

    @property
    def rank(self) -> int:
        return len(self.down)

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """W + scale·B A, computed in float32, in the weight's dtype."""
        own = weight if self.base is None else self.base
        total = own.float() + self.scale * (self.up.float() @ self.down.float())
        return total.to(weight.dtype)


Adapters = dict[str, Adapter]  # by the layer's name, as layers.0.attention.compute_query


def is_peft(path: str | Path) -> bool:
    """A folder of PEFT, or one of its files."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    return (folder / PEFT_CONFIG).is_file() and (
        path.is_dir() or path.name in (PEFT_CONFIG, *PEFT_WEIGHTS)
    )


def read_adapters(path: str | Path, config: LlamaConfig) -> Adapters:
    """The adapters of a model of this configuration. Raises OSError, ValueError."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"adapters {path} do not exist; check the path")
    adapters = _read_peft(path, config) if is_peft(path) else _read_own(path)
    for name, adapter in adapters.items():
        is_finite = all(bool(t.isfinite().all()) for t in (adapter.down, adapter.up))
        if not is_finite:
            raise ValueError(f"{path}: the adapter of {name} is not finite; it is damaged")
    return adapters


def _read_own(path: Path) -> Adapters:
    if path.is_dir():
        raise ValueError(f"{path} has no LoRA adapters: it is a folder without {PEFT_CONFIG}")
    content = load_plain(path)
    if not is_adapters(content):
        raise ValueError(f"{path} has no LoRA adapters; give an .adapters.pt of --option lora")
    tensors, scale = content["adapters"], content["alpha"] / content["rank"]
    names = [name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")]
    try:
        return {n: Adapter(tensors[f"{n}.lora_A"], tensors[f"{n}.lora_B"], scale) for n in names}
    except KeyError as error:
        raise ValueError(f"{path} lacks {error.args[0]}") from None


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


def _read_peft(path: Path, config: LlamaConfig) -> Adapters:
    folder = path if path.is_dir() else path.parent
    settings = read_json(folder / PEFT_CONFIG)
    _check_settings(folder, settings)
    weights = next((folder / name for name in PEFT_WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise ValueError(f"{folder} has {PEFT_CONFIG}, but none of {', '.join(PEFT_WEIGHTS)}")
    load = load_safetensors if weights.suffix == ".safetensors" else load_plain
    parts: dict[str, dict[str, torch.Tensor]] = {}
    known, output = our_names(config.n_layers), None
    for name, tensor in check_tensors(weights, load(weights)).items():
        if name == PEFT_OUTPUT:  # PEFT adds it where the output layer is adapted
            output = tensor
            continue
        match = PEFT_NAME.fullmatch(name)
        ours = known.get(f"{match[1]}.weight") if match else None
        if match is None or ours is None or "norm" in ours or tensor.ndim != 2:
            raise ValueError(f"{weights} holds {name}, which is no adapter of this model")
        if match[2] == "B" and is_rotated(ours) and len(tensor) % config.head_dim == 0:
            tensor = interleave_rows(tensor, config.head_dim)
        parts.setdefault(match[1], {})[match[2]] = tensor
    adapters = {}
    for theirs, pair in parts.items():
        if pair.keys() != {"A", "B"} or len(pair["A"]) != pair["B"].shape[1]:
            raise ValueError(f"{weights}: lora_A and lora_B of {theirs} do not belong together")
        scale = _scale(folder, settings, theirs, len(pair["A"]))
        ours = known[f"{theirs}.weight"].removesuffix(".weight")
        base = output if ours == "output" else None
        adapters[ours] = Adapter(pair["A"], pair["B"], scale, base)
    if not adapters:
        raise ValueError(f"{weights} holds no adapters")
    return adapters


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raise ValueError, by name, for what would change the arithmetic in another way."""
    path = folder / PEFT_CONFIG
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{path}: peft_type is {kind!r}, and only 'LORA' is supported")
    if settings.get("bias") not in NEUTRAL_BIAS:
        raise ValueError(f"{path}: bias is {settings['bias']!r}, and only 'none' is supported")
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise ValueError(
            f"{path}: init_lora_weights is {start!r}, which changes the model's own weights; save "
            "the adapters converted to plain LoRA (path_initial_model_for_weight_conversion)"
        )
    for name, value in settings.items():
        if value and name not in USED | WITHOUT_EFFECT:
            raise ValueError(
                f"{path}: {name} is {value!r}, which is not supported; merge the adapters with "
                "PEFT (merge_and_unload), and give the merged model"
            )


def _scale(folder: Path, settings: dict[str, Any], name: str, rank: int) -> float:
    """alpha/rank, or with use_rslora alpha/√rank; patterns name layers by the end of their name."""
    said = _by_pattern(settings.get("rank_pattern"), name, settings.get("r"))
    alpha = _by_pattern(settings.get("alpha_pattern"), name, settings.get("lora_alpha"))
    is_alpha = type(alpha) in (int, float) and math.isfinite(alpha)
    if said != rank or not is_alpha:
        raise ValueError(
            f"{folder}: {name} has rank {rank}, and {PEFT_CONFIG} says rank {said}, alpha {alpha}"
        )
    return float(alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))


def _by_pattern(patterns: Any, name: str, usual: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return usual


def add_to(tensors: Mapping[str, torch.Tensor], adapters: Adapters) -> LazyTensors:
    """A model's tensors with the adapters merged. Raises ValueError for other models'."""
    meta = dict(meta_tensors(tensors))
    check_fit(meta, adapters)

    def make(name: str) -> torch.Tensor:
        adapter = adapters.get(name.removesuffix(".weight"))
        return tensors[name] if adapter is None else adapter.added_to(tensors[name])

    return LazyTensors(meta, make)


def check_fit(meta: Mapping[str, torch.Tensor], adapters: Adapters) -> None:
    """Raise ValueError for adapters of layers that are not there, or of another shape."""
    for name, adapter in adapters.items():
        shape = (len(adapter.up), adapter.down.shape[1])
        weight = meta.get(f"{name}.weight")
        found = "missing" if weight is None else tuple(weight.shape)
        if found != shape:
            raise ValueError(
                f"the adapter of {name} is for {shape}, the model's is {found}; give the model "
                "that it was trained on"
            )


def save_peft(folder: Path, adapters: Adapters, config: LlamaConfig, base: str) -> None:
    """Write a folder of PEFT. Raises ValueError if safetensors is not installed, or for layers with
    different ranks or scales; OSError.
    """
    rank, scale = _alike(adapters)
    tensors, targets = {}, set()
    for name, adapter in adapters.items():
        up = adapter.up.float()
        if is_rotated(f"{name}.weight"):
            up = split_rows(up, config.head_dim)
        theirs = their_name(f"{name}.weight").removesuffix(".weight")
        targets.add(theirs.rpartition(".")[2])
        tensors[f"base_model.model.{theirs}.lora_A.weight"] = adapter.down.float().contiguous()
        tensors[f"base_model.model.{theirs}.lora_B.weight"] = up.contiguous()
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
    }
    settings |= {"r": rank, "lora_alpha": scale * rank, "target_modules": sorted(targets)}
    settings |= {"bias": "none", "lora_dropout": 0.0, "inference_mode": True}
    with atomic_folder(folder) as new:
        save_safetensors(new / PEFT_WEIGHTS[0], tensors)
        write_json(new / PEFT_CONFIG, settings)


def save_own(path: Path, adapters: Adapters) -> None:
    """Write an .adapters.pt. Raises ValueError as save_peft does; OSError."""
    rank, scale = _alike(adapters)
    tensors = {}
    for name, adapter in adapters.items():
        tensors[f"{name}.lora_A"] = adapter.down.float().contiguous()
        tensors[f"{name}.lora_B"] = adapter.up.float().contiguous()
    targets = list(dict.fromkeys(name.rpartition(".")[2] for name in adapters))
    facts = {"rank": rank, "alpha": scale * rank, "targets": targets}
    save_plain(path, {"adapters": tensors, **facts})


def _alike(adapters: Adapters) -> tuple[int, float]:
    """The rank and the scale of all. Raises ValueError if they differ."""
    ranks = {adapter.rank for adapter in adapters.values()}
    scales = {adapter.scale for adapter in adapters.values()}
    if len(ranks) != 1 or len(scales) != 1:
        raise ValueError(
            f"the layers' adapters have ranks {sorted(ranks)} and scales {sorted(scales)}, and one "
            "of each can be written: merge them into a model instead"
        )
    return ranks.pop(), scales.pop()
