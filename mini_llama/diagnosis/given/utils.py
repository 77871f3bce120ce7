"""What the course's utils.py gives to those who import everything of it."""

import copy
import json
import os
import sys
import tempfile
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Dict, List, Optional, Tuple, Union  # noqa: UP035 (the course's names)
from urllib.parse import urlparse

import torch
import torch.nn as nn
from torch import Tensor
from tqdm.auto import tqdm

__all__ = [
    "CONFIG_NAME",
    "BinaryIO",
    "Dict",
    "List",
    "Optional",
    "Path",
    "Tensor",
    "Tuple",
    "Union",
    "cached_path",
    "copy",
    "get_extended_attention_mask",
    "get_parameter_dtype",
    "hf_bucket_url",
    "is_remote_url",
    "json",
    "nn",
    "os",
    "partial",
    "sha256",
    "sys",
    "tempfile",
    "torch",
    "tqdm",
    "urlparse",
]

CONFIG_NAME = "config.json"


def is_remote_url(url_or_filename: str) -> bool:
    return urlparse(url_or_filename).scheme in ("http", "https")


def hf_bucket_url(model_id: str, filename: str, revision: str | None = None, **_: object) -> str:
    """Where Hugging Face has a file of a model."""
    return f"https://huggingface.co/{model_id}/resolve/{revision or 'main'}/{filename}"


def cached_path(url_or_filename: str, **_: object) -> str:
    """A local file as it is. Raises OSError for a URL: nothing is downloaded here."""
    if is_remote_url(url_or_filename):
        raise OSError(f"{url_or_filename} is not downloaded: give a local file")
    return url_or_filename


def get_parameter_dtype(parameter: nn.Module) -> torch.dtype:
    """That of the module's first parameter. Raises StopIteration if it has none."""
    return next(parameter.parameters()).dtype


def get_extended_attention_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, T) of 1 and 0 → (B, 1, 1, T): 0 where a key is seen, -10000 where it is not."""
    return (1.0 - attention_mask[:, None, None, :].to(dtype)) * -10000.0
