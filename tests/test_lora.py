"""LoRA on any module: no change at the start, base frozen, merged equals unmerged."""

import pytest
import torch

import lora
from lora import LoRALayer, apply_lora, merge_lora_weights
from tests.helpers import random_llama, random_tokens, tiny_config


def adapted(**options: object) -> torch.nn.Module:
    """A tiny Llama with adapters that are not 0."""
    torch.manual_seed(0)
    llama = apply_lora(random_llama(tiny_config()), **options)
    with torch.no_grad():
        for parameter in lora.get_lora_optimizer_params(llama):
            parameter.normal_()
    return llama


def logits(llama: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        tokens = random_tokens(llama.config, 2, 7)
        return llama(tokens, targets=tokens)[0]


def test_formula():
    torch.manual_seed(0)
    layer = LoRALayer(torch.nn.Linear(6, 5, bias=True), rank=2, alpha=3.0)
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(4, 6)
    assert layer.lora_A.shape == (2, 6) and layer.lora_B.shape == (5, 2)
    assert (layer.rank, layer.alpha) == (2, 3.0)
    w, b = layer.original_layer.weight, layer.original_layer.bias
    expected = x @ (w + 3.0 / 2 * layer.lora_B @ layer.lora_A).T + b
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("alpha", [0, 0.0, -1, float("nan"), float("inf")])
def test_an_alpha_by_which_nothing_is_learnt_is_refused(alpha: float):
    with pytest.raises(ValueError, match=f"^lora_alpha {alpha} is not allowed: it must be above 0"):
        LoRALayer(torch.nn.Linear(6, 5), alpha=alpha)


def test_initialisation():
    torch.manual_seed(0)
    layer = LoRALayer(torch.nn.Linear(4000, 30), rank=8)
    assert not layer.lora_B.any()
    assert layer.lora_A.std().item() == pytest.approx(0.02, rel=0.02)
    assert layer.lora_A.mean().abs() < 4e-4


def test_a_layer_alone_trains_its_adapters_only():
    layer = LoRALayer(torch.nn.Linear(6, 5))
    trainable = [name for name, parameter in layer.named_parameters() if parameter.requires_grad]
    assert trainable == ["lora_A", "lora_B"]


def test_wrapping_changes_nothing_and_freezes_the_base():
    llama = random_llama(tiny_config())
    before, names = logits(llama), {name for name, _ in llama.named_parameters()}
    apply_lora(llama, rank=3)
    assert torch.equal(logits(llama), before)
    trainable = {name for name, p in llama.named_parameters() if p.requires_grad}
    assert trainable.isdisjoint(names)
    expected = {
        f"layers.{i}.attention.compute_{part}.lora_{matrix}"
        for i in range(2)
        for part in ("query", "key", "value", "output")
        for matrix in "AB"
    }
    assert trainable == expected


def test_training_moves_only_adapters():
    llama = adapted()
    before = {name: p.detach().clone() for name, p in llama.named_parameters()}
    optimizer = torch.optim.SGD(llama.parameters(), lr=0.1)
    llama(random_tokens(llama.config, 2, 7))[0].square().mean().backward()
    optimizer.step()
    moved = {name for name, p in llama.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}


def test_merging_is_exact_and_idempotent():
    llama = adapted(rank=2, alpha=5.0)
    unmerged = logits(llama)
    state = lora.merged_state_dict(llama)
    assert torch.equal(logits(llama), unmerged), "merged_state_dict changed the model"
    merge_lora_weights(llama)
    torch.testing.assert_close(logits(llama), unmerged, atol=1e-4, rtol=1e-4)
    assert not any(isinstance(module, LoRALayer) for module in llama.modules())
    assert not any(parameter.requires_grad for parameter in llama.parameters())
    merged = llama.state_dict()
    assert merged.keys() == state.keys()
    assert all(torch.equal(state[name], merged[name]) for name in merged)
    once = logits(llama)
    assert torch.equal(logits(merge_lora_weights(llama)), once)


def test_merging_a_tied_layer_leaves_its_twin_alone():
    llama = adapted(target_modules=["output"])
    embedding, before = llama.tok_embeddings.weight.clone(), logits(llama)
    assert torch.equal(lora.merged_state_dict(llama)["tok_embeddings.weight"], embedding)
    merge_lora_weights(llama)
    torch.testing.assert_close(logits(llama), before, atol=1e-4, rtol=1e-4)
    assert torch.equal(llama.tok_embeddings.weight, embedding)


def test_applying_twice_is_applying_once():
    llama = adapted()
    before = logits(llama)
    names = [(name, parameter.requires_grad) for name, parameter in llama.named_parameters()]
    apply_lora(llama)
    assert [(name, p.requires_grad) for name, p in llama.named_parameters()] == names
    assert torch.equal(logits(llama), before)


def test_counting():
    llama = apply_lora(random_llama(tiny_config()), rank=4, target_modules=["compute_query"])
    assert lora.count_lora_parameters(llama) == (2 * 4 * (32 + 32), 2 * 4 * (32 + 32), 100.0)
    llama.norm.requires_grad_(True)
    assert lora.count_lora_parameters(llama) == (512, 512 + 64, pytest.approx(100 * 512 / 576))
    assert lora.count_lora_parameters(torch.nn.ReLU()) == (0, 0, 0.0)


def test_key_and_value_of_grouped_heads_have_their_own_shapes():
    llama = apply_lora(random_llama(tiny_config()), rank=4)
    layer = llama.layers[0].attention.compute_key
    assert layer.lora_A.shape == (4, 32) and layer.lora_B.shape == (16, 4)


def test_adapters_alone():
    llama = adapted(rank=2)
    adapters = lora.lora_state_dict(llama)
    assert len(adapters) == 2 * 4 * 2
    fresh = apply_lora(random_llama(tiny_config()), rank=2)
    lora.load_lora_state_dict(fresh, adapters)
    assert torch.equal(logits(fresh), logits(llama))
    other = apply_lora(random_llama(tiny_config()), rank=3)
    with pytest.raises(
        ValueError, match=r"lora_A is \[2, 32\], the model's is \[3, 32\]: rank and"
    ):
        lora.load_lora_state_dict(other, adapters)


def test_any_module_and_any_target():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    apply_lora(model, target_modules=["0"])
    assert isinstance(model[0], LoRALayer) and isinstance(model[2], torch.nn.Linear)


LINEAR = "compute_key, compute_output, compute_query, compute_value, output, w1, w2, w3"


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize(
    ("targets", "asked"),
    [
        (["compute_qery"], "compute_qery"),
        (["compute_query", "norm"], "norm"),
        (["b", "compute_key", "a"], "b, a"),
        (["original_layer"], "original_layer"),
        ([], "nothing"),
    ],
)
def test_unknown_targets(targets: list, asked: str, is_wrapped: bool):
    """Nothing is changed then."""
    model = random_llama(tiny_config())
    model = apply_lora(model) if is_wrapped else model
    before = [(name, p.requires_grad) for name, p in model.named_parameters()]
    with pytest.raises(ValueError) as error:
        apply_lora(model, target_modules=targets)
    assert str(error.value) == f"LoRA targets: {asked}; the linear layers are {LINEAR}"
    assert [(name, p.requires_grad) for name, p in model.named_parameters()] == before


def test_a_model_without_linear_layers():
    with pytest.raises(ValueError) as error:
        apply_lora(torch.nn.Sequential(torch.nn.ReLU()), target_modules=["0"])
    found = "none, or quantized ones, which cannot be trained"
    assert str(error.value) == f"LoRA targets: 0; the linear layers are {found}"


def test_bounds():
    assert LoRALayer(torch.nn.Linear(2, 3), rank=1).lora_A.shape == (1, 2)
    for rank in (0, -1):
        with pytest.raises(ValueError) as error:
            LoRALayer(torch.nn.Linear(2, 2), rank=rank)
        assert str(error.value) == f"lora_rank {rank} is not allowed: it must be at least 1"
    with pytest.raises(ValueError, match=r"^LoRA wraps nn\.Linear, not Embedding$"):
        LoRALayer(torch.nn.Embedding(2, 2))
