"""What other files take from the course's utils.py: names that it imports, and one function.

The rest of it is about downloads that nobody makes: those names exist, and hold nothing.
"""

import copy as copy
import json as json
import os as os
import sys as sys
from functools import partial as partial
from pathlib import Path as Path
from typing import Any, BinaryIO, Dict, List, Optional, Tuple, Union  # noqa: F401, UP035

import torch as torch
from torch import Tensor as Tensor
from torch import nn as nn
from tqdm import tqdm as tqdm


def get_parameter_dtype(parameter: nn.Module) -> torch.dtype:
    """The dtype of a module's parameters."""
    return next(parameter.parameters()).dtype


def get_extended_attention_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores (B, H, T, S) for a mask (B, S) of ones and zeros."""
    return (1.0 - attention_mask[:, None, None, :].to(dtype)) * -10000.0


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return None
