"""Byte-level BPE through tiktoken: GPT-2's vocabulary, or a local file of ranks that is split as
GPT-2's is (Radford et al. 2019, section 2.2).
"""

import base64
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mini_llama.optional_imports import import_optional
from mini_llama.tokenization.base import BaseTokenizer, NamedToken

if TYPE_CHECKING:
    from tiktoken import Encoding

TIKTOKEN_PREFIX = "tiktoken:"
END_OF_TEXT = "<|endoftext|>"
# GPT-2's, in the form without backtracking that tiktoken itself uses
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


class TiktokenTokenizer(BaseTokenizer):
    """Byte-level BPE through tiktoken: `tiktoken:gpt2`, whose vocabulary tiktoken fetches, or
    `tiktoken:PATH`, a local file of lines `BASE64 RANK`, split with GPT-2's pattern.

    <|endoftext|> has the id after the last rank and is BOS, EOS and padding in one; in a text it
    is ordinary text. `max_len` is as in Tokenizer. `model_path` is the ranks file, or
    `tiktoken:gpt2`. Raises FileNotFoundError for a missing file; ValueError for one that is no
    ranks file, if tiktoken is not installed, or if its vocabulary cannot be fetched.
    """

    def __init__(self, name: str, max_len: int | None = None) -> None:
        source = name.removeprefix(TIKTOKEN_PREFIX)
        self.model_path = Path(f"{TIKTOKEN_PREFIX}gpt2" if source == "gpt2" else source)
        self.encoding = _load_encoding(name, source)
        self.max_len = max_len
        self.n_words: int = self.encoding.n_vocab
        self.bos_id: int = self.encoding.eot_token
        self.eos_id: int = self.bos_id
        self.pad_id: int = self.bos_id

    @functools.cached_property
    def named_tokens(self) -> dict[str, NamedToken]:
        return {END_OF_TEXT: NamedToken(self.eos_id, True)}

    def text_ids(self, text: str) -> list[int]:
        return self.encoding.encode_ordinary(text)

    def batch_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.encoding.encode_ordinary_batch(list(texts))

    def token_bytes(self, token_id: int, at_start: bool) -> bytes | None:
        return (
            None if token_id == self.eos_id else self.encoding.decode_single_token_bytes(token_id)
        )


def _load_encoding(name: str, source: str) -> "Encoding":
    tiktoken = import_optional("tiktoken", f"tokenizer {name}")
    if source == "gpt2":
        try:
            gpt2: Encoding = tiktoken.get_encoding("gpt2")
            return gpt2
        except (OSError, ValueError) as error:
            raise ValueError(
                f"tokenizer {name}: its vocabulary cannot be fetched ({type(error).__name__}); "
                "connect to the network, set TIKTOKEN_CACHE_DIR to a folder that has it, "
                f"or give a local ranks file as {TIKTOKEN_PREFIX}PATH"
            ) from None
    ranks = _read_ranks(Path(source))
    special = {END_OF_TEXT: len(ranks)}
    encoding: Encoding = tiktoken.Encoding(
        source, pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )
    return encoding


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Token bytes → rank. tiktoken's own reader would cache the file by its name and, for a
    vocabulary without one of the 256 bytes, panic in the middle of a text.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"tokenizer {TIKTOKEN_PREFIX}{path}: {path} is not a file; "
            f"give {TIKTOKEN_PREFIX}gpt2 or the path of a ranks file"
        )
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise ValueError(
                f"{path} line {number} is not BASE64 RANK; give a ranks file in tiktoken's format"
            ) from None
    whole = all(bytes([byte]) in ranks for byte in range(256))
    if not whole or sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(
            f"{path} has {len(ranks)} tokens, which are not all 256 bytes and the ranks from 0 up, "
            "each once; give a ranks file in tiktoken's format"
        )
    return ranks
