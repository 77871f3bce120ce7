"""comparison.py: where two traces part, against what was changed; --compare as a command."""

import copy
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import see
from lora import apply_lora, get_lora_optimizer_params, merge_lora_weights
from mini_llama.inside.comparison import MATRICES, PLACES, compare, weight_of
from mini_llama.inside.trace import trace_tokens
from mini_llama.layers.quantized_linear import Int8Linear
from tests.helpers import random_llama, random_tokens, tiny_config
from tests.inside.browser import open_page

NAMES = list(PLACES)


def model():
    return random_llama(tiny_config(attention="causal", norm="rmsnorm"))


def difference(first, second):
    tokens = random_tokens(first.config, 7)
    return compare(trace_tokens(first, tokens), trace_tokens(second, tokens), (first, second))


def test_a_model_does_not_differ_from_itself():
    llama = model()
    found = difference(llama, copy.deepcopy(llama))
    assert found.first() is None and found.embedding == found.logits == 0
    assert not found.places.any() and not found.weights.any() and not found.divergence.any()


@pytest.mark.parametrize(
    ("parameter", "first"),
    [
        ("layers.1.attention_norm.weight", "layer 1, norm"),
        ("layers.0.attention.compute_query.weight", "layer 0, query"),
        ("layers.1.attention.compute_key.weight", "layer 1, key"),
        ("layers.1.attention.compute_value.weight", "layer 1, value"),
        ("layers.1.attention.compute_output.weight", "layer 1, attention"),
        ("layers.0.ffn_norm.weight", "layer 0, norm"),
        ("layers.1.feed_forward.w1.weight", "layer 1, gate"),
        ("layers.0.feed_forward.w3.weight", "layer 0, up"),
        ("layers.1.feed_forward.w2.weight", "layer 1, feed-forward"),
        ("norm.weight", "the final norm"),
    ],
)
def test_the_first_difference_is_where_a_weight_was_changed(parameter: str, first: str):
    llama = model()
    other = copy.deepcopy(llama)
    weight = other.get_parameter(parameter)
    with torch.no_grad():
        weight.mul_(1.001)
    found = difference(llama, other)
    assert found.first().startswith(first + " (")
    names = {f"{name}.weight": i for i, name in enumerate(MATRICES)}
    expected = torch.zeros(2, len(MATRICES))
    match = re.fullmatch(r"layers\.(\d)\.(.*)", parameter)
    if match and match[2] in names:
        expected[int(match[1]), names[match[2]]] = 0.001
    torch.testing.assert_close(found.weights, expected, atol=1e-6, rtol=1e-3)


def test_a_mask_shows_in_the_probabilities_first():
    llama = model()
    other = random_llama(tiny_config(attention="bidirectional", norm="rmsnorm"))
    other.load_state_dict(llama.state_dict())
    found = difference(llama, other)
    assert found.first().startswith("layer 0, probabilities (")
    before = NAMES.index("probabilities")
    assert not found.places[0, :before].any() and found.places[0, before] > 0.1


def test_an_error_is_relative_to_the_largest_magnitude():
    llama = model()
    other = copy.deepcopy(llama)
    with torch.no_grad():
        other.layers[0].feed_forward.w1.weight.mul_(1.5)
    found = difference(llama, other)
    assert found.places[0, NAMES.index("gate")].item() == pytest.approx(0.5, rel=1e-5)


def test_the_divergence_is_kullbacks_and_leiblers():
    llama, other = model(), random_llama(tiny_config(attention="causal", norm="rmsnorm"), seed=1)
    tokens = random_tokens(llama.config, 7)
    first, second = trace_tokens(llama, tokens), trace_tokens(other, tokens)
    p, q = (
        np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        for z in (first.logits.double().numpy(), second.logits.double().numpy())
    )
    expected = (p * np.log(p / q)).sum(-1)
    found = compare(first, second, (llama, other)).divergence
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_adapters_change_what_they_are_added_to():
    llama = model()
    other = apply_lora(copy.deepcopy(llama), rank=2, alpha=4.0, target_modules=["compute_query"])
    with torch.no_grad():
        for parameter in get_lora_optimizer_params(other):
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    expected = []
    for layer in other.layers:
        query = layer.attention.compute_query
        change = (query.scaling * query.lora_B @ query.lora_A).detach()
        expected.append(float(change.norm() / query.original_layer.weight.norm()))
    found = difference(llama, merge_lora_weights(other))
    np.testing.assert_allclose(found.weights[:, 0], expected, rtol=1e-4)
    assert not found.weights[:, 1:].any() and found.first().startswith("layer 0, query (")


def test_int8_is_compared_by_what_it_multiplies_with():
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    layer = Int8Linear(weight)
    x = torch.eye(32)
    torch.testing.assert_close(weight_of(layer), layer(x).detach().T, atol=0.02, rtol=0.01)
    assert (weight_of(layer) - weight).abs().max() < 0.02


def test_other_shapes_are_infinitely_far():
    llama = model()
    other = random_llama(tiny_config(attention="causal", norm="rmsnorm", n_layers=3, n_kv_heads=4))
    found = difference(llama, other)
    assert found.places.shape == (2, len(PLACES)) and math.isinf(found.places[0, 2])
    assert found.weights.isnan().any()


def test_two_models_are_shown_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "page.html"
    see.main(["--compare", "mmia", "--max_new_tokens", "1", "--out", str(out)])
    said = capsys.readouterr().out
    assert re.search(r"The first difference is at layer 0, norm \(\d\.\de-\d+ of its largest", said)
    text = out.read_text(encoding="utf-8")
    assert len(text.encode()) < 5_000_000
    traces = json.loads(re.search('id="data">(.*)</script>', text)[1])["traces"]
    assert [trace["config"]["attention"] for trace in traces] == ["causal", "bidirectional"]
    dom, messages, requests = open_page(out, tmp_path)
    assert messages == [] and requests == []
    shown = dom.partition('id="page"')[2].partition("<script")[0]
    assert shown.count(">Logit lens</h2>") == 2 and shown.count('class="first"') == 1
    ids = re.findall(r'\bid="([^"]*)"', shown)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("what", ["int8", "llama2"])
def test_an_edition_or_a_quantization_is_compared(what: str, tmp_path: Path, capsys):
    out = tmp_path / "page.html"
    see.main(["--compare", what, "--text", "A boy", "--max_new_tokens", "1", "--out", str(out)])
    expected = "There is no difference." if what == "llama2" else "The first difference is at"
    assert expected in capsys.readouterr().out


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as refusal:
        see.main(["--compare", "nowhere.pt", "--out", str(tmp_path / "page.html")])
    assert re.search("see.py: error: .*nowhere.pt", str(refusal.value))
    assert not (tmp_path / "page.html").exists()
