"""The linear layer against float64 products and torch.nn.functional.linear."""

import pytest
import torch
import torch.nn.functional as F

from mini_llama.layers import linear as module
from mini_llama.layers.linear import (
    Linear,
    has_onednn,
    linear,
    packed_row_linear,
    plain_products,
)
from mini_llama.layers.linear_loss import linear_cross_entropy

SHAPES = [((1, 7), 5), ((3, 4, 8), 33), ((300, 16), 4), ((2, 1, 40), 16)]


def make(shape: tuple, out: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    return x.requires_grad_(), torch.randn(out, shape[-1], generator=generator).requires_grad_()


@pytest.fixture(params=[True, False], ids=["onednn", "without"])
def route(request, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both routes, wherever the tests run."""
    if request.param and not has_onednn():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(module, "has_onednn", lambda: request.param)
    return request.param


@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_values_and_gradients_equal_float64(route, shape: tuple, out: int):
    x, weight = make(shape, out)
    result = linear(x, weight)
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
    result.backward(upstream)
    exact_x, exact_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    expected = exact_x @ exact_weight.T
    expected.backward(upstream.double())
    pairs = [(result, expected), (x.grad, exact_x.grad), (weight.grad, exact_weight.grad)]
    for actual, exact in pairs:
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), exact, atol=1e-4, rtol=1e-5)


def test_columns_and_transposes_of_larger_tensors(route):
    x, weight = make((3, 9, 8), 6)
    last, turned = x.detach()[:, -1:], weight.detach().T
    torch.testing.assert_close(linear(last, weight), last @ weight.T)
    torch.testing.assert_close(linear(torch.ones(2, 6), turned), torch.ones(2, 6) @ turned.T)
    assert linear(x[:0], weight).shape == (0, 9, 6)


def test_a_frozen_weight_keeps_no_input(route):
    x, weight = make((3, 4, 8), 33)
    weight.requires_grad_(False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        result = linear(x, weight)
    assert all(t.data_ptr() != x.data_ptr() for t in kept)
    result.sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand_as(x))
    assert weight.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_left_to_torch(dtype: torch.dtype):
    x, weight = (t.detach().to(dtype) for t in make((3, 8), 4))
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=0, atol=0)


def test_autocast_is_heeded():
    x, weight = make((3, 8), 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16


def test_a_compiler_sees_through_it(monkeypatch: pytest.MonkeyPatch):
    """One graph, without a break; the backend runs it as it is."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: list):
        graphs.append(graph)
        return graph

    x, weight = make((3, 8), 4)
    compiled = torch.compile(lambda x: linear(linear(x, weight).sin(), weight.T), backend=backend)
    torch.testing.assert_close(compiled(x), (x @ weight.T).sin() @ weight)
    assert len(graphs) == 1


def test_the_layer_is_torchs_without_bias():
    layer = Linear(8, 5)
    assert isinstance(layer, torch.nn.Linear) and layer.bias is None
    x, _ = make((3, 8), 4)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight))


@pytest.mark.parametrize("count", [1, 255, 600])
def test_cross_entropy_by_either_route(route, count: int):
    hidden, weight = make((count, 12), 31)
    targets = torch.randint(31, (count,), generator=torch.Generator().manual_seed(2))
    (3 * linear_cross_entropy(hidden, weight, targets)).backward()
    ours = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    (3 * F.cross_entropy(hidden @ weight.T, targets)).backward()
    for actual, expected in zip(ours, (hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("shape", "out"), SHAPES)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "autocast"])
def test_a_bias_is_that_of_nn_linear(route, shape: tuple, out: int, dtype: torch.dtype | None):
    """Values, dtype, and all three gradients; under autocast as well."""
    torch.manual_seed(0)
    layer, theirs = Linear(shape[-1], out, has_bias=True), torch.nn.Linear(shape[-1], out)
    theirs.load_state_dict(layer.state_dict())
    gradients = []
    for network in (layer, theirs):
        x, _ = make(shape, out)
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            result = network(x)
        result.float().square().sum().backward()
        gradients.append((result, x.grad, network.weight.grad, network.bias.grad))
    tolerance = 1e-5 if dtype is None else 0.02
    for actual, expected in zip(*gradients, strict=True):
        assert actual.dtype == expected.dtype
        limit = tolerance * float(expected.abs().max())
        torch.testing.assert_close(actual, expected, atol=limit, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("columns", [1, 3, 16, 576, 1001])
@pytest.mark.parametrize("sizes", [(1,), (64,), (5, 192, 70), (128, 64)])
def test_the_product_of_a_row_is_a_sum_of_columns(columns: int, sizes: tuple[int, ...]):
    """Whole panels of outputs and parts of them, against float64 and within torch's own error."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(size, columns, generator=generator) for size in sizes]
    x, multiply = torch.randn(1, columns, generator=generator), packed_row_linear(weights)
    for weight, actual in zip(weights, multiply(x), strict=True):
        exact = x.double() @ weight.double().T
        torch.testing.assert_close(actual.double(), exact, atol=3e-6 * columns**0.5, rtol=1e-5)
    with plain_products():
        for weight, actual in zip(weights, multiply(x), strict=True):
            assert torch.equal(actual, F.linear(x, weight))
