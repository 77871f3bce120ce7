"""The tokenizer in a folder of Hugging Face's: found beside a checkpoint, copied, described."""

import json
from pathlib import Path
from typing import Any

from mini_llama.checkpoints.tensor_files import write_json
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.find import find_tokenizer, load_tokenizer
from mini_llama.tokenization.gguf import GGUFBytePairs, GGUFPieces
from mini_llama.tokenization.huggingface import TOKENIZER_JSON, HuggingFaceTokenizer
from mini_llama.tokenization.huggingface_export import tokenizer_json
from mini_llama.tokenization.llama2c import Llama2cTokenizer, as_sentencepiece
from mini_llama.tokenization.sentencepiece_file import parse
from tokenizer import TOKENIZER_MODEL, Tokenizer
from utils import atomic_write, read_json

TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    TOKENIZER_MODEL,
    TOKENIZER_JSON,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
# What tokenizer_config.json says to transformers' own conversion alone.
OF_CONVERSION = (
    *("tokenizer_class", "legacy", "sp_model_kwargs", "add_prefix_space", "auto_map"),
    *("use_default_system_prompt", "spaces_between_special_tokens", "from_slow", "tokenizer_file"),
)


def find_beside(source: Path, vocab_size: int) -> BaseTokenizer | None:
    """The tokenizer in or beside a checkpoint, if its vocabulary is of that size."""
    found = find_tokenizer(source, vocab_size=lambda: vocab_size)
    places = (source.absolute(), source.resolve())
    own = {folder for place in places for folder in (place, place.parent)}
    if not found.is_file() or found.absolute().parent not in own:
        return None
    try:
        tokenizer = load_tokenizer(found)
    except ValueError:
        return None
    is_theirs = isinstance(tokenizer, Tokenizer | HuggingFaceTokenizer | Llama2cTokenizer)
    return tokenizer if is_theirs and tokenizer.fits(vocab_size) else None


def write_tokenizer(tokenizer: BaseTokenizer, folder: Path) -> None:
    """The tokenizer's files as transformers names them, with those beside it that belong to it;
    nothing of a kind that it has no file for. Raises OSError.

    A SentencePiece model and a tokenizer.bin get a tokenizer.json, so that transformers has their
    ids.
    """
    if isinstance(tokenizer, Llama2cTokenizer):
        return _write_llama2c(tokenizer, folder)
    if not isinstance(tokenizer, Tokenizer | HuggingFaceTokenizer):
        return
    if isinstance(tokenizer, GGUFPieces | GGUFBytePairs):
        return _write_gguf(tokenizer, folder)
    source = tokenizer.model_path
    is_theirs = isinstance(tokenizer, HuggingFaceTokenizer) or _is_theirs(source)
    for name in TOKENIZER_FILES if is_theirs else ():
        if source.with_name(name).is_file():
            copy_file(source.with_name(name), folder / name)
    if isinstance(tokenizer, Tokenizer):
        copy_file(source, folder / TOKENIZER_MODEL)
        if not (folder / TOKENIZER_JSON).exists():
            write_sentencepiece(tokenizer, folder)


def _write_llama2c(tokenizer: Llama2cTokenizer, folder: Path) -> None:
    """tokenizer.json of a tokenizer.bin; nothing where its merges have no order by score."""
    vocabulary = as_sentencepiece(tokenizer)
    content = None if vocabulary is None else tokenizer_json(vocabulary, tokenizer.bos_id, {})
    if content is not None:
        write_json(folder / TOKENIZER_JSON, content)
        described = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        described |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        write_json(folder / TOKENIZER_CONFIG, described | {"clean_up_tokenization_spaces": False})


def _write_gguf(tokenizer: GGUFPieces | GGUFBytePairs, folder: Path) -> None:
    """The files that a tokenizer inside a GGUF file was made from."""
    template = {"chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}
    if isinstance(tokenizer, GGUFPieces):
        with atomic_write(folder / TOKENIZER_MODEL, "wb") as file:
            file.write(tokenizer.proto)
        write_json(folder / TOKENIZER_CONFIG, {"add_bos_token": tokenizer.adds_bos} | template)
        return write_sentencepiece(tokenizer, folder)
    with atomic_write(folder / TOKENIZER_JSON) as file:
        file.write(json.dumps(tokenizer.content, ensure_ascii=False) + "\n")
    described = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.names, **template}
    write_json(folder / TOKENIZER_CONFIG, described | {"clean_up_tokenization_spaces": False})


def _is_theirs(model: Path) -> bool:
    """Whether a SentencePiece model lies in a folder of Hugging Face's."""
    return model.name == TOKENIZER_MODEL and (model.parent / "config.json").is_file()


def write_sentencepiece(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json of a SentencePiece model, the latter with what a
    file that is there says beyond it.
    """
    path = folder / TOKENIZER_CONFIG
    config = read_json(path) if path.is_file() else {}
    content = tokenizer_json(
        parse(tokenizer.sp_model.serialized_model_proto()),
        tokenizer.bos_id if config.get("add_bos_token") is not False else None,
        _added_tokens(folder, config),
    )
    described = describe_tokenizer(tokenizer)
    if content is not None:
        with atomic_write(folder / TOKENIZER_JSON) as file:
            file.write(json.dumps(content, ensure_ascii=False) + "\n")
        config = {name: value for name, value in config.items() if name not in OF_CONVERSION}
        described["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(path, described | config)


def _added_tokens(folder: Path, config: dict[str, Any]) -> dict[str, int]:
    """Tokens that were added to the pieces, as the files in a folder say."""
    file = folder / "added_tokens.json"
    added = read_json(file) if file.is_file() else {}
    for number, token in (config.get("added_tokens_decoder") or {}).items():
        added[token["content"] if isinstance(token, dict) else str(token)] = int(number)
    return added


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json of a SentencePiece model: without it transformers leaves BOS out."""
    pieces = tokenizer.sp_model
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": pieces.unk_id()}
    named = {f"{k}_token": None if i is None else pieces.id_to_piece(i) for k, i in ids.items()}
    added = {"add_bos_token": tokenizer.bos_id is not None, "add_eos_token": False}
    cleaned = {"clean_up_tokenization_spaces": False}
    return {"tokenizer_class": "LlamaTokenizer", **added, **named, **cleaned}


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, atomically. Raises OSError."""
    if target.exists() and source.samefile(target):
        return
    with atomic_write(target, "wb") as file:
        file.write(source.read_bytes())
