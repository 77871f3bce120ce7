"""AdamW against the float64 formulas, and torch.optim.AdamW where the two coincide."""

import copy
import itertools

import numpy as np
import pytest
import torch

import optimizer
from mini_llama.adamw_together import is_better_together
from optimizer import AdamW
from tests import oracle


def random_problem(steps: int = 30) -> tuple[list, list]:
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape) for shape in ((3, 4), (5,))]
    scales = rng.uniform(0.01, 3, size=steps)
    return weights, [[s * rng.normal(size=w.shape) for w in weights] for s in scales]


def run(optimizer_class: type, weights: list, gradients: list, **options: object) -> list:
    parameters = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    optimizer = optimizer_class(parameters, **options)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()
    return [parameter.detach().numpy() for parameter in parameters]


@pytest.mark.parametrize(
    ("weight_decay", "correct_bias", "max_grad_norm", "betas"),
    list(itertools.product((0.0, 0.1), (True, False), (None, 0.9), ((0.9, 0.999), (0.5, 0.95)))),
)
def test_equals_the_formulas(weight_decay, correct_bias, max_grad_norm, betas):
    options = {
        "lr": 0.02,
        "betas": betas,
        "eps": 1e-3,
        "weight_decay": weight_decay,
        "correct_bias": correct_bias,
        "max_grad_norm": max_grad_norm,
    }
    weights, gradients = random_problem()
    actual = run(AdamW, weights, gradients, **options)
    for ours, expected in zip(actual, oracle.adamw(weights, gradients, **options), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-14)


def test_defaults_are_the_contract():
    defaults = AdamW([torch.nn.Parameter(torch.zeros(1))]).defaults
    expected = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0}
    assert defaults == expected | {"correct_bias": True, "max_grad_norm": None}


def test_equals_torch_without_eps_and_decay():
    weights, gradients = random_problem()
    ours = run(AdamW, weights, gradients, lr=0.01, eps=0.0)
    theirs = run(torch.optim.AdamW, weights, gradients, lr=0.01, eps=0.0, weight_decay=0.0)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_clipping_leaves_small_gradients_and_grad_alone():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = AdamW([parameter], max_grad_norm=1.0)
    parameter.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    assert parameter.grad.tolist() == [3.0, 4.0]
    torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], torch.tensor([0.06, 0.08]))


def test_groups_are_clipped_each_by_itself():
    big, small = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = AdamW([{"params": [big]}, {"params": [small]}], max_grad_norm=1.0)
    big.grad, small.grad = torch.tensor([100.0]), torch.tensor([0.5])
    optimizer.step()
    assert optimizer.state[big]["exp_avg"].item() == pytest.approx(0.1)
    assert optimizer.state[small]["exp_avg"].item() == pytest.approx(0.05)


def test_parameters_without_gradient_stay():
    used, unused = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = AdamW([used, unused], weight_decay=0.5)
    used.grad = torch.ones(1)
    optimizer.step()
    assert unused.item() == 1 and used.item() < 1 and unused not in optimizer.state


def test_closure_and_state_dict():
    torch.manual_seed(0)
    model, twin = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    x = torch.randn(8, 3)

    def make_step(m: torch.nn.Linear, optimizer: AdamW):
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = m(x).square().mean()
            loss.backward()
            return loss

        return lambda: optimizer.step(closure)

    optimizer = AdamW(model.parameters(), lr=0.1)
    step = make_step(model, optimizer)
    losses = [step().item() for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    twin.load_state_dict(model.state_dict())
    restored = AdamW(twin.parameters(), lr=0.5)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert make_step(twin, restored)().item() == step().item()
    assert torch.equal(twin.weight, model.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr -1.0 is not allowed: it must be at least 0"),
        ({"lr": float("nan")}, "lr nan is not allowed: it must be at least 0"),
        ({"betas": (-0.1, 0.9)}, "betas[0] -0.1 is not allowed: it must be at least 0 and below 1"),
        ({"betas": (1.0, 0.9)}, "betas[0] 1.0 is not allowed: it must be at least 0 and below 1"),
        ({"betas": (0.9, -0.1)}, "betas[1] -0.1 is not allowed: it must be at least 0 and below 1"),
        ({"betas": (0.9, 1.0)}, "betas[1] 1.0 is not allowed: it must be at least 0 and below 1"),
        ({"eps": -1e-8}, "eps -1e-08 is not allowed: it must be at least 0"),
        ({"weight_decay": -0.1}, "weight_decay -0.1 is not allowed: it must be at least 0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm 0.0 is not allowed: it must be > 0"),
    ],
    ids=str,
)
def test_bounds(options: dict, message: str):
    with pytest.raises(ValueError) as error:
        AdamW([torch.nn.Parameter(torch.zeros(1))], **options)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "options",
    [{"lr": 0}, {"betas": (0, 0)}, {"eps": 0}, {"weight_decay": 0}, {"max_grad_norm": 1e-9}],
    ids=str,
)
def test_values_at_the_bounds_are_allowed(options: dict):
    defaults = AdamW([torch.nn.Parameter(torch.zeros(1))], **options).defaults
    assert options.items() <= defaults.items()


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_sparse_gradients_are_refused_before_anything_changes(max_grad_norm: float | None):
    embedding, dense = torch.nn.Embedding(5, 3, sparse=True), torch.nn.Linear(3, 1)
    parameters = [*dense.parameters(), *embedding.parameters()]
    before = [p.detach().clone() for p in parameters]
    dense(embedding(torch.tensor([1, 4]))).sum().backward()
    with pytest.raises(RuntimeError, match=r"SparseAdam for these parameters$"):
        AdamW(parameters, max_grad_norm=max_grad_norm).step()
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "max_grad_norm": 0.9}], ids=str)
@pytest.mark.parametrize("correct_bias", [True, False])
def test_parameters_updated_together_are_those_updated_one_by_one(
    options: dict, correct_bias: bool, monkeypatch: pytest.MonkeyPatch
):
    weights, gradients = random_problem()
    options = options | {"lr": 0.02, "correct_bias": correct_bias}
    one_by_one = run(AdamW, weights, gradients, **options)
    monkeypatch.setattr(optimizer, "is_better_together", bool)
    together = run(AdamW, weights, gradients, **options)
    for ours, expected in zip(together, one_by_one, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-14)


def test_on_a_gpu_plain_parameters_are_updated_together(monkeypatch: pytest.MonkeyPatch):
    parameter = torch.nn.Parameter(torch.zeros(2))
    assert not is_better_together([parameter])
    monkeypatch.setattr(torch.nn.Parameter, "is_cuda", True, raising=False)
    assert is_better_together([parameter]) and not is_better_together([])
