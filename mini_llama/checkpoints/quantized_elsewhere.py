"""Which program quantized a model's weights, by its configuration or by its tensors' names."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from utils import read_json

# Files beside config.json that say it too, and whose they are if they do not say.
OTHER_FILES = {"quantize_config.json": "GPTQ", "quant_config.json": "AWQ"}
WRITTEN = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "fp8": "fp8",
    "fbgemm_fp8": "fp8 (FBGEMM)",
    "hqq": "HQQ",
    "eetq": "EETQ",
    "aqlm": "AQLM",
}
# The last part of a tensor's name, or of the name before it, and who writes such.
NAMES = {
    "g_idx": "GPTQ",
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_format": "bitsandbytes",
    "quant_state": "bitsandbytes",
    "weight_scale_inv": "fp8",
    "weight_scale": "fp8 or compressed-tensors",
    "input_scale": "fp8 or compressed-tensors",
    "weight_packed": "compressed-tensors",
    "weight_scales": "EETQ",
    "W_q": "HQQ",
    "codebooks": "AQLM",
}


def find_method(folder: Path) -> str | None:
    """Who quantized a folder's model, and which file says so; None if none of its files does."""
    config = _read_if_there(folder / "config.json")
    for name in ("quantization_config", "compression_config"):
        content = config.get(name)
        if content:
            return f"{_method_of(content, 'an unknown method')} ({name} in config.json)"
    for file, usual in OTHER_FILES.items():
        if (folder / file).is_file():
            return f"{_method_of(_read_if_there(folder / file), usual)} ({file})"
    return None


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _method_of(content: Any, usual: str) -> str:
    method = content.get("quant_method") if isinstance(content, dict) else None
    if isinstance(content, dict) and method is None:
        is_bitsandbytes = any(content.get(f"load_in_{bits}bit") for bits in (4, 8))
        method = "bitsandbytes" if is_bitsandbytes else None
    return WRITTEN.get(method, method) if isinstance(method, str) else usual


def method_by_names(names: Iterable[str]) -> str | None:
    """Who quantized a model that has tensors of these names; None if nothing shows it."""
    parts = {part for name in names for part in str(name).split(".")[-3:]}
    return next((method for part, method in NAMES.items() if part in parts), None)
