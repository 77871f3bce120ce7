"""Loading in other dtypes and rounded, tensor by tensor, against models rounded by hand."""

import os
from pathlib import Path

import pytest
import torch

from classifier import ClassifierConfig, LlamaEmbeddingClassifier, load_backbone
from config import NORMS
from llama import Llama, load_pretrained
from mini_llama.checkpoints import lazy_tensors, loading
from mini_llama.checkpoints.formats import llama2c
from mini_llama.checkpoints.formats.folder import save_folder, write_folder
from mini_llama.checkpoints.formats.huggingface import export_config, export_tensors
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.lazy_tensors import LazyTensors
from mini_llama.checkpoints.mapped_pages import MappedPages
from mini_llama.inference.compiled_decoding import CompiledDecoder, Matrix
from mini_llama.inference.decoding import FastDecoder
from mini_llama.inference.generation import generate
from mini_llama.inference.sampling import Sampler
from mini_llama.layers.quantized_linear import FEW_ROWS, Int8Linear, NF4Linear
from tests.checkpoints.formats.test_meta import write_meta
from tests.checkpoints.helpers import read_maps
from tests.helpers import assert_relative, numpy_weights, random_llama, random_tokens, tiny_config
from tests.layers.test_quantized_linear import (
    BFLOAT16,
    int8_by_hand,
    needs_bitsandbytes,
    nf4_by_hand,
)
from tests.oracle import forward

TRUE = {"norm": "rmsnorm", "attention": "causal"}
BYTES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def save(path: Path, **changes: object) -> Llama:
    llama = random_llama(tiny_config(**TRUE | changes))
    save_checkpoint(path, llama.config, llama.state_dict())
    return llama


def exact_logits(llama: Llama, tokens: torch.Tensor, quantize: str) -> torch.Tensor:
    """float64 logits (B, T, V) of the model with its matrices rounded by hand."""
    weights, config = numpy_weights(llama), llama.config
    for name, weight in weights.items():
        if weight.ndim == 2 and name != "tok_embeddings.weight":
            by_hand = int8_by_hand if name == "output.weight" or quantize == "int8" else nf4_by_hand
            weights[name] = by_hand(weight)
    shape = {name: getattr(config, name) for name in ("n_heads", "n_kv_heads", *TRUE)}
    return torch.from_numpy(forward(weights, **shape, tokens=tokens)[0])


@torch.no_grad()
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tied", [True, False])
def test_int8_logits_are_those_of_weights_rounded_by_hand(tmp_path, norm, attention, tied: bool):
    """Many rows are multiplied in float32, few in bfloat16."""
    changes = {"norm": norm, "attention": attention, "tie_word_embeddings": tied}
    llama = save(tmp_path / "m.pt", **changes, max_seq_len=128)
    loaded = load_pretrained(tmp_path / "m.pt", quantize="int8")
    assert loaded.quantization == "int8" and not loaded.training
    for rows, tolerance in ((FEW_ROWS + 1, 2e-5), (7, 3 * BFLOAT16)):
        tokens = random_tokens(llama.config, 1, rows)
        expected = exact_logits(llama, tokens, "int8")
        assert_relative(loaded(tokens, targets=tokens)[0], expected, tolerance)


@needs_bitsandbytes
@torch.no_grad()
def test_nf4_logits_are_those_of_weights_rounded_by_hand(tmp_path):
    """The scales' own 8 bits are what tells them apart."""
    llama = save(tmp_path / "m.pt", dim=64, hidden_dim=128, tie_word_embeddings=False)
    loaded = load_pretrained(tmp_path / "m.pt", quantize="nf4")
    assert isinstance(loaded.layers[0].feed_forward.w1, NF4Linear)
    assert isinstance(loaded.output, Int8Linear)
    tokens = random_tokens(llama.config, 2, 9)
    expected = exact_logits(llama, tokens, "nf4")
    assert_relative(loaded(tokens, targets=tokens)[0], expected, 0.08)
    exact, _ = llama(tokens, targets=tokens)
    wrong = (exact - expected).abs().max() / expected.abs().max()
    assert wrong > 0.1  # 4 bits do matter


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("tied", [True, False])
def test_other_dtypes_equal_a_converted_model(tmp_path, dtype: str, tied: bool):
    llama = save(tmp_path / "m.pt", tie_word_embeddings=tied)
    loaded = load_pretrained(tmp_path / "m.pt", dtype=dtype)
    expected = llama.to(BYTES[dtype]).state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == BYTES[dtype] and torch.equal(tensor, expected[name])
    assert (loaded.output.weight is loaded.tok_embeddings.weight) == tied


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("folder", [True, False])
def test_mapped_tensors_are_not_copied(tmp_path, dtype: str, folder: bool):
    llama = random_llama(tiny_config(**TRUE, tie_word_embeddings=False)).to(BYTES[dtype])
    path = tmp_path / "m.pt"
    if folder:
        save_folder(tmp_path, llama.config, llama.state_dict())
        path = tmp_path / "model.safetensors"
    else:
        save_checkpoint(path, llama.config, llama.state_dict())
    loaded = load_pretrained(path, dtype=dtype)
    mapped = read_maps(path)
    for name, parameter in loaded.named_parameters():
        assert any(a <= parameter.data_ptr() < b for a, b in mapped), f"{name} is a copy"


def test_each_tensor_is_read_once_and_only_while_it_is_placed(tmp_path, monkeypatch):
    """Until then all of the model is on the meta device, and behind it nothing is on it."""
    save(tmp_path / "m.pt", tie_word_embeddings=False)
    read, models = [], []
    real = loading.place_tensors

    def spy(model: Llama, tensors: LazyTensors, *arguments: object) -> None:
        assert all(parameter.is_meta for parameter in model.parameters())

        def make(name: str) -> torch.Tensor:
            left = [name for name, p in model.named_parameters() if p.is_meta]
            assert name in left and len(left) == len(tensors) - len(read)
            read.append(name)
            return tensors[name]

        models.append(model)
        real(model, LazyTensors(tensors.meta, make), *arguments)

    monkeypatch.setattr(loading, "place_tensors", spy)
    loaded = load_pretrained(tmp_path / "m.pt", quantize="int8")
    assert len(read) == len(set(read)) == 21
    assert not any(t.is_meta for t in [*loaded.parameters(), *loaded.buffers()])
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@torch.no_grad()
def test_the_file_is_opened_once_and_its_pages_given_back(tmp_path, monkeypatch):
    """Many times while it is quantized, and the model is the same as without."""
    save(tmp_path / "m.pt")
    expected = load_pretrained(tmp_path / "m.pt", quantize="int8")
    opened, given_back = [], []
    real, give_back = loading.read_checkpoint, MappedPages.give_back
    monkeypatch.setattr(lazy_tensors, "STREAMED_BYTES", 10_000)
    monkeypatch.setattr(loading, "read_checkpoint", lambda p: opened.append(p) or real(p))
    monkeypatch.setattr(
        MappedPages, "give_back", lambda pages: given_back.append(pages) or give_back(pages)
    )
    loaded = load_pretrained(tmp_path / "m.pt", quantize="int8")
    assert len(opened) == 1 and len(given_back) > 5 and len(set(given_back)) == 1
    tokens = random_tokens(loaded.config, 1, 5)
    assert torch.equal(loaded(tokens)[0], expected(tokens)[0])


def test_a_file_that_changes_while_it_is_quantized_is_refused(tmp_path, monkeypatch):
    save(tmp_path / "m.pt")
    real = loading.place_tensors

    def change_and_place(*arguments: object) -> None:
        real(*arguments)
        os.utime(tmp_path / "m.pt", ns=(0, 1))

    monkeypatch.setattr(loading, "place_tensors", change_and_place)
    with pytest.raises(ValueError, match=r"m\.pt was changed while it was read"):
        load_pretrained(tmp_path / "m.pt", quantize="int8")


@torch.no_grad()
@pytest.mark.parametrize("quantize", ["int8", None])
def test_other_formats_are_loaded_the_same(tmp_path, quantize: str | None):
    """Two of Meta's shards, llama2.c's 8 bits and a Hugging Face folder."""
    llama = random_llama(
        tiny_config(**TRUE, n_kv_heads=4, tie_word_embeddings=False, max_seq_len=2048)
    )
    config, state = llama.config, llama.state_dict()
    write_meta(tmp_path / "meta", llama, 2)
    llama2c.write_q80(tmp_path / "q80.bin", config, state)
    theirs = export_tensors(LazyTensors(state), config)
    write_folder(tmp_path / "hf", export_config(config), dict(theirs))
    tokens = random_tokens(config, 1, FEW_ROWS + 1)
    expected = exact_logits(llama, tokens, "int8") if quantize else llama(tokens, targets=tokens)[0]
    for name, tolerance in (("meta", 0.03), ("hf", 0.03), ("q80.bin", 0.06)):
        loaded = load_pretrained(tmp_path / name, "llama2", dtype="bfloat16", quantize=quantize)
        assert loaded.dtype == torch.bfloat16
        assert_relative(loaded(tokens, targets=tokens)[0], expected, tolerance)


# Decoding


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decoding_uses_the_rounded_weights_themselves(tmp_path, dtype: str, monkeypatch):
    save(tmp_path / "m.pt")
    loaded = load_pretrained(tmp_path / "m.pt", dtype=dtype, quantize="int8")
    prompt = random_tokens(loaded.config, 2, 5)
    expected = generate(loaded, prompt, 30, Sampler(0.0), use_cache=False)
    monkeypatch.setattr(
        "mini_llama.inference.decoding.Int8Linear", None
    )  # nothing is rounded again
    monkeypatch.setattr("mini_llama.inference.decoding.packed_linear", None)  # nor copied
    agree = (loaded.generate(prompt, 30, 0.0) == expected).float().mean()
    assert agree > 0.6 if dtype == "bfloat16" else agree > 0.9


@torch.inference_mode()
@pytest.mark.parametrize("may_copy", [True, False])
@pytest.mark.parametrize("rows", [1, 3])
def test_bfloat16_decodes_with_or_without_a_second_copy(tmp_path, rows, may_copy, monkeypatch):
    save(tmp_path / "m.pt")
    loaded = load_pretrained(tmp_path / "m.pt", dtype="bfloat16")
    if not may_copy:
        monkeypatch.setattr("mini_llama.inference.decoding.available_bytes", lambda device: 10)
        monkeypatch.setattr("mini_llama.inference.decoding.packed_linear", None)
    tokens = random_tokens(loaded.config, rows, 8)
    decoder = FastDecoder(loaded, rows, "bfloat16")
    cache = decoder.make_cache(rows, 8)
    assert cache.keys.dtype == torch.bfloat16
    steps = [decoder(tokens[:, i : i + 1], cache) for i in range(8)]
    expected = loaded.float()(tokens, targets=tokens)[0]
    assert_relative(torch.stack(steps, dim=1), expected, 0.03)


def test_the_compiled_step_takes_the_rounded_weights_themselves(tmp_path):
    save(tmp_path / "m.pt", dim=64, hidden_dim=96)
    layer = load_pretrained(tmp_path / "m.pt", quantize="int8").layers[0].feed_forward.w2
    matrix = Matrix(layer, "int8")
    assert matrix.weight.data_ptr() == layer.weight.data_ptr()
    assert matrix.scales is layer.scales
    loaded = load_pretrained(tmp_path / "m.pt", dtype="bfloat16").layers[0].feed_forward.w2
    assert Matrix(loaded, "bfloat16").weight.data_ptr() == loaded.weight.data_ptr()


# What is refused


def test_refusals_are_one_line(tmp_path, monkeypatch):
    llama = save(tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"^quantize 'int4' is none of None, int8, nf4$"):
        load_pretrained(tmp_path / "m.pt", quantize="int4")
    with pytest.raises(ValueError, match=r"^dtype 'int8' is none of float32, bfloat16, float16$"):
        load_pretrained(tmp_path / "m.pt", dtype="int8")
    bad = llama.state_dict() | {"layers.1.feed_forward.w3.weight": torch.full((88, 32), torch.nan)}
    save_checkpoint(tmp_path / "bad.pt", llama.config, bad)
    with pytest.raises(ValueError, match=r"^layers\.1\.feed_forward\.w3\.weight: it holds NaN"):
        load_pretrained(tmp_path / "bad.pt", quantize="int8")
    loaded = load_pretrained(tmp_path / "m.pt", quantize="int8")
    loaded.quantization = "nf4"
    with pytest.raises(ValueError, match="no nf4 weights: leave --compile out"):
        CompiledDecoder(loaded)


def test_rounded_models_are_not_trained(tmp_path):
    save(tmp_path / "m.pt")
    path = str(tmp_path / "m.pt")
    with pytest.raises(ValueError, match="int8 weights cannot be trained: load them without"):
        LlamaEmbeddingClassifier(ClassifierConfig(path, 2, quantize="int8"))
    frozen = LlamaEmbeddingClassifier(ClassifierConfig(path, 2, option="pretrain", quantize="int8"))
    frozen(torch.ones(1, 4, dtype=torch.long)).sum().backward()
    assert frozen.classifier_head.weight.grad is not None
    assert load_backbone(ClassifierConfig(path, 2, quantize="int8")).quantization == "int8"
    loaded = load_pretrained(path, quantize="int8").requires_grad_(True)
    with pytest.raises(ValueError, match="quantized weights cannot be trained through"):
        loaded(torch.ones(1, 4, dtype=torch.long))
