"""Finding a checkpoint's tokenizer, recognising its format, and checking that it fits."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

from mini_llama.gguf_file import is_gguf
from mini_llama.places import resolve_model
from mini_llama.text_files import check_file
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.gguf import has_tokenizer, load_gguf_tokenizer
from mini_llama.tokenization.huggingface import TOKENIZER_JSON, HuggingFaceTokenizer
from mini_llama.tokenization.llama2c import Llama2cTokenizer, is_llama2c
from mini_llama.tokenization.tiktoken import TIKTOKEN_PREFIX, TiktokenTokenizer
from tokenizer import TOKENIZER_MODEL, Tokenizer

TOKENIZER_BIN = "tokenizer.bin"
# How a file of tiktoken ranks begins.
RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+=* [0-9]+\r?\n")
SNIFFED_BYTES = 256


def load_tokenizer(name: str | Path, max_len: int | None = None) -> BaseTokenizer:
    """`tiktoken:gpt2`, `tiktoken:PATH`, a folder with a tokenizer, or a file, told apart by its
    content: tokenizer.json, llama2.c's tokenizer.bin, a GGUF file that holds one, or else a
    SentencePiece model.

    Raises what the tokenizer's class raises; ValueError for a file of tiktoken's ranks without its
    prefix, since it does not say how text is split.
    """
    if str(name).startswith(TIKTOKEN_PREFIX):
        return TiktokenTokenizer(str(name), max_len)
    path = resolve_model(name)
    path = (_in_folder(path) or path) if path.is_dir() else path
    check_file(path)
    start = _start(path)
    if is_gguf(start):
        return load_gguf_tokenizer(path, max_len)
    if start.lstrip().startswith(b"{"):
        return HuggingFaceTokenizer(path, max_len)
    if is_llama2c(start):
        return Llama2cTokenizer(path, max_len)
    if RANK_LINE.match(start):
        raise ValueError(
            f"tokenizer {path} has tiktoken's ranks: give {TIKTOKEN_PREFIX}{path} if they are of "
            f"GPT-2's kind, and a {TOKENIZER_JSON} if they are Llama 3's"
        )
    return Tokenizer(max_len, path)


def find_tokenizer(
    checkpoint: str | Path,
    explicit: str | Path | None = None,
    vocab_size: Callable[[], int] | None = None,
) -> Path:
    """The tokenizer for a checkpoint: the explicit one; else the one in it, if it is a GGUF file
    with one; else <checkpoint stem>.model; else the one in the checkpoint's folder, if the
    checkpoint is a folder or has config.json beside it; else the only .model file beside the
    checkpoint, tokenizer.bin beside it, or the only .bin file beside it that is a tokenizer; else
    tokenizer.model in the current folder. A checkpoint behind a symbolic link also has what lies
    beside the file itself.

    `vocab_size` gives the model's number of pieces, and is called only if needed: of what lies
    beside the checkpoint, or in the current folder, only what fits it is then the checkpoint's, and
    of several files the only one that does. Where nothing fits, the first found is returned.
    """
    if explicit is not None:
        return Path(explicit)
    places = [resolve_model(checkpoint)]
    if places[0].is_symlink():
        places.append(places[0].resolve())
    for place in places:
        if found := _own(place):
            return found
    beside = [place.parent for place in places]
    first = next(filter(None, map(_only, beside)), None)
    here = Path(TOKENIZER_MODEL)
    if vocab_size is None:
        return first or here
    candidates = [path for folder in beside for path in _all_in(folder)]
    if not candidates:
        return here
    size = vocab_size()
    fitting = [path for path in (first, *candidates) if path is not None and _fits(path, size)]
    if fitting and (first in fitting or len({path.resolve() for path in fitting}) == 1):
        return fitting[0]
    return here if here.is_file() or first is None else first


def _own(checkpoint: Path) -> Path | None:
    """A tokenizer that is the checkpoint's: inside it, in a GGUF file, or by its name, or by its
    place in a model's folder.
    """
    if is_gguf(_start(checkpoint)) and has_tokenizer(checkpoint):
        return checkpoint
    same_stem = checkpoint.with_suffix(".model")
    if same_stem.is_file():
        return same_stem
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    has_own = folder is checkpoint or (folder / "config.json").is_file()
    return _in_folder(folder) if has_own else None


def _fits(path: Path, vocab_size: int) -> bool:
    try:
        return load_tokenizer(path).fits(vocab_size)
    except (OSError, ValueError):
        return False


def _in_folder(folder: Path) -> Path | None:
    """tokenizer.json where its package is installed, else tokenizer.model, else the only one."""
    whole, model = folder / TOKENIZER_JSON, folder / TOKENIZER_MODEL
    if whole.is_file() and importlib.util.find_spec("tokenizers") is not None:
        return whole
    found = model if model.is_file() else _only(folder)
    return found or (whole if whole.is_file() else None)  # its error says what to install


def _only(folder: Path) -> Path | None:
    """The only .model file of a folder, its tokenizer.bin, or its only .bin that is a tokenizer."""
    models = list(folder.glob("*.model"))
    if len(models) == 1:
        return models[0]
    if (folder / TOKENIZER_BIN).is_file():
        return folder / TOKENIZER_BIN
    bins = _bins(folder)
    return bins[0] if len(bins) == 1 else None


def _all_in(folder: Path) -> list[Path]:
    """All files of a folder that may be a tokenizer without a name of its own for it."""
    named = [path for path in (folder / TOKENIZER_BIN,) if path.is_file()]
    return [*sorted(folder.glob("*.model")), *named, *_bins(folder)]


def _bins(folder: Path) -> list[Path]:
    starts = {path: _start(path) for path in sorted(folder.glob("*.bin"))}
    # a model's file may begin as a tokenizer does, but has no such piece near its beginning
    return [p for p, start in starts.items() if is_llama2c(start) and b"<0x00>" in start]


def _start(path: Path) -> bytes:
    """The first bytes of a file, or none of what is not a file that can be read."""
    try:
        check_file(path)
        with open(path, "rb") as file:
            return file.read(SNIFFED_BYTES)
    except (OSError, ValueError):
        return b""


def check_vocabulary(tokenizer: BaseTokenizer, vocab_size: int, checkpoint: str | Path) -> None:
    """Raise ValueError unless the tokenizer has exactly the model's `vocab_size` pieces; of a
    tokenizer.json, unless the model's are as many but for padding (`HuggingFaceTokenizer.fits`).
    """
    if not tokenizer.fits(vocab_size):
        raise ValueError(
            f"tokenizer {tokenizer.model_path} has {tokenizer.n_words} pieces, but {checkpoint} "
            f"was trained with {vocab_size}; give its own tokenizer with --tokenizer"
        )
