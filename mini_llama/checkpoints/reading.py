"""Checkpoint files ↔ (model_args, tensors): formats, key names, strict rules, atomic saving.

Formats are told apart by content, not by a file's name (but model.safetensors means its folder):
- a torch file, dict(model=tensors, model_args=…): the assignment's stories42M.pt, our own, and the
  llama2.c training checkpoints, whose other key names `migrate_names` turns into the assignment's;
- a folder with model.safetensors and config.json, as pretrain.py writes it, or of Hugging Face's
  LlamaForCausalLM (huggingface.py), whole or in shards, also as pytorch_model.bin, or of its models
  with another head, which task_heads.py loads;
- a folder of Meta's, with params.json and consolidated.00.pth, … (meta_checkpoint.py);
- llama2.c's .bin (llama2c.py), versions 0 and 1 in float32, and 2 in 8 bits.

Nothing in a file is ever executed: torch files load with weights_only=True. Tensors are mapped from
the file, not copied. The file does not import the network: config.expected_shapes restates its
names.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from config import FIELD_NAMES, IGNORED_NAMES, LlamaConfig, expected_shapes
from mini_llama.checkpoints.formats import huggingface, llama2c
from mini_llama.checkpoints.formats import meta as meta_checkpoint
from mini_llama.checkpoints.lazy_tensors import LazyTensors, meta_tensors
from mini_llama.checkpoints.tensor_files import (
    INDEX_SUFFIX,
    REMEDY,
    check_tensors,
    import_safetensors,
    is_plain,
    load_plain,
    read_json,
    read_weights,
    save_plain,
    write_json,
)
from utils import atomic_write

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
OWN_MODEL_TYPE = "mini-llama"
KARPATHY_NAMES = {"wq": "query", "wk": "key", "wv": "value", "wo": "output"}


class WrongNormError(ValueError):
    """A checkpoint has LayerNorm biases that matter, and RMSNorm was asked for."""


@dataclass
class Checkpoint:
    """What a file holds: `tensors` under the assignment's names, `model_args`, and the rest.

    Where reading a tensor is work, `tensors` are LazyTensors, made at each access.
    """

    path: Path
    model_args: dict[str, Any]
    tensors: Mapping[str, torch.Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    format: str = ""

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
        args["tie_word_embeddings"] = self._is_tied()
        try:
            return LlamaConfig(**args | overrides)
        except ValueError as error:
            raise ValueError(f"{self.path}: model_args: {error}") from None

    def _is_tied(self) -> bool:
        """Files may hold the one embedding twice: it is tied where the two are equal."""
        if "output.weight" not in self.tensors:
            return True
        embedding = self.tensors.get("tok_embeddings.weight")
        return embedding is not None and torch.equal(embedding, self.tensors["output.weight"])


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file of any supported format.

    Raises FileNotFoundError, IsADirectoryError or another OSError for what is not a readable file,
    ValueError for what is not a whole checkpoint; each is one line with the file, what is wrong
    with it and a remedy.
    """
    path = Path(path)
    check_exists(path)
    if meta_checkpoint.is_part(path):
        return _read_meta(path.parent)
    if path.is_dir():
        if (path / CONFIG_FILE).exists():
            return _read_folder(path)
        if (path / meta_checkpoint.PARAMS_FILE).exists():
            return _read_meta(path)
        files = f"{CONFIG_FILE} or {meta_checkpoint.PARAMS_FILE}"
        raise IsADirectoryError(f"{path} is a directory without {files}; {REMEDY}")
    with open(path, "rb") as file:
        start = file.read(llama2c.LEGACY_HEADER.size)
    if path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).exists():
        return _read_folder(path.parent)
    if not start:
        raise ValueError(f"{path} is empty; {REMEDY}")
    if start.startswith((b"PK", b"\x80")):
        return _read_torch(path)
    if llama2c.is_header(start):
        return _read_llama2c(path)
    raise ValueError(f"{path} is neither a torch checkpoint nor a llama2.c .bin file; {REMEDY}")


def check_is_pretrained(checkpoint: Checkpoint) -> None:
    """Raise ValueError for a classifier that was trained here, or a model with another head."""
    if "classifier" in checkpoint.metadata:
        raise ValueError(
            f"{checkpoint.path} is a trained classifier, not a pretrained model; name the latter"
        )
    if "task_head" in checkpoint.metadata:
        kind = huggingface.architecture_of(checkpoint.metadata["task_head"])
        raise ValueError(
            f"{checkpoint.path} is a {kind}: it has no output layer, so it cannot generate; "
            "its head, if it has one, is loaded by task_heads.load_task_head"
        )


def check_exists(path: str | Path) -> None:
    """Raise FileNotFoundError, with a remedy, for a checkpoint that is not there."""
    if not Path(path).exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist; {REMEDY}")


def _read_torch(path: Path) -> Checkpoint:
    content = load_plain(path)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"{path} holds a {kind}, not a checkpoint's dict; {REMEDY}")
    for key in ("model", "model_args"):
        if not isinstance(content.get(key), dict):
            found = ", ".join(str(k) for k in list(content)[:5]) or "nothing"
            raise ValueError(
                f"{path} has no dict {key!r} (it holds: {found}); a checkpoint has "
                "'model' and 'model_args'"
            )
    tensors = migrate_names(path, content["model"])
    for name, tensor in tensors.items():
        is_stored = isinstance(tensor, torch.Tensor) and is_plain(tensor)
        if not (is_stored and tensor.is_floating_point() and tensor.dtype.itemsize > 1):
            raise ValueError(f"{path}: {name} is not a tensor of floating-point numbers; {REMEDY}")
    rest = {k: v for k, v in content.items() if k not in ("model", "model_args")}
    return Checkpoint(path, content["model_args"], tensors, rest, "torch file")


def migrate_names(path: Path, tensors: dict[str, Any]) -> dict[str, Any]:
    """Other files' key names → the assignment's.

    `_orig_mod.` (torch.compile's prefix) goes, wq/wk/wv/wo become compute_query/…/compute_output,
    and the RoPE tables freqs_cos and freqs_sin, which are computed here, are dropped.
    """
    migrated = {}
    for key, tensor in tensors.items():
        name = str(key).removeprefix("_orig_mod.")
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

    return LazyTensors({name: found[name] for name in shapes}, make)


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
    """In that dtype, contiguous and aligned; the mapped tensor itself where it is that already."""
    tensor = tensor.detach().to(dtype).contiguous()
    return tensor if tensor.data_ptr() % tensor.element_size() == 0 else tensor.clone()


def _read_llama2c(path: Path) -> Checkpoint:
    try:
        model_args, tensors, version = llama2c.read(path)
        kind = f"llama2.c .bin file, version {version}"
        return Checkpoint(path, model_args, tensors, format=kind)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {REMEDY}") from None


def save_checkpoint(
    path: str | Path,
    model_args: LlamaConfig | dict[str, Any],
    tensors: dict[str, torch.Tensor],
    **metadata: Any,
) -> None:
    """Write a torch checkpoint atomically: `tensors`, `model_args` and plain metadata.

    A LlamaConfig records its norm and attention, so the file needs no edition when it is loaded.
    Raises ValueError for weights of 8 or 4 bits, OSError.
    """
    if isinstance(model_args, LlamaConfig):
        model_args = dataclasses.asdict(model_args)
    check_can_be_saved(tensors)
    tensors = {name: _compact(tensor) for name, tensor in tensors.items()}
    save_plain(path, {"model": tensors, "model_args": model_args, **metadata})


def check_can_be_saved(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError for weights that were rounded as they were loaded: no format has them."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{name} is {kind}, and cannot be saved: load without quantize")


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """torch.save writes a tensor's whole storage, and a view of a mapped file has the file's."""
    is_view = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if is_view else tensor


def save_folder(folder: str | Path, config: LlamaConfig, tensors: dict[str, torch.Tensor]) -> None:
    """Write model.safetensors and config.json, under the assignment's names, each atomically.

    A tied output.weight is left out. Raises ValueError if safetensors is not installed, OSError.
    """
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if config.tie_word_embeddings:
        tensors.pop("output.weight", None)
    write_folder(folder, {"model_type": OWN_MODEL_TYPE, **dataclasses.asdict(config)}, tensors)


def write_folder(
    folder: str | Path, content: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    """Write model.safetensors and config.json, as they are given, each atomically.

    Raises ValueError if safetensors is not installed, for weights of 8 or 4 bits, and if the folder
    has an index of shards, which would be read instead; OSError.
    """
    check_can_be_saved(tensors)
    folder, data = Path(folder), import_safetensors().save(tensors, metadata={"format": "pt"})
    index = folder / (WEIGHTS_FILE + INDEX_SUFFIX)
    if index.exists():
        raise ValueError(f"{index} names shards, which would be read instead; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / WEIGHTS_FILE, "wb") as file:
        file.write(data)
    write_json(folder / CONFIG_FILE, content)


def _read_folder(folder: Path) -> Checkpoint:
    """What save_folder wrote, or a Hugging Face folder."""
    content = read_json(folder / CONFIG_FILE)
    kind = content.pop("model_type", None)
    if kind == OWN_MODEL_TYPE:
        tensors = migrate_names(folder, read_weights(folder))
        return Checkpoint(folder, content, tensors, format=f"folder of {OWN_MODEL_TYPE}")
    if kind != huggingface.MODEL_TYPE:
        raise ValueError(
            f"{folder / CONFIG_FILE} is of a {kind!r} model; only {huggingface.MODEL_TYPE!r} and "
            f"{OWN_MODEL_TYPE!r} are supported"
        )
    try:
        architecture = huggingface.architecture_of(content)
        args = huggingface.import_config(content)
        tensors = huggingface.import_tensors(read_weights(folder), args, architecture)
    except ValueError as error:
        about = "" if str(folder) in str(error) else f"{folder}: "
        raise ValueError(f"{about}{error}") from None
    head = {"task_head": content} if architecture in huggingface.HEADS else {}
    kind = f"folder of Hugging Face's {architecture}"
    return Checkpoint(folder, args, tensors, head, kind)


def _read_meta(folder: Path) -> Checkpoint:
    params = read_json(folder / meta_checkpoint.PARAMS_FILE)
    shards = {
        path.name: migrate_names(path, check_tensors(path, load_plain(path)))
        for path in meta_checkpoint.shard_paths(folder)
    }
    try:
        model_args, tensors = meta_checkpoint.import_shards(params, shards)
        kind = f"folder of Meta's, {len(shards)} shard{'s' * (len(shards) > 1)}"
        return Checkpoint(folder, model_args, tensors, format=kind)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
