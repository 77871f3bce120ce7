"""A checkpoint in another format: the assignment's torch file, a Hugging Face folder, llama2.c's.

Tensors go from file to file one by one, so a model need not fit in memory; the numbers stay what
they are, to the last bit. `prepare` refuses whatever can be refused before anything is written.
The file knows no layouts: checkpoint.py, huggingface.py, tensor_files.py and llama2c.py do.
"""

import dataclasses
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from config import EDITIONS, Arithmetic, LlamaConfig, resolve_arithmetic
from mini_llama.checkpoints.formats import huggingface, llama2c
from mini_llama.checkpoints.lazy_tensors import LazyTensors, RemappedTensors
from mini_llama.checkpoints.reading import (
    CONFIG_FILE,
    Checkpoint,
    WrongNormError,
    check_is_pretrained,
    read_checkpoint,
    stored_tensors,
)
from mini_llama.checkpoints.tensor_files import (
    read_json,
    save_plain_lazily,
    save_safetensors,
    write_json,
)
from mini_llama.tokenization.find import find_tokenizer, load_tokenizer
from tokenizer import TOKENIZER_MODEL, Tokenizer
from utils import atomic_folder, check_new_folder, check_outputs, require_free_disk

TRUE_LLAMA = {name: getattr(EDITIONS["llama2"], name) for name in ("norm", "attention")}
MAX_SHARD_SIZE = "5GB"
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SMALL_FILES_BYTES = 10**7  # tokenizer, configuration, headers
SHARED = {"output.weight": "tok_embeddings.weight"}
GENERATION_FILE = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
TOKEN_IDS = {"bos_token_id": 1, "eos_token_id": 2}  # Llama's


@dataclass
class Plan:
    """A conversion that can be done. `notes` are lines that its user should read."""

    source: Path
    destination: Path
    target: "Target"
    config: LlamaConfig
    model_args: dict[str, Any]
    tensors: RemappedTensors
    max_shard_bytes: int
    notes: list[str]

    @property
    def bytes_to_read(self) -> int:
        held = self.tensors.meta.items()
        return sum(tensor.nbytes for name, tensor in held if not _is_shared(name, self.config))

    def write(self, on_read: Callable[[int], object] = lambda _: None) -> None:
        """Write the destination, whole or not at all. `on_read` is told the bytes of every tensor.

        Raises OSError, or ValueError where the format cannot hold the model.
        """
        self.tensors.on_read = on_read
        self.target.write(self)


@dataclass(frozen=True)
class Target:
    """A format to write. `is_llama` means that it can only be RMSNorm and causal attention."""

    name: str
    write: Callable[[Plan], None]
    bytes_of: Callable[[torch.Tensor, LlamaConfig], float]
    is_folder: bool = False
    is_llama: bool = True
    hint: str = ""  # what whoever reads the file must know


def prepare(
    source: str | Path,
    destination: str | Path,
    to: str,
    edition: str | None = None,
    norm: str | None = None,
    attention: str | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> Plan:
    """Check everything that can be checked before writing.

    `to` is a key of TARGETS; `edition`, `norm` and `attention` say what the source does not record
    of itself, or contradict it (config.resolve_arithmetic). Raises OSError or ValueError, each one
    line: for what read_checkpoint refuses, for a destination that is the source, lies in it or
    holds files, for a disk without room, for an arithmetic that the format cannot mean.
    """
    target, destination = TARGETS[to], Path(destination)
    max_shard_bytes = parse_size(max_shard_size)
    checkpoint = read_checkpoint(source)
    check_is_pretrained(checkpoint)
    check_destination(checkpoint.path, destination, target)
    explicit = (edition, norm, attention)
    arithmetic = decide_arithmetic(checkpoint, target, *explicit)
    config = checkpoint.make_config(norm=arithmetic.norm, attention=arithmetic.attention)

    def open_files() -> LazyTensors:
        return stored_tensors(read_checkpoint(source), config)

    try:
        tensors = RemappedTensors(open_files)
    except WrongNormError:
        if not target.is_llama:
            raise
        raise ValueError(
            f"{checkpoint.path} has LayerNorm biases that are not 0, and {target.name} means "
            f"RMSNorm: convert it --to assignment"
        ) from None
    model_args = dataclasses.asdict(config)
    for name in TRUE_LLAMA:
        if not (name in checkpoint.recorded or _is_explicit(arithmetic, name)):
            del model_args[name]
    needed = sum(
        target.bytes_of(t, config) for n, t in tensors.meta.items() if not _is_shared(n, config)
    )
    needed = int(needed) + SMALL_FILES_BYTES
    require_free_disk(
        destination.absolute().parent, needed, str(destination), "choose another disk"
    )
    notes = describe_choices(checkpoint, target, arithmetic, tensors.meta)
    return Plan(
        checkpoint.path, destination, target, config, model_args, tensors, max_shard_bytes, notes
    )


def parse_size(text: str) -> int:
    """A size such as 500MB or 5GB → bytes, in powers of 1000. Raises ValueError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?B)", text.strip().upper())
    size = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if size < 1:
        raise ValueError(f"a shard of {text!r} is not allowed: give a size such as 500MB or 5GB")
    return size


def check_destination(source: Path, destination: Path, target: Target) -> None:
    """Raise ValueError for a destination that is the source, lies in it, or cannot be written."""
    if destination.resolve() == source.resolve():
        raise ValueError(f"{destination} is the source as well; give another name")
    if source.is_dir() and source.resolve() in destination.resolve().parents:
        raise ValueError(f"{destination} lies in the source folder {source}; choose another folder")
    if target.is_folder:
        check_new_folder(destination)
    else:
        check_outputs([destination], [source])


def decide_arithmetic(checkpoint: Checkpoint, target: Target, *explicit: str | None) -> Arithmetic:
    """What the model is, or must be in that format. Raises ValueError where the two differ."""
    assumed = TRUE_LLAMA
    if not target.is_llama:  # which tensors there are decides which shapes to expect
        assumed = TRUE_LLAMA | {"norm": "layernorm" if checkpoint.has_biases else "rmsnorm"}
    arithmetic = resolve_arithmetic(assumed | checkpoint.recorded, *explicit)
    is_llama = {name: getattr(arithmetic, name) for name in TRUE_LLAMA} == TRUE_LLAMA
    if target.is_llama and not is_llama:
        raise ValueError(
            f"{checkpoint.path} is a model of {arithmetic}, and {target.name} means RMSNorm and "
            "causal attention: convert it --to assignment"
        )
    return arithmetic


def _is_explicit(arithmetic: Arithmetic, name: str) -> bool:
    return getattr(arithmetic, f"{name}_source").startswith("explicit")


def _is_shared(name: str, config: LlamaConfig) -> bool:
    return config.tie_word_embeddings and name in SHARED


def describe_choices(
    checkpoint: Checkpoint,
    target: Target,
    arithmetic: Arithmetic,
    meta: Mapping[str, torch.Tensor],
) -> list[str]:
    """What the user should know of the conversion: what is assumed, and what is widened."""
    notes = []
    unrecorded = [
        name
        for name in TRUE_LLAMA
        if name not in checkpoint.recorded and not _is_explicit(arithmetic, name)
    ]
    if unrecorded and target.is_llama:
        notes.append(
            f"{checkpoint.path} does not record its {' and '.join(unrecorded)}: taken for a true "
            f"Llama (RMSNorm, causal attention), which is all that {target.name} can mean"
        )
    elif unrecorded:
        notes.append(
            f"{checkpoint.path} does not record its {' and '.join(unrecorded)}, and so the new "
            "file does not; --edition, --norm and --attention record them"
        )
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in meta.values()} - {"float32"}
    if target.name == "llama2c" and dtypes:
        exactly = "rounded to" if "float64" in dtypes else "written exactly as"
        notes.append(f"{', '.join(sorted(dtypes))} weights are {exactly} float32")
    return notes


def write_assignment(plan: Plan) -> None:
    shared = SHARED if plan.config.tie_word_embeddings else {}
    save_plain_lazily(plan.destination, "model", plan.tensors, shared, model_args=plan.model_args)


def write_huggingface(plan: Plan) -> None:
    """config.json, model.safetensors or shards, generation_config.json, and the tokenizer."""
    source = plan.source
    tokenizer = {name: source / name for name in TOKENIZER_FILES if (source / name).is_file()}
    ids, described = TOKEN_IDS, None
    if not tokenizer and (own := find_own_tokenizer(source, plan.config.vocab_size)):
        tokenizer = {TOKENIZER_MODEL: own.model_path}
        ids = {"bos_token_id": own.bos_id, "eos_token_id": own.eos_id}
        described = describe_tokenizer(own)
    if not tokenizer:
        plan.notes.append(f"no tokenizer of this model is beside {source}: none was copied")
    ids = ids | read_token_ids(source)
    dtype = str(plan.tensors.meta["tok_embeddings.weight"].dtype).removeprefix("torch.")
    content = huggingface.export_config(plan.config) | {"torch_dtype": dtype} | ids
    with atomic_folder(plan.destination) as folder:
        tensors = huggingface.export_tensors(plan.tensors, plan.config)
        save_safetensors(folder, tensors, plan.max_shard_bytes)
        write_json(folder / CONFIG_FILE, content)
        write_json(folder / GENERATION_FILE, ids)
        for name, file in tokenizer.items():
            shutil.copyfile(file, folder / name)
        if described is not None:
            write_json(folder / "tokenizer_config.json", described)


def read_token_ids(source: Path) -> dict[str, Any]:
    """bos_token_id and such that a Hugging Face folder gives; nothing of any other source."""
    content: dict[str, Any] = {}
    for file in (source / CONFIG_FILE, source / GENERATION_FILE):
        if file.is_file():
            content |= read_json(file)
    names = (*TOKEN_IDS, "pad_token_id")
    return {name: content[name] for name in names if content.get(name) is not None}


def find_own_tokenizer(source: Path, vocab_size: int) -> Tokenizer | None:
    """The SentencePiece model in or beside the source, if it has that many pieces."""
    found, source = find_tokenizer(source), source.resolve()
    if not found.is_file() or found.resolve().parent not in (source, source.parent):
        return None
    tokenizer = load_tokenizer(found)
    is_own = isinstance(tokenizer, Tokenizer) and tokenizer.n_words == vocab_size
    return tokenizer if is_own else None


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json of a SentencePiece model: without it transformers leaves BOS out."""
    pieces = tokenizer.sp_model
    ids = {"bos": pieces.bos_id(), "eos": pieces.eos_id(), "unk": pieces.unk_id()}
    named = {f"{name}_token": pieces.id_to_piece(i) for name, i in ids.items() if i >= 0}
    added = {"add_bos_token": True, "add_eos_token": False}
    return {"tokenizer_class": "LlamaTokenizer", **added, **named}


def write_llama2c(plan: Plan) -> None:
    llama2c.write_version0(plan.destination, plan.config, plan.tensors)


def write_llama2c_q80(plan: Plan) -> None:
    rounding = llama2c.write_q80(plan.destination, plan.config, plan.tensors)
    plan.notes.append(
        f"8 bits, in groups of {rounding.group_size}: the largest error of a weight is "
        f"{rounding.absolute:.3g}, or {rounding.relative:.3f} of its group's scale"
    )


NO_TOKENIZER = "; it holds no tokenizer: name one with --tokenizer when it is read"
NO_RECORD = (
    "; it records neither arithmetic nor tokenizer: read it with --edition llama2 --tokenizer"
)


def q80_bytes(tensor: torch.Tensor, config: LlamaConfig) -> float:
    """A byte a weight, and a float32 scale a group; norms stay float32."""
    scales = 4 / llama2c.fitting_group_size(config)
    return tensor.numel() * (1 + scales if tensor.ndim > 1 else 4)


TARGETS = {
    target.name: target
    for target in (
        Target(
            "assignment",
            write_assignment,
            lambda tensor, _: tensor.nbytes,
            is_llama=False,
            hint=NO_TOKENIZER,
        ),
        Target("huggingface", write_huggingface, lambda tensor, _: tensor.nbytes, is_folder=True),
        Target("llama2c", write_llama2c, lambda tensor, _: 4 * tensor.numel(), hint=NO_RECORD),
        Target("llama2c-q80", write_llama2c_q80, q80_bytes, hint=NO_RECORD),
    )
}
