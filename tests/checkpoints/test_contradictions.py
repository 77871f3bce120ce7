"""Parts of a checkpoint that disagree: as transformers has it, with a warning, or refused."""

import json
from pathlib import Path

import pytest
import torch

from llama import load_pretrained
from mini_llama.checkpoints import conversion
from tests.checkpoints.formats.test_huggingface import assert_same, change, refusal, twin
from tests.checkpoints.formats.test_meta import make_llama, write_meta
from tests.helpers import assert_relative, random_tokens

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")


@torch.inference_mode()
def assert_as_transformers(folder: Path) -> None:
    """The logits of what transformers itself makes of the folder."""
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert_same(folder, theirs)


def hold(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Change tensors of a folder's model.safetensors, or take them out."""
    path = folder / "model.safetensors"
    tensors = safetensors.load_file(path) | change
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    safetensors.save_file(kept, path, metadata={"format": "pt"})


def test_a_stored_output_embedding_counts_whatever_the_config_says(tmp_path, capsys):
    twin(tie_word_embeddings=True).save_pretrained(tmp_path / "m")
    other = torch.randn(96, 32)
    hold(tmp_path / "m", {"lm_head.weight": other})
    assert_as_transformers(tmp_path / "m")
    assert "warning: " in capsys.readouterr().err
    for to in ("assignment", "huggingface"):
        conversion.prepare(tmp_path / "m", tmp_path / to, to).write()
        llama = load_pretrained(tmp_path / to)
        assert torch.equal(llama.output.weight, other)


def test_equal_or_lone_output_embeddings_are_tied_in_silence(tmp_path, capsys):
    twin(tie_word_embeddings=True).save_pretrained(tmp_path)
    embedding = safetensors.load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    hold(tmp_path, {"lm_head.weight": embedding.clone()})
    assert_as_transformers(tmp_path)
    hold(tmp_path, {"lm_head.weight": embedding, "model.embed_tokens.weight": None})
    assert_as_transformers(tmp_path)
    assert "warning: " not in capsys.readouterr().err


def test_an_own_file_that_says_untied_needs_its_output(tmp_path):
    llama = make_llama()
    state = dict(llama.state_dict())
    del state["output.weight"]
    args = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 96, "multiple_of": 8}
    torch.save(
        {"model": state, "model_args": args | {"tie_word_embeddings": False}}, tmp_path / "m"
    )
    assert "lacks output.weight" in refusal(tmp_path / "m")


@pytest.mark.parametrize("stale", ["shards", "pytorch_model.bin"])
def test_several_sets_of_weights(tmp_path, capsys, stale: str):
    """model.safetensors first, then its index, then torch's files: transformers' order."""
    old = twin(initializer_range=0.5)
    with torch.no_grad():
        old.model.norm.weight.mul_(3)
    if stale == "shards":
        old.save_pretrained(tmp_path / "old", max_shard_size="8KB")
    else:
        (tmp_path / "old").mkdir()
        torch.save(old.state_dict(), tmp_path / "old" / stale)
    twin().save_pretrained(tmp_path)
    for file in (tmp_path / "old").iterdir():
        if file.name not in ("config.json", "generation_config.json"):
            file.rename(tmp_path / file.name)
    assert_as_transformers(tmp_path)
    error = capsys.readouterr().err
    assert "several sets of weights: model.safetensors is read" in error


def both(newer: dict, older: dict | None = None, **top: object) -> dict:
    return {"rope_parameters": newer, "rope_scaling": older, **top}


LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (both({"rope_type": "default", "rope_theta": 5e5}, rope_theta=1e4), "rope_theta 10000.0"),
        (both(LINEAR | {"rope_theta": 5e5}, LINEAR), "rope_theta 500000.0"),
        (both(LINEAR, {"rope_type": "linear"}), "factor 2.0 in one place and None"),
        (both(LINEAR | {"rope_theta": 5e5}, LINEAR | {"rope_theta": 1e4}), "rope_theta"),
    ],
)
def test_two_spellings_of_rope_that_disagree(tmp_path, values: dict, part: str):
    twin().save_pretrained(tmp_path)
    change(tmp_path / "config.json", **values)
    assert part in refusal(tmp_path)


@pytest.mark.parametrize("name", ["max_sequence_length", "n_positions"])
def test_two_lengths(tmp_path, capsys, name: str):
    twin().save_pretrained(tmp_path)
    change(tmp_path / "config.json", **{name: 64})
    assert load_pretrained(tmp_path).config.max_seq_len == 128
    assert f"{name} 64 and max_position_embeddings 128" in capsys.readouterr().err


def test_config_json_and_params_json(tmp_path, capsys):
    """Each is read with its own weights; what the other says differently is not left unsaid."""
    model = twin(num_key_value_heads=4, hidden_size=32, rms_norm_eps=1e-6)
    model.save_pretrained(tmp_path)
    params = {"dim": 32, "n_layers": 2, "n_heads": 4, "multiple_of": 8, "norm_eps": 1e-5}
    (tmp_path / "params.json").write_text(json.dumps(params))
    assert_as_transformers(tmp_path)
    assert "layer_norm_eps 1e-06 in config.json and 1e-05" in capsys.readouterr().err
    change(tmp_path / "params.json", norm_eps=1e-6)
    load_pretrained(tmp_path)
    assert capsys.readouterr().err == ""


def test_weights_of_metas_beside_a_config(tmp_path):
    llama = make_llama()
    write_meta(tmp_path, llama)
    twin(tie_word_embeddings=False).config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "params.json").read_text())
    args = {"hidden_size": content["dim"], "num_hidden_layers": content["n_layers"]}
    args |= {"num_attention_heads": content["n_heads"], "rms_norm_eps": content["norm_eps"]}
    args["num_key_value_heads"] = content.get("n_kv_heads", content["n_heads"])
    change(tmp_path / "config.json", **args)
    loaded = load_pretrained(tmp_path)
    tokens = random_tokens(loaded.config, 1, 7)
    assert_relative(loaded(tokens)[0], llama(tokens)[0].detach().double(), 1e-5)
    change(tmp_path / "config.json", rms_norm_eps=1e-3)
    assert "0.001 in config.json" in refusal(tmp_path)
