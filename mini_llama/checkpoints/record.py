"""A checkpoint in memory: its record, the names of its tensors, and the strict rules that they fit.

Nothing is ever loaded past a missing, unexpected or misshapen tensor; only what LayerNorm's biases
and a tied output embedding may lack is filled in.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from config import FIELD_NAMES, IGNORED_NAMES, LlamaConfig, expected_shapes
from mini_llama.checkpoints.lazy_tensors import LazyTensors, meta_tensors
from mini_llama.checkpoints.mapped_pages import MappedPages
from utils import REMEDY

WRAPPERS = re.compile(r"^(_orig_mod\.|module\.)+")  # torch.compile's, DistributedDataParallel's
KARPATHY_NAMES = {"wq": "query", "wk": "key", "wv": "value", "wo": "output"}


class WrongNormError(ValueError):
    """A checkpoint has nonzero LayerNorm biases, and RMSNorm was chosen."""


@dataclass
class Checkpoint:
    """What a file holds: `tensors` under the assignment's names, `model_args`, and the rest.

    Tensors are mapped from `pages`, where the format allows; where reading one is work, they are
    LazyTensors, made at each access. A model with another head than the output layer has Hugging
    Face's config.json as `metadata["task_head"]`, and its class as `metadata["architecture"]`.
    `made` names tensors that the file has in another form, such as quantized ones, `files` all of
    the model's files where they are not one file or folder, and `facts` are lines of a report.
    """

    path: Path
    model_args: dict[str, Any]
    tensors: Mapping[str, torch.Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    format: str = ""
    pages: MappedPages = field(default_factory=MappedPages)
    made: frozenset[str] = frozenset()
    files: tuple[Path, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()

    @property
    def recorded(self) -> dict[str, str]:
        """The norm and attention that the file says it was trained with, if it says so."""
        return {k: self.model_args[k] for k in ("norm", "attention") if k in self.model_args}

    @property
    def has_biases(self) -> bool:
        """Whether it holds LayerNorm's biases, also where it does not say what its norm is."""
        return any(name.endswith("norm.bias") for name in self.tensors)

    def make_config(self, **overrides: Any) -> LlamaConfig:
        """The file's configuration, with overrides. Raises ValueError naming the file."""
        args = {k: v for k, v in self.model_args.items() if k not in IGNORED_NAMES}
        unknown = sorted(str(k) for k in args if k not in FIELD_NAMES)
        if unknown:
            raise ValueError(f"{self.path}: unknown model_args {', '.join(unknown)}; {REMEDY}")
        args["tie_word_embeddings"] = self.is_tied
        try:
            return LlamaConfig(**args | overrides)
        except ValueError as error:
            raise ValueError(f"{self.path}: model_args: {error}") from None

    @property
    def is_tied(self) -> bool:
        """Files may hold the one embedding twice: it is tied where the two are equal."""
        if "output.weight" not in self.tensors:
            return True
        embedding = self.tensors.get("tok_embeddings.weight")
        output = self.tensors["output.weight"]
        return embedding is not None and torch.equal(embedding, output)


def layer_tensors(n_layers: int, parts: Iterable[str]) -> Iterator[str]:
    """Names of all tensors that the layers' parts, such as ffn_norm, can have."""
    for layer in range(n_layers):
        for part in parts:
            yield f"layers.{layer}.{part}.weight"
            if "norm" not in part:
                yield f"layers.{layer}.{part}.bias"


def with_zero_biases(tensors: LazyTensors, config: LlamaConfig) -> LazyTensors:
    """The tensors, and zeros for the kinds of bias, such as compute_output's, that no layer has
    though the configuration does.
    """
    kinds = {bias_kind(name) for name in tensors}
    zeros = {
        name: torch.empty(shape, device="meta")
        for name, shape in expected_shapes(config)
        if bias_kind(name) and bias_kind(name) not in kinds
    }

    def make(name: str) -> torch.Tensor:
        return torch.zeros(zeros[name].shape) if name in zeros else tensors[name]

    return LazyTensors(tensors.meta | zeros, make, tensors.read_blocks) if zeros else tensors


def bias_kind(name: str) -> str:
    """attention.compute_output.bias of any layer's; "" for what is no linear layer's bias."""
    is_bias = name.startswith("layers.") and name.endswith(".bias") and "norm." not in name
    return name.split(".", 2)[2] if is_bias else ""


def check_is_pretrained(checkpoint: Checkpoint) -> None:
    """Raise ValueError for a classifier that was trained here, or a model with another head."""
    if "classifier" in checkpoint.metadata:
        raise ValueError(
            f"{checkpoint.path} is a trained classifier, not a pretrained model; name the latter"
        )
    if "task_head" in checkpoint.metadata:
        kind = checkpoint.metadata.get("architecture", "model with another head")
        raise ValueError(
            f"{checkpoint.path} is a {kind}: it has no output layer, so it cannot generate; "
            "its head, if it has one, is loaded by task_heads.load_task_head"
        )


def migrate_names(path: Path, tensors: dict[str, Any]) -> dict[str, Any]:
    """Other files' key names → the assignment's.

    The prefixes of torch.compile and of DistributedDataParallel go, wq/wk/wv/wo become
    compute_query/…/compute_output, and the RoPE tables freqs_cos and freqs_sin, which are computed
    here, are dropped.
    """
    migrated = {}
    for key, tensor in tensors.items():
        name = WRAPPERS.sub("", str(key))
        if name in ("freqs_cos", "freqs_sin"):
            continue
        name = re.sub(
            r"\battention\.(w[qkvo])\.",
            lambda match: f"attention.compute_{KARPATHY_NAMES[match[1]]}.",
            name,
        )
        if name in migrated:
            raise ValueError(f"{path} holds {name} twice, under two names; {REMEDY}")
        migrated[name] = tensor
    return migrated


def fit_tensors(checkpoint: Checkpoint, config: LlamaConfig) -> dict[str, torch.Tensor]:
    """stored_tensors, in float32 and all of them at once."""
    return {name: usable(tensor) for name, tensor in stored_tensors(checkpoint, config).items()}


def stored_tensors(checkpoint: Checkpoint, config: LlamaConfig) -> LazyTensors:
    """Exactly the tensors that a model of this configuration needs, in the file's dtypes.

    LayerNorm biases may be missing (stories42M.pt has none) and are 0 then; a tied output.weight
    is the embedding itself. Raises ValueError naming file and keys for anything else that is
    missing, unexpected or of another shape.
    """
    path, held = checkpoint.path, checkpoint.tensors
    if config.n_layers > len(held):  # before n_layers names are built from a damaged number
        raise ValueError(
            f"{path} holds {len(held)} tensors, too few for n_layers={config.n_layers}; {REMEDY}"
        )
    found = dict(meta_tensors(held))
    if config.tie_word_embeddings and "tok_embeddings.weight" in found:
        found["output.weight"] = found["tok_embeddings.weight"]
    if config.norm == "rmsnorm":
        for name in [name for name in found if name.endswith("norm.bias")]:
            _check_zero(path, name, held[name])
            del found[name]
    shapes = dict(expected_shapes(config))
    for name, shape in shapes.items():
        if name not in found and name.endswith("norm.bias"):
            found[name] = torch.zeros(shape)
    _check_shapes(path, found, shapes)

    def make(name: str) -> torch.Tensor:
        if config.tie_word_embeddings and name == "output.weight":
            name = "tok_embeddings.weight"
        return held[name] if name in held else found[name]

    readers = dict(held.read_blocks) if isinstance(held, LazyTensors) else {}
    if config.tie_word_embeddings and "tok_embeddings.weight" in readers:
        readers["output.weight"] = readers["tok_embeddings.weight"]
    readers = {name: read for name, read in readers.items() if name in shapes}
    return LazyTensors({name: found[name] for name in shapes}, make, readers)


def _check_zero(path: Path, name: str, bias: torch.Tensor) -> None:
    if bias.count_nonzero():
        raise WrongNormError(
            f"{path}: {name} is not 0, and RMSNorm has no bias; "
            "use --norm layernorm or another edition"
        )


def _check_shapes(
    path: Path, found: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]]
) -> None:
    missing = [name for name in shapes if name not in found]
    unexpected = [name for name in found if name not in shapes]
    wrong = [
        f"{name} {list(found[name].shape)} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    problems = [
        f"{problem} {_first_few(names)}"
        for problem, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrong shape", wrong),
        )
        if names
    ]
    if problems:
        raise ValueError(f"{path} does not fit its model_args: {'; '.join(problems)}; {REMEDY}")


def _first_few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def usable(tensor: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Convert to `dtype`, contiguous and aligned; returns the mapped tensor if it already is."""
    tensor = tensor.detach().to(dtype).contiguous()
    return tensor if tensor.data_ptr() % tensor.element_size() == 0 else tensor.clone()


def check_can_be_saved(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError for weights that were quantized as they were loaded: no format has them."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{name} is {kind}, and cannot be saved: load without quantize")
