"""Which format reads a path, and refusals of what is none."""

import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from llama import Llama, load_pretrained
from mini_llama.checkpoints import reading
from mini_llama.checkpoints.formats import huggingface, llama2c
from mini_llama.checkpoints.formats.base import Format
from mini_llama.checkpoints.formats.folder import save_folder, write_folder
from mini_llama.checkpoints.formats.huggingface_config import export_config
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.record import Checkpoint
from tests.checkpoints.formats.test_meta import write_meta
from tests.checkpoints.helpers import assert_same_model, plain_args, save_torch, write_llama2c
from tests.helpers import random_llama, tiny_config
from tokenizer import Tokenizer


@pytest.fixture
def llama() -> Llama:
    return random_llama(tiny_config(norm="rmsnorm", attention="causal"))


def test_three_files_hold_the_same_real_model(shared):
    names = ("stories260K.bin", "stories260K.pt", "stories260K-cmu.pt")
    models = [load_pretrained(shared / "checkpoints" / name, "llama2") for name in names]
    for model in models[1:]:
        assert_same_model(model, models[0])


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


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothere\.pt does not exist.*setup\.sh"):
        read_checkpoint(tmp_path / "nothere.pt")
    with pytest.raises(IsADirectoryError, match="is a directory"):
        read_checkpoint(tmp_path)


# Which format it is


def test_the_first_format_that_recognises_a_path_reads_it(tmp_path, monkeypatch):
    """One more is one more entry."""
    path = tmp_path / "m.ggml"
    path.write_bytes(b"ggjt" + bytes(30))
    with pytest.raises(ValueError, match=r"m\.ggml is neither .*; check the path"):
        read_checkpoint(path)
    expected = Checkpoint(path, {}, {}, format="GGML file")
    ggml = Format("a GGML file", lambda p: p.read_bytes()[:4] == b"ggjt", lambda p: expected)
    monkeypatch.setattr(reading, "FORMATS", (*reading.FORMATS, ggml))
    assert read_checkpoint(path) is expected
    path.write_bytes(b"none of these")
    with pytest.raises(
        ValueError, match=r"nor a llama2\.c \.bin file nor a GGUF file nor a GGML file; "
    ):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("own", "folder of mini-llama"),
        ("own/model.safetensors", "folder of mini-llama"),
        ("hf", "folder of Hugging Face's LlamaForCausalLM"),
        ("hf/model.safetensors", "folder of Hugging Face's LlamaForCausalLM"),
        ("meta", "folder of Meta's, 2 shards"),
        ("meta/consolidated.01.pth", "folder of Meta's, 2 shards"),
        ("torch", "torch file"),
        ("torch.bin", "torch file"),  # the name does not count
        ("llama2c", "llama2.c .bin file, version 0"),
        ("q80", "llama2.c .bin file, version 2"),
    ],
)
def test_paths_are_told_apart_by_what_they_hold(tmp_path, name: str, kind: str):
    changes = {"norm": "rmsnorm", "attention": "causal", "tie_word_embeddings": False}
    llama = random_llama(tiny_config(**changes, max_seq_len=2048))
    config, state = llama.config, llama.state_dict()
    save_folder(tmp_path / "own", config, state)
    theirs = dict(huggingface.export_tensors(state, config))
    write_folder(tmp_path / "hf", export_config(config), theirs)
    (tmp_path / "hf" / "params.json").write_text("{}")  # config.json counts first
    write_meta(tmp_path / "meta", llama, 2)
    save_checkpoint(tmp_path / "torch", config, state)
    save_checkpoint(tmp_path / "torch.bin", config, state)
    llama2c.write_version0(tmp_path / "llama2c", config, state)
    llama2c.write_q80(tmp_path / "q80", config, state)
    checkpoint = read_checkpoint(tmp_path / name)
    assert checkpoint.format == kind
    assert len(checkpoint.tensors) == len(state)
    assert torch.equal(checkpoint.tensors["norm.weight"], state["norm.weight"])


def test_a_path_that_is_not_utf8_says_so(tiny_folder: Path, tmp_path: Path):
    """torch and SentencePiece open none; a tokenizer is read by its bytes."""
    name = os.fsdecode(b"caf\xe9")
    if sys.platform == "darwin":
        pytest.skip("macOS has no such names")
    shutil.copytree(tiny_folder, tmp_path / name)
    with pytest.raises(ValueError, match="is no path in UTF-8, and torch opens no other: rename"):
        read_checkpoint(tmp_path / name / "model.pt")
    tokenizer = Tokenizer(tokenizer_model=tmp_path / name / "model.model")
    assert tokenizer.encode("a dull film", bos=True, eos=True) == Tokenizer(
        tokenizer_model=tiny_folder / "model.model"
    ).encode("a dull film", bos=True, eos=True)
