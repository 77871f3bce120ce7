"""What no format reads is named for what it is, with what to give instead."""

import json
from pathlib import Path

import pytest
import torch

from mini_llama.checkpoints.reading import read_checkpoint, recognise
from tests.checkpoints.formats.test_huggingface import change, twin

safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    twin(tie_word_embeddings=False).save_pretrained(tmp_path / "m", max_shard_size="8KB")
    return tmp_path / "m"


def refusal(path: Path) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_one_shard(folder: Path, tmp_path):
    shard = next(folder.glob("*-of-*"))
    assert f"is one shard of a model: give its folder, {folder}" in refusal(shard)
    alone = shard.rename(tmp_path / shard.name)
    assert "get all of its files" in refusal(alone)
    loose = alone.rename(tmp_path / "loose.safetensors")
    assert "a safetensors file without its config.json" in refusal(loose)
    old = tmp_path / "pytorch_model-00001-of-00002.bin"
    torch.save({"a": torch.zeros(1)}, old)
    assert "is one shard" in refusal(old)
    old = old.rename(tmp_path / "consolidated.00.pth")
    assert "params.json" in refusal(old)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_file_of_a_folder_means_the_folder(folder: Path, name: str):
    assert read_checkpoint(folder / name).path == folder


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (b"GGUF\3\0\0\0" + bytes(40), "is a GGUF file that lacks general.architecture"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(9), "HDF5"),
    ],
)
def test_files_of_other_programs(tmp_path, start: bytes, part: str):
    (tmp_path / "m.pt").write_bytes(start)
    assert part in refusal(tmp_path / "m.pt")


def test_folders_that_are_none(folder: Path, tmp_path):
    assert f"give {folder}, which has one" in refusal(tmp_path)
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "m.gguf").write_bytes(b"GGUF")
    assert f"give one of them, such as {tmp_path / 'g' / 'm.gguf'}" in refusal(tmp_path / "g")
    (tmp_path / "g" / "m.gguf").rename(tmp_path / "g" / "model.safetensors")
    assert "holds weights, but neither config.json" in refusal(tmp_path / "g")
    (tmp_path / "g" / "params.json").write_text("{}")
    (tmp_path / "g" / "consolidated.safetensors").write_text("")
    assert "Mistral's own format" in refusal(tmp_path / "g")


def test_adapters_of_peft(folder: Path, tmp_path):
    (tmp_path / "a").mkdir()
    settings = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "some/model"})
    (tmp_path / "a" / "adapter_config.json").write_text(settings)
    assert "holds adapters of PEFT of some/model, not a model" in refusal(tmp_path / "a")
    safetensors.save_file({"a": torch.zeros(1)}, tmp_path / "a" / "adapter_model.safetensors")
    assert "give --adapters" in refusal(tmp_path / "a" / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(settings)
    assert "holds a model, and adapters of PEFT" in refusal(folder)


@pytest.mark.parametrize(
    ("file", "content", "method"),
    [
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "GPTQ"),
        ("config.json", {"quantization_config": {"quant_method": "awq"}}, "AWQ"),
        ("config.json", {"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        ("config.json", {"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ("config.json", {"quantization_config": {"quant_method": "new"}}, "new"),
        ("quantize_config.json", {"bits": 4, "group_size": 128}, "GPTQ"),
        ("quant_config.json", {"w_bit": 4}, "AWQ"),
    ],
)
def test_models_quantized_by_others(folder: Path, file: str, content: dict, method: str):
    """Before any weight is read."""
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | content))
    assert f"is quantized by {method} (" in refusal(folder)
    with pytest.raises(ValueError, match="is quantized by"):
        recognise(folder)


@pytest.mark.parametrize(
    ("names", "method"),
    [
        (("qweight", "qzeros", "g_idx"), "GPTQ"),
        (("qweight", "qzeros"), "GPTQ or AWQ"),
        (("weight", "weight.absmax"), "bitsandbytes"),
        (("weight", "SCB"), "bitsandbytes"),
        (("weight", "weight_scale_inv"), "fp8"),
    ],
)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_tensors_show_who_quantized_them(tmp_path, names: tuple, method: str, file: str):
    twin().config.save_pretrained(tmp_path)
    layer = "model.layers.0.self_attn.q_proj."
    tensors = {layer + name: torch.zeros(4, dtype=torch.int8) for name in names}
    save = safetensors.save_file if file.endswith("tensors") else torch.save
    save(tensors, tmp_path / file)
    assert f"is quantized by {method} (" in refusal(tmp_path)


DTYPES = [torch.int8, torch.uint8, torch.int32, torch.bool, torch.float8_e4m3fn, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_rule_for_what_weights_are(tmp_path, dtype: torch.dtype):
    """In every format: such numbers would be computed with as if they were the weights."""
    model = twin(tie_word_embeddings=False)
    model.config.save_pretrained(tmp_path)
    name = "model.layers.0.self_attn.q_proj.weight"
    state = dict(model.state_dict())
    state[name] = state[name].to(dtype)
    part = f"{name} has dtype "
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert part in refusal(tmp_path)
    safetensors.save_file(state, tmp_path / "model.safetensors")
    assert part in refusal(tmp_path)
    args = {"dim": 32, "n_layers": 2, "n_heads": 4}
    torch.save({"model": state, "model_args": args}, tmp_path / "m.pt")
    assert part in refusal(tmp_path / "m.pt")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "params.json").write_text(json.dumps(args | {"norm_eps": 1e-5}))
    torch.save(state, tmp_path / "meta" / "consolidated.00.pth")
    with pytest.raises(ValueError, match="has dtype"):
        read_checkpoint(tmp_path / "meta")


def test_a_model_of_another_kind_is_named_first(folder: Path):
    change(folder / "config.json", model_type="mistral")
    with pytest.raises(ValueError, match="'mistral'"):
        recognise(folder)
