"""Torch files: nothing is executed, nothing is copied, and saving is atomic."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llama import Llama, load_pretrained
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.reading import read_checkpoint, recognise
from tests.checkpoints.helpers import (
    read_maps,
    write_llama2c,
)
from tests.helpers import ROOT, random_llama, random_tokens, tiny_config


@pytest.fixture
def llama() -> Llama:
    return random_llama(tiny_config(norm="rmsnorm", attention="causal"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"state_dict": {}, "epoch": 3}, "no dict 'model' (it holds: state_dict, epoch)"),
        ({"model": {}}, "no dict 'model_args'"),
        ({"model": {"w": 3}, "model_args": {}}, "w is none"),
        (
            {"model": {"w": torch.tensor([1])}, "model_args": {}},
            "w has dtype int64, which is none of",
        ),
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
    with pytest.raises(ValueError, match=r"tok_embeddings\.weight (is not a tensor|has dtype)"):
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


def test_a_truncated_file_is_named_before_a_missing_tokenizer(tmp_path):
    """A look at its end is enough, as for what is of another kind."""
    path = tmp_path / "m.pt"
    save_checkpoint(path, tiny_config(), random_llama(tiny_config()).state_dict())
    recognise(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"m\.pt is truncated or not a torch checkpoint"):
        recognise(path)


def test_rounded_weights_are_not_saved(tmp_path):
    config = tiny_config(attention="causal")
    save_checkpoint(tmp_path / "m.pt", config, random_llama(config).state_dict())
    llama = load_pretrained(tmp_path / "m.pt", quantize="int8")
    with pytest.raises(ValueError, match="is int8, and cannot be saved: load without quantize"):
        save_checkpoint(tmp_path / "n.pt", config, llama.state_dict())
    assert not (tmp_path / "n.pt").exists()
