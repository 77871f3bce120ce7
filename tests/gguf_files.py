"""GGUF files as llama.cpp's own package writes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama import Llama
from tests.helpers import ROOT

SMOLLM2 = ROOT / "SmolLM2-135M-Instruct.Q4_1.gguf"
PARTS = {
    "attention_norm": "attn_norm",
    "attention.compute_query": "attn_q",
    "attention.compute_key": "attn_k",
    "attention.compute_value": "attn_v",
    "attention.compute_output": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}
WHOLE = {"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output"}


def smollm2() -> Path:
    if not SMOLLM2.is_file():
        pytest.skip(f"{SMOLLM2.name} is not here: bash setup.sh --smollm2")
    return SMOLLM2


def their_name(name: str) -> str:
    name, _, leaf = name.rpartition(".")
    if name in WHOLE:
        return f"{WHOLE[name]}.{leaf}"
    _, number, part = name.split(".", 2)
    return f"blk.{number}.{PARTS[part]}.{leaf}"


def set_up_llama(writer: Any, llama: Llama) -> None:
    config = llama.config
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_layer_norm_rms_eps(config.layer_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)


def arrays_of(llama: Llama) -> dict[str, np.ndarray]:
    """Its tensors by their names there; a tied output layer has none."""
    state = {k: v.detach().numpy() for k, v in llama.state_dict().items()}
    if llama.config.tie_word_embeddings:
        del state["output.weight"]
    return {their_name(name): array for name, array in state.items()}


def write_gguf(
    path: Path, llama: Llama, kind: str = "F32", *, architecture: str = "llama", **more: Any
) -> Path:
    """Matrices in `kind`, norms in F32. `more`: metadata as `set` (a function of the writer),
    tensors `without` these names, `parts` of at most so many tensors, further `extra` tensors.
    """
    gguf = pytest.importorskip("gguf")
    split = {"split_max_tensors": more["parts"]} if "parts" in more else {}
    writer = gguf.GGUFWriter(path, architecture, **split)
    set_up_llama(writer, llama)
    if "set" in more:
        more["set"](writer)
    dtype = gguf.GGMLQuantizationType[kind]
    for name, array in {**arrays_of(llama), **more.get("extra", {})}.items():
        if name in more.get("without", ()):
            continue
        if array.ndim == 1 or kind == "F32":
            writer.add_tensor(name, array)
        else:
            data = gguf.quantize(array.astype(np.float32), dtype)
            writer.add_tensor(name, data, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_pieces(writer: Any, pieces: Sequence[str], scores: Sequence[float], types: Any) -> None:
    """A tokenizer of the kind llama."""
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(pieces))
    writer.add_token_scores(list(scores))
    writer.add_token_types(list(types))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
