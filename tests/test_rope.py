"""RoPE against complex multiplication in float64, and its property of relative positions."""

import numpy as np
import pytest
import torch

from rope import apply_rotary_emb, rotary_tables, rotate, tables_for


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
    assert tables_for(8, 16, 5, 17, 1e4, "cpu")[0].shape == (12, 4)
