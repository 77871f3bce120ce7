"""Meta's folders, made here by cutting tensors as Meta's GPUs hold them."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llama import Llama, load_pretrained
from mini_llama.checkpoints.lazy_tensors import LazyTensors
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.record import fit_tensors
from tests.checkpoints.formats.test_torch_file import Bomb
from tests.checkpoints.helpers import assert_same_model, read_maps
from tests.helpers import assert_relative, random_llama, random_tokens, tiny_config
from tests.inference.test_generation import CONTRACT_TEXT
from tokenizer import Tokenizer

# The axis along which Meta cuts each tensor; None: every GPU holds it whole.
AXES = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w2": 1, "w3": 0, "output": 0}
AXES |= {"attention_norm": None, "ffn_norm": None, "norm": None}
EMBEDDING_AXIS = {"Llama 2": 1, "Llama 3": 0}


def meta_name(name: str) -> str:
    for letter, word in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
        name = name.replace(f"compute_{word}", f"w{letter}")
    return name


def write_shards(folder: Path, tensors: dict, count: int, kind: str = "Llama 2") -> None:
    """`tensors` under Meta's names."""
    axes = AXES | {"tok_embeddings": EMBEDDING_AXIS[kind]}
    for number in range(count):
        shard = {"rope.freqs": torch.ones(4)}
        for name, tensor in tensors.items():
            axis = axes[name.split(".")[-2]]
            part = tensor if axis is None else tensor.chunk(count, dim=axis)[number]
            shard[name] = part.clone()
        torch.save(shard, folder / f"consolidated.{number:02}.pth")


def write_meta(
    folder: Path, llama: Llama, count: int = 1, kind: str = "Llama 2", **params: object
) -> Path:
    """With Llama 2's params.json, which tells no vocabulary, or Llama 3's."""
    folder.mkdir(exist_ok=True)
    config = llama.config
    names = ("dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of")
    content = {name: getattr(config, name) for name in names}
    content |= {"norm_eps": config.layer_norm_eps, "vocab_size": -1}
    if kind == "Llama 3":
        content |= {"vocab_size": config.vocab_size, "rope_theta": config.rope_theta}
    (folder / "params.json").write_text(json.dumps(content | params))
    tensors = {meta_name(name): tensor for name, tensor in llama.state_dict().items()}
    write_shards(folder, tensors, count, kind)
    return folder


def make_llama(**changes: object) -> Llama:
    """Untied, 4 key/value heads, so that 4 shards have one each."""
    changes = {"n_kv_heads": 4, "tie_word_embeddings": False, "max_seq_len": 2048} | changes
    return random_llama(tiny_config(norm="rmsnorm", attention="causal", **changes))


@pytest.mark.parametrize("kind", EMBEDDING_AXIS)
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_shards_are_joined(tmp_path, kind: str, count: int, tied: bool):
    llama = make_llama(tie_word_embeddings=tied)
    loaded = load_pretrained(write_meta(tmp_path / "m", llama, count, kind))
    assert loaded.config == llama.config
    assert "recorded in the checkpoint" in str(loaded.arithmetic)
    assert_same_model(loaded, llama)


@pytest.mark.parametrize(("n_kv_heads", "count"), [(1, 1), (2, 1), (2, 2)])
def test_shared_key_value_heads(tmp_path, n_kv_heads: int, count: int):
    llama = make_llama(n_kv_heads=n_kv_heads)
    assert_same_model(load_pretrained(write_meta(tmp_path / "m", llama, count)), llama)


@pytest.mark.parametrize("kind", EMBEDDING_AXIS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_contracts_text(shared, tmp_path, kind: str, count: int):
    llama = load_pretrained(shared / "checkpoints" / "stories260K.bin", "llama2")
    write_meta(tmp_path, llama, count, kind, multiple_of=4)
    loaded = load_pretrained(tmp_path)
    tokenizer = Tokenizer(tokenizer_model=shared / "checkpoints" / "tok512.model")
    tokens = loaded.generate(torch.tensor([[tokenizer.bos_id]]), 200, 0.0)
    assert tokenizer.decode(tokens[0].tolist()) == CONTRACT_TEXT


def interleave(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Hugging Face's row i and i + D/2 of each head → Meta's 2i and 2i + 1."""
    rows = torch.empty_like(weight)
    for row in range(len(weight)):
        head, i = divmod(row, head_dim)
        place = 2 * i if i < head_dim // 2 else 2 * (i - head_dim // 2) + 1
        rows[head * head_dim + place] = weight[row]
    return rows


@pytest.mark.parametrize(
    ("kind", "count", "dtype"),
    [
        ("Llama 2", 1, torch.float32),
        ("Llama 2", 2, torch.float16),
        ("Llama 3", 2, torch.bfloat16),
    ],
)
def test_transformers_logits(tmp_path, kind: str, count: int, dtype: torch.dtype):
    """dim 32 with ffn_dim_multiplier 1.3 and multiple_of 8: 85, 110, 112 hidden features."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theta = {"Llama 2": 1e4, "Llama 3": 5e5}[kind]
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=112,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from uniform, and exact in 16 bits
            parameter.copy_((5 * parameter + 0.3 * torch.randn_like(parameter)).to(dtype))
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    tensors = {
        "tok_embeddings.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
    }
    for i in (0, 1):
        theirs, ours = f"model.layers.{i}.", f"layers.{i}."
        for letter in "qkvo":
            weight = state[f"{theirs}self_attn.{letter}_proj.weight"]
            weight = interleave(weight, 8) if letter in "qk" else weight
            tensors[f"{ours}attention.w{letter}.weight"] = weight
        for a, b in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
            tensors[f"{ours}feed_forward.{a}.weight"] = state[f"{theirs}mlp.{b}_proj.weight"]
        tensors[f"{ours}attention_norm.weight"] = state[f"{theirs}input_layernorm.weight"]
        tensors[f"{ours}ffn_norm.weight"] = state[f"{theirs}post_attention_layernorm.weight"]
    params = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 96}
    params |= {"multiple_of": 8, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-6, "rope_theta": theta}
    (tmp_path / "params.json").write_text(json.dumps(params | {"use_scaled_rope": False}))
    write_shards(tmp_path, tensors, count, kind)
    llama = load_pretrained(tmp_path)
    tokens = random_tokens(llama.config, 2, 21)
    with torch.inference_mode():
        logits, _ = llama(tokens, targets=tokens)
        assert_relative(logits, model(tokens).logits.double(), 1e-5)


def test_fields_that_llama_1_leaves_out(tmp_path):
    """n_kv_heads, rope_theta and all that came later."""
    llama = make_llama()
    write_meta(tmp_path, llama)
    names = ("dim", "multiple_of", "n_heads", "n_layers", "norm_eps", "vocab_size")
    content = json.loads((tmp_path / "params.json").read_text())
    (tmp_path / "params.json").write_text(json.dumps({name: content[name] for name in names}))
    assert load_pretrained(tmp_path).config == llama.config


@pytest.mark.parametrize("name", ["params.json", "consolidated.01.pth"])
def test_a_file_of_the_folder_names_it(tmp_path, name: str):
    llama = make_llama()
    write_meta(tmp_path, llama, 2)
    assert_same_model(load_pretrained(tmp_path / name), llama)


def test_one_shard_is_mapped_and_not_copied(tmp_path):
    write_meta(tmp_path, make_llama())
    loaded = load_pretrained(tmp_path)
    areas = read_maps(tmp_path / "consolidated.00.pth")
    for name, parameter in loaded.named_parameters():
        assert any(a <= parameter.data_ptr() < b for a, b in areas), f"{name} is a copy"


def test_shards_are_joined_when_they_are_asked_for(tmp_path, monkeypatch):
    write_meta(tmp_path, make_llama(), 2)
    joins = []
    cat = torch.cat
    monkeypatch.setattr(torch, "cat", lambda parts, dim: joins.append(1) or cat(parts, dim=dim))
    checkpoint = read_checkpoint(tmp_path)
    assert isinstance(checkpoint.tensors, LazyTensors) and not joins
    config = checkpoint.make_config()
    assert len(joins) == 2  # the two embeddings, which may be one
    joins.clear()
    fit_tensors(checkpoint, config)
    assert len(joins) == 2 + 2 * 7  # each matrix once


# What is wrong with a folder


def refusal(folder: Path) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        load_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"use_scaled_rope": True},
            "use_scaled_rope (Llama 3.1 and later) does not say by how much",
        ),
        ({"moe_args": {}}, "params.json has moe_args, which Llama 1 to 3 have not"),
        ({"dim": 64}, "2 shards of tok_embeddings.weight, each [96, 16], do not make"),
        ({"dim": 16}, "2 shards have 32 rows of layers.0.attention.compute_query.weight"),
        ({"dim": "32"}, "dim='32' is not allowed"),
        ({"dim": float("nan")}, "dim=nan is not allowed"),
        ({"dim": 10**400}, "do not make the width dim=1000"),
        ({"n_heads": 5}, "dim=32 is not allowed: it must be a multiple of n_heads=5"),
        ({"n_kv_heads": 3}, "n_kv_heads=3 is not allowed"),
        ({"n_kv_heads": 2}, "wrong shape layers.0.attention.compute_key.weight [32, 32] instead"),
        ({"n_layers": 1}, "unexpected layers.1."),
        ({"n_layers": 3}, "missing layers.2."),
        ({"n_layers": 10**9}, "too few for n_layers=1000000000"),
        ({"vocab_size": 97}, "wrong shape tok_embeddings.weight [96, 32] instead of [97, 32]"),
        ({"vocab_size": 0}, "vocab_size=0 is not allowed"),
        ({"vocab_size": [1]}, "vocab_size=[1] is not allowed"),
        ({"multiple_of": 16}, "feed_forward.w1.weight has 88 rows, and params.json's"),
        ({"multiple_of": 0}, "multiple_of=0 is not allowed"),
        ({"ffn_dim_multiplier": 1.3}, "multiple_of and ffn_dim_multiplier make 112"),
        ({"ffn_dim_multiplier": float("inf")}, "ffn_dim_multiplier=inf is not allowed"),
        ({"ffn_dim_multiplier": "1"}, "ffn_dim_multiplier='1' is not allowed"),
        ({"norm_eps": None}, "layer_norm_eps=None is not allowed"),
        ({"rope_theta": -1}, "rope_theta=-1 is not allowed"),
    ],
)
def test_params_that_contradict_the_tensors_or_us(tmp_path, params: dict, message: str):
    write_meta(tmp_path, make_llama(), 2, **params)
    assert message in refusal(tmp_path)


def test_params_that_are_no_params(tmp_path):
    write_meta(tmp_path, make_llama())
    (tmp_path / "params.json").write_text("[1]")
    assert "is not a JSON object" in refusal(tmp_path)
    (tmp_path / "params.json").write_text('{"dim": 32, "n_layers": 2}')
    assert "params.json lacks n_heads" in refusal(tmp_path)


def test_shards_missing_or_there_twice(tmp_path):
    llama = make_llama()
    for kind in EMBEDDING_AXIS:
        folder = write_meta(tmp_path / kind, llama, 4, kind)
        (folder / "consolidated.03.pth").unlink()
        assert "shards are missing, or too many" in refusal(folder)
        (folder / "consolidated.01.pth").unlink()
        assert "has 2 shards, but no consolidated.01.pth" in refusal(folder)
    second = folder / "consolidated.2.pth"
    second.write_bytes((folder / "consolidated.02.pth").read_bytes())
    assert "the same shard twice" in refusal(folder)
    for path in folder.glob("*.pth"):
        path.unlink()
    assert "no consolidated.00.pth" in refusal(folder)
    assert "without config.json or params.json" in refusal(tmp_path)


def test_a_copy_of_another_shard(tmp_path):
    write_meta(tmp_path, make_llama(), 2)
    copied = (tmp_path / "consolidated.00.pth").read_bytes()
    (tmp_path / "consolidated.01.pth").write_bytes(copied)
    assert "consolidated.01.pth is a copy of consolidated.00.pth" in refusal(tmp_path)


def change(name: str, value: Callable | None) -> Callable[[dict], None]:
    def damage(shard: dict) -> None:
        tensor = shard.pop(name, None)
        if value is not None:
            shard[name] = value(tensor)

    return damage


WQ = "layers.1.attention.wq.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change(WQ, None), "is in consolidated.00.pth and not in consolidated.01.pth"),
        (change("extra.weight", lambda _: torch.ones(2, 2)), "extra.weight is in consolidated.01"),
        (change(WQ, lambda t: t[:4]), "is float32 [16, 32] in consolidated.00.pth, and float32 [4"),
        (change(WQ, torch.Tensor.half), "and float16 [16, 32] in consolidated.01.pth: shards of"),
        (change("norm.weight", lambda t: t + 1), "norm.weight is not the same in"),
        (change(WQ, lambda t: [t]), "consolidated.01.pth is not a dict of tensors"),
    ],
)
def test_shards_that_do_not_belong_together(tmp_path, damage: Callable, message: str):
    write_meta(tmp_path, make_llama(), 2)
    path = tmp_path / "consolidated.01.pth"
    shard = torch.load(path, weights_only=True)
    damage(shard)
    torch.save(shard, path)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("output.weight", None), "its shards lack output.weight"),
        (change("tok_embeddings.weight", None), "its shards lack tok_embeddings.weight"),
        (change("layers.0.attention.wq.weight", None), "lack layers.0.attention.compute_query"),
        (change("norm.weight", None), "missing norm.weight"),
        (change("norm.weight", lambda t: t[None]), "wrong shape norm.weight [1, 32]"),
        (change("extra.weight", lambda _: torch.ones(2, 2)), "hold extra.weight, which Llama 1"),
        (change(WQ, lambda t: t[0]), "compute_query.weight is [32], which is no matrix"),
        (
            change(WQ, lambda t: t[:4]),
            "wrong shape layers.1.attention.compute_query.weight [4, 32]",
        ),
        (change(WQ, torch.Tensor.int), "attention.wq.weight has dtype int32, which"),
        (change("layers.0.feed_forward.w1.weight", lambda t: t[:80]), "has 80 rows, and params"),
        (change("_orig_mod." + WQ, lambda _: torch.ones(2)), "compute_query.weight twice"),
    ],
)
def test_shards_without_what_llama_needs(tmp_path, damage: Callable, message: str):
    write_meta(tmp_path, make_llama())
    path = tmp_path / "consolidated.00.pth"
    shard = torch.load(path, weights_only=True)
    damage(shard)
    torch.save(shard, path)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["code", "text", "list", "cut"])
def test_shards_that_are_no_torch_files(tmp_path, kind: str):
    write_meta(tmp_path, make_llama(), 2)
    path, trace = tmp_path / "consolidated.01.pth", tmp_path / "it ran"
    if kind == "code":
        torch.save({"norm.weight": Bomb(trace)}, path)
    elif kind == "list":
        torch.save([1], path)
    else:
        path.write_bytes(b"hello" if kind == "text" else path.read_bytes()[:-999])
    message = refusal(tmp_path)
    assert re.search("nothing in a checkpoint|truncated|damaged|not a dict of tensors", message)
    assert not trace.exists()
