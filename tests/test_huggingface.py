"""Hugging Face folders: what transformers itself saved loads here and gives its logits."""

import json
from pathlib import Path

import pytest
import torch

import huggingface
from conftest import assert_relative, random_llama, random_tokens, tiny_config
from llama import Llama, load_pretrained
from tensor_files import load_safetensors

transformers = pytest.importorskip("transformers")

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


def test_old_frequencies_and_ignored_heads(tmp_path):
    """Files of old hold RoPE's frequencies; a tied model's lm_head is not what counts."""
    model = twin(tie_word_embeddings=True)
    model.config.save_pretrained(tmp_path)
    state = dict(model.state_dict()) | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "lm_head.weight": torch.zeros(96, 32),
    }
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same(tmp_path, model)


def test_names_and_rows_are_the_same_way_back():
    config = tiny_config(norm="rmsnorm", attention="causal")
    state = random_llama(config).state_dict()
    theirs = huggingface.export_tensors(state, config)
    args = huggingface.import_config(huggingface.export_config(config))
    back = huggingface.import_tensors(theirs, args)
    assert back.keys() == state.keys() - {"output.weight"}
    for name, tensor in back.items():
        assert torch.equal(tensor, state[name]), name


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
    with pytest.raises(ValueError, match="a has dtype I8, which is none of F64, F32, F16, BF16"):
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


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"model_type": "mistral"}, "'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"head_dim": 16}, "head_dim is 16"),
        ({"num_attention_heads": 5}, "n_heads=5"),
        ({"num_hidden_layers": 3}, "missing layers.2."),
        ({"num_hidden_layers": 1}, "model.layers.1."),
        ({"intermediate_size": 64}, "wrong shape layers.0.feed_forward"),
        ({"vocab_size": 97}, "wrong shape tok_embeddings"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "'yarn'"),
        ({"rope_parameters": [1]}, "[1]"),
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
