"""llama2.c's .bin file, version 0, written tensor by tensor; checkpoint.py reads it.

The file holds float32 numbers and seven sizes: RMSNorm, causal attention, eps 1e-5 and RoPE's theta
10000 are fixed in llama2.c (Karpathy 2023, run.c).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch

from checkpoint import LLAMA2C_HEADER, llama2c_layout
from config import LlamaConfig
from rope import rotary_tables
from utils import atomic_write

FIXED = {"norm": "rmsnorm", "attention": "causal", "rope_theta": 10000.0, "layer_norm_eps": 1e-5}


def write_version0(
    path: str | Path, config: LlamaConfig, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write the file atomically. Raises ValueError for what it cannot hold, OSError."""
    for name, value in FIXED.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"llama2.c's files mean {name} {value}, and this model has {getattr(config, name)}"
            )
    sign = 1 if config.tie_word_embeddings else -1
    plain = dataclasses.replace(config, rope_theta=10000.0)
    tables = dict(
        zip(
            ("freqs_cos", "freqs_sin"),
            rotary_tables(plain.head_dim, plain.max_seq_len, plain.rope_theta, torch.device("cpu")),
            strict=True,
        )
    )
    with atomic_write(path, "wb") as file:
        sizes = (config.dim, config.hidden_dim, config.n_layers, config.n_heads, config.n_kv_heads)
        file.write(LLAMA2C_HEADER.pack(*sizes, sign * config.vocab_size, config.max_seq_len))
        for name, _ in llama2c_layout(config, config.tie_word_embeddings):
            layers = range(config.n_layers) if "{}" in name else range(1)
            for number in layers:
                tensor = tables[name] if name in tables else tensors[name.format(number)]
                file.write(
                    tensor.detach().float().contiguous().numpy().astype("<f4", copy=False).data
                )


def write_q80(
    path: str | Path,
    config: LlamaConfig,
    tensors: Mapping[str, torch.Tensor],
    group_size: int = 64,
) -> float:
    raise ValueError(f"{path}: 8-bit files cannot be written yet; use llama2c")
