"""Hugging Face's config.json of a Llama ↔ our configuration."""

import dataclasses
from typing import Any

from config import ROPE_SCALINGS, LlamaConfig, RopeScaling
from mini_llama.warning import warn

MODEL_TYPE = "llama"
ARCHITECTURE = "LlamaForCausalLM"
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


def check_spellings(content: dict[str, Any]) -> None:
    """Raise ValueError where RoPE's parameters stand in several places, and transformers, which
    reads rope_scaling alone if it is there, would not find them all; warn of a context's length
    that stands there twice.
    """
    older, newer = content.get("rope_scaling"), content.get("rope_parameters")
    if not all(isinstance(place or {}, dict) for place in (older, newer)):
        return  # import_rope refuses these
    read = older or newer or {}
    theta = read.get("rope_theta", content.get("rope_theta", LlamaConfig.rope_theta))
    stated = [("rope_theta", content.get("rope_theta"))]
    stated += [pair for place in (older, newer) for pair in (place or {}).items()]
    for name, value in stated:
        name = "rope_type" if name == "type" else name
        found = theta if name == "rope_theta" else read.get(name)
        if name != "rope_type" and value is not None and value != found:
            raise ValueError(
                f"its RoPE parameters have {name} {value!r} in one place and {found!r} in another"
            )
    length = content.get("max_position_embeddings")
    for name in ("max_sequence_length", "max_seq_len", "n_positions"):
        if content.get(name) not in (None, length):
            warn(
                f"config.json has {name} {content[name]} and max_position_embeddings {length}: "
                "the latter counts, as in transformers"
            )


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
    check_spellings(content)
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
