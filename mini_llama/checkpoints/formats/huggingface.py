"""Hugging Face's Llama models ↔ ours: names, configuration, and the order of RoPE's rows.

The network is the same. Only how a head's features are paired for rotation differs: there (i, i +
D/2), split halves, here (2i, 2i + 1), interleaved; permuting the rows of the query and the key
projection turns one into the other exactly.

Shapes: C the model's width, D head_dim.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from config import ROPE_SCALINGS, LlamaConfig, RopeScaling
from mini_llama.checkpoints.formats.base import Format, Plan, Target, own_bytes
from mini_llama.checkpoints.formats.folder import (
    CONFIG_FILE,
    OWN_MODEL_TYPE,
    folder_of,
    read_weights,
    save_shards,
    write_folder,
)
from mini_llama.checkpoints.lazy_tensors import LazyTensors, meta_tensors
from mini_llama.checkpoints.mapped_pages import MappedPages
from mini_llama.checkpoints.record import Checkpoint
from mini_llama.checkpoints.tensor_files import write_json
from mini_llama.tokenization.find import find_tokenizer, load_tokenizer
from tokenizer import TOKENIZER_MODEL, Tokenizer
from utils import atomic_folder, read_json

MODEL_TYPE = "llama"
ARCHITECTURE = "LlamaForCausalLM"
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
# Configuration fields that have one meaning there and here: ours → theirs.
FIELDS = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "hidden_dim": "intermediate_size",
    "layer_norm_eps": "rms_norm_eps",
}
# Fields that would change the arithmetic, and the one value that leaves it ours.
FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
# Fields of config.RopeScaling: ours → theirs.
SCALING_FIELDS = {field.name: field.name for field in dataclasses.fields(RopeScaling)}
ORIGINAL_LENGTH = SCALING_FIELDS["original_max_seq_len"] = "original_max_position_embeddings"
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
# What a config.json that leaves a field out means by it.
LEFT_OUT = {"num_key_value_heads": None, "rms_norm_eps": 1e-6}


def architecture_of(content: dict[str, Any]) -> str:
    """Which of their models a config.json is of. Raises ValueError for one that is none of Llama's,
    and for what is no list of names.
    """
    names = content.get("architectures") or [ARCHITECTURE]
    if not (isinstance(names, list) and all(str(name).startswith("Llama") for name in names)):
        raise ValueError(f"architectures is {names!r}; {ARCHITECTURE} is supported")
    return names[0]


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
    names += [f"layers.{i}.{part}.weight" for i in range(n_layers) for part in LAYER_NAMES]
    return {their_name(name, architecture): name for name in names}


def interleave_rows(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of a query or key projection (heads · D, C): split halves → interleaved pairs."""
    halves = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def split_rows(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """The other way: interleaved pairs → split halves."""
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def is_rotated(name: str) -> bool:
    """Whether RoPE turns what this tensor, by our name, projects to."""
    return name.endswith(("compute_query.weight", "compute_key.weight"))


def import_rope(content: dict[str, Any]) -> dict[str, Any]:
    """What their config.json says of RoPE → rope_theta, rope_scaling and max_seq_len.

    For linear and llama3 scaling max_position_embeddings is the length after scaling, and nothing
    but generation's window depends on it. For dynamic scaling it is the original length, which
    the angles depend on, and the window becomes factor times that. Raises ValueError for an unknown
    rule, and for parameters that are missing, not the rule's, or contradict each other.
    """
    rope, length = {"rope_type": None}, content["max_position_embeddings"]
    places = [content.get("rope_parameters"), content.get("rope_scaling")]  # today's, the older one
    for place in places:
        add_parameters(rope, place or {})
    if rope["rope_type"] == "dynamic":
        add_parameters(rope, {ORIGINAL_LENGTH: length})
    elif rope["rope_type"] == "llama3":  # transformers reads it from here as well
        add_parameters(rope, {ORIGINAL_LENGTH: content.get(ORIGINAL_LENGTH)})
    theta = rope.pop("rope_theta", content.get("rope_theta", LlamaConfig.rope_theta))
    args = {"rope_theta": theta, "rope_scaling": None, "max_seq_len": length}
    scaling = import_scaling(rope)
    if scaling is not None:
        args["rope_scaling"] = dataclasses.asdict(scaling)
        if scaling.rope_type == "dynamic":
            args["max_seq_len"] = int(scaling.factor * length)
    return args


def add_parameters(rope: dict[str, Any], more: Any) -> None:
    """Add `more` to RoPE's parameters, without what is null; `type` is rope_type's older name.

    Raises ValueError if it is not a dict, or contradicts what is there.
    """
    if not isinstance(more, dict):
        raise ValueError(f"its RoPE parameters are {more!r}, which is no JSON object")
    for name, value in more.items():
        name = "rope_type" if name == "type" else name
        if value is not None:
            known = rope.get(name)
            if known is not None and known != value:
                raise ValueError(f"its RoPE parameters have {name} {known!r} and {value!r}")
            rope[name] = value


def import_scaling(rope: dict[str, Any]) -> RopeScaling | None:
    """Their RoPE parameters, without theta, → ours. Raises ValueError as import_rope does."""
    kind = "default" if rope["rope_type"] is None else rope["rope_type"]
    if kind not in ("default", *ROPE_SCALINGS):
        raise ValueError(f"RoPE scaling {kind!r} is not supported")
    names = {ours: SCALING_FIELDS[ours] for ours in ("rope_type", *ROPE_SCALINGS.get(kind, ()))}
    if missing := sorted(set(names.values()) - rope.keys()):
        raise ValueError(f"its {kind} RoPE scaling lacks {', '.join(missing)}")
    if unknown := sorted(rope.keys() - set(names.values())):
        raise ValueError(f"{', '.join(unknown)}: RoPE of type {kind} has no such parameter")
    if kind == "default":
        return None
    return RopeScaling(**{ours: rope[theirs] for ours, theirs in names.items()})


def export_rope(config: LlamaConfig) -> dict[str, Any]:
    """import_rope the other way; but a window that is not factor times a dynamic rule's original
    length has no place there.
    """
    scaling, length = config.rope_scaling, config.max_seq_len
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        values = {theirs: getattr(scaling, ours) for ours, theirs in SCALING_FIELDS.items()}
        rope = {name: value for name, value in values.items() if value is not None}
        if scaling.rope_type == "dynamic":
            length = rope.pop(ORIGINAL_LENGTH)
    theta = {"rope_theta": config.rope_theta}
    fields = {"max_position_embeddings": length, **theta, "rope_parameters": rope | theta}
    # Readers that do not know rope_parameters must not take a scaled model for a plain one.
    return fields if scaling is None else fields | {"rope_scaling": rope}


def import_config(content: dict[str, Any]) -> dict[str, Any]:
    """Their config.json → model_args. Raises ValueError, naming the field, for another arithmetic.

    The arithmetic is recorded: RMSNorm and causal attention.
    """
    architecture_of(content)
    for name, value in FIXED.items():
        if content.get(name, value) != value:
            raise ValueError(f"{name} is {content[name]!r}, and only {value!r} is supported")
    content = LEFT_OUT | content
    needed = {*FIELDS.values(), "max_position_embeddings"} - LEFT_OUT.keys()
    missing = sorted(name for name in needed if content.get(name) is None)
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    args = {ours: content[theirs] for ours, theirs in FIELDS.items()}
    args |= import_rope(content)
    args |= {"norm": "rmsnorm", "attention": "causal"}
    args["tie_word_embeddings"] = content.get("tie_word_embeddings", False)
    head_dim = LlamaConfig(**args).head_dim
    if content.get("head_dim") not in (None, head_dim):
        raise ValueError(f"head_dim is {content['head_dim']}, and only {head_dim} is supported")
    return args


def export_config(config: LlamaConfig) -> dict[str, Any]:
    """Our configuration → their config.json. Raises ValueError for LayerNorm or another mask."""
    if (config.norm, config.attention) != ("rmsnorm", "causal"):
        raise ValueError(
            f"Hugging Face's Llama has RMSNorm and causal attention, and this model {config.norm} "
            f"and {config.attention} attention"
        )
    fields = {theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}
    fixed = {"architectures": [ARCHITECTURE], "model_type": MODEL_TYPE, **FIXED}
    tied = {"tie_word_embeddings": config.tie_word_embeddings}
    return fixed | fields | tied | export_rope(config)


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
    tensors = {k: t for k, t in tensors.items() if not k.endswith("rotary_emb.inv_freq")}
    unknown = [name for name in tensors if name not in known]
    if unknown:
        raise ValueError(f"it holds {unknown[0]}, which is not supported in a {architecture!r}")
    imported = {known[name]: tensor for name, tensor in tensors.items()}
    if config.tie_word_embeddings:
        imported.pop("output.weight", None)  # as there: what a tied model's file holds is not read
    elif "output.weight" not in imported and architecture not in HEADS:
        raise ValueError(f"it lacks {their_name('output.weight')}, and says that it is not tied")

    def make(name: str) -> torch.Tensor:
        tensor = imported[name]
        if is_rotated(name) and tensor.ndim == 2 and len(tensor) % config.head_dim == 0:
            return interleave_rows(tensor, config.head_dim)
        return tensor

    return LazyTensors(imported, make)


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
    """Whatever model it is of: read says which are supported."""
    return folder_of(path) is not None


def read(path: Path) -> Checkpoint:
    folder, pages = folder_of(path) or path, MappedPages()
    content = read_json(folder / CONFIG_FILE)
    kind = content.pop("model_type", None)
    if kind != MODEL_TYPE:
        raise ValueError(
            f"{folder / CONFIG_FILE} is of a {kind!r} model; only {MODEL_TYPE!r} and "
            f"{OWN_MODEL_TYPE!r} are supported"
        )
    try:
        architecture = architecture_of(content)
        args = import_config(content)
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

    Raises ValueError for an arithmetic that Hugging Face's Llama has not, and as
    folder.write_folder does; OSError.
    """
    content = export_config(config) | {"architectures": [architecture]} | fields
    write_folder(folder, content, dict(export_tensors(tensors, config, architecture)))


def _write(plan: Plan) -> None:
    """config.json, model.safetensors or shards, generation_config.json, and the tokenizer."""
    source = plan.source
    tokenizer = {name: source / name for name in TOKENIZER_FILES if (source / name).is_file()}
    ids, described = TOKEN_IDS, None
    if not tokenizer and (own := _find_own_tokenizer(source, plan.config.vocab_size)):
        tokenizer = {TOKENIZER_MODEL: own.model_path}
        ids = {"bos_token_id": own.bos_id, "eos_token_id": own.eos_id}
        described = _describe_tokenizer(own)
    if not tokenizer:
        plan.notes.append(f"no tokenizer of this model is beside {source}: none was copied")
    ids = ids | _token_ids(source)
    dtype = str(plan.tensors.meta["tok_embeddings.weight"].dtype).removeprefix("torch.")
    content = export_config(plan.config) | {"torch_dtype": dtype} | ids
    with atomic_folder(plan.destination) as folder:
        tensors = export_tensors(plan.tensors, plan.config)
        save_shards(folder, tensors, plan.max_shard_bytes)
        write_json(folder / CONFIG_FILE, content)
        write_json(folder / GENERATION_FILE, ids)
        for name, file in tokenizer.items():
            shutil.copyfile(file, folder / name)
        if described is not None:
            write_json(folder / "tokenizer_config.json", described)


def _token_ids(source: Path) -> dict[str, Any]:
    """bos_token_id and such that a Hugging Face folder gives; nothing of any other source."""
    content: dict[str, Any] = {}
    for file in (source / CONFIG_FILE, source / GENERATION_FILE):
        if file.is_file():
            content |= read_json(file)
    names = (*TOKEN_IDS, "pad_token_id")
    return {name: content[name] for name in names if content.get(name) is not None}


def _find_own_tokenizer(source: Path, vocab_size: int) -> Tokenizer | None:
    """The SentencePiece model in or beside the source, if it has that many pieces."""
    found, source = find_tokenizer(source), source.resolve()
    if not found.is_file() or found.resolve().parent not in (source, source.parent):
        return None
    tokenizer = load_tokenizer(found)
    if isinstance(tokenizer, Tokenizer) and tokenizer.n_words == vocab_size:
        return tokenizer
    return None


def _describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json of a SentencePiece model: without it transformers leaves BOS out."""
    pieces = tokenizer.sp_model
    ids = {"bos": pieces.bos_id(), "eos": pieces.eos_id(), "unk": pieces.unk_id()}
    named = {f"{name}_token": pieces.id_to_piece(i) for name, i in ids.items() if i >= 0}
    added = {"add_bos_token": True, "add_eos_token": False}
    return {"tokenizer_class": "LlamaTokenizer", **added, **named}


FORMAT = Format(
    CONFIG_FILE,
    recognises,
    read,
    is_folder=True,
    targets=(Target("huggingface", _write, own_bytes, is_folder=True),),
)
