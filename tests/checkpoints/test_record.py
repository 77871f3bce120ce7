"""Key names, strict rules, and what a checkpoint records of itself."""

import re
import zipfile
from pathlib import Path

import pytest
import torch

from config import NORMS, RopeScaling, expected_shapes
from llama import Llama, load_pretrained
from mini_llama.checkpoints.formats.folder import save_folder
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.record import (
    Checkpoint,
    check_can_be_saved,
    check_is_pretrained,
    fit_tensors,
    migrate_names,
    stored_tensors,
    usable,
)
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


# The record by itself

PATH = Path("folder") / "m.pt"


def checkpoint_of(llama: Llama, **metadata: object) -> Checkpoint:
    return Checkpoint(PATH, plain_args(llama), llama.state_dict(), metadata)


def test_what_a_record_says_of_itself(llama):
    checkpoint = checkpoint_of(llama)
    assert checkpoint.recorded == {} and checkpoint.has_biases is False
    assert checkpoint.metadata == {} and checkpoint.format == ""
    checkpoint.model_args |= {"norm": "rmsnorm", "attention": "causal"}
    assert checkpoint.recorded == {"norm": "rmsnorm", "attention": "causal"}
    layernorm = random_llama(tiny_config(norm="layernorm"))
    assert checkpoint_of(layernorm).has_biases is True


def test_the_embedding_is_tied_where_both_copies_are_equal(llama):
    checkpoint = checkpoint_of(llama)
    tensors = dict(checkpoint.tensors)
    assert torch.equal(tensors["output.weight"], tensors["tok_embeddings.weight"])
    for output, is_tied in (
        (tensors["tok_embeddings.weight"].clone(), True),
        (tensors["tok_embeddings.weight"] + 1, False),
        (None, True),
    ):
        tensors.pop("output.weight", None)
        tensors |= {} if output is None else {"output.weight": output}
        checkpoint.tensors = tensors
        assert checkpoint.make_config().tie_word_embeddings is is_tied


def test_heads_are_no_pretrained_models(llama):
    check_is_pretrained(checkpoint_of(llama))
    head = (
        "it has no output layer, so it cannot generate; "
        "its head, if it has one, is loaded by task_heads.load_task_head"
    )
    for metadata, message in (
        ({"classifier": {}}, "is a trained classifier, not a pretrained model; name the latter"),
        ({"task_head": {}}, f"is a model with another head: {head}"),
        ({"task_head": {}, "architecture": "LlamaModel"}, f"is a LlamaModel: {head}"),
    ):
        with pytest.raises(ValueError) as error:
            check_is_pretrained(checkpoint_of(llama, **metadata))
        assert str(error.value) == f"{PATH} {message}"


def test_only_whole_words_of_names_are_migrated():
    given = {
        "_orig_mod.layers.0.attention.wq.weight": 1,
        "layers.0.attention.wk.weight": 2,
        "layers.0.attention.wv.bias": 3,
        "layers.0.attention.wo.weight": 4,
        "layers.0.cross_attention.wq.weight": 5,
        "layers.0.attention.wqkv.weight": 6,
        "freqs_cos": 7,
        "_orig_mod.freqs_sin": 8,
        "norm._orig_mod.weight": 9,
    }
    assert migrate_names(PATH, given) == {
        "layers.0.attention.compute_query.weight": 1,
        "layers.0.attention.compute_key.weight": 2,
        "layers.0.attention.compute_value.bias": 3,
        "layers.0.attention.compute_output.weight": 4,
        "layers.0.cross_attention.wq.weight": 5,
        "layers.0.attention.wqkv.weight": 6,
        "norm._orig_mod.weight": 9,
    }


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_output_layer_is_the_embedding_where_tied(is_tied: bool):
    """Also where the file holds other values under its name, and the configuration decides."""
    llama = random_llama(tiny_config(norm="rmsnorm", tie_word_embeddings=False))
    config = tiny_config(norm="rmsnorm", tie_word_embeddings=is_tied)
    tensors = stored_tensors(checkpoint_of(llama), config)
    source = "tok_embeddings.weight" if is_tied else "output.weight"
    assert torch.equal(tensors["output.weight"], llama.state_dict()[source])


def test_an_output_layer_of_another_shape_is_refused_beside_the_embedding():
    llama = random_llama(tiny_config(norm="rmsnorm", tie_word_embeddings=False))
    checkpoint = checkpoint_of(llama)
    checkpoint.tensors["output.weight"] = torch.zeros(95, 32)
    wrong = "its model_args: wrong shape output.weight [95, 32] instead of [96, 32]; "
    with pytest.raises(ValueError, match=re.escape(wrong)):
        stored_tensors(checkpoint, llama.config)


def test_neither_embedding_nor_output_layer(llama):
    checkpoint = checkpoint_of(llama)
    for name in ("output.weight", "tok_embeddings.weight"):
        del checkpoint.tensors[name]
    assert llama.config.tie_word_embeddings
    missing = "its model_args: missing tok_embeddings.weight, output.weight; "
    with pytest.raises(ValueError, match=missing):
        stored_tensors(checkpoint, llama.config)


@pytest.mark.parametrize(("n_layers", "problem"), [(2, "does not fit"), (3, "holds 2 tensors")])
def test_fewer_tensors_than_layers(n_layers: int, problem: str):
    tensors = {"a": torch.zeros(1), "b": torch.zeros(1)}
    with pytest.raises(ValueError, match=f"{PATH} {problem}"):
        stored_tensors(Checkpoint(PATH, {}, tensors), tiny_config(n_layers=n_layers))


def test_zero_biases_are_left_out_under_rmsnorm(llama):
    checkpoint = checkpoint_of(llama)
    biases = {
        name.replace("norm.weight", "norm.bias"): torch.zeros(32)
        for name in llama.state_dict()
        if name.endswith("norm.weight")
    }
    checkpoint.tensors = {**llama.state_dict(), **biases}
    assert fit_tensors(checkpoint, llama.config).keys() == llama.state_dict().keys()
    checkpoint.tensors["layers.1.ffn_norm.bias"][31] = 1e-30
    with pytest.raises(ValueError) as error:
        fit_tensors(checkpoint, llama.config)
    assert str(error.value) == (
        f"{PATH}: layers.1.ffn_norm.bias is not 0, and RMSNorm has no bias; "
        "use --norm layernorm or another edition"
    )


@pytest.mark.parametrize(
    ("count", "listed"),
    [(1, "a0"), (3, "a0, a1, a2"), (4, "a0, a1, a2 and 1 more"), (6, "a0, a1, a2 and 3 more")],
)
def test_the_first_three_of_many_names_are_listed(llama, count: int, listed: str):
    checkpoint = checkpoint_of(llama)
    checkpoint.tensors = {**llama.state_dict(), **{f"a{i}": torch.zeros(1) for i in range(count)}}
    with pytest.raises(ValueError, match=rf"its model_args: unexpected {listed}; "):
        stored_tensors(checkpoint, llama.config)


def test_problems_are_listed_together(llama):
    checkpoint = checkpoint_of(llama)
    checkpoint.tensors = {
        **llama.state_dict(),
        "extra": torch.zeros(1),
        "norm.weight": torch.ones(2),
    }
    del checkpoint.tensors["layers.0.ffn_norm.weight"]
    problems = "missing layers.0.ffn_norm.weight; unexpected extra; "
    problems += "wrong shape norm.weight [2] instead of [32]; "
    with pytest.raises(
        ValueError, match=re.escape(f"{PATH} does not fit its model_args: {problems}")
    ):
        stored_tensors(checkpoint, llama.config)


def test_usable_tensors_are_contiguous_aligned_and_copied_only_if_need_be():
    whole = torch.arange(6.0).reshape(2, 3)
    assert usable(whole).data_ptr() == whole.data_ptr()
    assert usable(whole.T).is_contiguous() and torch.equal(usable(whole.T), whole.T)
    assert usable(whole.bfloat16()).dtype == torch.float32
    assert usable(whole, torch.bfloat16).dtype == torch.bfloat16
    assert not usable(whole.clone().requires_grad_()).requires_grad
    odd = torch.frombuffer(bytearray(9), dtype=torch.float32, offset=1)
    assert odd.data_ptr() % 4 and usable(odd).data_ptr() % 4 == 0
    assert torch.equal(usable(odd), torch.zeros(2))


def test_quantized_weights_cannot_be_saved():
    floats = {"a": torch.zeros(1), "b": torch.zeros(1).bfloat16()}
    check_can_be_saved(floats)
    with pytest.raises(ValueError) as error:
        check_can_be_saved(floats | {"c": torch.zeros(1, dtype=torch.int8)})
    assert str(error.value) == "c is int8, and cannot be saved: load without quantize"
