"""Classifiers in see.py: attributions against derivatives and texts made by hand; the commands."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import see
from classifier import ClassifierConfig, LlamaEmbeddingClassifier, save_classifier
from mini_llama.inside.attribution import attribute
from mini_llama.inside.look import cut
from mini_llama.places import DATA
from mini_llama.reproduction.results import DONE, Misclassified, Record, Results
from tests.helpers import random_llama, random_tokens, tiny_config
from tests.inside.browser import open_page

DEMO = DATA / "demo"
LABELS = str(DEMO / "demo-label-mapping.json")


def classifier(**changes) -> LlamaEmbeddingClassifier:
    llama = random_llama(tiny_config(**changes))
    torch.manual_seed(0)
    model = LlamaEmbeddingClassifier(ClassifierConfig("", 3, option="pretrain"), llama).eval()
    with torch.no_grad():
        model.classifier_head.weight.normal_()
    return model


def log_prob(model, tokens: torch.Tensor, lengths: torch.Tensor | None, label: int) -> float:
    return float(model(tokens[None], lengths=lengths).log_softmax(-1)[0, label].detach())


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("masks", [False, True])
def test_gradient_times_input_is_a_derivative(attention: str, masks: bool):
    """∂ log p / ∂e · e is the derivative by a factor of the token's embedding, at 1."""
    model = classifier(attention=attention).double()
    tokens = random_tokens(model.llama.config, 8)
    found = attribute(lambda t, n: model(t, lengths=n), model.llama, tokens, 6, masks)
    lengths, step = torch.tensor([6]) if masks else None, 1e-4
    for i in range(8):
        values = []
        for factor in (1 + step, 1 - step):
            scale = torch.ones(8, 1, dtype=torch.float64)
            scale[i] = factor
            handle = model.llama.tok_embeddings.register_forward_hook(
                lambda _module, _args, out, scale=scale: out * scale
            )
            values.append(log_prob(model, tokens, lengths, found.label))
            handle.remove()
        expected = (values[0] - values[1]) / (2 * step)
        assert float(found.gradient[i]) == pytest.approx(expected, abs=1e-3)
    if masks:
        assert not found.gradient[6:].any()


@pytest.mark.parametrize("masks", [False, True])
def test_a_token_left_out_is_a_text_without_it(masks: bool):
    model = classifier()
    tokens = random_tokens(model.llama.config, 9)
    found = attribute(lambda t, n: model(t, lengths=n), model.llama, tokens, 7, masks)
    whole = log_prob(model, tokens, torch.tensor([7]) if masks else None, found.label)
    for i in range(1, 7):
        rest = torch.tensor([t for j, t in enumerate(tokens.tolist()) if j != i])
        without = log_prob(model, rest, torch.tensor([6]) if masks else None, found.label)
        assert float(found.left_out[i]) == pytest.approx(whole - without, abs=1e-5)
    assert found.left_out[[0, 7, 8]].isnan().all()
    assert float(found.probabilities.sum()) == pytest.approx(1, abs=1e-6)
    assert found.label == int(found.probabilities.argmax())


def test_nothing_is_left_behind_in_the_model():
    model = classifier()
    attribute(
        lambda t, n: model(t, lengths=n),
        model.llama,
        random_tokens(model.llama.config, 4),
        4,
        False,
    )
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_question_stays_whole_where_a_text_is_cut():
    ids = list(range(10))
    assert cut(ids, 3, 12) == ids
    assert cut(ids, 3, 6) == [0, 1, 2, 7, 8, 9]
    assert cut(ids, 0, 4) == [0, 1, 2, 3]
    assert cut(ids, 5, 4) == [0, 1, 2, 3]


# The command


def page_data_of(path: Path) -> dict:
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search('id="data">(.*)</script>', text)[1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with the bundled tokenizer beside it."""
    folder = tmp_path_factory.mktemp("trained")
    model = classifier(vocab_size=2048)
    (folder / "model.model").write_bytes((DEMO / "demo.model").read_bytes())
    path = folder / "model.pt"
    names = {"label_names": ["poor", "fair", "fine\u202e</script>"], "mask_padding": False}
    save_classifier(path, model.llama.config, model.state_dict(), 0.3, **names)
    return path


def test_a_trained_classifier_is_looked_at(trained: Path, tmp_path: Path):
    out = tmp_path / "page.html"
    arguments = ["--pretrained-model-path", str(trained), "--out", str(out)]
    see.main([*arguments, "--text", "A fine film"])
    label = page_data_of(out)["traces"][0]["label"]
    assert label["kind"] == "trained" and label["names"][:2] == ["poor", "fair"]
    assert sum(label["probabilities"]) == pytest.approx(1, abs=1e-6)
    dom, messages, requests = open_page(out, tmp_path)
    assert messages == [] and requests == []
    shown = dom.partition('id="page"')[2].partition("<script")[0]
    assert ">Label</h2>" in shown and "gradient × input" in shown and "NaN" not in shown
    with pytest.raises(SystemExit) as refusal:
        see.main([*arguments, "--edition", "mmia"])
    assert "a classifier keeps the arithmetic it learnt with" in str(refusal.value)
    with pytest.raises(SystemExit) as refusal:
        see.main([*arguments, "--code", str(tmp_path)])
    assert "it is for a language model, and this is a classifier" in str(refusal.value)


def test_label_words_are_scored_zero_shot(tmp_path: Path):
    out = tmp_path / "page.html"
    arguments = ["--pretrained-model-path", str(DEMO / "demo.pt"), "--out", str(out)]
    see.main([*arguments, "--label-names", LABELS, "--text", "A fine film"])
    trace = page_data_of(out)["traces"][0]
    label = trace["label"]
    assert label["kind"] == "zero-shot" and label["names"] == json.loads(Path(LABELS).read_text())
    pieces = "".join(token["text"] for token in trace["tokens"])
    assert "Is▁this▁movie" in pieces and pieces.endswith("▁is▁")


def results(folder: Path, worst: list[Misclassified] | None) -> Path:
    found = Results(folder / "results.json")
    found.records["run"] = Record("run", {"option": "prompt"}, {}, DONE, worst=worst)
    content = {"version": 1, "runs": [dataclasses.asdict(r) for r in found.records.values()]}
    found.path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_the_worst_examples_of_a_folder_are_shown(trained: Path, tmp_path: Path):
    wrong = [
        Misclassified("A dull film </script>", 0, 2, 0.9, 0.05),
        Misclassified("b", 1, 0, 0.8, 0.1),
    ]
    out, folder = tmp_path / "page.html", str(results(tmp_path, wrong))
    see.main(["--pretrained-model-path", str(trained), "--worst", folder, "--out", str(out)])
    data = page_data_of(out)
    assert [example["gold"] for example in data["worst"]] == ["poor", "fair"]
    assert "dull" in "".join(token["text"] for token in data["traces"][0]["tokens"])
    dom, messages, _ = open_page(out, tmp_path)
    assert messages == [] and ">Worst examples</h2>" in dom


@pytest.mark.parametrize("has_file", [False, True])
def test_a_folder_without_worst_examples_is_one_line(has_file: bool, tmp_path: Path):
    folder = str(results(tmp_path, None)) if has_file else str(tmp_path / "nothing")
    with pytest.raises(SystemExit) as refusal:
        see.main(["--worst", folder, "--out", str(tmp_path / "page.html")])
    expected = "has no worst examples" if has_file else "is not there: give a folder"
    assert re.search(f"see.py: error: .*{expected}", str(refusal.value))


def test_probabilities_of_a_classifier_are_its_own(trained: Path, tmp_path: Path):
    out = tmp_path / "page.html"
    arguments = ["--pretrained-model-path", str(trained), "--out", str(out)]
    see.main([*arguments, "--text", "A fine film", "--pad_to", "9"])
    data = page_data_of(out)["traces"][0]
    ids = torch.tensor([[token["id"] for token in data["tokens"]]])
    assert ids.shape == (1, 9) and data["last"] == 8
    expected = classifier(vocab_size=2048)(ids).exp()[0]
    np.testing.assert_allclose(data["label"]["probabilities"], expected.detach(), atol=1e-5)
