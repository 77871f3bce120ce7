"""Hugging Face's Llama models ↔ ours: names, configuration, and the order of RoPE's rows.

The network is the same. Only how a head's features are paired for rotation differs: there (i, i +
D/2), split halves, here (2i, 2i + 1), interleaved; permuting the rows of the query and the key
projection turns one into the other exactly. The file knows tensors and dictionaries, no files.

Shapes: C the model's width, D head_dim.
"""

from collections.abc import Mapping
from typing import Any

import torch

from config import LlamaConfig
from lazy_tensors import LazyTensors, meta_tensors

MODEL_TYPE = "llama"
ARCHITECTURE = "LlamaForCausalLM"
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
    "max_seq_len": "max_position_embeddings",
    "layer_norm_eps": "rms_norm_eps",
}
# Fields that would change the arithmetic, and the one value that leaves it ours.
FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
DEFAULT_ROPE = (None, "default")
# What a config.json that leaves a field out means by it.
LEFT_OUT = {"num_key_value_heads": None, "rms_norm_eps": 1e-6}


def their_name(name: str) -> str:
    """Our tensor's name → theirs."""
    if name in NAMES:
        return NAMES[name]
    layers, number, rest = name.split(".", 2)
    part, _, leaf = rest.rpartition(".")
    return f"model.{layers}.{number}.{LAYER_NAMES[part]}.{leaf}"


def our_names(n_layers: int) -> dict[str, str]:
    """Their names → ours, of every tensor of a model."""
    names = list(NAMES)
    names += [f"layers.{i}.{part}.weight" for i in range(n_layers) for part in LAYER_NAMES]
    return {their_name(name): name for name in names}


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


def import_config(content: dict[str, Any]) -> dict[str, Any]:
    """Their config.json → model_args. Raises ValueError, naming the field, for another arithmetic.

    The arithmetic is recorded: RMSNorm and causal attention.
    """
    architectures = content.get("architectures") or []
    is_llama = isinstance(architectures, list) and all(
        str(name).startswith("Llama") for name in architectures
    )
    if not is_llama:
        raise ValueError(f"architectures is {architectures!r}; {ARCHITECTURE} is supported")
    for name, value in FIXED.items():
        if content.get(name, value) != value:
            raise ValueError(f"{name} is {content[name]!r}, and only {value!r} is supported")
    content = LEFT_OUT | content
    needed = set(FIELDS.values()) - LEFT_OUT.keys()
    missing = sorted(name for name in needed if content.get(name) is None)
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    args = {ours: content[theirs] for ours, theirs in FIELDS.items()}
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"its RoPE parameters are {rope!r}, which is no JSON object")
    kind = rope.get("rope_type", rope.get("type"))
    if kind not in DEFAULT_ROPE:
        raise ValueError(f"RoPE scaling {kind!r} is not supported")
    args["rope_theta"] = rope.get("rope_theta", content.get("rope_theta", LlamaConfig.rope_theta))
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
    rope = {"rope_theta": config.rope_theta, "rope_type": "default"}
    fixed = {"architectures": [ARCHITECTURE], "model_type": MODEL_TYPE, **FIXED}
    tied = {"tie_word_embeddings": config.tie_word_embeddings}
    return fixed | fields | tied | {"rope_theta": config.rope_theta, "rope_parameters": rope}


def import_tensors(tensors: Mapping[str, torch.Tensor], args: dict[str, Any]) -> LazyTensors:
    """Their tensors → ours, query and key rows interleaved. Raises ValueError for unknown names.

    The RoPE frequencies that old files hold are dropped: they are computed here.
    """
    config = LlamaConfig(**args)
    if config.n_layers > len(tensors):  # before n_layers names are built from a damaged number
        raise ValueError(f"it holds {len(tensors)} tensors, too few for {config.n_layers} layers")
    known = our_names(config.n_layers)
    tensors = {k: t for k, t in tensors.items() if not k.endswith("rotary_emb.inv_freq")}
    unknown = [name for name in tensors if name not in known]
    if unknown:
        raise ValueError(f"it holds {unknown[0]}, which {MODEL_TYPE} has not")
    imported = {known[name]: tensor for name, tensor in tensors.items()}
    if config.tie_word_embeddings:
        imported.pop("output.weight", None)  # as there: what a tied model's file holds is not read
    elif "output.weight" not in imported:
        raise ValueError(f"it lacks {their_name('output.weight')}, and says that it is not tied")

    def make(name: str) -> torch.Tensor:
        tensor = imported[name]
        if is_rotated(name) and tensor.ndim == 2 and len(tensor) % config.head_dim == 0:
            return interleave_rows(tensor, config.head_dim)
        return tensor

    return LazyTensors(imported, make)


def export_tensors(tensors: Mapping[str, torch.Tensor], config: LlamaConfig) -> LazyTensors:
    """Our tensors → theirs; a tied output embedding is left out."""
    left_out = {"output.weight"} if config.tie_word_embeddings else set()
    names = {their_name(name): name for name in tensors if name not in left_out}
    meta = meta_tensors(tensors)

    def make(name: str) -> torch.Tensor:
        tensor = tensors[names[name]]
        if is_rotated(names[name]):
            tensor = split_rows(tensor, config.head_dim)
        return tensor.contiguous()

    return LazyTensors({theirs: meta[ours] for theirs, ours in names.items()}, make)
