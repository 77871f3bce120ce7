"""What many tests use: places, tiny models, random inputs, and a comparison of whole tensors."""

import contextlib
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from config import LlamaConfig
from llama import Llama

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
WORDS = "a dull film the plot is good bad great story and acting was not very slow but fun".split()


def tiny_config(**changes: object) -> LlamaConfig:
    """2 layers, width 32, 4 heads sharing 2 key/value heads."""
    config = LlamaConfig(
        vocab_size=96, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, multiple_of=8, max_seq_len=16
    )
    return dataclasses.replace(config, **{"head_dim": None} | changes)


def random_llama(config: LlamaConfig, seed: int = 0) -> Llama:
    """A model whose every weight, norms and biases included, is random and matters."""
    generator = torch.Generator().manual_seed(seed)
    llama = Llama(config)
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = name.endswith("norm.weight")
            parameter.copy_(1 + 0.3 * noise if is_gain else noise * parameter.shape[-1] ** -0.5)
    return llama.eval()


def numpy_weights(llama: Llama) -> dict[str, np.ndarray]:
    """The model's tensors as the float64 oracle takes them."""
    return {k: v.detach().double().numpy() for k, v in llama.state_dict().items()}


def random_tokens(config: LlamaConfig, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, config.vocab_size, shape, generator=generator)


def assert_relative(actual: torch.Tensor, expected: object, tolerance: float) -> None:
    """Every element within `tolerance` of the largest magnitude expected."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"largest error is {error:.2e} of the largest magnitude"


def refusal_of(call: Callable[..., object], *arguments: object, **more: object) -> tuple[int, str]:
    """The exit status with which a command's main ends, and its last line on standard error."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), pytest.raises(SystemExit) as stop:
        call(*arguments, **more)
    code = stop.value.code
    if isinstance(code, str):  # Python prints it, and exits with 1
        return 1, code
    return code or 0, error.getvalue().rpartition("\n")[0].rpartition("\n")[2]
