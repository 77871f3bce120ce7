"""A trained classifier as Hugging Face's: transformers gives its log-probabilities."""

import json
from pathlib import Path

import pytest
import torch

import checkpoint
from classifier import ClassifierConfig, LlamaEmbeddingClassifier, load_classifier, save_classifier
from tests.helpers import assert_relative, random_llama, random_tokens, tiny_config

transformers = pytest.importorskip("transformers")


def write(path: Path, bias: bool, **changes: object) -> LlamaEmbeddingClassifier:
    config = tiny_config(**{"norm": "rmsnorm", "attention": "causal"} | changes)
    model = LlamaEmbeddingClassifier(ClassifierConfig("", 3), llama=random_llama(config)).eval()
    with torch.no_grad():
        model.classifier_head.weight.normal_()
        model.classifier_head.bias.fill_(0.0)
        if bias:
            model.classifier_head.bias.normal_()
    facts = {"option": "finetune", "label_names": ["bad", "so-so", "good"], "mask_padding": True}
    save_classifier(path, config, model.state_dict(), hidden_dropout_prob=0.2, **facts)
    return model


@pytest.mark.parametrize("bias", [False, True])
def test_transformers_gives_its_log_probabilities(tmp_path, capsys, bias: bool):
    model = write(tmp_path / "c.pt", bias)
    paths = [str(tmp_path / "c.pt"), str(tmp_path / "hf")]
    checkpoint.main(["convert", *paths, "--to", "huggingface"])
    kind = "Token" if bias else "Sequence"
    assert ("LlamaForTokenClassification" in capsys.readouterr().out) == bias
    load = getattr(transformers, f"AutoModelFor{kind}Classification").from_pretrained
    theirs = load(tmp_path / "hf", dtype=torch.float32).eval()
    assert theirs.config.id2label == {0: "bad", 1: "so-so", 2: "good"}
    for length in (1, 5, 16):
        tokens = random_tokens(model.llama.config, 1, length)
        with torch.no_grad():
            logits = theirs(tokens).logits
        logits = logits[:, -1] if bias else logits
        assert_relative(model(tokens).detach(), logits.log_softmax(-1).double(), 1e-5)


@pytest.mark.parametrize(
    ("changes", "to", "part"),
    [
        ({"norm": "layernorm"}, "huggingface", "means RMSNorm and causal attention"),
        ({"attention": "bidirectional"}, "huggingface", "means RMSNorm and causal attention"),
        ({}, "llama2c", "--to huggingface alone has such"),
    ],
)
def test_what_cannot_be_theirs(tmp_path, capsys, changes: dict, to: str, part: str):
    write(tmp_path / "c.pt", True, **changes)
    with pytest.raises(SystemExit) as caught:
        checkpoint.main(["convert", str(tmp_path / "c.pt"), str(tmp_path / "x"), "--to", to])
    assert part in f"{caught.value} {capsys.readouterr().err}"


def test_info_reads_what_training_writes(tmp_path, capsys):
    write(tmp_path / "c.pt", True)
    checkpoint.main(["info", str(tmp_path / "c.pt")])
    out = capsys.readouterr().out
    assert "trained classifier" in out and "3: bad, so-so, good" in out
    assert load_classifier(tmp_path / "c.pt").num_labels == 3
    (tmp_path / "a").mkdir()
    settings = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "some/model"}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(settings))
    checkpoint.main(["info", str(tmp_path / "a")])
    assert "some/model" in capsys.readouterr().out
