"""A trained model as a folder: Hugging Face's, which transformers reads, where its Llama has the
same arithmetic, and otherwise our own.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from config import LlamaConfig
from mini_llama.checkpoints.formats.folder import save_folder, write_folder
from mini_llama.checkpoints.formats.huggingface import GENERATION_FILE, export_tensors
from mini_llama.checkpoints.formats.huggingface_config import export_config, import_config
from mini_llama.checkpoints.formats.huggingface_tokenizer import write_tokenizer
from mini_llama.checkpoints.tensor_files import write_json
from mini_llama.tokenization.base import BaseTokenizer

MODEL_FILES = ("model.safetensors", "config.json")
MODEL_COMPANIONS = (
    *("generation_config.json", "tokenizer_config.json", "tokenizer.model"),
    *("tokenizer.json", "special_tokens_map.json", "chat_template.jinja"),
)


def save_model_folder(
    folder: Path,
    config: LlamaConfig,
    tensors: dict[str, torch.Tensor],
    tokenizer: BaseTokenizer | None = None,
) -> None:
    """Write config.json, model.safetensors and, in Hugging Face's layout, the tokenizer.

    Raises ValueError if safetensors is not installed, OSError.
    """
    if not is_expressible(config):
        save_folder(folder, config, tensors)
        return
    ids: dict[str, Any] = {}
    if tokenizer is not None:
        ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    exported = {name: t.contiguous() for name, t in export_tensors(tensors, config).items()}
    content = export_config(config) | {"torch_dtype": "float32"} | ids
    write_folder(folder, content, exported)
    if tokenizer is not None:
        write_json(folder / GENERATION_FILE, ids)
        write_tokenizer(tokenizer, folder)


def is_expressible(config: LlamaConfig) -> bool:
    """Whether Hugging Face's config.json says all of a configuration but dropout."""
    try:
        said = LlamaConfig(**import_config(export_config(config)))
    except ValueError:
        return False
    said = dataclasses.replace(said, dropout=config.dropout, multiple_of=config.multiple_of)
    return said == config
