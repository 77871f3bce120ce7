"""Downloads and caches as the courses' own file does, with packages that nothing else needs."""

import copy
import os
import tempfile
from typing import BinaryIO, Dict, List, Optional, Tuple, Union
from urllib.parse import urlparse

import importlib_metadata
import requests
import torch
import torch.nn as nn
from filelock import FileLock
from torch import Tensor
from tqdm.auto import tqdm

_torch_version = importlib_metadata.version("torch")
CONFIG_NAME = "config.json"
AGENT = f"torch/{_torch_version}"


def is_remote_url(place):
    return urlparse(place).scheme in ("http", "https")


def http_get(url: str, file: BinaryIO, headers: Optional[Dict[str, str]] = None):
    headers = copy.deepcopy(headers or {})
    headers["user-agent"] = AGENT
    answer = requests.get(url, stream=True, headers=headers)
    answer.raise_for_status()
    for chunk in tqdm(answer.iter_content(chunk_size=1024)):
        file.write(chunk)


def cached_path(place: Union[str, os.PathLike], folder=None) -> str:
    if not is_remote_url(str(place)):
        return str(place)
    target = os.path.join(folder or tempfile.gettempdir(), os.path.basename(place))
    with FileLock(target + ".lock"):
        if not os.path.exists(target):
            with open(target, "wb") as file:
                http_get(place, file)
    return target


def get_parameter_dtype(parameter: nn.Module) -> torch.dtype:
    named: List[Tuple[str, Tensor]] = list(parameter.named_parameters())
    return named[0][1].dtype
