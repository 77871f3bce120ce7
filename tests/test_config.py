"""The editions' table and the configuration's bounds, against the assignment's contract."""

import dataclasses
import json
import math

import pytest

from config import (
    EDITIONS,
    PRESETS,
    LlamaConfig,
    RopeScaling,
    check_sampling,
    editions_where,
    expected_shapes,
    resolve_arithmetic,
)

# contract: norm, attention, epsilon, top_p, first word of the prompt, reference, clipping
CONTRACT = {
    "mmia": ("layernorm", "bidirectional", 0.05, 1.0, "Victor", "fall2025", True),
    "fall2025": ("layernorm", "bidirectional", 0.05, 1.0, "I", "fall2025", True),
    "fall2024": ("rmsnorm", "bidirectional", 0.0, 1.0, "I", "fall2024", False),
    "spring2025": ("rmsnorm", "bidirectional", 0.0, 0.9, "I", "fall2024", True),
    "spring2026": ("layernorm", "causal", 0.0, 0.95, "I", "spring2026", True),
    "llama2": ("rmsnorm", "causal", 0.0, 1.0, "Victor", None, True),
}


def test_editions_are_the_contract():
    assert EDITIONS.keys() == CONTRACT.keys()
    for name, edition in EDITIONS.items():
        short = dataclasses.replace(edition, prompt_text=edition.prompt_text.split()[0])
        assert dataclasses.astuple(short) == CONTRACT[name]


def test_editions_are_named_by_what_holds_of_them():
    assert editions_where(lambda edition: edition.attention == "causal") == "spring2026 and llama2"
    assert editions_where(lambda edition: not edition.clips_gradients) == "fall2024"
    bidirectional = editions_where(lambda edition: edition.attention == "bidirectional")
    assert bidirectional == "mmia, fall2025, fall2024 and spring2025"


def test_stories42m_shape():
    args = {
        "dim": 512,
        "n_layers": 8,
        "n_heads": 8,
        "n_kv_heads": 8,
        "vocab_size": 32000,
        "multiple_of": 32,
        "max_seq_len": 1024,
    }
    config = LlamaConfig(**args)
    assert (config.hidden_dim, config.head_dim) == (1376, 64)
    assert config == LlamaConfig(), "the defaults are the 42M model"
    assert (config.norm, config.attention) == ("layernorm", "bidirectional")
    assert config.layer_norm_eps == 1e-5


def test_the_courses_own_constants_are_taken():
    assert LlamaConfig(position_embedding_type="rotary", use_cache=True) == LlamaConfig()


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LlamaConfig().dim = 3


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [
        ("vocab_size", 0, ">= 1"),
        ("dim", "512", ">= 1"),
        ("dim", 510, "multiple of n_heads"),
        ("dim", 8, "even head_dim"),
        ("n_layers", 1.5, ">= 1"),
        ("n_layers", True, ">= 1"),
        ("n_kv_heads", 3, "divisor of n_heads"),
        ("hidden_dim", 0, ">= 1"),
        ("max_seq_len", -1, ">= 1"),
        ("layer_norm_eps", 0, "between 0 and 1"),
        ("layer_norm_eps", 1, "between 0 and 1"),
        ("rope_theta", 1.1e12, "at most 1e+12"),
        ("max_seq_len", 2**24 + 1, "at most 16777216"),
        ("layer_norm_eps", "1e-5", "a number"),
        ("rope_theta", 0.0, "> 0"),
        ("dropout", 1.0, "below 1"),
        ("norm", "batchnorm", "layernorm, rmsnorm"),
        ("attention", "sideways", "bidirectional, causal"),
    ],
)
def test_config_names_field_and_bound(field: str, value: object, bound: str):
    with pytest.raises(ValueError, match=field) as error:
        LlamaConfig(**{field: value})
    assert bound in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", 2 * 8),
        ("n_kv_heads", 1),
        ("max_seq_len", 2**24),
        ("layer_norm_eps", 0.999),
        ("rope_theta", 1e-3),
        ("rope_theta", 1e12),
        ("dropout", 0),
        ("dropout", 0.999),
    ],
)
def test_bounds_themselves_are_allowed(field: str, value: object):
    assert getattr(LlamaConfig(**{field: value}), field) == value


# parameters: Touvron et al. 2023; the models' pages; llama2.c's stories42M.bin less its RoPE tables
PARAMETERS = {
    "260k": 260_032,
    "15m": 15_191_712,
    "42m": (167_020_572 - 28) // 4 - 1024 * 64,
    "110m": 109_529_856,
    "smollm2-135m": 134_515_008,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_sizes(name: str):
    config = LlamaConfig(**PRESETS[name])
    count = sum(math.prod(shape) for _, shape in expected_shapes(config))
    shared = config.vocab_size * config.dim if config.tie_word_embeddings else 0
    assert count - shared == PARAMETERS[name]


LINEAR = {"rope_type": "linear", "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2, "original_max_seq_len": 512}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_seq_len": 512,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


YARN = {"rope_type": "yarn", "factor": 2, "original_max_seq_len": 512}
LONGROPE = YARN | {
    "rope_type": "longrope",
    "short_factor": [1.0] * 32,
    "long_factor": [n / 2 for n in range(1, 33)],
}


@pytest.mark.parametrize("plain", [LINEAR, DYNAMIC, LLAMA3, YARN, LONGROPE])
def test_rope_scaling_is_plain_data_and_back(plain: dict):
    config = LlamaConfig(rope_scaling=plain)
    assert config.rope_scaling == RopeScaling(**plain)
    assert config == LlamaConfig(rope_scaling=RopeScaling(**plain))
    assert hash(config) != hash(LlamaConfig())
    recorded = dataclasses.asdict(config)
    assert type(recorded["rope_scaling"]) is dict
    assert LlamaConfig(**json.loads(json.dumps(recorded))) == config
    assert dataclasses.replace(config, norm="rmsnorm").rope_scaling == config.rope_scaling
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rope_scaling.factor = 3
    assert LlamaConfig().rope_scaling is None


@pytest.mark.parametrize(
    ("scaling", "part"),
    [
        ([], "rope_scaling=[]"),
        ("linear", "a dict of one of linear, dynamic, llama3, yarn, longrope"),
        ({}, "rope_scaling.rope_type=None"),
        ({"factor": 2.0}, "rope_scaling.rope_type=None"),
        (LINEAR | {"rope_type": "su"}, "one of linear, dynamic, llama3, yarn, longrope"),
        (LINEAR | {"rope_type": "yarn"}, "original_max_seq_len=None"),
        (LINEAR | {"attention_factor": 1.0}, "left out of linear scaling"),
        (YARN | {"beta_fast": 1.0}, "beta_fast=1.0 is not allowed: it must be above beta_slow=1.0"),
        (YARN | {"beta_slow": 0}, "beta_slow=0 is not allowed: it must be above 0"),
        (YARN | {"beta_fast": float("inf")}, "beta_fast=inf"),
        (YARN | {"attention_factor": float("nan")}, "attention_factor=nan"),
        (YARN | {"attention_factor": "1"}, "attention_factor='1'"),
        (YARN | {"truncate": 1}, "truncate=1 is not allowed: it must be true or false"),
        (YARN | {"short_factor": [1.0] * 32}, "left out of yarn scaling"),
        (LONGROPE | {"long_factor": None}, "long_factor=None"),
        (LONGROPE | {"long_factor": 2.0}, "long_factor=2.0"),
        (LONGROPE | {"long_factor": [1.0] * 31}, "long_factor of 31 numbers is not allowed"),
        (LONGROPE | {"short_factor": [0.0] * 32}, "a list of numbers above 0"),
        (LONGROPE | {"short_factor": ["1"] * 32}, "a list of numbers above 0"),
        (LONGROPE | {"original_max_seq_len": 1}, "from 2 to"),
        (LONGROPE | {"beta_fast": 32.0}, "left out of longrope scaling"),
        (LINEAR | {"rope_type": ["linear"]}, "rope_scaling.rope_type=['linear']"),
        (LINEAR | {"type": "linear", 3: 4}, "without type, 3"),
        ({"rope_type": "linear"}, "rope_scaling.factor=None"),
        (LINEAR | {"factor": "4"}, "rope_scaling.factor='4' is not allowed: it must be a number"),
        (LINEAR | {"factor": True}, "factor=True"),
        (LINEAR | {"factor": 0.5}, "from 1 to"),
        (LINEAR | {"factor": float("nan")}, "factor=nan"),
        (LINEAR | {"factor": float("inf")}, "factor=inf"),
        (DYNAMIC | {"factor": 1e308}, "factor=1e+308"),
        (LINEAR | {"original_max_seq_len": 512}, "left out of linear scaling"),
        (DYNAMIC | {"low_freq_factor": 1.0}, "left out of dynamic scaling"),
        (DYNAMIC | {"original_max_seq_len": None}, "original_max_seq_len=None"),
        (DYNAMIC | {"original_max_seq_len": 512.0}, "original_max_seq_len=512.0"),
        (DYNAMIC | {"original_max_seq_len": 0}, "original_max_seq_len=0"),
        (DYNAMIC | {"original_max_seq_len": 10**30}, "from 1 to 16777216"),
        (DYNAMIC | {"original_max_seq_len": 2048}, "max_seq_len=1024 is not allowed"),
        (LLAMA3 | {"original_max_seq_len": 2048}, "original_max_seq_len=2048"),
        (LLAMA3 | {"low_freq_factor": None}, "low_freq_factor=None"),
        (LLAMA3 | {"low_freq_factor": 0}, "above 0"),
        (LLAMA3 | {"low_freq_factor": 4.0}, "above low_freq_factor=4.0"),
        (LLAMA3 | {"high_freq_factor": float("nan")}, "high_freq_factor=nan"),
        (LLAMA3 | {"high_freq_factor": float("inf")}, "high_freq_factor=inf"),
        (LLAMA3 | {"high_freq_factor": 10**400}, "at most 1048576"),
    ],
)
def test_rope_scaling_names_field_and_bound(scaling: object, part: str):
    with pytest.raises(ValueError) as caught:
        LlamaConfig(rope_scaling=scaling)
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "scaling",
    [
        LINEAR | {"factor": 1},
        LINEAR | {"factor": 2**20},
        DYNAMIC | {"original_max_seq_len": 1},
        DYNAMIC | {"original_max_seq_len": 1024},
        LLAMA3 | {"low_freq_factor": 1e-3, "high_freq_factor": 2**20},
    ],
)
def test_rope_scalings_bounds_themselves_are_allowed(scaling: dict):
    assert LlamaConfig(rope_scaling=scaling).rope_scaling == RopeScaling(**scaling)


def test_dynamic_scaling_needs_two_pairs():
    """Its exponent is head_dim / (head_dim - 2)."""
    shape = {"dim": 16, "n_heads": 8}
    with pytest.raises(ValueError, match="head_dim above 2"):
        LlamaConfig(**shape, rope_scaling=DYNAMIC)
    assert LlamaConfig(**shape, rope_scaling=LLAMA3).head_dim == 2
    assert LlamaConfig(dim=32, n_heads=8, rope_scaling=DYNAMIC).head_dim == 4


@pytest.mark.parametrize("name", ["temperature", "epsilon", "top_p"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_sampling_bounds(name: str, value: float):
    with pytest.raises(ValueError, match=name):
        check_sampling(**{"temperature": 1.0, name: value})


def test_sampling_bounds_themselves_are_allowed():
    check_sampling(temperature=0, epsilon=0, top_p=1)
    check_sampling(temperature=1e9, epsilon=1, top_p=1e-9)
    with pytest.raises(ValueError, match="top_p 0 is not allowed"):
        check_sampling(1.0, top_p=0)


RECORDED = {"norm": "rmsnorm", "attention": "causal"}


@pytest.mark.parametrize(
    ("recorded", "edition", "norm", "attention", "expected", "source"),
    [
        ({}, None, None, None, ("layernorm", "bidirectional"), "default edition mmia"),
        (RECORDED, None, None, None, ("rmsnorm", "causal"), "recorded in the checkpoint"),
        (RECORDED, "mmia", None, None, ("layernorm", "bidirectional"), "explicit edition mmia"),
        ({}, "spring2026", None, None, ("layernorm", "causal"), "explicit edition spring2026"),
        ({}, "fall2024", "layernorm", "causal", ("layernorm", "causal"), "explicit --norm"),
    ],
)
def test_precedence(recorded, edition, norm, attention, expected, source):
    arithmetic = resolve_arithmetic(recorded, edition, norm, attention)
    assert (arithmetic.norm, arithmetic.attention) == expected
    assert arithmetic.norm_source == source
    assert all(part in str(arithmetic) for part in (*expected, source))


def test_each_part_has_its_own_source():
    text = str(resolve_arithmetic(RECORDED, None, "layernorm", None))
    assert text == ("layernorm (explicit --norm), causal attention (recorded in the checkpoint)")


def test_unknown_edition():
    with pytest.raises(ValueError, match=r"fall1999.*mmia, fall2025"):
        resolve_arithmetic({}, "fall1999")
