"""Key names, strict rules, and what a checkpoint records of itself."""

import re
import zipfile

import pytest
import torch

from config import NORMS, RopeScaling, expected_shapes
from llama import Llama, load_pretrained
from mini_llama.checkpoints.formats.folder import save_folder
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.record import fit_tensors
from tests.checkpoints.helpers import assert_same_model, plain_args, save_torch
from tests.helpers import random_llama, random_tokens, tiny_config


@pytest.fixture
def llama() -> Llama:
    return random_llama(tiny_config(norm="rmsnorm", attention="causal"))


SCALINGS = [
    RopeScaling("linear", 2.0),
    RopeScaling("dynamic", 2, 8),
    RopeScaling("llama3", 8.0, 8, 1.0, 4.0),
]


@torch.inference_mode()
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_rope_scaling_is_kept_as_plain_data(tmp_path, scaling: RopeScaling):
    config = tiny_config(norm="rmsnorm", attention="causal", rope_scaling=scaling)
    llama = random_llama(config)
    tokens = random_tokens(config, 2, 16)
    expected = llama(tokens, targets=tokens)[0]
    save_checkpoint(tmp_path / "model.pt", config, llama.state_dict())
    save_folder(tmp_path / "model", config, llama.state_dict())
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert type(content["model_args"]["rope_scaling"]) is dict
    for path in (tmp_path / "model.pt", tmp_path / "model"):
        loaded = load_pretrained(path)
        assert loaded.config == config
        assert torch.equal(loaded(tokens, targets=tokens)[0], expected)
    damaged = content["model_args"] | {"rope_scaling": {"rope_type": "linear", "factor": "2"}}
    save_checkpoint(tmp_path / "model.pt", damaged, llama.state_dict())
    with pytest.raises(ValueError, match=r"model\.pt: model_args: rope_scaling\.factor='2'"):
        load_pretrained(tmp_path / "model.pt")


TRUE_42M_ARGS = {
    "dim": 512,
    "n_layers": 8,
    "n_heads": 8,
    "n_kv_heads": 8,
    "vocab_size": 32000,
    "multiple_of": 32,
    "max_seq_len": 1024,
}


def test_true_schema_of_stories42m(shared, tmp_path):
    """The real file's own pickle, its storages filled with zeros."""
    path = tmp_path / "stories42M.pt"
    pickled = (shared / "checkpoints" / "stories42M-data.pkl").read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("stories42M/data.pkl", pickled)
        archive.writestr("stories42M/version", "3\n")
        for number in range(76):
            count = 32000 * 512 if number in (0, 42) else 1376 * 512  # as many as any needs
            archive.writestr(f"stories42M/data/{number}", bytes(4 * count))
    checkpoint = read_checkpoint(path)
    assert {k: checkpoint.model_args[k] for k in TRUE_42M_ARGS} == TRUE_42M_ARGS
    config = checkpoint.make_config()
    assert len(checkpoint.tensors) == 75
    assert sum(t.nbytes for t in checkpoint.tensors.values()) == 232_294_400
    assert config.tie_word_embeddings
    biases = fit_tensors(checkpoint, config).keys() - checkpoint.tensors.keys()
    assert len(biases) == 17 and all(name.endswith("norm.bias") for name in biases)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tied", [True, False])
def test_expected_shapes_are_the_networks(norm: str, tied: bool):
    config = tiny_config(norm=norm, tie_word_embeddings=tied)
    shapes = {name: tuple(t.shape) for name, t in Llama(config).state_dict().items()}
    assert dict(expected_shapes(config)) == shapes


def test_own_file_records_its_arithmetic(tmp_path, llama):
    save_checkpoint(tmp_path / "own.pt", llama.config, llama.state_dict())
    loaded = load_pretrained(tmp_path / "own.pt")
    assert loaded.config == llama.config
    assert_same_model(loaded, llama)
    assert "recorded in the checkpoint" in str(loaded.arithmetic)
    assert not loaded.training
    assert load_pretrained(tmp_path / "own.pt", edition="fall2024").config.attention == (
        "bidirectional"
    )


def to_karpathy(name: str) -> str:
    for letter, word in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
        name = name.replace(f"compute_{word}", f"w{letter}")
    return name


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("legacy", [True, False], ids=["legacy pickle", "zip"])
def test_karpathy_names(tmp_path, llama, prefix: str, legacy: bool):
    tensors = {prefix + to_karpathy(k): v for k, v in llama.state_dict().items()}
    tensors |= {prefix + f"freqs_{f}": torch.ones(16, 4) for f in ("cos", "sin")}
    path = save_torch(
        tmp_path / "model.bin",  # the content counts, not the name
        tensors,
        plain_args(llama),
        _use_new_zipfile_serialization=not legacy,
    )
    assert_same_model(load_pretrained(path, edition="llama2"), llama)


def test_missing_layernorm_biases_are_zero(tmp_path, llama):
    path = save_torch(tmp_path / "m.pt", llama.state_dict(), plain_args(llama))
    loaded = load_pretrained(path)
    assert loaded.config.norm == "layernorm"
    assert not loaded.norm.bias.any() and not loaded.layers[1].ffn_norm.bias.any()


def test_layernorm_biases_are_not_lost_in_silence(tmp_path):
    llama = random_llama(tiny_config(norm="layernorm"))
    save_checkpoint(tmp_path / "m.pt", llama.config, llama.state_dict())
    assert_same_model(load_pretrained(tmp_path / "m.pt"), llama)
    with pytest.raises(ValueError, match=r"m\.pt: .*norm\.bias is not 0"):
        load_pretrained(tmp_path / "m.pt", norm="rmsnorm")


def drop(name: str):
    return lambda tensors, _: tensors.pop(name)


def add(name: str):
    return lambda tensors, _: tensors.update({name: torch.zeros(2)})


def set_arg(name: str, value: object):
    return lambda _, args: args.update({name: value})


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (drop("layers.1.attention.compute_key.weight"), "layers.1.attention.compute_key.weight"),
        (drop("norm.weight"), "missing norm.weight"),
        (drop("tok_embeddings.weight"), "missing tok_embeddings.weight"),
        (add("layers.0.attention.rotary.inv_freq"), "unexpected layers.0.attention.rotary"),
        (add("classifier.weight"), "unexpected classifier.weight"),
        (add("layers.2.ffn_norm.weight"), "unexpected layers.2.ffn_norm.weight"),
        (add("layers.0.attention.wq.weight"), "compute_query.weight twice"),
        (set_arg("dim", 64), "wrong shape tok_embeddings.weight [96, 32] instead of [96, 64]"),
        (set_arg("n_layers", 10**9), "too few for n_layers=1000000000"),
        (set_arg("n_layers", 3), "missing layers.2."),
        (set_arg("n_heads", 5), "dim=32 is not allowed: it must be a multiple of n_heads=5"),
        (set_arg("n_heads", "4"), "n_heads='4'"),
        (set_arg("moe_experts", 8), "unknown model_args moe_experts"),
        (set_arg("norm", "batchnorm"), "norm='batchnorm'"),
    ],
)
def test_strict(tmp_path, llama, damage, named: str):
    tensors, args = llama.state_dict(), plain_args(llama)
    damage(tensors, args)
    path = save_torch(tmp_path / "m.pt", tensors, args)
    with pytest.raises(ValueError, match=re.escape(named)) as error:
        load_pretrained(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_course_constants_in_model_args_are_ignored(tmp_path, llama):
    args = plain_args(llama) | {"position_embedding_type": "rotary", "use_cache": True}
    path = save_torch(tmp_path / "m.pt", llama.state_dict(), args)
    assert_same_model(load_pretrained(path, edition="llama2"), llama)


def test_half_precision_becomes_float32(tmp_path, llama):
    halves = {name: tensor.bfloat16() for name, tensor in llama.state_dict().items()}
    loaded = load_pretrained(save_torch(tmp_path / "m.pt", halves, plain_args(llama)), "llama2")
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    assert torch.equal(loaded.norm.weight, llama.norm.weight.bfloat16().float())
