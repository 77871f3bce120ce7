"""A trained model as a folder: Hugging Face's, which transformers reads, where its Llama has the
same arithmetic, and otherwise our own.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from config import LlamaConfig
from mini_llama.checkpoints.formats.folder import save_folder, write_folder
from mini_llama.checkpoints.formats.huggingface import (
    GENERATION_FILE,
    TOKENIZER_FILES,
    describe_tokenizer,
    export_tensors,
)
from mini_llama.checkpoints.formats.huggingface_config import export_config, import_config
from mini_llama.checkpoints.tensor_files import write_json
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.huggingface import HuggingFaceTokenizer
from tokenizer import TOKENIZER_MODEL, Tokenizer
from utils import atomic_write


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
        copy_tokenizer(tokenizer, folder)


def is_expressible(config: LlamaConfig) -> bool:
    """Whether Hugging Face's config.json says all of a configuration but dropout."""
    try:
        said = LlamaConfig(**import_config(export_config(config)))
    except ValueError:
        return False
    said = dataclasses.replace(said, dropout=config.dropout, multiple_of=config.multiple_of)
    return said == config


def copy_tokenizer(tokenizer: BaseTokenizer, folder: Path) -> None:
    """The tokenizer's files as transformers names them; nothing of a kind that it has no file for.
    Raises OSError.
    """
    if isinstance(tokenizer, Tokenizer):
        copy(tokenizer.model_path, folder / TOKENIZER_MODEL)
        write_json(folder / "tokenizer_config.json", describe_tokenizer(tokenizer))
    elif isinstance(tokenizer, HuggingFaceTokenizer):
        for name in TOKENIZER_FILES:
            if (source := tokenizer.model_path.with_name(name)).is_file():
                copy(source, folder / name)


def copy(source: Path, target: Path) -> None:
    """Copy a file, atomically. Raises OSError."""
    if target.exists() and source.samefile(target):
        return
    with atomic_write(target, "wb") as file:
        file.write(source.read_bytes())
