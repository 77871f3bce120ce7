"""What defines a model: its shape (`LlamaConfig`) and its edition's arithmetic (`EDITIONS`).

Every default of the model, of LoRA and of the editions is defined here and only here; command lines
read it from here.
"""

from collections.abc import Callable, Iterator
from dataclasses import InitVar, dataclass, fields
from typing import Any, TypeGuard

from mini_llama.bounds import check_bound

NORMS = ("layernorm", "rmsnorm")
DTYPES = ("float32", "bfloat16")
WEIGHT_DTYPES = (*DTYPES, "float16")
QUANTIZATIONS = ("int8", "nf4")
ATTENTIONS = ("bidirectional", "causal")
LARGEST_DIMENSION = 2**24  # more than any vocabulary or context
LARGEST_ROPE_FACTOR = 2**20
LARGEST_ROPE_THETA = 1e12

FRANKENSTEIN = (
    "Victor Frankenstein, a young scientist obsessed with uncovering the secrets of life, "
    "succeeds in animating a creature assembled from"
)
THRILLER = (
    "I have wanted to see this thriller for a while, and it didn't disappoint. "
    "Keanu Reeves, playing the hero John Wick, is"
)

LORA_RANK = 4
LORA_ALPHA = 1.0
LORA_TARGETS = ("compute_query", "compute_key", "compute_value", "compute_output")


@dataclass(frozen=True)
class Edition:
    """The arithmetic of one edition of the assignment.

    `epsilon` and `top_p` say how tokens are sampled at temperatures above 0; 0.0 and 1.0 keep
    every token. `reference` names the reference embeddings of sanity_check.py, None if there
    are none. `clips_gradients`: whether its AdamW has `max_grad_norm`.
    """

    norm: str
    attention: str
    epsilon: float
    top_p: float
    prompt_text: str
    reference: str | None
    clips_gradients: bool = True


EDITIONS = {
    "mmia": Edition("layernorm", "bidirectional", 0.05, 1.0, FRANKENSTEIN, "fall2025"),
    "fall2025": Edition("layernorm", "bidirectional", 0.05, 1.0, THRILLER, "fall2025"),
    "fall2024": Edition("rmsnorm", "bidirectional", 0.0, 1.0, THRILLER, "fall2024", False),
    "spring2025": Edition("rmsnorm", "bidirectional", 0.0, 0.9, THRILLER, "fall2024"),
    "spring2026": Edition("layernorm", "causal", 0.0, 0.95, THRILLER, "spring2026"),
    "llama2": Edition("rmsnorm", "causal", 0.0, 1.0, FRANKENSTEIN, None),
}
DEFAULT_EDITION = "mmia"


def editions_where(holds: Callable[[Edition], bool]) -> str:
    """Names of the editions that satisfy `holds`, for a sentence: "mmia, fall2025 and fall2024"."""
    *names, last = (name for name, edition in EDITIONS.items() if holds(edition))
    return f"{', '.join(names)} and {last}" if names else last


# The default of fields that `__post_init__` computes from the others if they are left out.
_DERIVED: Any = None


class _Checked:
    """A dataclass whose fields are validated by name."""

    _prefix = ""

    def _check(self, name: str, holds: bool, bound: str) -> None:
        check_bound(f"{self._prefix}{name}={getattr(self, name)!r}", holds, bound)

    def _check_counts(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._check(name, _is_int(value) and value >= 1, ">= 1")

    def _check_numbers(self, *names: str) -> None:
        for name in names:
            self._check(name, _is_number(getattr(self, name)), "a number")


# The parameters of each type of RoPE scaling; rope.py has the formulas.
ROPE_SCALINGS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_seq_len"),
    "llama3": ("factor", "original_max_seq_len", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_max_seq_len"),
    "longrope": ("factor", "original_max_seq_len", "short_factor", "long_factor"),
}
# Parameters that may be left out, and what that means; the attention's follows from the others.
ROPE_OPTIONS: dict[str, dict[str, Any]] = {
    "yarn": {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True, "attention_factor": None},
    "longrope": {"attention_factor": None},
}


@dataclass(frozen=True, repr=False)
class RopeScaling(_Checked):
    """How RoPE's angles are changed for contexts longer than the model was trained on.

    `original_max_seq_len` is the length before scaling, `LlamaConfig.max_seq_len` the one after
    it. Fields that ROPE_SCALINGS and ROPE_OPTIONS do not list for a type are None; options that
    are left out get their default. Raises ValueError for a value out of bounds.
    """

    rope_type: str
    factor: float
    original_max_seq_len: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    truncate: bool | None = None
    attention_factor: float | None = None  # None: rope.attention_factor's own
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None

    _prefix = "rope_scaling."

    def __post_init__(self) -> None:
        # In a tuple, since looking up an unhashable value in a dict would raise TypeError.
        kinds = tuple(ROPE_SCALINGS)
        self._check("rope_type", self.rope_type in kinds, f"one of {', '.join(kinds)}")
        needed, options = ROPE_SCALINGS[self.rope_type], ROPE_OPTIONS.get(self.rope_type, {})
        for name in (field.name for field in fields(self)[1:]):
            if name in options and getattr(self, name) is None:
                object.__setattr__(self, name, options[name])
            elif name not in needed and name not in options:
                is_left_out = getattr(self, name) is None
                self._check(name, is_left_out, f"left out of {self.rope_type} scaling")
            else:
                self._check_value(name)
        if self.rope_type == "llama3":
            self._check_order("low_freq_factor", "high_freq_factor")
        elif self.rope_type == "yarn":
            self._check_order("beta_slow", "beta_fast")

    def __repr__(self) -> str:
        given = {name: value for name, value in vars(self).items() if value is not None}
        return f"RopeScaling({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def _check_value(self, name: str) -> None:
        value = getattr(self, name)
        if name == "original_max_seq_len":
            least = 2 if self.rope_type == "longrope" else 1  # it is divided by its logarithm
            is_length = _is_int(value) and least <= value <= LARGEST_DIMENSION
            self._check(name, is_length, f"from {least} to {LARGEST_DIMENSION}")
        elif name == "truncate":
            self._check(name, isinstance(value, bool), "true or false")
        elif name in ("short_factor", "long_factor"):
            is_list = isinstance(value, list | tuple) and all(map(_is_rope_factor, value))
            bound = f"a list of numbers above 0, and at most {LARGEST_ROPE_FACTOR}"
            self._check(name, is_list, bound)
            object.__setattr__(self, name, tuple(value))
        else:
            self._check_numbers(name)
            least = 1 if name == "factor" else 0
            bound = "from 1 to" if name == "factor" else "above 0, and at most"
            is_within = _is_rope_factor(value) and value >= least
            self._check(name, is_within, f"{bound} {LARGEST_ROPE_FACTOR}")

    def _check_order(self, lower: str, upper: str) -> None:
        low, high = getattr(self, lower), getattr(self, upper)
        bound = f"above {lower}={low}, and at most {LARGEST_ROPE_FACTOR}"
        self._check(upper, low < high, bound)


@dataclass(frozen=True)
class LlamaConfig(_Checked):
    """Shape and arithmetic of a Llama; the field names are those of a checkpoint's `model_args`.

    `n_kv_heads=None` means one key/value head per query head; `hidden_dim=None` means the value
    of `feed_forward_hidden_dim`; `head_dim=None` means dim // n_heads; `attention=None` means the
    default edition's, bidirectional. All are filled in. A model that is built from scratch should
    say which attention it has: Llama warns if it was left out, since training on next tokens would
    let each position read its own answer.
    `rope_scaling` may be a dict, as in files.
    Raises ValueError for a value out of bounds.
    """

    vocab_size: int = 32000
    dim: int = 512
    n_layers: int = 8
    n_heads: int = 8
    n_kv_heads: int = _DERIVED
    hidden_dim: int = _DERIVED
    multiple_of: int = 32
    max_seq_len: int = 1024
    layer_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    dropout: float = 0.0
    norm: str = EDITIONS[DEFAULT_EDITION].norm
    attention: str = _DERIVED
    tie_word_embeddings: bool = True
    rope_scaling: RopeScaling | None = None
    head_dim: int = _DERIVED
    attention_bias: bool = False  # of query, key, value and output
    mlp_bias: bool = False  # of all three of the feed-forward
    # Constants of the courses' own configuration: accepted, without effect.
    position_embedding_type: InitVar[str] = "rotary"
    use_cache: InitVar[bool] = True

    def __post_init__(self, position_embedding_type: str, use_cache: bool) -> None:
        self._check_counts("vocab_size", "dim", "n_layers", "n_heads", "multiple_of", "max_seq_len")
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        # No field: it is no part of the model, and a copy by dataclasses.replace has been decided.
        object.__setattr__(self, "lacks_attention", self.attention is None)
        if self.attention is None:
            object.__setattr__(self, "attention", EDITIONS[DEFAULT_EDITION].attention)
        if self.hidden_dim is None:
            hidden_dim = feed_forward_hidden_dim(self.dim, self.multiple_of)
            object.__setattr__(self, "hidden_dim", hidden_dim)
        self._check_counts("n_kv_heads", "hidden_dim")
        self._check_head_dim()
        divides = self.n_heads % self.n_kv_heads == 0
        self._check("n_kv_heads", divides, f"a divisor of n_heads={self.n_heads}")
        self._check_numbers("layer_norm_eps", "rope_theta", "dropout")
        self._check("layer_norm_eps", 0 < self.layer_norm_eps < 1, "between 0 and 1")
        is_theta = 0 < self.rope_theta <= LARGEST_ROPE_THETA
        self._check("rope_theta", is_theta, f"> 0 and at most {LARGEST_ROPE_THETA:.0e}")
        is_length = self.max_seq_len <= LARGEST_DIMENSION
        self._check("max_seq_len", is_length, f"at most {LARGEST_DIMENSION}")
        self._check("dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        self._check("norm", self.norm in NORMS, f"one of {', '.join(NORMS)}")
        self._check("attention", self.attention in ATTENTIONS, f"one of {', '.join(ATTENTIONS)}")
        for name in ("attention_bias", "mlp_bias"):
            self._check(name, isinstance(getattr(self, name), bool), "true or false")
        self._check_rope_scaling()

    def _check_head_dim(self) -> None:
        if self.head_dim is not None:
            self._check_counts("head_dim")
            is_even = self.head_dim % 2 == 0 and self.head_dim <= LARGEST_DIMENSION
            self._check("head_dim", is_even, f"even (RoPE pairs), and at most {LARGEST_DIMENSION}")
            return
        object.__setattr__(self, "head_dim", self.dim // self.n_heads)
        is_multiple = self.dim % self.n_heads == 0
        bound = f"a multiple of n_heads={self.n_heads}, or head_dim given"
        self._check("dim", is_multiple, bound)
        self._check("dim", self.head_dim % 2 == 0, "n_heads times an even head_dim (RoPE pairs)")

    def _check_rope_scaling(self) -> None:
        scaling = self.rope_scaling
        if isinstance(scaling, dict):
            names = [field.name for field in fields(RopeScaling)]
            unknown = [str(name) for name in scaling if name not in names]
            self._check("rope_scaling", not unknown, f"without {', '.join(unknown)}")
            scaling = RopeScaling(**dict.fromkeys(names) | scaling)
            object.__setattr__(self, "rope_scaling", scaling)
        is_scaling = scaling is None or isinstance(scaling, RopeScaling)
        self._check("rope_scaling", is_scaling, f"a dict of one of {', '.join(ROPE_SCALINGS)}")
        if scaling is None:
            return
        original = scaling.original_max_seq_len
        is_within = original is None or original <= self.max_seq_len
        bound = f"at least rope_scaling's original_max_seq_len={original}"
        self._check("max_seq_len", is_within, bound)
        is_defined = scaling.rope_type != "dynamic" or self.head_dim > 2
        self._check("dim", is_defined, "n_heads times a head_dim above 2 (dynamic RoPE scaling)")
        is_base = scaling.rope_type != "yarn" or self.rope_theta > 1
        self._check("rope_theta", is_base, "above 1 (yarn RoPE scaling)")
        for name in ("short_factor", "long_factor"):
            if (factors := getattr(scaling, name)) is not None:
                given = f"rope_scaling.{name} of {len(factors)} numbers"
                is_whole = len(factors) == self.head_dim // 2
                check_bound(given, is_whole, f"{self.head_dim // 2}, half of head_dim")

    @property
    def query_dim(self) -> int:
        """Width of all query heads together: H·D."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all key heads together, and of all value heads: H_kv·D."""
        return self.n_kv_heads * self.head_dim

    @property
    def is_causal(self) -> bool:
        return self.attention == "causal"


_LLAMA = {"norm": "rmsnorm", "attention": "causal"}
_LLAMA2 = {**_LLAMA, "vocab_size": 32000, "max_seq_len": 4096, "tie_word_embeddings": False}
_STORIES = {**_LLAMA, "vocab_size": 32000}
# Shapes by name: TinyStories models (llama2.c), SmolLM2, Llama 2 (Touvron et al. 2023, table 1).
PRESETS: dict[str, dict[str, Any]] = {
    "260k": _LLAMA
    | dict(vocab_size=512, dim=64, n_layers=5, n_heads=8, n_kv_heads=4, multiple_of=4),
    "15m": _STORIES | dict(dim=288, n_layers=6, n_heads=6, max_seq_len=256),
    "42m": _STORIES | dict(dim=512, n_layers=8, n_heads=8),
    "110m": _STORIES | dict(dim=768, n_layers=12, n_heads=12),
    "smollm2-135m": _LLAMA
    | dict(vocab_size=49152, dim=576, n_layers=30, n_heads=9, n_kv_heads=3, hidden_dim=1536)
    | dict(rope_theta=100000.0, max_seq_len=8192),
    "llama2-7b": _LLAMA2 | dict(dim=4096, n_layers=32, n_heads=32, hidden_dim=11008),
    "llama2-13b": _LLAMA2 | dict(dim=5120, n_layers=40, n_heads=40, hidden_dim=13824),
    "llama2-70b": _LLAMA2 | dict(dim=8192, n_layers=80, n_heads=64, n_kv_heads=8, hidden_dim=28672),
}
FIELD_NAMES = frozenset(field.name for field in fields(LlamaConfig))
IGNORED_NAMES = frozenset(("position_embedding_type", "use_cache"))


def feed_forward_hidden_dim(dim: int, multiple_of: int, multiplier: float | None = None) -> int:
    """2/3 of 4·dim, rounded up to a multiple of `multiple_of` (LLaMA, section 2.2): 512 → 1376.

    `multiplier` is Meta's ffn_dim_multiplier, 1.3 in Llama 2 70B and Llama 3 8B.
    """
    hidden_dim = 8 * dim // 3
    if multiplier is not None:
        hidden_dim = int(multiplier * hidden_dim)
    return multiple_of * -(-hidden_dim // multiple_of)


def expected_shapes(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a model, including LayerNorm's biases."""
    dim, hidden_dim = config.dim, config.hidden_dim
    query_dim, kv_dim = config.query_dim, config.kv_dim
    projections = {
        "attention.compute_query": (query_dim, dim),
        "attention.compute_key": (kv_dim, dim),
        "attention.compute_value": (kv_dim, dim),
        "attention.compute_output": (dim, query_dim),
        "feed_forward.w1": (hidden_dim, dim),
        "feed_forward.w2": (dim, hidden_dim),
        "feed_forward.w3": (hidden_dim, dim),
    }
    norm_parts = ("weight", "bias") if config.norm == "layernorm" else ("weight",)
    yield "tok_embeddings.weight", (config.vocab_size, dim)
    for layer in (f"layers.{i}." for i in range(config.n_layers)):
        for name, shape in projections.items():
            yield f"{layer}{name}.weight", shape
            is_attention = name.startswith("attention")
            if config.attention_bias if is_attention else config.mlp_bias:
                yield f"{layer}{name}.bias", shape[:1]
        for norm in ("attention_norm.", "ffn_norm."):
            for part in norm_parts:
                yield layer + norm + part, (dim,)
    for part in norm_parts:
        yield "norm." + part, (dim,)
    yield "output.weight", (config.vocab_size, dim)


def check_sampling(temperature: float, epsilon: float = 0.0, top_p: float = 1.0) -> None:
    """Raise ValueError for a sampling parameter out of bounds."""
    is_finite = 0 <= temperature < float("inf")
    check_bound(f"--temperature {temperature}", is_finite, "at least 0, and finite")
    check_bound(f"--epsilon {epsilon}", 0 <= epsilon <= 1, "from 0 to 1")
    check_bound(f"--top_p {top_p}", 0 < top_p <= 1, "above 0 and at most 1")


@dataclass(frozen=True)
class Arithmetic:
    """The norm and the attention of a model, and where each choice comes from."""

    norm: str
    attention: str
    norm_source: str
    attention_source: str

    def __str__(self) -> str:
        if self.norm_source == self.attention_source:
            return f"{self.norm}, {self.attention} attention ({self.norm_source})"
        return (
            f"{self.norm} ({self.norm_source}), "
            f"{self.attention} attention ({self.attention_source})"
        )


def resolve_arithmetic(
    recorded: dict[str, str],
    edition: str | None = None,
    norm: str | None = None,
    attention: str | None = None,
) -> Arithmetic:
    """Choose norm and attention, each by the first of these that is set: the explicit argument, the
    explicit edition, the value recorded in the checkpoint, the default edition.

    `recorded` may hold "norm" and "attention". Raises ValueError for an unknown name.
    """
    if edition is not None and edition not in EDITIONS:
        raise ValueError(f"unknown edition {edition!r}: choose one of {', '.join(EDITIONS)}")
    resolved = {}
    for name, explicit in (("norm", norm), ("attention", attention)):
        if explicit is not None:
            choice = explicit, f"explicit --{name}"
        elif edition is not None:
            choice = getattr(EDITIONS[edition], name), f"explicit edition {edition}"
        elif recorded.get(name) is not None:
            choice = recorded[name], "recorded in the checkpoint"
        else:
            default = getattr(EDITIONS[DEFAULT_EDITION], name)
            choice = default, f"default edition {DEFAULT_EDITION}"
        resolved[name], resolved[f"{name}_source"] = choice
    return Arithmetic(**resolved)


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_rope_factor(value: object) -> bool:
    return _is_number(value) and 0 < value <= LARGEST_ROPE_FACTOR


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, float) or _is_int(value)
