"""Plain text → documents → a tokenizer, token files on disk, and endless batches of windows.

Shapes: B batch of one rank, C context.
"""

import hashlib
import io
import itertools
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentencepiece import SentencePieceTrainer
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from mini_llama.pretraining.generated_text import (
    generated_documents,
    generator_sources,
    is_generated,
)
from mini_llama.pretraining.run_folder import SIDECAR, TOKEN_FILES
from mini_llama.text_files import check_file, read_chunks
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.training.order import Draws, Shares
from utils import atomic_write

FORMAT = 1  # raise it when the documents made of a text, or the token files, change
MAX_DOCUMENT = 1 << 20  # characters: bounds the memory of a text without separators
MAX_TRAINING_TEXT = 1 << 28  # characters: SentencePiece keeps its training text in memory
# SentencePiece drops sentences above a limit, and cannot count words of 65,536 characters
TRAINING_SLICE = 4000
BYTE_VOCABULARY = 3 + 256  # too small for any text, which has at least one character
_CHUNK = 1 << 20  # bytes
_BATCH_CHARACTERS = 1 << 16


def read_documents(paths: Sequence[str | Path], separator: str = "\n\n") -> Iterator[str]:
    """The documents of text files, of all .txt files below folders, in sorted order, and of
    generated text such as tales:10000 (bundled.GENERATED).

    Documents are stripped, empty ones skipped; one of more than MAX_DOCUMENT characters is cut.
    Line ends become "\\n", as Python reads text; a file named twice is read once. Raises OSError
    for a path that cannot be read, ValueError for a folder without .txt files, an empty
    separator or, on the way, bytes that are not UTF-8.
    """
    if not separator:
        raise ValueError("the document separator is empty; give at least one character")
    separator = separator.replace("\r\n", "\n").replace("\r", "\n")
    files, generated = _text_files(paths), list(filter(is_generated, paths))
    chunks = (read_chunks(file, _CHUNK) for file in files)
    read = (document for text in chunks for document in _split(text, separator))
    return itertools.chain(read, *map(generated_documents, generated))


def fingerprint_paths(paths: Sequence[str | Path], separator: str) -> str:
    """A hash of the files' resolved names, sizes and modification times, and of the separator.

    Raises OSError or ValueError as a call of `read_documents` does.
    """
    files, generated = _text_files(paths), [str(path) for path in paths if is_generated(path)]
    if generated:
        files += generator_sources()
    stats = [(os.path.realpath(file), file.stat()) for file in files]
    marks = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(json.dumps([separator, marks, generated]).encode()).hexdigest()


def _text_files(paths: Sequence[str | Path]) -> list[Path]:
    def fail(error: OSError) -> None:
        raise OSError(f"cannot read folder {error.filename}: {error.strerror}; leave it out")

    files: list[Path] = []
    for path in map(Path, itertools.filterfalse(is_generated, paths)):
        found = [path]
        if path.is_dir():  # rglob would pass over an unreadable folder in silence
            walk = os.walk(path, onerror=fail)
            below = [Path(top, name) for top, _, names in walk for name in names]
            found = sorted(file for file in below if file.suffix == ".txt")
        if not found:
            raise ValueError(f"folder {path} has no .txt file in it; give one that has, or a file")
        files += found
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"{file} does not exist; give a text file, or a folder of them")
        check_file(file)
        if not (file.is_file() and os.access(file, os.R_OK)):
            raise OSError(f"{file} is not a readable file; check its permissions, or leave it out")
    # the same text in training and in validation would flatter the validation loss
    return list({os.path.realpath(file): file for file in files}.values())


def _split(chunks: Iterable[str], separator: str) -> Iterator[str]:
    """The same documents however the text is chunked."""
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(separator)
        for document in whole:
            yield from _cut(document)
        # the margin: a separator that begins before the cut has been seen to its end
        while len(rest) >= MAX_DOCUMENT + len(separator):
            yield from _cut(rest[:MAX_DOCUMENT])
            rest = rest[MAX_DOCUMENT:]
    yield from _cut(rest)


def _cut(document: str) -> Iterator[str]:
    for start in range(0, len(document), MAX_DOCUMENT):
        if part := document[start : start + MAX_DOCUMENT].strip():
            yield part


def train_tokenizer(documents: Iterable[str], vocab_size: int, path: Path) -> None:
    """Write a SentencePiece BPE model of exactly `vocab_size` pieces, made as Llama's: <unk>, BOS
    and EOS are 0, 1 and 2, the 256 bytes 3 to 258, digits stand alone, and every text decodes to
    itself, except U+2581, SentencePiece's own sign for a space.

    Reads the first MAX_TRAINING_TEXT characters; the same text gives the same bytes. Raises
    ValueError for a vocabulary that does not fit the text, and what `documents` raises.
    """
    failures: list[BaseException] = []
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_training_slices(documents, failures),
            model_writer=model,
            vocab_size=max(vocab_size, BYTE_VOCABULARY),  # else its error names no bound
            model_type="bpe",
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            required_chars="▁",  # as bytes, the space before every text would not be taken off
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            max_sentence_length=4 * TRAINING_SLICE,  # bytes
            minloglevel=2,
        )
    except RuntimeError as error:
        raise failures[0] if failures else _explain(str(error), vocab_size) from None
    with atomic_write(path, "wb") as file:
        file.write(model.getvalue())


def _training_slices(documents: Iterable[str], failures: list[BaseException]) -> Iterator[str]:
    """SentencePiece turns an exception of its iterator into its own: keep the first one."""
    read = 0
    try:
        for document in documents:
            for start in range(0, len(document), TRAINING_SLICE):
                yield document[start : start + TRAINING_SLICE]
            read += len(document)
            if read >= MAX_TRAINING_TEXT:
                return
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        failures.append(error)
        raise


def _explain(error: str, vocab_size: int) -> ValueError:
    if "sentences_.empty()" in error:
        return ValueError("there is no text to train a tokenizer on; give documents")
    too_large = re.search(r"too high .* <= (\d+)", error)
    too_small = re.search(r"required_chars. \d+ vs (\d+)", error)
    if too_large:
        reason = (
            f"this text supports at most {too_large[1]} pieces; give a smaller one, or more text"
        )
    elif too_small:
        reason = (
            f"256 bytes and this text's characters need {too_small[1]} pieces; give a larger one"
        )
    else:
        reason = f"SentencePiece cannot train it: {' '.join(error.split())}"
    return ValueError(f"vocab_size {vocab_size} is not allowed: {reason}")


@dataclass(frozen=True)
class TokenFile:
    """`count` token ids on disk, one document after the other, each BOS + ids + EOS."""

    path: Path
    count: int
    vocab_size: int

    def open(self) -> np.memmap:
        """The ids (count,), read-only: uint16, or uint32 for more than 65,536 pieces.

        Raises OSError or ValueError if the file is gone or shorter.
        """
        return np.memmap(self.path, _token_dtype(self.vocab_size), mode="r", shape=(self.count,))


def _token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def build_token_files(
    documents: Callable[[], Iterable[str]],
    fingerprint: str,
    tokenizer: BaseTokenizer,
    folder: Path,
    val_fraction: float = 0.01,
) -> tuple[TokenFile, TokenFile]:
    """The training and the validation tokens: train.bin, val.bin and tokens.json in `folder`.

    Every round(1/val_fraction)-th document, the first among them, is for validation. Files of the
    same fingerprint, tokenizer and fraction are used again if their checksums hold, and
    `documents` is not called; else they are replaced, and one line on stderr says why. Raises
    ValueError for a fraction out of bounds, and for a text that leaves either file empty.
    """
    if not 0 < val_fraction <= 0.5:
        raise ValueError(f"val_fraction {val_fraction} is not allowed: give one in (0, 0.5]")
    folder = Path(folder)
    header = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        **_describe(tokenizer),
        "val_every": round(1 / val_fraction),
    }
    sidecar, fault = _check_cache(folder, header)
    if fault:
        if any((folder / name).exists() for name in (SIDECAR, *TOKEN_FILES.values())):
            print(f"building the token files in {folder} again: {fault}", file=sys.stderr)
        sidecar = _write_cache(documents(), tokenizer, folder, header)
    train, val = (
        TokenFile(folder / name, sidecar[split]["count"], tokenizer.n_words)
        for split, name in TOKEN_FILES.items()
    )
    return train, val


def _describe(tokenizer: BaseTokenizer) -> dict[str, Any]:
    """Everything that the ids of a text depend on."""
    path = tokenizer.model_path
    content = path.read_bytes() if path.is_file() else str(path).encode()  # tiktoken:gpt2
    return {
        "tokenizer": type(tokenizer).__name__,
        "tokenizer_sha256": hashlib.sha256(content).hexdigest(),
        "max_len": tokenizer.max_len,
        "vocab_size": tokenizer.n_words,
        "dtype": _token_dtype(tokenizer.n_words).str,
    }


def _check_cache(folder: Path, header: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The sidecar, and what is wrong with it or with the files it describes, or ""."""
    try:
        sidecar = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
        other = [name for name, value in header.items() if sidecar.get(name) != value]
        if other:
            return sidecar, f"{SIDECAR} was made with another {', '.join(other)}"
        for split, name in TOKEN_FILES.items():
            if sidecar.get(split) != _summarise(folder / name, header["dtype"]):
                return sidecar, f"the size or the CRC-32 of {name} is not the one in {SIDECAR}"
    except FileNotFoundError as error:
        return {}, f"{Path(error.filename).name} is missing"
    except (ValueError, AttributeError):
        return {}, f"{SIDECAR} is damaged"
    return sidecar, ""


def _summarise(path: Path, dtype: str) -> dict[str, int]:
    size = crc32 = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            crc32 = zlib.crc32(chunk, crc32)
    return {"count": size // np.dtype(dtype).itemsize, "bytes": size, "crc32": crc32}


def _write_cache(
    documents: Iterable[str], tokenizer: BaseTokenizer, folder: Path, header: dict[str, Any]
) -> dict[str, Any]:
    """Write the token files, then the sidecar: a crash between leaves checksums that fail."""
    folder.mkdir(parents=True, exist_ok=True)
    train_path, val_path = (folder / name for name in TOKEN_FILES.values())
    with atomic_write(train_path, "wb") as train, atomic_write(val_path, "wb") as val:
        number = 0
        for number, ids in enumerate(_encode(documents, tokenizer), 1):
            file = val if number % header["val_every"] == 1 else train
            file.write(np.array(ids, header["dtype"]).tobytes())
        if number < 2:
            raise ValueError(
                f"the text has {number} documents, but training and validation need at least one "
                "each; give more text, or another separator"
            )
        sidecar = dict(header)
        for split, file in zip(TOKEN_FILES, (train, val), strict=True):
            file.flush()
            # the temporary file: another process may put its own in the final place
            sidecar[split] = _summarise(Path(file.name), header["dtype"])
    with atomic_write(folder / SIDECAR) as file:
        json.dump(sidecar, file, indent=2)
    return sidecar


def _encode(documents: Iterable[str], tokenizer: BaseTokenizer) -> Iterator[list[int]]:
    """BOS + ids + EOS of every document, encoded in batches of bounded size."""
    rest = iter(documents)
    with tqdm(desc="tokenising", unit=" documents", disable=None, leave=False) as bar:
        while batch := _take_batch(rest):
            yield from tokenizer.encode_batch(batch, bos=True, eos=True)
            bar.update(len(batch))


def _take_batch(documents: Iterator[str]) -> list[str]:
    batch: list[str] = []
    size = 0
    while size < _BATCH_CHARACTERS and (document := next(documents, None)) is not None:
        batch.append(document)
        size += len(document) + 64  # an empty document takes memory, too
    return batch


class TokenWindows(Dataset):
    """Window i is tokens[i·C : i·C + C + 1]; neighbours share one token, a target and an input.
    With `at_any_offset` window i is tokens[i : i + C + 1], and make_loader draws i.

    Raises ValueError if `tokens` (count,) are fewer than one window.
    """

    def __init__(self, tokens: np.ndarray, context: int, at_any_offset: bool = False) -> None:
        if not 1 <= context < len(tokens):
            raise ValueError(
                f"context {context} does not fit a corpus of {len(tokens)} tokens: a window takes "
                f"context + 1 of them; give more text, or a context from 1 to {len(tokens) - 1}"
            )
        self.tokens, self.context, self.at_any_offset = tokens, context, at_any_offset

    @property
    def stride(self) -> int:
        return 1 if self.at_any_offset else self.context

    def __len__(self) -> int:
        return (len(self.tokens) - 1 - self.context) // self.stride + 1

    def __getitem__(self, i: int) -> torch.Tensor:
        """(C + 1,) int64: inputs are [:-1], targets [1:]. Raises IndexError out of range."""
        if not 0 <= i < len(self):
            raise IndexError(f"window {i} is out of range: there are {len(self)}")
        start = i * self.stride
        return torch.from_numpy(self.tokens[start : start + self.context + 1].astype(np.int64))


def make_loader(
    windows: TokenWindows,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    shuffle: bool = True,
) -> DataLoader:
    """This rank's rows (B, C + 1) of every global batch, B = batch_size / world_size.

    With `shuffle` the batches never end: epoch e is a permutation drawn from (seed, e), and where
    it runs out within a batch, the next one fills up; windows at any offset are drawn with
    replacement, batch s from (seed, s). Global batch s is the same whatever
    `start_step` and `world_size` are. Without `shuffle`, one pass in order: the last batch may be
    short, and a rank without a row of it ends earlier. Raises ValueError out of bounds.
    """
    if world_size < 1 or batch_size < 1 or batch_size % world_size:
        raise ValueError(
            f"batch_size {batch_size} cannot be divided among world_size {world_size} ranks; "
            "give a multiple of it"
        )
    if not 0 <= rank < world_size or start_step < 0 or seed < 0:
        raise ValueError(
            f"rank {rank}, start_step {start_step} and seed {seed} must be at least 0, and rank "
            f"less than world_size {world_size}"
        )
    share = batch_size // world_size
    first = start_step * batch_size + rank * share
    sampler: Sampler[list[int]]
    if shuffle and windows.at_any_offset:
        sampler = Draws(len(windows), start_step, rank * share, share, batch_size, seed)
    else:
        sampler = Shares(len(windows), first, share, batch_size, seed if shuffle else None)
    return DataLoader(
        windows,
        batch_sampler=sampler,
        generator=torch.Generator(),  # or the loader would draw from the global one
    )
