"""Every derivative, trace and count of the layers and the model, against PyTorch's own products."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llama import Llama
from mini_llama.layers import linear as linear_module
from mini_llama.layers import linear_loss, quantized_linear
from mini_llama.layers.linear import Linear, has_onednn, linear
from mini_llama.layers.linear_loss import linear_cross_entropy
from tests.helpers import assert_relative, random_llama, random_tokens, tiny_config

TARGETS = torch.tensor([4, 0, -100, 10, 3, -100, 3])
Function = Callable[..., torch.Tensor]


def inputs(rows: int = 7, columns: int = 6, out: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=generator)
    return x.requires_grad_(), torch.randn(out, columns, generator=generator).requires_grad_()


PAIRS = {
    "linear": (
        lambda x, weight: linear(x, weight).pow(3).sum(),
        lambda x, weight: F.linear(x, weight).pow(3).sum(),
    ),
    "three axes": (
        lambda x, weight: linear(x.view(7, 1, 6), weight).pow(3).sum(),
        lambda x, weight: F.linear(x.view(7, 1, 6), weight).pow(3).sum(),
    ),
    "cross-entropy": (
        lambda x, weight: linear_cross_entropy(x, weight, TARGETS),
        lambda x, weight: F.cross_entropy(F.linear(x, weight), TARGETS),
    ),
}
DERIVATIVES: dict[str, Callable[[Function, tuple], object]] = {
    "double backward": lambda f, at: second_gradients(f, at),
    "jvp": lambda f, at: torch.func.jvp(f, at, tuple(t.detach().sin() for t in at)),
    "dual tensors": lambda f, at: dual(f, at),
    "forward over reverse": lambda f, at: scaled_dual(f, at),
    "grad": lambda f, at: torch.func.grad(f, (0, 1))(*at),
    "hessian": lambda f, at: torch.func.hessian(f, (0, 1))(*at),
    "reverse over reverse": lambda f, at: torch.func.jacrev(torch.func.jacrev(f))(*at),
    "a batch of gradients": lambda f, at: torch.autograd.functional.hessian(f, at, vectorize=True),
    "vmap": lambda f, at: torch.func.vmap(f, (None, 0))(at[0], at[1].expand(3, -1, -1)),
    "gradients of each sample": lambda f, at: torch.func.vmap(torch.func.grad(f), (None, 0))(
        at[0], torch.stack([at[1], 2 * at[1]])
    ),
}


def second_gradients(f: Function, at: tuple) -> tuple:
    first = torch.autograd.grad(3 * f(*at), at, create_graph=True)
    return torch.autograd.grad(sum(t.pow(3).sum() for t in first), at)


def dual(f: Function, at: tuple) -> torch.Tensor:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, t.detach().cos()) for t in at]
        return forward_ad.unpack_dual(f(*duals)).tangent


def scaled_dual(f: Function, at: tuple) -> list[torch.Tensor]:
    """Only the gradient that comes from above has a tangent."""
    with forward_ad.dual_level():
        scale = forward_ad.make_dual(torch.tensor(2.0), torch.tensor(0.5))
        return [forward_ad.unpack_dual(t).tangent for t in torch.autograd.grad(scale * f(*at), at)]


@pytest.mark.parametrize("name", DERIVATIVES)
@pytest.mark.parametrize("pair", PAIRS)
def test_derivatives_are_those_of_torchs_operations(pair: str, name: str):
    ours, theirs = PAIRS[pair]
    actual = DERIVATIVES[name](ours, inputs())
    torch.testing.assert_close(actual, DERIVATIVES[name](theirs, inputs()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pair", PAIRS)
def test_derivatives_are_the_numerical_ones(pair: str):
    at = tuple(t.detach().double().requires_grad_() for t in inputs())
    assert torch.autograd.gradcheck(PAIRS[pair][0], at, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(PAIRS[pair][0], at)


def test_numerical_derivatives_of_the_fast_product():
    """In float32, whose custom function float64 does not reach: a difference of its gradients."""
    x, weight = inputs()
    direction, step = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)), 1e-2

    def gradient(shift: float) -> torch.Tensor:
        moved = (weight.detach() + shift * direction).requires_grad_()
        return torch.autograd.grad(linear(x, moved).pow(2).sum(), x)[0]

    (first,) = torch.autograd.grad(linear(x, weight).pow(2).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    expected = (gradient(step) - gradient(-step)).sum() / (2 * step)
    torch.testing.assert_close((second * direction).sum(), expected, atol=1e-2, rtol=1e-3)


def test_a_frozen_weight_or_input():
    for frozen in (0, 1):
        found = []
        for f in PAIRS["cross-entropy"]:
            at = inputs()
            at[frozen].requires_grad_(False)
            free = at[1 - frozen]
            (first,) = torch.autograd.grad(f(*at), free, create_graph=True)
            found.append((first, *torch.autograd.grad(first.pow(2).sum(), free)))
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("shape", [(6,), (0, 6), (2, 0, 6)])
def test_shapes_that_only_torch_multiplies(shape: tuple):
    x, weight = torch.ones(shape, requires_grad=True), inputs()[1]
    linear(x, weight).sum().backward()
    assert linear(x, weight).shape == (*shape[:-1], 11) and x.grad.shape == shape
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        linear(torch.ones(3, 5), weight)


@pytest.mark.skipif(not has_onednn(), reason="this PyTorch has no oneDNN")
def test_no_default_of_the_session_turns_the_fast_product_off():
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            has_onednn.cache_clear()
            assert has_onednn()
    finally:
        torch.set_default_dtype(torch.float32)


# --- Targets


@pytest.mark.parametrize("ignored", [[0], [2, 300, 599], range(256), range(1, 600), range(600)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ignored_targets_are_left_out(ignored: list, dtype: torch.dtype):
    hidden, weight = (t.detach().to(dtype) for t in inputs(600))
    targets = torch.randint(11, (600,), generator=torch.Generator().manual_seed(2))
    targets[list(ignored)] = -100
    found = []
    for f in (linear_cross_entropy, lambda h, w, t: F.cross_entropy(F.linear(h, w), t)):
        at = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        loss = f(*at, targets)
        found.append((loss, *torch.autograd.grad(3 * loss, at)))
    torch.testing.assert_close(*found, equal_nan=True)


@pytest.mark.parametrize("wrong", [-1, -99, -101, 11, 2**40])
def test_other_targets_are_refused(wrong: int):
    hidden, weight = inputs()
    targets = TARGETS.clone()
    targets[1] = wrong
    message = f"^target {wrong} is not allowed: it must be from 0 to 10, or -100 to be ignored$"
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(hidden, weight, targets)


# --- The whole model


@pytest.fixture(params=["causal", "bidirectional"])
def llama(request) -> Llama:
    return random_llama(tiny_config(norm="rmsnorm", attention=request.param))


@pytest.fixture
def plain(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> Callable[[Function], object]:
    """Runs a function with nothing but F.linear below the model."""

    def run(function: Function) -> object:
        with monkeypatch.context() as patch:
            patch.setattr(Linear, "forward", lambda self, x: F.linear(x, self.weight))
            return function()

    return run


def tokens_of(*shape: int) -> torch.Tensor:
    return random_tokens(tiny_config(), *shape)


def loss_of(llama: Llama, parameters: dict, tokens: torch.Tensor) -> torch.Tensor:
    logits, _ = torch.func.functional_call(llama, parameters, (tokens,), {"targets": tokens})
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def test_forward_mode_of_the_model(llama: Llama):
    """jvp is the gradient's product with the direction, which backward gives."""
    tokens, parameters = tokens_of(2, 7), {k: p.detach() for k, p in llama.named_parameters()}
    direction = {name: p.sin() for name, p in parameters.items()}

    def f(values: dict) -> torch.Tensor:
        return loss_of(llama, values, tokens)

    _, derivative = torch.func.jvp(f, (parameters,), (direction,))
    llama.zero_grad()
    loss_of(llama, dict(llama.named_parameters()), tokens).backward()
    gradients = {name: p.grad for name, p in llama.named_parameters()}
    expected = sum((gradients[name] * direction[name]).sum() for name in gradients)
    torch.testing.assert_close(derivative, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.func.grad(f)(parameters), gradients, atol=1e-6, rtol=1e-4)


def test_gradients_of_each_sample_of_the_model(llama: Llama):
    tokens, parameters = tokens_of(3, 6), {k: p.detach() for k, p in llama.named_parameters()}
    each = torch.func.vmap(
        torch.func.grad(lambda values, row: loss_of(llama, values, row[None])), (None, 0)
    )(parameters, tokens)
    for row, sample in enumerate(tokens):
        llama.zero_grad()
        loss_of(llama, dict(llama.named_parameters()), sample[None]).backward()
        for name, p in llama.named_parameters():
            torch.testing.assert_close(each[name][row], p.grad, atol=1e-6, rtol=1e-4)


def test_double_backward_of_the_model(llama: Llama, plain: Callable):
    """By the attention that has second derivatives; PyTorch's blockwise one says it has none."""
    tokens = tokens_of(2, 7)

    def second() -> tuple:
        def f(*parameters: torch.Tensor) -> torch.Tensor:
            return loss_of(llama, dict(zip(names, parameters, strict=True)), tokens)

        names, values = zip(*llama.named_parameters(), strict=True)
        return second_gradients(f, values)

    with sdpa_kernel(SDPBackend.MATH):
        for actual, expected in zip(second(), plain(second), strict=True):
            assert_relative(actual, expected, 1e-4)
    with pytest.raises(RuntimeError, match=r"derivative for .* is not implemented"):
        second()


def test_operations_are_counted(llama: Llama, plain: Callable):
    def count() -> int:
        with FlopCounterMode(display=False) as counter:
            llama(tokens, targets=tokens)[0].sum().backward()
        return counter.get_total_flops()

    tokens = tokens_of(2, 7)
    assert count() == plain(count) > 3 * 2 * 14 * sum(p.numel() for p in llama.layers.parameters())


def test_what_a_mode_makes_is_not_kept(llama: Llama):
    """RoPE's tables above all: a length that no one has asked for before."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    tokens = tokens_of(1, 16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert llama(tokens)[0].shape == (1, 1, 96)
    assert type(llama(tokens)[0]) is torch.Tensor


LENGTHS = (2, 3, 13, 16)


@pytest.mark.parametrize("longest", [None, 16])
def test_export_with_any_length(llama: Llama, longest: int | None):
    length = torch.export.Dim("length", max=longest)
    shapes = ({1: length}, None, None, None, None)
    program = torch.export.export(llama, (tokens_of(2, 7),) + (None,) * 4, dynamic_shapes=shapes)
    for count in LENGTHS:
        tokens = tokens_of(2, count)
        torch.testing.assert_close(program.module()(tokens, *[None] * 4), llama(tokens))


@pytest.mark.filterwarnings("ignore")  # a trace warns of every condition
def test_a_trace_serves_other_lengths(llama: Llama):
    trace = torch.jit.trace(llama, (tokens_of(2, 7),), check_trace=False)
    for count in LENGTHS:
        torch.testing.assert_close(trace(tokens_of(2, count)), llama(tokens_of(2, count)))


def test_one_graph_for_lengths(llama: Llama):
    torch._dynamo.reset()
    compiled = torch.compile(llama, fullgraph=True, backend="eager")
    for count in (7, 13, 20, 1):
        tokens = tokens_of(2, count)
        torch.testing.assert_close(compiled(tokens), llama(tokens))


def test_the_loss_in_one_graph():
    torch._dynamo.reset()
    ours, theirs = PAIRS["cross-entropy"]
    at = inputs()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    found = [torch.autograd.grad(f(*at), at) for f in (compiled, theirs)]
    torch.testing.assert_close(*found)


# --- The fast way is still the one that is taken


@pytest.mark.skipif(not has_onednn(), reason="this PyTorch has no oneDNN")
def test_an_ordinary_step_takes_the_fast_product(monkeypatch: pytest.MonkeyPatch):
    calls = []
    product = linear_module._product
    monkeypatch.setattr(
        linear_module, "_product", lambda *given: calls.append(given) or product(*given)
    )
    monkeypatch.setattr(linear_loss, "_plain_loss", None)
    x, weight = inputs()
    linear(x, weight).sum().backward()
    assert len(calls) == 3
    linear_cross_entropy(x, weight, TARGETS).backward()
    assert len(calls) == 6


# --- Quantized layers have no derivatives, and say so


@pytest.mark.parametrize("rows", [3, 100])
def test_quantized_layers_refuse_every_derivative(rows: int):
    layer = quantized_linear.Int8Linear(inputs()[1])
    x = torch.ones(rows, 6)
    message = "cannot be trained through"
    with pytest.raises(ValueError, match=message):
        torch.func.jvp(layer, (x,), (x,))
    with pytest.raises(ValueError, match=message):
        torch.func.grad(lambda x: layer(x).sum())(x)
    with pytest.raises(ValueError, match=message):
        dual(layer, (x,))


@pytest.mark.parametrize("rows", [3, 100])
def test_quantized_operations_are_counted(rows: int):
    layer, x = quantized_linear.Int8Linear(inputs()[1]), torch.randn(rows, 6)
    with FlopCounterMode(display=False) as counter:
        counted = layer(x)
    assert counter.get_total_flops() == 2 * rows * 6 * 11
    assert_relative(counted, layer(x), 0.02)
    shapes = ({0: torch.export.Dim("rows")},)
    exported = torch.export.export(copy.deepcopy(layer), (x,), dynamic_shapes=shapes).module()
    assert_relative(exported(torch.cat([x, x])), layer(torch.cat([x, x])), 0.02)
