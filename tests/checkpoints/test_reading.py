"""Formats, strict key rules, refusals and atomic saving."""

import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from config import NORMS, RopeScaling, expected_shapes
from llama import Llama, load_pretrained
from mini_llama.checkpoints.formats.folder import save_folder
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.record import fit_tensors
from tests.helpers import ROOT, random_llama, random_tokens, tiny_config

TRUE_42M_ARGS = {
    "dim": 512,
    "n_layers": 8,
    "n_heads": 8,
    "n_kv_heads": 8,
    "vocab_size": 32000,
    "multiple_of": 32,
    "max_seq_len": 1024,
}


@pytest.fixture
def llama() -> Llama:
    return random_llama(tiny_config(norm="rmsnorm", attention="causal"))


def plain_args(llama: Llama) -> dict:
    """model_args as other people's files have them: nothing of norm and attention."""
    names = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "max_seq_len")
    return {name: getattr(llama.config, name) for name in names}


def save_torch(path: Path, tensors: dict, args: dict, **options: object) -> Path:
    torch.save({"model": tensors, "model_args": args, "iter_num": 3, "config": {}}, path, **options)
    return path


def assert_same_model(actual: Llama, expected: Llama) -> None:
    ours, theirs = actual.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


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


def write_llama2c(path: Path, llama: Llama) -> Path:
    """llama2.c's version 0, from the description of its layout."""
    config, state = llama.config, llama.state_dict()
    sign = 1 if config.tie_word_embeddings else -1
    header = struct.pack(
        "<7i",
        config.dim,
        config.hidden_dim,
        config.n_layers,
        config.n_heads,
        config.n_kv_heads,
        sign * config.vocab_size,
        config.max_seq_len,
    )
    order = ["tok_embeddings.weight"]
    for part in (
        "attention_norm attention.compute_query attention.compute_key attention.compute_value "
        "attention.compute_output ffn_norm feed_forward.w1 feed_forward.w2 feed_forward.w3"
    ).split():
        order += [f"layers.{i}.{part}.weight" for i in range(config.n_layers)]
    arrays = [state[name] for name in [*order, "norm.weight"]]
    arrays += [torch.full((config.max_seq_len, config.head_dim // 2), 7.0)] * 2
    arrays += [] if config.tie_word_embeddings else [state["output.weight"]]
    data = b"".join(array.numpy().astype("<f4").tobytes() for array in arrays)
    path.write_bytes(header + data)
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_bin(tmp_path, tied: bool):
    llama = random_llama(tiny_config(norm="rmsnorm", attention="causal", tie_word_embeddings=tied))
    path = write_llama2c(tmp_path / "model.pt", llama)
    loaded = load_pretrained(path, edition="llama2")
    assert loaded.config.tie_word_embeddings is tied
    assert_same_model(loaded, llama)


def test_three_files_hold_the_same_real_model(shared):
    names = ("stories260K.bin", "stories260K.pt", "stories260K-cmu.pt")
    models = [load_pretrained(shared / "checkpoints" / name, "llama2") for name in names]
    for model in models[1:]:
        assert_same_model(model, models[0])


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


@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "llama2c"])
def test_truncated(tmp_path, llama, kind: str, part: float):
    path = tmp_path / "m.pt"
    if kind == "llama2c":
        write_llama2c(path, llama)
    else:
        legacy = {"_use_new_zipfile_serialization": False} if kind == "legacy" else {}
        save_torch(path, llama.state_dict(), plain_args(llama), **legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        load_pretrained(path)
    assert "\n" not in str(error.value) and (
        "again" in str(error.value) or "source" in str(error.value)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, I am a text file\n" * 9, "neither a torch checkpoint nor a llama2.c"),
        (b"PK\x03\x04 not really a zip", "truncated or not a torch checkpoint"),
        (np.array([1, 2, 3, 4, 5, 6, 7], "<i4").tobytes(), "not a llama2.c .bin file"),
        (np.array([8, 8, 1, 1, 1, 9, 4], "<i4").tobytes() + bytes(44), "its header needs"),
        (b"24ka" + bytes(300), "llama2.c's version 0, and 0, 1 and 2 are supported"),
    ],
)
def test_foreign_content(tmp_path, content: bytes, message: str):
    path = tmp_path / "foreign.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"state_dict": {}, "epoch": 3}, "no dict 'model' (it holds: state_dict, epoch)"),
        ({"model": {}}, "no dict 'model_args'"),
        ({"model": {"w": 3}, "model_args": {}}, "w is not a tensor"),
        ({"model": {"w": torch.tensor([1])}, "model_args": {}}, "w is not a tensor of floating"),
    ],
)
def test_foreign_torch_files(tmp_path, content: object, message: str):
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match=re.escape(message)):
        read_checkpoint(tmp_path / "foreign.pt")


class Bomb:
    """Pickles as a call that makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle"])
def test_code_in_a_pickle_never_runs(tmp_path, kind: str):
    path, trace = tmp_path / "bomb.pt", tmp_path / "it ran"
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(Bomb(trace)))
    else:
        content = {"model": Bomb(trace), "model_args": {}}
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match="nothing in a checkpoint is ever executed"):
        load_pretrained(path)
    assert not trace.exists()


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothere\.pt does not exist.*setup\.sh"):
        read_checkpoint(tmp_path / "nothere.pt")
    with pytest.raises(IsADirectoryError, match="is a directory"):
        read_checkpoint(tmp_path)


def test_half_precision_becomes_float32(tmp_path, llama):
    halves = {name: tensor.bfloat16() for name, tensor in llama.state_dict().items()}
    loaded = load_pretrained(save_torch(tmp_path / "m.pt", halves, plain_args(llama)), "llama2")
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    assert torch.equal(loaded.norm.weight, llama.norm.weight.bfloat16().float())


def test_loading_draws_no_random_number_and_copies_nothing(tmp_path, llama):
    path = tmp_path / "m.pt"
    save_checkpoint(path, llama.config, llama.state_dict())
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaded = load_pretrained(path)
    assert torch.equal(torch.get_rng_state(), before)
    mapped = read_maps(path)
    for name, parameter in loaded.named_parameters():
        assert any(a <= parameter.data_ptr() < b for a, b in mapped), f"{name} is a copy"


def read_maps(path: Path) -> list[tuple[int, int]]:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("asks Linux where files are mapped")
    lines = [line for line in maps.read_text().splitlines() if line.endswith(str(path))]
    return [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in lines]


@pytest.mark.parametrize("kind", ["torch", "llama2c"])
def test_training_a_mapped_model_leaves_the_file_alone(tmp_path, llama, kind: str):
    path = tmp_path / "m.pt"
    if kind == "torch":
        save_checkpoint(path, llama.config, llama.state_dict())
    else:
        write_llama2c(path, llama)
    content = path.read_bytes()
    loaded = load_pretrained(path)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    assert path.read_bytes() == content
    assert not loaded(random_tokens(llama.config, 1, 3))[0].any()


def test_views_of_a_mapped_file_are_saved_alone(tmp_path, llama):
    source = write_llama2c(tmp_path / "m.bin", llama)
    loaded = load_pretrained(source, "llama2")
    part = {"norm.weight": loaded.norm.weight.detach()}
    save_checkpoint(tmp_path / "part.pt", {}, part)
    assert (tmp_path / "part.pt").stat().st_size < 4000 < source.stat().st_size


def test_a_failed_save_leaves_the_old_file(tmp_path, llama):
    path = tmp_path / "m.pt"
    save_checkpoint(path, llama.config, llama.state_dict())
    content = path.read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        save_checkpoint(path, llama.config, llama.state_dict(), broken=lambda: None)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["m.pt"]


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.pt"
    path.write_bytes(b"old")
    code = (
        "import resource, torch\nfrom mini_llama.checkpoints.tensor_files import save_plain\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"try: save_plain({str(path)!r}, {{'a': torch.zeros(10**6)}})\n"
        "except OSError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith(f"{path} could not be written whole: is the disk full?")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["m.pt"]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1, 1).expand(96, 32),  # a few bytes that would become gigabytes
        torch.eye(96, 32).to_sparse(),
        torch.zeros(96, 32, device="meta"),
        torch.zeros(96, 32).to(torch.float8_e4m3fn),
    ],
    ids=["expanded", "sparse", "meta", "float8"],
)
def test_only_plain_tensors_are_weights(tmp_path, tensor: torch.Tensor):
    config = tiny_config()
    state = random_llama(config).state_dict() | {"tok_embeddings.weight": tensor}
    args = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 8}
    args |= {"vocab_size": 96, "max_seq_len": 16}
    torch.save({"model": state, "model_args": args}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"tok_embeddings\.weight is not a tensor of floating"):
        load_pretrained(tmp_path / "m.pt")


def test_a_changed_file_of_the_older_format_is_one_line(tmp_path):
    """Not every byte: those of the storages' keys, which torch asserts."""
    path = tmp_path / "m.pt"
    content = {"model": {"a": torch.zeros(3)}, "model_args": {}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    key = str(content["model"]["a"].untyped_storage()._cdata).encode()
    assert whole.count(key) == 2
    path.write_bytes(whole[::-1].replace(key[::-1], b"1" * len(key), 1)[::-1])
    with pytest.raises(ValueError, match="truncated or not a torch checkpoint"):
        read_checkpoint(path)


def test_rounded_weights_are_not_saved(tmp_path):
    config = tiny_config(attention="causal")
    save_checkpoint(tmp_path / "m.pt", config, random_llama(config).state_dict())
    llama = load_pretrained(tmp_path / "m.pt", quantize="int8")
    with pytest.raises(ValueError, match="is int8, and cannot be saved: load without quantize"):
        save_checkpoint(tmp_path / "n.pt", config, llama.state_dict())
    assert not (tmp_path / "n.pt").exists()
