"""Folders of Hugging Face's Llama models: names, the order of RoPE's rows, tokenizers, heads.

The network is the same. Only how a head's features are paired for rotation differs: there (i, i +
D/2), split halves, here (2i, 2i + 1), interleaved; permuting the rows of the query and the key
projection, and of their biases, turns one into the other exactly.

Shapes: C the model's width, D head_dim.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from config import LlamaConfig
from mini_llama.checkpoints.formats.base import Format, Plan, Target, own_bytes
from mini_llama.checkpoints.formats.folder import (
    CONFIG_FILE,
    OWN_MODEL_TYPE,
    folder_of,
    read_weights,
    save_shards,
    weight_sets,
    write_folder,
)
from mini_llama.checkpoints.formats.huggingface_config import (
    ARCHITECTURE,
    MODEL_TYPE,
    architecture_of,
    export_config,
    import_config,
)
from mini_llama.checkpoints.formats.huggingface_tokenizer import find_beside, write_tokenizer
from mini_llama.checkpoints.lazy_tensors import LazyTensors, meta_tensors
from mini_llama.checkpoints.mapped_pages import MappedPages
from mini_llama.checkpoints.record import Checkpoint, bias_kind, layer_tensors, with_zero_biases
from mini_llama.checkpoints.tensor_files import write_json
from mini_llama.warning import warn
from utils import atomic_folder, read_json

# Their models without an output layer: where their backbone's names begin, and the head's names.
HEADS: dict[str, tuple[str, tuple[str, ...]]] = {
    "LlamaModel": ("", ()),
    "LlamaForSequenceClassification": ("model.", ("score.weight",)),
    "LlamaForTokenClassification": ("model.", ("score.weight", "score.bias")),
    "LlamaForQuestionAnswering": ("transformer.", ("qa_outputs.weight", "qa_outputs.bias")),
}
NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.compute_query": "self_attn.q_proj",
    "attention.compute_key": "self_attn.k_proj",
    "attention.compute_value": "self_attn.v_proj",
    "attention.compute_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
GENERATION_FILE = "generation_config.json"
TOKEN_IDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}  # Llama's


def their_name(name: str, architecture: str = ARCHITECTURE) -> str:
    """Our tensor's name → theirs; a head's names are the same."""
    prefix, head = HEADS.get(architecture, ("model.", ()))
    if name in head:
        return name
    if name in NAMES:
        return NAMES[name].replace("model.", prefix)
    layers, number, rest = name.split(".", 2)
    part, _, leaf = rest.rpartition(".")
    return f"{prefix}{layers}.{number}.{LAYER_NAMES[part]}.{leaf}"


def our_names(n_layers: int, architecture: str = ARCHITECTURE) -> dict[str, str]:
    """Their names → ours, of every tensor of a model."""
    names = list(NAMES)
    if architecture in HEADS:
        names.remove("output.weight")
        names += HEADS[architecture][1]
    names += layer_tensors(n_layers, LAYER_NAMES)
    return {their_name(name, architecture): name for name in names}


def interleave_rows(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of a query or key projection (heads · D, C), or its bias (heads · D,): split halves →
    interleaved pairs.
    """
    halves = weight.reshape(-1, 2, head_dim // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def split_rows(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """The other way: interleaved pairs → split halves."""
    pairs = weight.reshape(-1, head_dim // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def is_rotated(name: str) -> bool:
    """Whether RoPE turns what this tensor, by our name, projects to."""
    return name.rpartition(".")[0].endswith(("compute_query", "compute_key"))


def import_tensors(
    tensors: Mapping[str, torch.Tensor], args: dict[str, Any], architecture: str = ARCHITECTURE
) -> LazyTensors:
    """Their tensors → ours, query and key rows interleaved. Raises ValueError for unknown names.

    The RoPE frequencies that old files hold are dropped: they are computed here.
    """
    config = LlamaConfig(**args)
    if config.n_layers > len(tensors):  # before n_layers names are built from a damaged number
        raise ValueError(f"it holds {len(tensors)} tensors, too few for {config.n_layers} layers")
    known = our_names(config.n_layers, architecture)
    frequencies = {k: t for k, t in tensors.items() if k.endswith("rotary_emb.inv_freq")}
    _check_frequencies(frequencies, config)
    tensors = {k: t for k, t in tensors.items() if k not in frequencies}
    unknown = [name for name in tensors if name not in known]
    if unknown:
        raise ValueError(f"it holds {unknown[0]}, which is not supported in a {architecture!r}")
    imported = {known[name]: tensor for name, tensor in tensors.items()}
    if config.tie_word_embeddings:
        _tie(imported)
    elif "output.weight" not in imported and architecture not in HEADS:
        raise ValueError(f"it lacks {their_name('output.weight')}, and says that it is not tied")

    def make(name: str) -> torch.Tensor:
        tensor = imported[name]
        if is_rotated(name) and tensor.ndim and len(tensor) % config.head_dim == 0:
            return interleave_rows(tensor, config.head_dim)
        return tensor

    held, lazy = set(imported), LazyTensors(imported, make)
    whole = with_zero_biases(lazy, config)
    if added := sorted({bias_kind(name) for name in whole} - {bias_kind(name) for name in held}):
        warn(f"no layer has {' nor '.join(added)}: taken for 0, as transformers does")
    return whole


def _check_frequencies(frequencies: Mapping[str, torch.Tensor], config: LlamaConfig) -> None:
    """Warn of stored RoPE frequencies that are not those of the configuration."""
    exponents = torch.arange(0, config.head_dim, 2) / config.head_dim
    expected = (1 / config.rope_theta**exponents).float()
    for name, tensor in frequencies.items():
        is_alike = tensor.shape == expected.shape and torch.allclose(
            tensor.float(), expected, rtol=0.02, atol=1e-6
        )
        if not is_alike and config.rope_scaling is None:
            warn(
                f"{name} is not what rope_theta {config.rope_theta} and head_dim {config.head_dim} "
                "make: config.json counts, as in transformers"
            )
            return


def _tie(tensors: dict[str, torch.Tensor]) -> None:
    """As transformers does: where a tied model's file holds both embeddings, and they differ, both
    are kept; where it holds the output's alone, that one is meant.
    """
    output, embedding = tensors.get("output.weight"), tensors.get("tok_embeddings.weight")
    if output is None:
        return
    if embedding is None:
        tensors["tok_embeddings.weight"] = output
    if embedding is None or torch.equal(embedding, output):
        del tensors["output.weight"]


def export_tensors(
    tensors: Mapping[str, torch.Tensor], config: LlamaConfig, architecture: str = ARCHITECTURE
) -> LazyTensors:
    """Our tensors → theirs; a tied output embedding is left out."""
    left_out = {"output.weight"} if config.tie_word_embeddings else set()
    names = {their_name(name, architecture): name for name in tensors if name not in left_out}
    meta = meta_tensors(tensors)

    def make(name: str) -> torch.Tensor:
        tensor = tensors[names[name]]
        if is_rotated(names[name]):
            tensor = split_rows(tensor, config.head_dim)
        return tensor.contiguous()

    return LazyTensors({theirs: meta[ours] for theirs, ours in names.items()}, make)


def recognises(path: Path) -> bool:
    """Whatever model it is of: read says which are supported. A folder with weights of Meta's alone
    is none of these, though it may have a config.json.
    """
    folder = folder_of(path)
    if folder is None:
        return False
    is_metas = all((folder / name).is_file() for name in ("params.json", "consolidated.00.pth"))
    return bool(weight_sets(folder)) or not is_metas


def _read_config(path: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The folder, its config.json, and model_args."""
    folder = folder_of(path) or path
    content = read_json(folder / CONFIG_FILE)
    kind = content.pop("model_type", None)
    if kind != MODEL_TYPE:
        raise ValueError(
            f"{folder / CONFIG_FILE} is of a {kind!r} model; only {MODEL_TYPE!r} and "
            f"{OWN_MODEL_TYPE!r} are supported"
        )
    try:
        return folder, content, import_config(content)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def read(path: Path) -> Checkpoint:
    pages = MappedPages()
    folder, content, args = _read_config(path)
    architecture = architecture_of(content)
    try:
        tensors = import_tensors(read_weights(folder, pages), args, architecture)
    except ValueError as error:
        about = "" if str(folder) in str(error) else f"{folder}: "
        raise ValueError(f"{about}{error}") from None
    is_head = architecture in HEADS
    head = {"task_head": content, "architecture": architecture} if is_head else {}
    kind = f"folder of Hugging Face's {architecture}"
    return Checkpoint(folder, args, tensors, head, kind, pages)


@dataclass(frozen=True)
class Head:
    """A model's head: its class there, config.json, and of the tensors `names` those it holds."""

    architecture: str
    content: dict[str, Any]
    names: tuple[str, ...]
    tensors: dict[str, torch.Tensor]


def split_head(checkpoint: Checkpoint) -> tuple[Checkpoint, Head | None]:
    """The backbone, and the head: None for a model with an output layer."""
    content = checkpoint.metadata.get("task_head")
    if content is None:
        return checkpoint, None
    architecture = architecture_of(content)
    _, names = HEADS[architecture]
    tensors = checkpoint.tensors
    head = Head(architecture, content, names, {k: tensors[k] for k in names if k in tensors})
    backbone = {name: tensor for name, tensor in tensors.items() if name not in head.tensors}
    return dataclasses.replace(checkpoint, tensors=backbone), head


def save_with_head(
    folder: str | Path,
    config: LlamaConfig,
    tensors: Mapping[str, torch.Tensor],
    architecture: str,
    fields: dict[str, Any],
) -> None:
    """Write a model of a class of HEADS; `fields` are what config.json says of the head.

    Raises ValueError for an arithmetic that is not that of Hugging Face's Llama, and as
    folder.write_folder does; OSError.
    """
    content = export_config(config) | {"architectures": [architecture]} | fields
    write_folder(folder, content, dict(export_tensors(tensors, config, architecture)))


def _write(plan: Plan) -> None:
    """config.json, model.safetensors or shards, generation_config.json, and the tokenizer."""
    source, ids = plan.source, dict(TOKEN_IDS)
    tokenizer = find_beside(source, plan.config.vocab_size)
    if tokenizer is None:
        plan.notes.append(f"no tokenizer of this model is beside {source}: none was copied")
    else:
        ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    ids |= token_ids(source)
    generation = ids
    if (source / GENERATION_FILE).is_file():
        generation = read_json(source / GENERATION_FILE)
    dtype = str(plan.tensors.meta["tok_embeddings.weight"].dtype).removeprefix("torch.")
    content = export_config(plan.config) | {"torch_dtype": dtype} | ids
    with atomic_folder(plan.destination) as folder:
        save_shards(folder, export_tensors(plan.tensors, plan.config), plan.max_shard_bytes)
        write_json(folder / CONFIG_FILE, content)
        write_json(folder / GENERATION_FILE, generation)
        if tokenizer is not None:
            write_tokenizer(tokenizer, folder)


def token_ids(source: Path) -> dict[str, Any]:
    """bos_token_id and such that a Hugging Face folder's config.json gives, and of what it leaves
    out its generation_config.json; nothing of any other source.
    """
    content: dict[str, Any] = {}
    for file in (source / GENERATION_FILE, source / CONFIG_FILE):
        if file.is_file():
            content |= {k: v for k, v in read_json(file).items() if v is not None}
    return {name: content[name] for name in (*TOKEN_IDS, "pad_token_id") if name in content}


FORMAT = Format(
    CONFIG_FILE,
    recognises,
    read,
    is_folder=True,
    targets=(Target("huggingface", _write, own_bytes, is_folder=True),),
    check=_read_config,
)
