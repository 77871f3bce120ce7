"""Hugging Face folders: what transformers itself saved loads here and gives its logits."""

import json
from pathlib import Path

import pytest
import torch

from config import LlamaConfig
from llama import Llama, load_pretrained
from mini_llama.checkpoints.formats import huggingface
from mini_llama.checkpoints.tensor_files import load_safetensors
from mini_llama.inference.generation import generate
from mini_llama.inference.sampling import Sampler
from tests.helpers import assert_relative, random_llama, random_tokens, tiny_config

transformers = pytest.importorskip("transformers")
save_file = pytest.importorskip("safetensors.torch").save_file

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def twin(**changes):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE | changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(0.3 * torch.randn(parameter.shape))
            else:
                parameter.mul_(5)  # far from uniform probabilities
    return model


@torch.inference_mode()
def assert_same(folder: Path, model, tolerance: float = 1e-5) -> Llama:
    llama = load_pretrained(folder)
    assert "recorded in the checkpoint" in str(llama.arithmetic)
    tokens = random_tokens(llama.config, 2, 21)
    logits, _ = llama(tokens, targets=tokens)
    assert_relative(logits, model(tokens).logits.double(), tolerance)
    return llama


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_what_transformers_saved_gives_its_logits(tmp_path, n_kv_heads: int, tied: bool):
    model = twin(num_key_value_heads=n_kv_heads, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    llama = assert_same(tmp_path, model)
    assert (llama.output.weight is llama.tok_embeddings.weight) == tied
    assert_same(tmp_path / "model.safetensors", model)


@pytest.mark.parametrize("theta", [1e4, 1e5, 5e5])
@pytest.mark.parametrize("eps", [1e-6, 1e-5, 1e-2])
def test_theta_and_eps(tmp_path, theta: float, eps: float):
    rope = {"rope_type": "default", "rope_theta": theta}
    model = twin(rope_parameters=rope, rms_norm_eps=eps)
    model.save_pretrained(tmp_path)
    config = assert_same(tmp_path, model).config
    assert (config.rope_theta, config.layer_norm_eps) == (theta, eps)


def test_fields_that_may_be_left_out(tmp_path):
    """As transformers fills them in: its eps is not our default."""
    model = twin(rms_norm_eps=1e-6, num_key_value_heads=4)
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    for name in ("rms_norm_eps", "num_key_value_heads", "tie_word_embeddings"):
        content.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert assert_same(tmp_path, model).config.layer_norm_eps == 1e-6


def test_the_older_place_of_theta(tmp_path):
    twin().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(content | {"rope_theta": 5e5}))
    assert load_pretrained(tmp_path).config.rope_theta == 5e5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_are_read_exactly(tmp_path, dtype: torch.dtype):
    twin().to(dtype).save_pretrained(tmp_path)
    # read again, as its RoPE frequencies would stay rounded otherwise
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype)[6:]
    assert_same(tmp_path, model.eval())


def test_shards_and_greedy_tokens(tmp_path):
    model = twin()
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    llama = assert_same(tmp_path, model)
    prompt = random_tokens(llama.config, 1, 5)
    theirs = model.generate(prompt, max_new_tokens=64, do_sample=False, eos_token_id=None)
    assert torch.equal(llama.generate(prompt, 64, 0.0), theirs)


def test_pytorch_bin_files(tmp_path):
    model = twin(tie_word_embeddings=False)
    model.config.save_pretrained(tmp_path)
    state = model.state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same(tmp_path, model)
    (tmp_path / "pytorch_model.bin").unlink()
    places = {name: f"pytorch_model-{len(name) % 2}.bin" for name in state}
    for file in set(places.values()):
        part = {name: tensor for name, tensor in state.items() if places[name] == file}
        torch.save(part, tmp_path / file)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert_same(tmp_path, model)


def test_old_frequencies(tmp_path, capsys):
    """Files of old hold RoPE's frequencies: those of the configuration, or a warning."""
    model = twin(tie_word_embeddings=True)
    model.config.save_pretrained(tmp_path)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    for frequencies, is_warned in ((1e4 ** -(torch.arange(4) / 4), False), (torch.ones(4), True)):
        state = dict(model.state_dict()) | {name: frequencies}
        torch.save(state, tmp_path / "pytorch_model.bin")
        assert_same(tmp_path, model)
        assert (f"warning: {name}" in capsys.readouterr().err) == is_warned


def test_names_and_rows_are_the_same_way_back():
    config = tiny_config(norm="rmsnorm", attention="causal")
    state = random_llama(config).state_dict()
    theirs = huggingface.export_tensors(state, config)
    args = huggingface.import_config(huggingface.export_config(config))
    back = huggingface.import_tensors(theirs, args)
    assert back.keys() == state.keys() - {"output.weight"}
    for name, tensor in back.items():
        assert torch.equal(tensor, state[name]), name


# Scaled RoPE: 32 positions are the original length, our window is 128

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": True,
}
LONGROPE = {
    "rope_type": "longrope",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0, 1.1, 1.3, 1.2, 1.5, 1.6, 2.0, 2.5],
    "long_factor": [1.0, 1.5, 2.5, 4.0, 7.0, 9.0, 16.0, 21.5],
}
SCALINGS = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 8},
    LLAMA3,
    LLAMA3 | {"factor": 32.0, "low_freq_factor": 0.5, "high_freq_factor": 2},
    YARN,
    YARN | {"factor": 16, "beta_fast": 3.5, "attention_factor": 1.25, "truncate": False},
    LONGROPE,
    LONGROPE | {"factor": 2.0, "attention_factor": 0.8},
]


def scaled_shape(scaling: dict, theta: float = 1e4) -> dict:
    length = 32 if scaling["rope_type"] == "dynamic" else 128
    return {
        "max_position_embeddings": length,
        "rope_parameters": scaling | {"rope_theta": theta},
        "hidden_size": 64,
    }


@torch.inference_mode()
def assert_same_lengths(llama: Llama, model, tolerance: float = 1e-5) -> None:
    """Logits within the original length, past it, and past max_position_embeddings."""
    for length in (21, 32, 33, 100, 150):  # growing: theirs keeps what a longer one made of it
        tokens = random_tokens(llama.config, 2, length)
        logits, _ = llama(tokens, targets=tokens)
        assert_relative(logits, model(tokens).logits.double(), tolerance)


@pytest.mark.parametrize("theta", [1e4, 1e5, 5e5])
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_scaled_rope_gives_the_logits_of_transformers(tmp_path, scaling: dict, theta: float):
    model = twin(**scaled_shape(scaling, theta))
    model.save_pretrained(tmp_path)
    llama = load_pretrained(tmp_path)
    found = llama.config.rope_scaling
    assert (found.rope_type, found.factor) == (scaling["rope_type"], scaling["factor"])
    assert llama.config.rope_theta == theta
    assert_same_lengths(llama, model)


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize(("rows", "length"), [(1, 5), (2, 40)])
def test_scaled_rope_gives_the_greedy_tokens_of_transformers(tmp_path, scaling, rows, length):
    """64 tokens, across the original length and from beyond it, with a cache and without."""
    shape = scaled_shape(scaling)
    twin(**shape).save_pretrained(tmp_path)
    llama = load_pretrained(tmp_path)
    prompt = random_tokens(llama.config, rows, length)
    for use_cache in (True, False):
        theirs = twin(**shape).generate(
            prompt, max_new_tokens=64, do_sample=False, eos_token_id=None, use_cache=use_cache
        )
        assert torch.equal(generate(llama, prompt, 64, Sampler(0.0), use_cache=use_cache), theirs)


def test_windows_of_scaled_models():
    """max_position_embeddings is the original length to dynamic scaling, else the scaled one."""
    for scaling in SCALINGS:
        shape = SHAPE | {"hidden_size": 64, "rms_norm_eps": 1e-5, "rope_parameters": scaling}
        args = huggingface.import_config(shape)
        expected = 128 * scaling["factor"] if scaling["rope_type"] == "dynamic" else 128
        assert args["max_seq_len"] == expected
        original = args["rope_scaling"]["original_max_seq_len"]
        assert original == {"linear": None, "dynamic": 128}.get(scaling["rope_type"], 32)


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_the_older_place_of_scaling(tmp_path, scaling: dict):
    model = twin(**scaled_shape(scaling, 5e5))
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["rope_parameters"]
    older = {"type": scaling["rope_type"]} | {k: v for k, v in scaling.items() if k != "rope_type"}
    content |= {"rope_theta": 5e5, "rope_scaling": older}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert_same_lengths(load_pretrained(tmp_path), model)


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_exported_scaling_is_what_transformers_loads(tmp_path, scaling: dict, theta: float):
    args = huggingface.import_config(SHAPE | {"rms_norm_eps": 1e-5} | scaled_shape(scaling, theta))
    llama = random_llama(LlamaConfig(**args))
    content = huggingface.export_config(llama.config)
    (tmp_path / "config.json").write_text(json.dumps(content))
    tensors = huggingface.export_tensors(llama.state_dict(), llama.config)
    save_file(dict(tensors), tmp_path / "model.safetensors")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert model.config.rope_parameters == scaling | {"rope_theta": theta}
    assert_same_lengths(llama, model)
    assert load_pretrained(tmp_path).config == llama.config
    assert huggingface.import_config(content) == args
    # what transformers makes of it is read again, and so is the older half alone
    model.config.save_pretrained(tmp_path)
    assert load_pretrained(tmp_path).config == llama.config
    del content["rope_parameters"]
    assert huggingface.import_config(content) == args


PLACE = {"original_max_position_embeddings": 32}
SHORT_FORM = {"type": "yarn", "factor": 4.0}
PHI = {k: v for k, v in LONGROPE.items() if k not in ("factor", "original_max_position_embeddings")}


@pytest.mark.parametrize(
    "values",
    [
        {"rope_scaling": SHORT_FORM | {"original_max_position_embeddings": 32, "finetuned": True}},
        {"rope_scaling": SHORT_FORM},  # of max_position_embeddings, a context not yet scaled
        {"rope_scaling": SHORT_FORM, "original_max_position_embeddings": 32},
        {"rope_scaling": {"rope_type": "yarn", "factor": None, **PLACE}},
        {"rope_scaling": SHORT_FORM | PLACE | {"beta_fast": None, "beta_slow": 0}},
        {"rope_scaling": SHORT_FORM | PLACE | {"mscale": 1.0, "mscale_all_dim": 0.5}},
        {"rope_scaling": SHORT_FORM | PLACE | {"mscale": 0.707, "mscale_all_dim": 0.707}},
        {"rope_scaling": SHORT_FORM | PLACE | {"mscale": 1.0}},
        {"rope_scaling": SHORT_FORM | PLACE | {"mscale": 1, "mscale_all_dim": 0}},
        {"rope_parameters": YARN | {"mscale": 2.0, "mscale_all_dim": 1, "attention_factor": 1.1}},
        {"rope_parameters": YARN | {"rope_theta": 5e5}},
        {"rope_scaling": PHI, "original_max_position_embeddings": 32},
        {"rope_scaling": PHI},
        {"rope_parameters": PHI | PLACE | {"factor": 8.0, "rope_theta": 1e5}},
    ],
    ids=str,
)
def test_forms_of_yarn_and_longrope(tmp_path, values: dict):
    """What may be left out, and the spellings of published files: transformers reads the same
    config.json.
    """
    twin(hidden_size=64).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(content | values))
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert_same_lengths(load_pretrained(tmp_path), model)


def test_safetensors_whose_data_is_not_aligned(tmp_path):
    """A header of odd length is allowed: safetensors' own loader is the oracle."""
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.safetensors"
    held = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.randn(2, 0).half()}
    content = safetensors.save(held, metadata={"format": "pt"})
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip() + b"   "
    header += b" " * (len(header) % 2 == 0)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    tensors = load_safetensors(path)
    assert tensors.keys() == held.keys()
    for name, tensor in safetensors.load_file(path).items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)
    safetensors.save_file({"a": torch.zeros(3, dtype=torch.int8)}, path)
    with pytest.raises(
        ValueError, match="a has dtype I8, which is none of float64, float32, float16"
    ):
        load_safetensors(path)


# What is wrong with a folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    twin(tie_word_embeddings=False).save_pretrained(tmp_path, max_shard_size="8KB")
    return tmp_path


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


def rope(**parameters) -> dict:
    return {"rope_parameters": parameters}


def llama3(**changes) -> dict:
    return rope(**LLAMA3 | changes)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"model_type": "mistral"}, "'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"num_attention_heads": 5}, "n_heads=5"),
        ({"num_hidden_layers": 3}, "missing layers.2."),
        ({"num_hidden_layers": 1}, "model.layers.1."),
        ({"intermediate_size": 64}, "wrong shape layers.0.feed_forward"),
        ({"vocab_size": 97}, "wrong shape tok_embeddings"),
        ({"rope_parameters": {"rope_type": "proportional"}}, "'proportional'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "its yarn RoPE scaling lacks factor"),
        (rope(**YARN, low_freq_factor=1.0), "low_freq_factor: RoPE of type yarn has no such"),
        (rope(**YARN | {"original_max_position_embeddings": 256}), "original_max_seq_len=256"),
        (rope(**YARN | {"beta_slow": 64.0}), "beta_fast=32.0 is not allowed"),
        (rope(**YARN, mscale="a", mscale_all_dim=1.0), "mscale 'a' and mscale_all_dim 1.0"),
        (rope(**YARN | {"factor": "4"}, mscale=1, mscale_all_dim=1), "factor '4', mscale 1"),
        (rope(**YARN, mscale=1, mscale_all_dim=-1e9), "attention_factor=-"),
        ({**rope(**YARN), "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({**rope(**YARN), "original_max_position_embeddings": 64}, "32 and 64"),
        (rope(**LONGROPE | {"long_factor": [1.0] * 4}), "short_factor"),
        (rope(**LONGROPE | {"long_factor": None}), "its longrope RoPE scaling lacks long_factor"),
        ({"rope_parameters": [1]}, "[1]"),
        ({"rope_parameters": {"rope_type": ["linear"]}}, "['linear']"),
        ({"rope_parameters": {"rope_type": ""}}, "RoPE scaling ''"),
        (rope(rope_type="longrope", factor=2.0), "scaling lacks long_factor, short_factor"),
        (rope(type="su"), "'su'"),
        (rope(rope_type="linear"), "its linear RoPE scaling lacks factor"),
        (rope(rope_type="linear", factor=None), "lacks factor"),
        (rope(rope_type="linear", factor="2"), "factor='2'"),
        (rope(rope_type="linear", factor=[2.0]), "factor=[2.0]"),
        (rope(rope_type="linear", factor=True), "factor=True"),
        (rope(rope_type="linear", factor=0.25), "factor=0.25"),
        (rope(rope_type="linear", factor=float("nan")), "factor=nan"),
        (rope(rope_type="dynamic", factor=float("inf")), "factor=inf"),
        (rope(rope_type="dynamic", factor=1e300), "factor=1e+300"),
        (rope(rope_type="linear", type="dynamic", factor=2.0), "rope_type 'linear' and 'dynamic'"),
        (rope(factor=2.0), "factor: RoPE of type default"),
        (rope(rope_type="linear", factor=2.0, beta_fast=32), "beta_fast: RoPE of type linear"),
        (rope(rope_type="linear", factor=2.0, partial_rotary_factor=0.5), "partial_rotary_factor"),
        (rope(rope_type="dynamic", factor=2.0, original_max_position_embeddings=64), "64 and 128"),
        ({**rope(rope_type="dynamic", factor=2.0), "max_position_embeddings": "9"}, "='9'"),
        ({**rope(rope_type="dynamic", factor=2.0), "max_position_embeddings": 10**400}, "from 1"),
        (
            rope(rope_type="llama3", factor=8.0),
            "lacks high_freq_factor, low_freq_factor, original_max_position_embeddings",
        ),
        (llama3(original_max_position_embeddings=None), "lacks original_max_position_embeddings"),
        (llama3(original_max_position_embeddings=32.0), "original_max_seq_len=32.0"),
        (llama3(original_max_position_embeddings=256), "max_seq_len=128"),
        (llama3(low_freq_factor=4.0), "high_freq_factor=4.0"),
        (llama3(low_freq_factor=0), "low_freq_factor=0"),
        ({**llama3(), "original_max_position_embeddings": 64}, "32 and 64"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'default' and 'linear'"),
        ({**llama3(), "rope_scaling": {"factor": 4.0}}, "factor 8.0 and 4.0"),
        (rope(rope_theta="1e4"), "rope_theta='1e4'"),
    ],
)
def test_a_config_that_contradicts_its_tensors_or_us(folder: Path, values: dict, part: str):
    change(folder / "config.json", **values)
    assert part in refusal(folder)


def test_shards_that_are_not_what_the_index_says(folder: Path):
    index = folder / "model.safetensors.index.json"
    original = json.loads(index.read_text())
    places = original["weight_map"]
    files = list(places.values())
    first = next(file for file in files if files.count(file) > 1)
    last = next(file for file in files if file > first)
    moved = next(name for name, file in places.items() if file == first)

    def refused(weight_map: object) -> str:
        change(index, weight_map=weight_map)
        return refusal(folder)

    assert "elsewhere" in refused(places | {moved: last})
    assert "lacks" in refused(places | {"model.extra": first})
    assert "not in its folder" in refused(places | {moved: "../x.safetensors"})
    assert "x.safetensors, which is not there" in refused(places | {"model.extra": "x.safetensors"})
    assert "weight_map" in refused({})
    change(index, weight_map=places)
    (folder / first).write_bytes((folder / first).read_bytes()[:-9])
    assert "damaged" in refusal(folder)
    (folder / first).unlink()
    assert f"{first}, which is not there" in refusal(folder)


def test_other_files_in_their_places(folder: Path):
    (folder / "model.safetensors.index.json").unlink()
    assert "shards such as model-00001-of-000" in refusal(folder)
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    assert "none of model.safetensors, pytorch_model.bin" in refusal(folder)
    torch.save([1], folder / "pytorch_model.bin")
    assert "not a dict of tensors" in refusal(folder)
    (folder / "config.json").write_text("[")
    assert "is not JSON" in refusal(folder)


def test_an_untied_head_must_be_there(tmp_path):
    model = twin(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    change(tmp_path / "config.json", tie_word_embeddings=False)
    assert "output.weight" in refusal(tmp_path) or "lm_head.weight" in refusal(tmp_path)
