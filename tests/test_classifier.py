"""Both classifiers against their formulas in NumPy over the float64 oracle."""

import numpy as np
import pytest
import torch

from classifier import (
    ClassifierConfig,
    LlamaEmbeddingClassifier,
    LlamaZeroShotClassifier,
    load_classifier,
    save_classifier,
)
from llama import Llama
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from tests import oracle
from tests.helpers import assert_relative, numpy_weights, random_llama, random_tokens, tiny_config
from tokenizer import Tokenizer


@pytest.fixture
def llama(tmp_path) -> Llama:
    llama = random_llama(tiny_config(vocab_size=300))
    save_checkpoint(tmp_path / "m.pt", llama.config, llama.state_dict())
    return llama


@pytest.fixture
def config(tmp_path, llama) -> ClassifierConfig:
    return ClassifierConfig(str(tmp_path / "m.pt"), num_labels=3)


def oracle_forward(llama: Llama, tokens: torch.Tensor, lengths: torch.Tensor | None) -> tuple:
    return oracle.forward(
        numpy_weights(llama),
        n_heads=4,
        n_kv_heads=2,
        norm=llama.config.norm,
        attention=llama.config.attention,
        tokens=tokens.numpy(),
        lengths=None if lengths is None else lengths.numpy(),
    )


LENGTHS = [None, torch.tensor([9, 3])]


@pytest.mark.parametrize("lengths", LENGTHS, ids=["last column", "last real token"])
def test_zero_shot(config, llama, tokenizer_model, lengths):
    tokenizer = Tokenizer(tokenizer_model=tokenizer_model)
    names = ["good", "bad", "not very good"]
    model = LlamaZeroShotClassifier(config, tokenizer, names)
    tokens = random_tokens(llama.config, 2, 9)
    logits, _ = oracle_forward(llama, tokens, lengths)
    columns = [8, 8] if lengths is None else [8, 2]
    log_probs = oracle.log_softmax(logits[[0, 1], columns])
    ids = [tokenizer.encode(name, bos=False, eos=False) for name in names]
    assert len(ids[2]) > 1, "one label of several tokens"
    expected = np.stack([log_probs[:, i].sum(axis=-1) for i in ids], axis=-1)
    assert_relative(model(tokens, lengths).detach(), expected, 1e-5)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("lengths", LENGTHS, ids=["last column", "last real token"])
def test_embedding(config, llama, lengths):
    model = LlamaEmbeddingClassifier(config).eval()
    tokens = random_tokens(llama.config, 2, 9)
    _, hidden_states = oracle_forward(llama, tokens, lengths)
    last = hidden_states[[0, 1], [8, 8] if lengths is None else [8, 2]]
    head = {k: v.detach().double().numpy() for k, v in model.classifier_head.named_parameters()}
    expected = oracle.log_softmax(last @ head["weight"].T + head["bias"])
    actual = model(tokens, lengths).detach()
    assert_relative(actual, expected, 1e-5)
    torch.testing.assert_close(actual.exp().sum(-1), torch.ones(2))


def test_dropout_is_before_the_head_and_only_while_training(config, llama):
    model = LlamaEmbeddingClassifier(config)
    assert model.dropout.p == 0.3
    inputs = []
    model.classifier_head.register_forward_hook(lambda _m, args, _o: inputs.append(args[0]))
    tokens = random_tokens(llama.config, 40, 5)
    torch.manual_seed(0)
    model.train()(tokens)
    model.eval()(tokens)
    dropped, kept = inputs
    zero = dropped == 0
    assert zero.float().mean().item() == pytest.approx(0.3, abs=0.05)
    torch.testing.assert_close(dropped[~zero], kept[~zero] / 0.7)


def test_pretrain_option_freezes_the_backbone(tmp_path, config):
    frozen = ClassifierConfig(config.pretrained_model_path, 2, option="pretrain")
    model = LlamaEmbeddingClassifier(frozen)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable == ["classifier_head.weight", "classifier_head.bias"]
    assert all(p.requires_grad for p in LlamaEmbeddingClassifier(config).parameters())


def test_any_configuration_object_will_do(config, tokenizer_model):
    class CourseConfig:
        pretrained_model_path = config.pretrained_model_path
        num_labels = 3
        hidden_dropout_prob = 0.1
        option = "finetune"

    assert LlamaEmbeddingClassifier(CourseConfig()).dropout.p == 0.1
    tokenizer = Tokenizer(tokenizer_model=tokenizer_model)
    LlamaZeroShotClassifier(CourseConfig(), tokenizer, ["a", "good", "bad"])


def test_label_names_must_fit(config, tokenizer_model):
    tokenizer = Tokenizer(tokenizer_model=tokenizer_model)
    with pytest.raises(ValueError, match="2 label names for 3 labels"):
        LlamaZeroShotClassifier(config, tokenizer, ["bad", "good"])


def test_save_and_load(tmp_path, config, llama):
    model = LlamaEmbeddingClassifier(config).eval()
    path = tmp_path / "c.pt"
    save_classifier(path, llama.config, model.state_dict(), hidden_dropout_prob=0.2, epoch=3)
    loaded = load_classifier(path)
    tokens = random_tokens(llama.config, 2, 9)
    assert torch.equal(loaded(tokens), model(tokens))
    assert loaded.dropout.p == 0.2 and not loaded.training
    assert loaded.llama.output.weight is loaded.llama.tok_embeddings.weight
    saved = torch.load(path, weights_only=True)
    assert saved["epoch"] == 3 and saved["classifier"]["num_labels"] == 3


def test_load_refuses_what_is_no_classifier(tmp_path, llama):
    with pytest.raises(ValueError, match="without a classifier head"):
        load_classifier(tmp_path / "m.pt")
    state = {f"llama.{k}": v for k, v in llama.state_dict().items()}
    state |= {"classifier_head.bias": torch.zeros(2)}
    save_classifier(tmp_path / "c.pt", llama.config, state, hidden_dropout_prob=0.0)
    with pytest.raises(ValueError, match=r"lacks classifier_head\.weight"):
        load_classifier(tmp_path / "c.pt")
