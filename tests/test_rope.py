"""RoPE against complex multiplication in float64, its scaling against transformers, and its
property of relative positions.
"""

import dataclasses

import numpy as np
import pytest
import torch

from config import RopeScaling
from rope import (
    apply_rotary_emb,
    attention_factor,
    config_tables,
    fixed_positions,
    inverse_frequencies,
    rotary_tables,
    rotate,
    tables_for,
)
from tests.helpers import tiny_config


def complex_rotation(x: torch.Tensor, theta: float, start: int = 0) -> np.ndarray:
    """x (B, T, H, D): pairs (2i, 2i+1) as complex numbers times exp(i·position·theta^(-2i/D))."""
    _, length, _, dim = x.shape
    pairs = x.double().numpy().reshape(*x.shape[:-1], dim // 2, 2)
    z = pairs[..., 0] + 1j * pairs[..., 1]
    angles = np.outer(np.arange(start, start + length), theta ** (-np.arange(0, dim, 2) / dim))
    z = z * np.exp(1j * angles)[None, :, None, :]
    return np.stack((z.real, z.imag), axis=-1).reshape(x.shape)


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("length", [1, 7, 40])
def test_apply_rotary_emb(length: int, theta: float):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, length, 4, 8, generator=generator)
    key = torch.randn(2, length, 2, 8, generator=generator)
    # 40 positions are more than max_seq_len: reviews are longer than the model's context
    actual = apply_rotary_emb(query, key, 8, max_seq_len=16, theta=theta)
    for got, x in zip(actual, (query, key), strict=True):
        np.testing.assert_allclose(got.double().numpy(), complex_rotation(x, theta), atol=2e-5)


def test_scores_depend_on_relative_positions_only():
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, 1, 1, 1, 16, generator=generator)
    cos, sin = rotary_tables(16, 64)

    def at(x: torch.Tensor, position: int) -> torch.Tensor:
        return rotate(x, cos[position, None], sin[position, None])

    scores = [(at(query, p) * at(key, q)).sum().item() for p, q in ((3, 1), (33, 31), (62, 60))]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-5)


@pytest.mark.parametrize("is_compiling", [False, True])
def test_both_ways_of_rotating_have_the_same_gradients(is_compiling: bool, monkeypatch):
    """The gradient of a rotation is the rotation back."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: is_compiling)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 9, 8, generator=generator).transpose(1, 2).requires_grad_()  # not dense
    upstream = torch.randn(2, 9, 3, 8, generator=generator)
    cos, sin = rotary_tables(8, 9)
    rotated = rotate(x, cos, sin)
    np.testing.assert_allclose(
        rotated.detach().numpy(), complex_rotation(x.detach(), 1e4), atol=1e-5
    )
    rotated.backward(upstream)
    torch.testing.assert_close(rotate(x.grad.contiguous(), cos, sin), upstream)


def test_half_precision_is_rotated_in_float32():
    x = torch.randn(1, 30, 1, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    rotated, _ = apply_rotary_emb(x, x, 8, 30)
    assert rotated.dtype == torch.bfloat16
    exact = torch.from_numpy(complex_rotation(x, 1e4)).float().bfloat16()
    assert (rotated.float() - exact.float()).abs().max() <= 2**-7  # one rounding of values near 1


def test_tables_serve_autograd_after_inference_mode():
    with torch.inference_mode():
        tables_for(12, 5, 0, 5, 777.0, "cpu")
    x = torch.ones(1, 5, 1, 12, requires_grad=True)
    apply_rotary_emb(x, x, 12, 5, 777.0)[0].sum().backward()
    assert x.grad is not None


def test_tables_are_computed_once():
    short, long = (tables_for(8, 16, 0, end, 1e4, "cpu")[0] for end in (3, 16))
    assert short.data_ptr() == long.data_ptr()
    assert short.untyped_storage().nbytes() == 4 * 16 * 4  # no more than the 16 positions
    assert tables_for(8, 16, 5, 17, 1e4, "cpu")[0].shape == (12, 4)


def test_tables_of_a_very_long_window_are_made_in_parts():
    """2^24 positions are 128 MB for each pair; the same angles as in a short window."""
    rotary_tables.cache_clear()
    expected = tables_for(8, 2**15, 20000, 20003, 1e4, "cpu")
    for end, made in ((3, 2**14), (2**14, 2**14), (20003, 2**15)):
        table = tables_for(8, 2**24, max(0, end - 3), end, 1e4, "cpu")
        assert table[0].untyped_storage().nbytes() == made * 4 * 4
    for actual, exact in zip(table, expected, strict=True):
        assert torch.equal(actual, exact)


# Scaling

ORIGINAL = 32
LINEAR = [RopeScaling("linear", factor) for factor in (1, 2.0, 4.5, 8)]
DYNAMIC = [RopeScaling("dynamic", factor, ORIGINAL) for factor in (1, 2.0, 3.5, 8)]
LLAMA3 = [
    RopeScaling("llama3", factor, ORIGINAL, low, high)
    for factor, low, high in ((1, 1, 4), (8.0, 1.0, 4.0), (32.0, 1.0, 4.0), (2.5, 0.3, 1.7))
]


YARN = [
    RopeScaling("yarn", 4.0, ORIGINAL),
    RopeScaling("yarn", 1, ORIGINAL),
    RopeScaling("yarn", 16.0, ORIGINAL, beta_fast=8, beta_slow=0.5, attention_factor=1.3),
    RopeScaling("yarn", 2.5, ORIGINAL, beta_fast=3.0, beta_slow=2.9, truncate=False),
    RopeScaling("yarn", 40.0, ORIGINAL, beta_fast=1e4, beta_slow=9e3),  # every pair is slow
]
SHORT, LONG = (tuple(1 + scale * i for i in range(4)) for scale in (0.1, 2.5))
LONGROPE = [  # for head_dim 8
    RopeScaling("longrope", 4.0, ORIGINAL, short_factor=SHORT, long_factor=LONG),
    RopeScaling("longrope", 1, ORIGINAL, short_factor=SHORT, long_factor=LONG),
    RopeScaling("longrope", 2, 64, attention_factor=0.9, short_factor=LONG, long_factor=SHORT),
]


def theirs(head_dim: int, theta: float, scaling: RopeScaling | None):
    """transformers' rotary embedding, freshly made: it keeps what a longer sequence made of it."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_type": "default"}
    if scaling is not None:
        rope = {k: v for k, v in dataclasses.asdict(scaling).items() if v is not None}
        original = rope.pop("original_max_seq_len", None)
        if rope["rope_type"] not in ("linear", "dynamic"):
            rope["original_max_position_embeddings"] = original
        for name in ("short_factor", "long_factor"):
            if name in rope:
                rope[name] = list(rope[name])
    config = transformers.LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=ORIGINAL * (1 if rope["rope_type"] == "dynamic" else 8),
        rope_parameters=rope | {"rope_theta": theta},
    )
    return LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("scaling", [None, *LINEAR, *DYNAMIC, *LLAMA3, *YARN, *LONGROPE], ids=str)
@pytest.mark.parametrize("theta", [1e4, 1e5, 5e5])
@pytest.mark.parametrize("head_dim", [8, 64])
def test_frequencies_and_tables_are_those_of_transformers(head_dim, theta, scaling):
    """Within the original length and past it: 5e-7 of each frequency, 1e-5 in the tables."""
    if head_dim == 64 and scaling in LONGROPE:
        more = {k: getattr(scaling, k) * 8 for k in ("short_factor", "long_factor")}
        scaling = dataclasses.replace(scaling, **more)
    for length in (7, ORIGINAL, ORIGINAL + 1, 3 * ORIGINAL):
        rope = theirs(head_dim, theta, scaling)
        cos, sin = rope(torch.zeros(1), torch.arange(length)[None])
        actual = inverse_frequencies(head_dim, length, theta, scaling=scaling)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, rope.inv_freq, rtol=5e-7, atol=0)
        tables = tables_for(head_dim, ORIGINAL, 0, length, theta, "cpu", scaling)
        for table, expected in zip(tables, (cos, sin), strict=True):
            expected = expected[0, :, : head_dim // 2]
            torch.testing.assert_close(table, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("theta", [1e4, 1e5, 5e5])
def test_unscaled_frequencies_are_theirs_to_the_last_bit(theta: float):
    for head_dim in (8, 48, 64, 128):
        expected = theirs(head_dim, theta, None).inv_freq
        assert torch.equal(inverse_frequencies(head_dim, 1, theta), expected)


def test_theta_is_10000_unless_given():
    exact = 10000.0 ** (-np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(inverse_frequencies(64, 1).double(), exact, rtol=1e-6)
    expected = np.cos(np.outer(np.arange(3), exact))
    np.testing.assert_allclose(rotary_tables(64, 3)[0].double(), expected, atol=1e-6)


@pytest.mark.parametrize(
    "scaling", [None, LINEAR[1], DYNAMIC[1], LLAMA3[1], YARN[0], LONGROPE[0]], ids=str
)
def test_tables_are_made_on_the_device_that_is_asked_for(scaling: RopeScaling | None):
    """The meta device stands for any other than the CPU."""
    assert inverse_frequencies(8, 40, device="meta", scaling=scaling).device.type == "meta"
    for table in tables_for(8, ORIGINAL, 0, 40, 1e4, "meta", scaling):
        assert table.device.type == "meta" and table.shape == (40, 4)


def test_linear_scaling_divides_positions():
    x = torch.randn(1, 40, 2, 8, generator=torch.Generator().manual_seed(4))
    scaled, _ = apply_rotary_emb(x, x, 8, 16, 1e4, RopeScaling("linear", 4.0))
    for position in (0, 3, 9):
        there = slice(4 * position, 4 * position + 1)
        expected = complex_rotation(x[:, there], 1e4, start=position)
        np.testing.assert_allclose(scaled[:, there], expected, atol=1e-5)


def test_tables_of_dynamic_scaling_are_kept_within_the_original_length_only():
    scaling = RopeScaling("dynamic", 2.0, 16)
    rotary_tables.cache_clear()
    for end in (1, 9, 16):
        within = tables_for(8, 1000, 0, end, 1e4, "cpu", scaling)
        for table, plain in zip(within, tables_for(8, 16, 0, 16, 1e4, "cpu"), strict=True):
            assert table.data_ptr() == plain.data_ptr()
    for end in range(17, 60):  # a step of decoding each
        last = tables_for(8, 1000, end - 1, end, 1e4, "cpu", scaling)
        whole = tables_for(8, 1000, 0, end, 1e4, "cpu", scaling)
        assert last[0].shape == (1, 4) and whole[0].shape == (end, 4)
        assert torch.equal(last[0], whole[0][-1:]) and torch.equal(last[1], whole[1][-1:])
    assert rotary_tables.cache_info().currsize == 1


def test_tables_of_a_configuration_are_those_of_its_theta_and_scaling():
    config = tiny_config(rope_theta=3e3, rope_scaling=LINEAR[1])
    angles = np.outer(np.arange(5, 20), 3e3 ** (-np.arange(0, 8, 2) / 8)) / 2.0
    cos, sin = config_tables(config, 5, 20, "cpu")
    np.testing.assert_allclose(cos.double(), np.cos(angles), atol=1e-5)
    np.testing.assert_allclose(sin.double(), np.sin(angles), atol=1e-5)


def test_only_two_rules_change_angles_with_the_length():
    for scaling in (None, LINEAR[1], LLAMA3[1], YARN[0]):
        assert fixed_positions(1000, scaling) == 1000
    for scaling in (DYNAMIC[1], LONGROPE[0]):
        assert fixed_positions(1000, scaling) == ORIGINAL


def test_yarn_and_longrope_scale_attention_by_their_papers_numbers():
    """YaRN: 0.1 ln(s) + 1 (section 3.3); LongRoPE's: sqrt(1 + ln s / ln L)."""
    assert attention_factor(YARN[0]) == pytest.approx(1.138629436)
    assert attention_factor(LONGROPE[0]) == pytest.approx(1.183215957)  # 4 and 32: 1 + 2/5
    assert attention_factor(YARN[2]) == 1.3 and attention_factor(YARN[1]) == 1
    for scaling in (None, LINEAR[1], DYNAMIC[1], LLAMA3[1]):
        assert attention_factor(scaling) == 1
    x = torch.randn(1, 3, 2, 8, generator=torch.Generator().manual_seed(4))
    rotated, _ = apply_rotary_emb(x, x, 8, ORIGINAL, 1e4, YARN[0])
    torch.testing.assert_close(rotated[:, 0], x[:, 0] * 1.138629436)


def test_scaled_tables_serve_autograd_after_inference_mode():
    for scaling in (LINEAR[1], DYNAMIC[1], LLAMA3[1], YARN[0]):
        with torch.inference_mode():
            tables = tables_for(12, ORIGINAL, 0, 40, 778.0, "cpu", scaling)
        assert not any(table.is_inference() for table in tables)
        x = torch.ones(1, 40, 1, 12, requires_grad=True)
        rotate(x, *tables).sum().backward()
        assert x.grad is not None
