"""Hugging Face's config.json of a Llama ↔ our configuration."""

import dataclasses
import math
from typing import Any

from config import ROPE_OPTIONS, ROPE_SCALINGS, LlamaConfig, RopeScaling
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
# Biases are off where a file leaves them out.
BIASES = ("attention_bias", "mlp_bias")
# Fields that would change the arithmetic, and the one value that leaves it ours.
FIXED = {"hidden_act": "silu"}
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

    max_position_embeddings is the length after scaling, and nothing but generation's window depends
    on it, unless a rule's parameters are left out (_fill_in). For dynamic scaling it is the
    original length, which the angles depend on, and the window becomes factor times that. Raises
    ValueError for an unknown rule, and for parameters that are missing, not the rule's, or
    contradict each other.
    """
    rope, length = {"rope_type": None}, content["max_position_embeddings"]
    places = [content.get("rope_parameters"), content.get("rope_scaling")]  # today's, the older one
    for place in places:
        add_parameters(rope, place or {})
    if rope["rope_type"] == "dynamic":
        add_parameters(rope, {ORIGINAL_LENGTH: length})
    elif rope["rope_type"] in ("llama3", *ROPE_OPTIONS):  # transformers reads it from here as well
        add_parameters(rope, {ORIGINAL_LENGTH: content.get(ORIGINAL_LENGTH)})
        _fill_in(rope, length)
    theta = rope.pop("rope_theta", content.get("rope_theta", LlamaConfig.rope_theta))
    args = {"rope_theta": theta, "rope_scaling": None, "max_seq_len": length}
    scaling = import_scaling(rope)
    if scaling is not None:
        args["rope_scaling"] = dataclasses.asdict(scaling)
        if scaling.rope_type == "dynamic":
            args["max_seq_len"] = int(scaling.factor * length)
    return args


def _fill_in(rope: dict[str, Any], length: Any) -> None:
    """What YaRN's and LongRoPE's parameters mean that are left out, as in transformers; `length` is
    max_position_embeddings.
    """
    if rope["rope_type"] not in ROPE_OPTIONS:
        return
    is_yarn = rope["rope_type"] == "yarn"
    original = rope.get(ORIGINAL_LENGTH, None if is_yarn else length)
    if type(length) is int and type(original) is int and original > 0:
        rope.setdefault("factor", length / original)
    rope.setdefault(ORIGINAL_LENGTH, length)
    if not is_yarn:
        return
    rope.pop("finetuned", None)  # a remark of its authors' own models
    for name in ("beta_fast", "beta_slow"):
        if not rope.get(name):
            rope.pop(name, None)
    scales = [rope.pop(name, None) for name in ("mscale", "mscale_all_dim")]
    if all(scales) and "factor" in rope:
        rope.setdefault("attention_factor", _attention_factor(rope["factor"], *scales))


def _attention_factor(factor: Any, mscale: Any, mscale_all_dim: Any) -> float:
    """DeepSeek's generalisation of YaRN's own. Raises ValueError for what is no number."""
    try:
        stretch = max(0.0, 0.1 * math.log(factor))
        return (stretch * mscale + 1) / (stretch * mscale_all_dim + 1)
    except (TypeError, ValueError, ArithmeticError):
        raise ValueError(
            f"factor {factor!r}, mscale {mscale!r} and mscale_all_dim {mscale_all_dim!r} are not "
            "numbers above 0, which yarn RoPE scaling needs"
        ) from None


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
    needed = ("rope_type", *ROPE_SCALINGS.get(kind, ()))
    names = {ours: SCALING_FIELDS[ours] for ours in (*needed, *ROPE_OPTIONS.get(kind, ()))}
    if missing := sorted({SCALING_FIELDS[ours] for ours in needed} - rope.keys()):
        raise ValueError(f"its {kind} RoPE scaling lacks {', '.join(missing)}")
    if unknown := sorted(rope.keys() - set(names.values())):
        raise ValueError(f"{', '.join(unknown)}: RoPE of type {kind} has no such parameter")
    if kind == "default":
        return None
    values: dict[str, Any] = {ours: rope.get(theirs) for ours, theirs in names.items()}
    return RopeScaling(**values)


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
    if (partial := content.get("partial_rotary_factor")) not in (None, 1):
        raise ValueError(f"partial_rotary_factor is {partial!r}, and only 1 is supported")
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
    args |= {name: False if content.get(name) is None else content[name] for name in BIASES}
    args["head_dim"] = content.get("head_dim")
    LlamaConfig(**args)  # checks each value
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
    rest: dict[str, Any] = {name: getattr(config, name) for name in BIASES}
    if config.query_dim != config.dim:
        rest["head_dim"] = config.head_dim
    tied = {"tie_word_embeddings": config.tie_word_embeddings}
    return fixed | rest | fields | tied | export_rope(config)
