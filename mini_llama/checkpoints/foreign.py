"""What a path is that no format here reads: named before anything else is said of it."""

import re
from pathlib import Path

from mini_llama.checkpoints.quantized_elsewhere import find_method
from mini_llama.checkpoints.tensor_files import read_start
from utils import read_json

CONFIG_FILE, PEFT_CONFIG = "config.json", "adapter_config.json"
PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
SHARD = re.compile(r".+-\d{5}-of-\d{5}\.(safetensors|bin)")
META_SHARD = re.compile(r"consolidated\.\d+\.pth")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".gguf")
SNIFFED_BYTES = 64
# How files begin that people give by mistake, and what to say of them.
STARTS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file: get it with git lfs pull",
    b"<!doctype html": "is a web page, not the file itself: get it again, by its download link",
    b"<html": "is a web page, not the file itself: get it again, by its download link",
    b"\x89hdf": "is an HDF5 file (Keras), which is not read: give a folder of safetensors",
    b"\x93numpy": "is a NumPy array, not a checkpoint: check the path",
    b"\x1f\x8b": "is a gzip archive: unpack it, and give what is in it",
}


def refuse_foreign(path: Path) -> None:
    """Raise ValueError, or IsADirectoryError, that says what `path` is and what to give instead,
    for adapters, single shards, quantized models and files of other programs.
    """
    remark = _remark_on_folder(path) if path.is_dir() else _remark_on_file(path)
    if remark is None:
        folder = path if path.is_dir() else path.parent
        has_config = (folder / CONFIG_FILE).is_file()
        method = find_method(folder) if has_config and (path.is_dir() or _is_part(path)) else None
        if method is None:
            return
        path = folder
        remark = (
            f"is quantized by {method}, which is not read: get the same model in float16, "
            "bfloat16 or float32 (--quantize quantizes it here)"
        )
    raise ValueError(f"{path} {remark}")


def _remark_on_folder(path: Path) -> str | None:
    names = {file.name for file in path.iterdir()}
    if PEFT_CONFIG in names:
        return _remark_on_adapters(path, has_model=bool(names & {CONFIG_FILE, "params.json"}))
    if CONFIG_FILE in names:
        return None
    if "params.json" in names:
        has_shards = any(map(META_SHARD.fullmatch, names))
        if "consolidated.safetensors" in names and not has_shards:
            return "is in Mistral's own format, which is not read: give a Hugging Face folder"
        return None
    if any(name.endswith(WEIGHT_SUFFIXES) for name in names):
        if ggufs := sorted(name for name in names if name.endswith(".gguf")):
            return f"is a directory with GGUF files: give one of them, such as {path / ggufs[0]}"
        return (
            f"holds weights, but neither {CONFIG_FILE} nor params.json, without which they cannot "
            "be read: get that file as well"
        )
    if inner := _model_folder_in(path):
        return f"is a directory without config.json or params.json: give {inner}, which has one"
    return None


def _model_folder_in(path: Path) -> Path | None:
    """A folder of a model below this one: a checkpoint of a training, a download's snapshot."""
    for pattern in ("*", "snapshots/*"):
        for name in (CONFIG_FILE, "params.json", PEFT_CONFIG):
            if found := sorted(path.glob(f"{pattern}/{name}")):
                return found[-1].parent
    return None


def _remark_on_adapters(path: Path, has_model: bool) -> str:
    base = read_json(path / PEFT_CONFIG).get("base_model_name_or_path")
    of = f" of {base}" if isinstance(base, str) and base else ""
    if has_model:
        return (
            f"holds a model, and adapters of PEFT ({PEFT_CONFIG}){of} beside it: move the adapters "
            "into a folder of their own, and add them with --adapters"
        )
    return (
        f"holds adapters of PEFT{of}, not a model: name the model itself, and give this folder to "
        "--adapters"
    )


def _remark_on_file(path: Path) -> str | None:
    if path.name in (*PEFT_WEIGHTS, PEFT_CONFIG) and (path.parent / PEFT_CONFIG).is_file():
        return (
            f"belongs to adapters of PEFT: name the model itself, and give --adapters {path.parent}"
        )
    folder = path.parent
    if SHARD.fullmatch(path.name):
        if (folder / CONFIG_FILE).is_file():
            return f"is one shard of a model: give its folder, {folder}"
        return (
            f"is one shard of a model: get all of its files, {CONFIG_FILE} too, and give the folder"
        )
    if META_SHARD.fullmatch(path.name) and not (folder / "params.json").is_file():
        return "is one shard of a model of Meta's: get its params.json as well, and give the folder"
    return None


def remark_on_unknown(path: Path) -> str | None:
    """What to say of a file that no format recognises; None where nothing is known of it."""
    folder, start = path.parent, read_start(path, SNIFFED_BYTES)
    for beginning, remark in STARTS.items():
        if start.lower().startswith(beginning):
            return remark
    if _is_safetensors(start) and not _is_part(path):
        if (folder / CONFIG_FILE).is_file():
            return f"is not the {CONFIG_FILE}'s model.safetensors: give its folder, {folder}"
        return (
            f"is a safetensors file without its {CONFIG_FILE}: get that as well, and give the "
            "folder that holds both"
        )
    if path.suffix == ".model" or path.name in ("tokenizer.json", "tokenizer_config.json"):
        return "is a tokenizer, not a model: give it to --tokenizer, and name the model itself"
    return None


def _is_part(path: Path) -> bool:
    """Whether a file stands for its folder."""
    return path.name in (CONFIG_FILE, "model.safetensors", "pytorch_model.bin") or (
        path.name.endswith(".index.json")
    )


def _is_safetensors(start: bytes) -> bool:
    """A header's length, then its JSON."""
    return len(start) > 8 and start[8:9] == b"{" and start[5:8] == b"\0\0\0"
