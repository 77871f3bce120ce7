"""Which tokens end a text: those that a model's folder names, else its tokenizer's EOS."""

from pathlib import Path
from typing import Any

from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.warning import warn
from utils import read_json

GENERATION_FILE, CONFIG_FILE = "generation_config.json", "config.json"


def stop_ids(checkpoint: str | Path, tokenizer: BaseTokenizer) -> tuple[int, ...]:
    """eos_token_id of the generation_config.json in a checkpoint's folder, one or several, else of
    its config.json, as transformers has it; without these what the tokenizer has.

    Raises ValueError for what is no token id. Warns where config.json names one that
    generation_config.json does not.
    """
    path = Path(checkpoint)
    folder = path if path.is_dir() else path.parent
    config, generation = (_ids_in(folder / name) for name in (CONFIG_FILE, GENERATION_FILE))
    if not ((folder / CONFIG_FILE).is_file() and (path.is_dir() or _is_of_folder(path))):
        config, generation = (), ()
    if generation and not set(config) <= set(generation):
        warn(
            f"{folder}: eos_token_id is {list(config)} in {CONFIG_FILE} and {list(generation)} in "
            f"{GENERATION_FILE}: the latter counts, as in transformers"
        )
    return generation or config or tokenizer.eos_ids


def _is_of_folder(path: Path) -> bool:
    """Whether a file stands for a folder of Hugging Face's, rather than merely lying in it."""
    return path.suffix == ".json" or path.name in ("model.safetensors", "pytorch_model.bin")


def _ids_in(path: Path) -> tuple[int, ...]:
    value: Any = read_json(path).get("eos_token_id") if path.is_file() else None
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for i in ids:
        if type(i) is not int or i < 0:
            raise ValueError(f"{path}: eos_token_id {value!r} is no token id, nor a list of such")
    return tuple(ids)
