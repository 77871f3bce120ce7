"""The metadata of a GGUF file of the architecture llama ↔ our configuration."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from config import ROPE_OPTIONS, LlamaConfig, RopeScaling
from mini_llama.gguf_file import GGUFFile
from rope import attention_factor

ARCHITECTURE = "llama"
LENGTH, SCALING, FACTORS = "llama.context_length", "llama.rope.scaling", "rope_freqs.weight"
ORIGINAL, ATTENTION = f"{SCALING}.original_context_length", f"{SCALING}.attn_factor"
YARN = ROPE_OPTIONS["yarn"]
COUNTS = {
    "dim": "llama.embedding_length",
    "n_layers": "llama.block_count",
    "n_heads": "llama.attention.head_count",
    "n_kv_heads": "llama.attention.head_count_kv",
    "hidden_dim": "llama.feed_forward_length",
    "max_seq_len": LENGTH,
}
LEFT_OUT = ("n_kv_heads",)  # then as many as heads
NUMBERS = {
    "layer_norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "rope_theta": "llama.rope.freq_base",
}
# What would change the arithmetic, and the values that leave it ours.
FIXED: dict[str, tuple[Any, ...]] = {
    "llama.expert_count": (0,),
    "llama.expert_used_count": (0,),
    "llama.use_parallel_residual": (False,),
    "llama.logit_scale": (0.0, 1.0),
    "llama.residual_scale": (0.0, 1.0),
    "llama.embedding_scale": (0.0, 1.0),
    "llama.attention.scale": (0.0,),
    "llama.attention.clamp_kqv": (0.0,),
    "llama.attention.max_alibi_bias": (0.0,),
    # Of YaRN; the last value is what llama.cpp uses where a llama's file has none.
    f"{SCALING}.yarn_ext_factor": (-1.0, 1.0),
    f"{SCALING}.yarn_attn_factor": (-1.0, 1.0),
    f"{SCALING}.yarn_beta_fast": (-1.0, YARN["beta_fast"]),
    f"{SCALING}.yarn_beta_slow": (-1.0, YARN["beta_slow"]),
    f"{SCALING}.yarn_log_multiplier": (0.0,),
}
# The first says what head_dim is, the others must not say otherwise.
HEAD_DIM_KEYS = (
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.rope.dimension_count",
)
# Which biases there are only the tensors say: part of their names.
BIASED = {"attention_bias": ".attn_", "mlp_bias": ".ffn_"}
USUAL_FACTORS = (1.0, 4.0)  # Llama 3's low_freq_factor and high_freq_factor
TOLERANCE = 1e-4  # of a frequency, relative: the file has float32


def import_config(
    file: GGUFFile, factors: np.ndarray | None, names: Iterable[str]
) -> dict[str, Any]:
    """model_args; `factors` (D/2,) are Llama 3's, by which frequencies are divided, where the file
    has them; `names` are those of all the model's tensors. Raises ValueError, naming the key, for
    another architecture or arithmetic, and for what is missing.
    """
    check_architecture(file)
    for key, allowed in FIXED.items():
        value = file.metadata.get(key)
        if value is not None and not (np.isscalar(value) and value in allowed):
            raise file.error(f"{key} is {str(value)[:40]}, and only {allowed[-1]} is supported")
    args: dict[str, Any] = {name: _count(file, key) for name, key in COUNTS.items()}
    if missing := [COUNTS[k] for k, v in args.items() if v is None and k not in LEFT_OUT]:
        raise file.error(f"it lacks {', '.join(missing)}")
    for name, key in NUMBERS.items():
        number = file.number(key)
        args[name] = getattr(LlamaConfig, name) if number is None else _shortest(number)
    if file.number(NUMBERS["layer_norm_eps"]) is None:
        raise file.error(f"it lacks {NUMBERS['layer_norm_eps']}")
    is_causal = file.flag("llama.attention.causal") is not False
    args |= {"norm": "rmsnorm", "attention": "causal" if is_causal else "bidirectional"}
    embedding = file.tensors.get("token_embd.weight")
    rows = file.integer("llama.vocab_size")
    args["vocab_size"] = embedding.shape[0] if embedding else rows
    if args["vocab_size"] is None:
        raise file.error("it lacks token_embd.weight")
    if rows not in (None, args["vocab_size"]):
        raise file.error(f"llama.vocab_size is {rows}, and token_embd has {args['vocab_size']}")
    for name, parts in BIASED.items():
        args[name] = any(key.endswith(".bias") and parts in key for key in names)
    args |= {"rope_scaling": None, "head_dim": file.integer(HEAD_DIM_KEYS[0])}
    try:
        head_dim = LlamaConfig(**args).head_dim
    except ValueError as error:
        raise file.error(str(error)) from None
    for key in HEAD_DIM_KEYS:
        if file.integer(key) not in (None, head_dim):
            raise file.error(f"{key} is {file.integer(key)}, and only {head_dim} is supported")
    return args | {"rope_scaling": _import_scaling(file, args, head_dim, factors)}


def check_architecture(file: GGUFFile) -> None:
    """Raise ValueError unless the file is a model of the architecture llama."""
    architecture = file.text("general.architecture")
    if architecture is None:
        raise file.error("it is a GGUF file that lacks general.architecture")
    if architecture != ARCHITECTURE:
        raise ValueError(
            f"{file.path} is of the architecture {architecture[:40]!r}; only "
            f"{ARCHITECTURE!r} is supported"
        )
    kind = file.text("general.type") or "model"
    if kind != "model":
        raise ValueError(f"{file.path} is of the type {kind[:40]!r}, not a model: name the model")
    if not file.tensors:
        raise ValueError(f"{file.path} holds no tensors, only a tokenizer: give it to --tokenizer")


def _count(file: GGUFFile, key: str) -> int | None:
    """An integer, which some files have for every layer."""
    value = file.metadata.get(key)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size:
        if (value != value[0]).any():
            raise file.error(f"{key} differs between layers, which is not supported")
        return int(value[0])
    return file.integer(key)


def _shortest(number: float) -> float:
    """float32's 9.999999747378752e-06 is meant as 1e-05."""
    return float(str(np.float32(number)))


def _import_scaling(
    file: GGUFFile, args: dict[str, Any], head_dim: int, factors: np.ndarray | None
) -> dict[str, Any] | None:
    kind = file.text(f"{SCALING}.type") or "none"
    factor = file.number(f"{SCALING}.factor") or file.number("llama.rope.scale_linear") or 1.0
    factor = _shortest(factor)
    if file.text(f"{SCALING}.type") is None and factor != 1:
        kind = "linear"
    if kind not in ("none", "linear", "yarn"):
        raise file.error(f"its RoPE scaling is of the type {kind[:40]!r}, which is not supported")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    attention = _shortest(file.number(ATTENTION) or 1.0)
    if kind == "yarn":
        scaling["original_max_seq_len"] = file.integer(ORIGINAL) or args["max_seq_len"]
        if attention != 1:  # llama.cpp multiplies YaRN's own by it
            scaling["attention_factor"] = attention * (0.1 * math.log(max(factor, 1)) + 1)
    elif attention != 1:
        raise file.error(f"{ATTENTION} is {attention}, and only yarn RoPE scaling has it")
    is_scaled = kind == "yarn" or (kind == "linear" and factor != 1)
    if factors is None:
        return scaling if is_scaled else None
    if is_scaled:
        raise file.error(f"its RoPE has {kind} scaling and {FACTORS} at once")
    if factors.shape != (head_dim // 2,) or not (factors >= 1 - TOLERANCE).all():
        raise file.error(f"{FACTORS} is not {head_dim // 2} factors of at least 1")
    original = file.integer(ORIGINAL)
    found = find_llama3(factors.astype(float), args["rope_theta"], args["max_seq_len"], original)
    if found is None:
        raise file.error(f"{FACTORS} follows no rule that is known here (Llama 3's, linear)")
    return found


def llama3_factors(head_dim: int, theta: float, scaling: dict[str, Any]) -> np.ndarray:
    """What Llama 3's rule divides each pair's frequency by: (D/2,)."""
    low, high, factor = (scaling[k] for k in ("low_freq_factor", "high_freq_factor", "factor"))
    rotations = scaling["original_max_seq_len"] * _rotations(head_dim, theta)
    kept = np.clip((rotations - low) / (high - low), 0, 1)
    return 1 / ((1 - kept) / factor + kept)


def _rotations(head_dim: int, theta: float) -> np.ndarray:
    """Of each pair, a position."""
    return theta ** -(np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)


def find_llama3(
    factors: np.ndarray, theta: float, length: int, original: int | None = None
) -> dict[str, Any] | None:
    """The scaling that gives these factors, to TOLERANCE; None if no rule does.

    The file does not name the rule's parameters. Its usual ones come first, with lengths that are
    powers of 2; else they follow from two pairs between the thresholds, where a frequency's kept
    part is linear in its rotations. `length` is the context, which the original's cannot exceed.
    """
    factor = _shortest(factors.max())
    if np.allclose(factors, factor, TOLERANCE):
        return {"rope_type": "linear", "factor": factor} if factor != 1 else None
    head_dim = 2 * len(factors)
    lengths = [2**n for n in range(4, 25)] if original is None else [original]
    candidates = [(n, *USUAL_FACTORS) for n in lengths if n <= length]
    kept = (1 / factors - 1 / factor) / (1 - 1 / factor)
    between = np.flatnonzero((kept > TOLERANCE) & (kept < 1 - TOLERANCE))
    if len(between) > 1:
        rotations = _rotations(head_dim, theta)
        slope, offset = np.polyfit(rotations[between], kept[between], 1)
        wanted = original or min(round(slope - offset / slope), length)
        low, high = (wanted * (end - offset) / slope for end in (0, 1))
        candidates.append((wanted, round(low, 6), round(high, 6)))
    for original_length, low, high in candidates:
        scaling = {"rope_type": "llama3", "factor": factor}
        scaling |= {"original_max_seq_len": original_length}
        scaling |= {"low_freq_factor": low, "high_freq_factor": high}
        if low > 0 and np.allclose(llama3_factors(head_dim, theta, scaling), factors, TOLERANCE):
            return scaling
    return None


def export_config(config: LlamaConfig) -> dict[str, Any]:
    """Our configuration → metadata; Llama 3's scaling is a tensor, `export_factors`. Raises
    ValueError for scaling that the format does not have, or that llama.cpp computes in another way.
    """
    metadata: dict[str, Any] = {"general.architecture": ARCHITECTURE, "general.type": "model"}
    metadata |= {key: np.uint32(getattr(config, name)) for name, key in COUNTS.items()}
    metadata |= {key: np.float32(getattr(config, name)) for name, key in NUMBERS.items()}
    metadata |= {key: np.uint32(config.head_dim) for key in HEAD_DIM_KEYS}
    metadata["llama.vocab_size"] = np.uint32(config.vocab_size)
    return (
        metadata if config.rope_scaling is None else metadata | _export_scaling(config.rope_scaling)
    )


def _export_scaling(scaling: RopeScaling) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    kind, remedy = scaling.rope_type, "convert it --to assignment"
    if kind in ("dynamic", "longrope"):
        raise ValueError(f"a GGUF file cannot have {kind} RoPE scaling: {remedy}")
    if kind == "yarn":
        for name in ("beta_fast", "beta_slow", "truncate"):
            if (value := getattr(scaling, name)) != YARN[name]:
                raise ValueError(
                    f"{name} is {value}, and llama.cpp computes YaRN with {YARN[name]}: {remedy}"
                )
    if kind in ("linear", "yarn"):
        metadata |= {f"{SCALING}.type": kind, f"{SCALING}.factor": np.float32(scaling.factor)}
    if scaling.attention_factor is not None:  # llama.cpp multiplies YaRN's own by the file's
        own = attention_factor(dataclasses.replace(scaling, attention_factor=None))
        metadata[ATTENTION] = np.float32(scaling.attention_factor / own)
    if scaling.original_max_seq_len is not None:
        metadata[ORIGINAL] = np.uint32(scaling.original_max_seq_len)
    return metadata


def export_factors(config: LlamaConfig) -> np.ndarray | None:
    """Llama 3's factors (D/2,), float32, where the configuration has them."""
    scaling: RopeScaling | None = config.rope_scaling
    if scaling is None or scaling.rope_type != "llama3":
        return None
    factors = llama3_factors(config.head_dim, config.rope_theta, vars(scaling))
    return factors.astype(np.float32)
