"""What several tests of checkpoints use: files as other people write them, and what is mapped."""

import struct
from pathlib import Path

import pytest
import torch

from llama import Llama


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


def read_maps(path: Path) -> list[tuple[int, int]]:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("asks Linux where files are mapped")
    lines = [line for line in maps.read_text().splitlines() if line.endswith(str(path))]
    return [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in lines]
