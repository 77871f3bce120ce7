"""trace.py: whole tensors against the float64 NumPy model, for every edition's arithmetic."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from config import EDITIONS
from mini_llama.diagnosis import numpy_llama
from mini_llama.inference.sampling import Sampler
from mini_llama.inside.trace import Trace, trace_generation, trace_tokens
from rope import config_tables
from tests.helpers import assert_relative, numpy_weights, random_llama, random_tokens, tiny_config

TOLERANCE = 1e-5
# One edition for each norm and attention.
ARITHMETICS = {(e.norm, e.attention): name for name, e in EDITIONS.items()}.values()
KINDS = ("query", "key", "value")


def arithmetic(config) -> numpy_llama.Arithmetic:
    return numpy_llama.Arithmetic(
        config.n_heads, config.n_kv_heads, config.norm, config.attention, config.layer_norm_eps
    )


def traced(
    edition: str, real: int | None = None, **changes
) -> tuple[Trace, dict, np.ndarray, object]:
    """A trace of 9 tokens, the oracle's record of the same, its logits, and the model."""
    chosen = EDITIONS[edition]
    llama = random_llama(tiny_config(norm=chosen.norm, attention=chosen.attention, **changes))
    tokens = random_tokens(llama.config, 1, 9)
    record: dict = {}
    lengths = None if real is None else [real]
    weights = numpy_weights(llama)
    logits, _ = numpy_llama.forward(weights, arithmetic(llama.config), tokens, lengths, record)
    return trace_tokens(llama, tokens[0], real, real is not None), record, logits[0], llama


@pytest.mark.parametrize("edition", ARITHMETICS)
@pytest.mark.parametrize("real", [None, 6])
def test_every_component_is_as_in_float64(edition: str, real: int | None):
    trace, record, logits, _ = traced(edition, real)
    rows = slice(real)  # what a padding query sees is nobody's business
    assert_relative(trace.logits[rows], logits[rows], TOLERANCE)
    assert_relative(trace.hidden[rows], record["norm"][0][rows], TOLERANCE)
    assert_relative(trace.embedding, record["embedding"][0], TOLERANCE)
    for i, layer in enumerate(trace.layers):
        name = f"layers.{i}"
        before = record["embedding" if i == 0 else f"layers.{i - 1}"][0]
        expected = {
            "residual": before,
            "middle": before + record[f"{name}.attention"][0],
            "output": record[name][0],
        }
        for part in ("attention_norm", "attention", "ffn_norm", "feed_forward"):
            expected[part] = record[f"{name}.{part}"][0]
        for part, values in expected.items():
            assert_relative(getattr(layer, part)[rows], values[rows], TOLERANCE)


@pytest.mark.parametrize("edition", ["mmia", "llama2"])
@pytest.mark.parametrize("real", [None, 6])
def test_the_inside_of_attention_is_as_in_float64(edition: str, real: int | None):
    trace, record, _, llama = traced(edition, real)
    weights, config, length = numpy_weights(llama), llama.config, 9
    visible = numpy_llama.visible_keys(
        1, length, config.attention, None if real is None else [real]
    )[0]
    rows = slice(real)
    np.testing.assert_array_equal(trace.visible[rows].numpy(), visible[rows])
    for i, layer in enumerate(trace.layers):
        name = f"layers.{i}.attention"
        normed = record[f"{name}_norm"]
        heads = {
            kind: numpy_llama.project(normed, weights, f"{name}.compute_{kind}").reshape(
                1, length, -1, config.head_dim
            )
            for kind in KINDS
        }
        turned = {k: numpy_llama.rotate(heads[k], np.arange(length)) for k in ("query", "key")}
        for kind in KINDS:
            assert_relative(getattr(layer, kind)[rows], heads[kind][0][rows], TOLERANCE)
        for kind, values in turned.items():
            assert_relative(getattr(layer, f"rotated_{kind}")[rows], values[0][rows], TOLERANCE)
        for head in range(config.n_heads):
            key = turned["key"][0, :, head // (config.n_heads // config.n_kv_heads)]
            scores = turned["query"][0, :, head] @ key.T / np.sqrt(config.head_dim)
            assert_relative(layer.scores[head, rows, rows], scores[rows, rows], TOLERANCE)
            expected = numpy_llama.softmax(np.where(visible, scores, -np.inf))
            np.testing.assert_allclose(
                layer.probabilities[head, rows].numpy(), expected[rows], rtol=0, atol=TOLERANCE
            )
        transposed = (
            np.swapaxes(x, 1, 2) for x in (turned["query"], turned["key"], heads["value"])
        )
        mixed = np.swapaxes(numpy_llama.attend(*transposed, visible), 1, 2)[0]
        assert_relative(layer.heads[rows], mixed[rows], TOLERANCE)


@pytest.mark.parametrize("edition", ARITHMETICS)
def test_rows_of_attention_sum_to_1_and_see_nothing_hidden(edition: str):
    trace, *_ = traced(edition, real=6)
    for layer in trace.layers:
        ones = torch.ones(layer.probabilities.shape[:-1])
        torch.testing.assert_close(layer.probabilities.sum(-1), ones, rtol=0, atol=1e-6)
        assert not layer.probabilities[:, ~trace.visible].any()


def test_the_gate_is_the_feed_forwards():
    trace, *_, llama = traced("llama2")
    for i, layer in enumerate(trace.layers):
        feed_forward = llama.layers[i].feed_forward
        expected = feed_forward.w2(F.silu(layer.gate) * layer.up)
        assert_relative(layer.feed_forward, expected.detach(), TOLERANCE)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0, "original_max_seq_len": 5},
        {"rope_type": "dynamic", "factor": 2.0, "original_max_seq_len": 12},
        {"rope_type": "yarn", "factor": 4.0, "original_max_seq_len": 4},
    ],
)
def test_frequencies_give_the_models_angles(scaling: dict | None):
    trace, *_, llama = traced("llama2", rope_scaling=scaling)
    angles = torch.outer(torch.arange(9.0), trace.frequencies)
    cos, sin = config_tables(llama.config, 0, 9, "cpu")
    torch.testing.assert_close(trace.rope_factor * angles.cos(), cos)
    torch.testing.assert_close(trace.rope_factor * angles.sin(), sin)


def test_the_last_lens_is_the_models_prediction():
    trace, *_, llama = traced("mmia")
    top = trace.logits.softmax(-1).topk(5)
    assert torch.equal(trace.lens.ids[-1], top.indices)
    torch.testing.assert_close(trace.lens.probabilities[-1], top.values)
    normed = llama.norm(trace.layers[0].output)
    assert torch.equal(trace.lens.ids[1], llama.output(normed).topk(5).indices)
    assert trace.lens.ids.shape == (llama.config.n_layers + 1, 9, 5)


@pytest.mark.parametrize("edition", ["mmia", "llama2"])
def test_a_generation_is_the_models_own(edition: str):
    *_, llama = traced(edition)
    tokens = random_tokens(llama.config, 1, 4)
    steps = trace_generation(llama, tokens[0], 5, Sampler(0.0))
    expected = llama.generate(tokens, 5, temperature=0.0)[0, 4:]
    assert [step.chosen for step in steps] == expected.tolist()
    assert [len(step.trace.tokens) for step in steps] == [4, 5, 6, 7, 8]
    stopped = trace_generation(llama, tokens[0], 5, Sampler(0.0), [steps[1].chosen])
    assert [step.chosen for step in stopped] == expected[: len(stopped)].tolist()
    assert stopped[-1].chosen == steps[1].chosen


def test_hooks_are_gone_afterwards_and_numbers_unchanged():
    *_, llama = traced("mmia")
    tokens = random_tokens(llama.config, 1, 5)
    before = llama(tokens)[0]
    trace_tokens(llama, tokens[0])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llama.modules())
    assert torch.equal(llama(tokens)[0], before)


def test_a_model_in_bfloat16_is_traced_in_float32():
    *_, llama = traced("llama2")
    expected = llama(random_tokens(llama.config, 1, 5), targets=random_tokens(llama.config, 1, 5))[
        0
    ]
    trace = trace_tokens(llama.bfloat16(), random_tokens(llama.config, 1, 5)[0])
    assert all(value.dtype == torch.float32 for value in vars(trace.layers[0]).values())
    assert_relative(trace.logits, expected[0].detach(), 0.05)


@pytest.mark.parametrize("shape", [(0,), (2, 3)])
def test_what_is_no_row_of_tokens_is_refused(shape: tuple[int, ...]):
    llama = random_llama(dataclasses.replace(tiny_config()))
    with pytest.raises(ValueError, match="a trace is of one row of tokens"):
        trace_tokens(llama, torch.zeros(shape, dtype=torch.long))


def test_padding_is_read_as_the_assignment_does_unless_it_is_masked():
    *_, llama = traced("mmia")
    tokens = random_tokens(llama.config, 1, 9)
    plain, masked = (trace_tokens(llama, tokens[0], 6, masks) for masks in (False, True))
    assert (plain.length, plain.last) == (6, 8) and plain.visible.all()
    assert (masked.length, masked.last) == (6, 5) and not masked.visible[:, 6:].any()
    assert_relative(plain.logits[8], llama(tokens)[0][0, 0].detach(), TOLERANCE)
    lengths = torch.tensor([6])
    assert_relative(masked.logits[5], llama(tokens, lengths=lengths)[0][0, 0].detach(), TOLERANCE)
