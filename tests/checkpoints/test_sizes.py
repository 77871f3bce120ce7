"""Sizes on paper against what torch keeps for the backward pass, and against hand-made sums."""

import pytest
import torch
import torch.nn.functional as F

from config import PRESETS, LlamaConfig
from llama import Llama
from mini_llama.checkpoints.sizes import TrainingShape, activation_bytes, describe
from tests.helpers import random_tokens, tiny_config

TRUE = {"norm": "rmsnorm", "attention": "causal"}


def kept_for_backward(config: LlamaConfig, batch_size: int, context: int) -> int:
    """Bytes that autograd saves of a forward pass, each once, and those of the logits' gradient."""
    llama = Llama(config)
    parameters = {p.untyped_storage().data_ptr() for p in llama.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = tensor  # held, so that no other takes its place
        return tensor

    tokens = random_tokens(config, batch_size, context)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits, _ = llama(tokens, targets=tokens)
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    storages = [t.untyped_storage() for place, t in kept.items() if place not in parameters]
    return sum(storage.nbytes() for storage in storages) + logits.nbytes


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_dim": 2000},
        {"dim": 256, "n_heads": 16, "n_kv_heads": 1, "hidden_dim": 32, "n_layers": 12},
        {"vocab_size": 5000},
        {"n_layers": 9},
    ],
    ids=["wide feed-forward", "wide", "large vocabulary", "deep"],
)
def test_activations_are_what_torch_keeps(changes: dict):
    """In models of which each has another term as its largest."""
    config = tiny_config(**TRUE, **changes)
    planned = activation_bytes(config, TrainingShape(3, 16))
    assert planned == pytest.approx(kept_for_backward(config, 3, 16), rel=0.05)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_activations_by_hand(dtype: str, size: int):
    """Three layers of 8 · 32 + 4 · 16 + 4 · 40 numbers a token, and 2 · 11 logits."""
    config = tiny_config(n_layers=3, hidden_dim=40, vocab_size=11)
    assert (config.head_dim, config.n_kv_heads) == (8, 2)
    expected = 5 * 7 * (3 * 480 + 22) * size
    assert activation_bytes(config, TrainingShape(5, 7, dtype)) == expected


def test_the_plan_of_llama2_7b():
    """6,738,415,616 numbers, of which AdamW keeps a gradient and two moments each; and 3,045,888
    activations a token: 32 · (12 · 4096 + 4 · 11008) + 2 · 32000.
    """
    plan = describe(LlamaConfig(**PRESETS["llama2-7b"]), TrainingShape(2, 1000, "bfloat16"))
    assert plan.splitlines() == [
        "parameters                                        6,738,415,616",
        "shape                                             32 layers, width 4096, 32 heads of "
        "128, 32 key/value heads, hidden 11008, vocabulary 32000",
        "weights                                           26.95 GB float32, 13.48 GB bfloat16",
        "training: weights, gradients, moments             107.81 GB",
        "training: activations, 2 x 1000 tokens, bfloat16  12.18 GB",
        "training: together                                120.00 GB",
        "training: operations a token                      4.04e+10",
        "key/value cache, 4096 tokens, float32             4.29 GB",
    ]
