"""Checkpoint files ↔ (model_args, tensors): formats, key names, strict rules, atomic saving.

Formats are told apart by content, not by a file's name (but model.safetensors means its folder):
- a torch file, dict(model=tensors, model_args=…): the assignment's stories42M.pt, our own, and the
  llama2.c training checkpoints, whose other key names `migrate_names` turns into the assignment's;
- a folder with model.safetensors and config.json, as pretrain.py writes it, or of Hugging Face's
  LlamaForCausalLM (huggingface.py), whole or in shards, also as pytorch_model.bin;
- llama2.c's .bin, version 0: a header of seven int32 and float32 tensors in a fixed order.

Nothing in a file is ever executed: torch files load with weights_only=True. Tensors are mapped from
the file, not copied. The file does not import the network: `expected_shapes` restates its names.
"""

import dataclasses
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import huggingface
from config import FIELD_NAMES, IGNORED_NAMES, LlamaConfig
from lazy_tensors import LazyTensors, meta_tensors
from tensor_files import (
    REMEDY,
    import_safetensors,
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
LLAMA2C_HEADER = struct.Struct("<7i")
LLAMA2C_VERSIONED_MAGIC = b"24ka"  # 0x616b3432, little-endian: version 1 and later
LARGEST_DIMENSION = 2**24  # more than any vocabulary or context; a random header is above it
TENSOR_ALIGNMENT = 4


class WrongNormError(ValueError):
    """A checkpoint has LayerNorm biases that matter, and RMSNorm was asked for."""


@dataclass
class Checkpoint:
    """What a file holds: `tensors` under the assignment's names, `model_args`, and the rest."""

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
        embedding = self.tensors.get("tok_embeddings.weight")
        output = self.tensors.get("output.weight")
        return output is None or (embedding is not None and torch.equal(embedding, output))


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file of any supported format.

    Raises FileNotFoundError, IsADirectoryError or another OSError for what is not a readable file,
    ValueError for what is not a whole checkpoint; each is one line with the file, what is wrong
    with it and a remedy.
    """
    path = Path(path)
    check_exists(path)
    if path.is_dir():
        if not (path / CONFIG_FILE).exists():
            raise IsADirectoryError(f"{path} is a directory without {CONFIG_FILE}; {REMEDY}")
        return _read_folder(path)
    with open(path, "rb") as file:
        start = file.read(LLAMA2C_HEADER.size)
    if path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).exists():
        return _read_folder(path.parent)
    if not start:
        raise ValueError(f"{path} is empty; {REMEDY}")
    if start.startswith((b"PK", b"\x80")):
        return _read_torch(path)
    if _is_llama2c_header(start):
        return _read_llama2c(path, start)
    raise ValueError(f"{path} is neither a torch checkpoint nor a llama2.c .bin file; {REMEDY}")


def check_is_pretrained(checkpoint: Checkpoint) -> None:
    """Raise ValueError for a classifier that was trained here."""
    if "classifier" in checkpoint.metadata:
        raise ValueError(
            f"{checkpoint.path} is a trained classifier, not a pretrained model; name the latter"
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
        if not (isinstance(tensor, torch.Tensor) and tensor.is_floating_point()):
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


def expected_shapes(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a model, biases of LayerNorm included."""
    dim, hidden_dim = config.dim, config.hidden_dim
    kv_dim = config.n_kv_heads * config.head_dim
    norm_parts = ("weight", "bias") if config.norm == "layernorm" else ("weight",)
    yield "tok_embeddings.weight", (config.vocab_size, dim)
    for layer in (f"layers.{i}." for i in range(config.n_layers)):
        yield layer + "attention.compute_query.weight", (dim, dim)
        yield layer + "attention.compute_key.weight", (kv_dim, dim)
        yield layer + "attention.compute_value.weight", (kv_dim, dim)
        yield layer + "attention.compute_output.weight", (dim, dim)
        yield layer + "feed_forward.w1.weight", (hidden_dim, dim)
        yield layer + "feed_forward.w2.weight", (dim, hidden_dim)
        yield layer + "feed_forward.w3.weight", (hidden_dim, dim)
        for norm in ("attention_norm.", "ffn_norm."):
            for part in norm_parts:
                yield layer + norm + part, (dim,)
    for part in norm_parts:
        yield "norm." + part, (dim,)
    yield "output.weight", (config.vocab_size, dim)


def fit_tensors(checkpoint: Checkpoint, config: LlamaConfig) -> dict[str, torch.Tensor]:
    """stored_tensors, in float32 and all of them at once."""
    return {name: _usable(tensor) for name, tensor in stored_tensors(checkpoint, config).items()}


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


def _usable(tensor: torch.Tensor) -> torch.Tensor:
    """float32, contiguous and aligned; the mapped tensor itself where it is that already."""
    tensor = tensor.detach().to(torch.float32).contiguous()
    return tensor if tensor.data_ptr() % TENSOR_ALIGNMENT == 0 else tensor.clone()


def _is_llama2c_header(start: bytes) -> bool:
    if len(start) < LLAMA2C_HEADER.size or start.startswith(LLAMA2C_VERSIONED_MAGIC):
        return False
    *sizes, vocab_size, seq_len = LLAMA2C_HEADER.unpack(start)
    sizes += [abs(vocab_size), seq_len]  # negative: the output embedding is stored separately
    return all(0 < size <= LARGEST_DIMENSION for size in sizes)


def _read_llama2c(path: Path, start: bytes) -> Checkpoint:
    """llama2.c's version 0: every kind of tensor for all layers at once, in a fixed order."""
    names = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
    model_args: dict[str, Any] = dict(zip(names, LLAMA2C_HEADER.unpack(start), strict=True))
    is_tied = model_args["vocab_size"] > 0
    model_args["vocab_size"] = abs(model_args["vocab_size"])
    try:
        config = LlamaConfig(**model_args)
    except ValueError as error:
        raise ValueError(f"{path}: not a llama2.c .bin file: {error}; {REMEDY}") from None
    layout = list(llama2c_layout(config, is_tied))
    numbers = sum(torch.Size(shape).numel() for _, shape in layout)
    expected, actual = LLAMA2C_HEADER.size + 4 * numbers, path.stat().st_size
    if actual != expected:
        raise ValueError(f"{path} has {actual} bytes, but its header needs {expected}; {REMEDY}")
    offset = LLAMA2C_HEADER.size // 4
    flat = torch.from_file(str(path), shared=False, size=offset + numbers, dtype=torch.float32)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in layout:
        count = torch.Size(shape).numel()
        part = flat[offset : offset + count].view(shape)
        offset += count
        if "{}" in name:
            tensors |= {name.format(i): part[i] for i in range(config.n_layers)}
        else:
            tensors[name] = part
    kind = "llama2.c .bin file, version 0"
    return Checkpoint(path, model_args, migrate_names(path, tensors), format=kind)


def llama2c_layout(config: LlamaConfig, is_tied: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names ({} stands for the layer) and shapes (layers first) in the file's order."""
    shapes = dict(expected_shapes(dataclasses.replace(config, norm="rmsnorm", n_layers=1)))
    yield "tok_embeddings.weight", shapes["tok_embeddings.weight"]
    for part in (
        "attention_norm",
        "attention.compute_query",
        "attention.compute_key",
        "attention.compute_value",
        "attention.compute_output",
        "ffn_norm",
        "feed_forward.w1",
        "feed_forward.w2",
        "feed_forward.w3",
    ):
        shape = shapes[f"layers.0.{part}.weight"]
        yield f"layers.{{}}.{part}.weight", (config.n_layers, *shape)
    yield "norm.weight", shapes["norm.weight"]
    for table in ("freqs_cos", "freqs_sin"):
        yield table, (config.max_seq_len, config.head_dim // 2)
    if not is_tied:
        yield "output.weight", shapes["output.weight"]


def save_checkpoint(
    path: str | Path,
    model_args: LlamaConfig | dict[str, Any],
    tensors: dict[str, torch.Tensor],
    **metadata: Any,
) -> None:
    """Write a torch checkpoint atomically: `tensors`, `model_args` and plain metadata.

    A LlamaConfig records its norm and attention, so the file needs no edition when it is loaded.
    """
    if isinstance(model_args, LlamaConfig):
        model_args = dataclasses.asdict(model_args)
    tensors = {name: _compact(tensor) for name, tensor in tensors.items()}
    save_plain(path, {"model": tensors, "model_args": model_args, **metadata})


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """torch.save writes a tensor's whole storage, and a view of a mapped file has the file's."""
    is_view = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if is_view else tensor


def save_folder(folder: str | Path, config: LlamaConfig, tensors: dict[str, torch.Tensor]) -> None:
    """Write model.safetensors and config.json, under the assignment's names, each atomically.

    A tied output.weight is left out. Raises ValueError if safetensors is not installed, OSError.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if config.tie_word_embeddings:
        tensors.pop("output.weight", None)
    with atomic_write(folder / WEIGHTS_FILE, "wb") as file:
        file.write(import_safetensors().save(tensors))
    content = {"model_type": OWN_MODEL_TYPE, **dataclasses.asdict(config)}
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
        args = huggingface.import_config(content)
        tensors = huggingface.import_tensors(read_weights(folder), args)
    except ValueError as error:
        about = "" if str(folder) in str(error) else f"{folder}: "
        raise ValueError(f"{about}{error}") from None
    kind = f"folder of Hugging Face's {huggingface.ARCHITECTURE}"
    return Checkpoint(folder, args, tensors, format=kind)


if __name__ == "__main__":
    from checkpoint_commands import main

    main()
