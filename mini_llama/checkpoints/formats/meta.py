"""Meta's original Llama folders ↔ ours: params.json, and how shards are joined.

Meta cuts each matrix into as many parts as there are GPUs (Megatron-LM, Shoeybi et al. 2019,
section 3) and writes a torch file for each GPU, consolidated.00.pth and so on. Names, but for the
projections', and the interleaved order of RoPE's rows are ours, since ours are Meta's; norms are
in every shard. The token embedding is cut along its width in Llama 1 and 2, along the vocabulary in
Llama 3: the shapes say which.

Joined tensors are LazyTensors: the parts are mapped from their files, and each access joins one
tensor; with a single shard they are the mapped tensors themselves. Only the norms are read at once,
and enough of each shard to see that it is not a copy of another.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from config import LlamaConfig, feed_forward_hidden_dim
from mini_llama.checkpoints.formats.base import Format
from mini_llama.checkpoints.lazy_tensors import LazyTensors
from mini_llama.checkpoints.mapped_pages import MappedPages
from mini_llama.checkpoints.record import Checkpoint, migrate_names
from mini_llama.checkpoints.tensor_files import check_tensors, load_plain
from utils import read_json

PARAMS_FILE = "params.json"
SHARD = re.compile(r"consolidated\.(\d+)\.pth")
EMBEDDING, OUTPUT = "tok_embeddings.weight", "output.weight"
QUERY, GATE = "layers.0.attention.compute_query.weight", "layers.0.feed_forward.w1.weight"
KIND = "folder of Meta's"
IGNORED = "rope.freqs"  # RoPE's frequencies, which are computed here
# Tensors by how they are cut: along rows (column-parallel, in Meta's terms) or columns.
BY_ROWS = re.compile(
    r"output\.weight|layers\.\d+\.(attention\.compute_(query|key|value)|feed_forward\.w[13])\.weight"
)
BY_COLUMNS = re.compile(r"layers\.\d+\.(attention\.compute_output|feed_forward\.w2)\.weight")
WHOLE = re.compile(r"(layers\.\d+\.(attention|ffn)_)?norm\.weight")
# params.json: their name → ours; what a file that leaves a field out means by it.
FIELDS = {
    "dim": "dim",
    "n_layers": "n_layers",
    "n_heads": "n_heads",
    "n_kv_heads": "n_kv_heads",
    "multiple_of": "multiple_of",
    "norm_eps": "layer_norm_eps",
    "rope_theta": "rope_theta",
    "max_seq_len": "max_seq_len",
}
LEFT_OUT = {
    "n_kv_heads": None,
    "multiple_of": 256,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_seq_len": 2048,  # no released file has it; it only sizes tables and windows
}
# Fields that are no part of the arithmetic, or are looked at one by one.
MULTIPLIER = "ffn_dim_multiplier"
OTHER_FIELDS = {"vocab_size", MULTIPLIER, "use_scaled_rope", "max_batch_size"}
LARGEST_MULTIPLIER = 100

Shards = Mapping[str, Mapping[str, torch.Tensor]]


def recognises(path: Path) -> bool:
    """A folder with params.json, or its params.json or shard."""
    is_part = path.name == PARAMS_FILE or SHARD.fullmatch(path.name)
    return ((path.parent if is_part else path) / PARAMS_FILE).is_file()


def read(path: Path) -> Checkpoint:
    folder, pages = path if path.is_dir() else path.parent, MappedPages()
    params = read_json(folder / PARAMS_FILE)
    shards = {
        path.name: migrate_names(path, check_tensors(path, load_plain(path, pages)))
        for path in shard_paths(folder)
    }
    try:
        model_args, tensors = import_shards(params, shards)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    kind = f"{KIND}, {len(shards)} shard{'s' * (len(shards) > 1)}"
    return Checkpoint(folder, model_args, tensors, format=kind, pages=pages)


def shard_paths(folder: Path) -> list[Path]:
    """The shards in order. Raises ValueError for none, and for a number missing or there twice."""
    numbers: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if match := SHARD.fullmatch(path.name):
            if int(match[1]) in numbers:
                first = numbers[int(match[1])].name
                raise ValueError(f"{path} and {first} are the same shard twice; remove one")
            numbers[int(match[1])] = path
    if not numbers:
        raise ValueError(f"{folder} has {PARAMS_FILE}, but no consolidated.00.pth; get it again")
    for number in range(len(numbers)):
        if number not in numbers:
            missing = f"consolidated.{number:02}.pth"
            raise ValueError(f"{folder} has {len(numbers)} shards, but no {missing}; get it again")
    return [numbers[number] for number in range(len(numbers))]


def import_shards(params: dict[str, Any], shards: Shards) -> tuple[dict[str, Any], LazyTensors]:
    """params.json and each shard's tensors, by file and by our names → model_args and tensors.

    The arithmetic is recorded: RMSNorm and causal attention. Raises ValueError, naming the field or
    the file and tensor, for another arithmetic and for shards that do not belong together.
    """
    args = import_params(params)
    shards = {
        file: {name: tensor for name, tensor in shard.items() if name != IGNORED}
        for file, shard in shards.items()
    }
    _check_alike(shards)
    tensors = _join(shards, args["dim"])
    for name in (EMBEDDING, OUTPUT, QUERY, GATE):
        if name not in tensors:
            raise ValueError(f"its shards lack {name}; get them again")
    rows, dim = len(tensors.meta[QUERY]), args["dim"]
    if rows != dim:
        raise ValueError(
            f"{len(shards)} shards have {rows} rows of {QUERY}, and dim={dim} needs {dim}: shards "
            "are missing, or too many; get them again"
        )
    if args["vocab_size"] == -1:
        args["vocab_size"] = len(tensors.meta[EMBEDDING])
    by_rule = feed_forward_hidden_dim(dim, args["multiple_of"], params.get(MULTIPLIER))
    args["hidden_dim"] = len(tensors.meta[GATE])
    if args["hidden_dim"] != by_rule:
        raise ValueError(
            f"{GATE} has {args['hidden_dim']} rows, and {PARAMS_FILE}'s dim, multiple_of and "
            f"{MULTIPLIER} make {by_rule}"
        )
    return args, tensors


def import_params(params: dict[str, Any]) -> dict[str, Any]:
    """model_args; vocab_size may be -1, for what the embedding has."""
    if params.get("use_scaled_rope"):
        raise ValueError(
            "use_scaled_rope (Llama 3.1 and later) does not say by how much; take the Hugging Face "
            "folder of the same model"
        )
    unknown = sorted(params.keys() - FIELDS.keys() - OTHER_FIELDS)
    if unknown:
        raise ValueError(f"{PARAMS_FILE} has {', '.join(unknown[:3])}, which Llama 1 to 3 have not")
    params = LEFT_OUT | params
    missing = sorted(FIELDS.keys() - params.keys())
    if missing:
        raise ValueError(f"{PARAMS_FILE} lacks {', '.join(missing)}")
    args = {ours: params[theirs] for theirs, ours in FIELDS.items()}
    vocab_size, multiplier = params.get("vocab_size", -1), params.get(MULTIPLIER)
    is_number = isinstance(multiplier, float | int) and not isinstance(multiplier, bool)
    if multiplier is not None and not (is_number and 0 < multiplier <= LARGEST_MULTIPLIER):
        raise ValueError(
            f"{MULTIPLIER}={multiplier!r} is not allowed: it must be above 0 and at most "
            f"{LARGEST_MULTIPLIER}"
        )
    LlamaConfig(**args, vocab_size=1 if vocab_size == -1 else vocab_size)  # checks each value
    return args | {"vocab_size": vocab_size, "norm": "rmsnorm", "attention": "causal"}


def _check_alike(shards: Shards) -> None:
    """Raise ValueError unless all shards have the same names, shapes and types, equal norms, and
    otherwise different numbers.
    """
    (first, model), *others = shards.items()
    for name, tensor in model.items():
        if not (tensor.is_floating_point() and tensor.dtype.itemsize > 1):
            raise ValueError(f"{first}: {name} is not a tensor of floating-point numbers")
    for file, shard in others:
        different = sorted(model.keys() ^ shard.keys())
        if different:
            has, lacks = (first, file) if different[0] in model else (file, first)
            raise ValueError(f"{different[0]} is in {has} and not in {lacks}")
        for name, tensor in shard.items():
            if (tensor.shape, tensor.dtype) != (model[name].shape, model[name].dtype):
                raise ValueError(
                    f"{name} is {_describe(model[name])} in {first}, and {_describe(tensor)} in "
                    f"{file}: shards of different models"
                )
            if WHOLE.fullmatch(name) and not torch.equal(tensor, model[name]):
                raise ValueError(f"{name} is not the same in {first} and {file}, as norms must be")
    files = list(shards)
    for i, file in enumerate(files):
        for earlier in files[:i]:
            if all(torch.equal(shards[earlier][k], tensor) for k, tensor in shards[file].items()):
                raise ValueError(f"{file} is a copy of {earlier}; get it again")


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _join(shards: Shards, dim: int) -> LazyTensors:
    """Raises ValueError for a name that Llama does not have, or a part of an impossible shape."""
    axes: dict[str, int | None] = {}
    meta: dict[str, torch.Tensor] = {}
    for name, tensor in next(iter(shards.values())).items():
        axes[name] = axis = _axis(name, tensor, dim, len(shards))
        shape = list(tensor.shape)
        if axis is not None:
            shape[axis] *= len(shards)
        meta[name] = torch.empty(shape, dtype=tensor.dtype, device="meta")

    def make(name: str) -> torch.Tensor:
        parts, axis = [shard[name] for shard in shards.values()], axes[name]
        return parts[0] if axis is None or len(parts) == 1 else torch.cat(parts, dim=axis)

    return LazyTensors(meta, make)


def _axis(name: str, part: torch.Tensor, dim: int, shards: int) -> int | None:
    """Along which axis this tensor is cut; None: it is whole in every shard."""
    if WHOLE.fullmatch(name):
        return None
    if part.ndim != 2:
        raise ValueError(f"{name} is {list(part.shape)}, which is no matrix")
    if BY_ROWS.fullmatch(name):
        return 0
    if BY_COLUMNS.fullmatch(name):
        return 1
    if name != EMBEDDING:
        raise ValueError(f"its shards hold {name}, which Llama 1 to 3 have not")
    if part.shape[1] == dim:  # Llama 3, or a single shard
        return 0
    if part.shape[1] * shards == dim:
        return 1
    raise ValueError(
        f"{shards} shards of {name}, each {list(part.shape)}, do not make the width dim={dim}: "
        "shards are missing, or too many; get them again"
    )


def check(path: Path) -> None:
    """Raise ValueError for params.json."""
    folder = path if path.is_dir() else path.parent
    try:
        import_params(read_json(folder / PARAMS_FILE))
    except ValueError as error:
        about = "" if str(folder) in str(error) else f"{folder}: "
        raise ValueError(f"{about}{error}") from None


FORMAT = Format(PARAMS_FILE, recognises, read, is_folder=True, check=check)
