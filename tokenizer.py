"""Text ↔ token ids through SentencePiece (Kudo and Richardson 2018) or, optionally, tiktoken.

The file knows no model; whether a vocabulary fits one is asked with `check_vocabulary`.
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sentencepiece import SentencePieceProcessor

if TYPE_CHECKING:
    from tiktoken import Encoding

TOKENIZER_MODEL = "tokenizer.model"
TIKTOKEN_PREFIX = "tiktoken:"
END_OF_TEXT = "<|endoftext|>"
# GPT-2's, in the form without backtracking that tiktoken itself uses
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


class Tokenizer:
    """A SentencePiece model; `max_len` bounds the tokens of a text, BOS and EOS not counted.

    `pad_id` is the id of the piece <0x00>, as in the assignment (3 in Llama 2's vocabulary, not 0).
    Raises FileNotFoundError or ValueError if `tokenizer_model` is no SentencePiece model.
    """

    def __init__(
        self, max_len: int | None = None, tokenizer_model: str | Path | None = None
    ) -> None:
        self.model_path = Path(tokenizer_model or TOKENIZER_MODEL)
        if not self.model_path.is_file():
            raise FileNotFoundError(
                f"tokenizer {self.model_path} is not a file; give one with --tokenizer, "
                "or get it with bash setup.sh"
            )
        try:
            self.sp_model = SentencePieceProcessor(model_file=str(self.model_path))
        except (RuntimeError, OSError):
            raise ValueError(
                f"tokenizer {self.model_path} is not a SentencePiece model; "
                "give one with --tokenizer, or get it again with bash setup.sh"
            ) from None
        self.max_len = max_len
        self.n_words: int = self.sp_model.vocab_size()
        self.bos_id: int = self.sp_model.bos_id()
        self.eos_id: int = self.sp_model.eos_id()
        self.pad_id: int = self.sp_model.piece_to_id("<0x00>")

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        """Token ids of `s`, cut to `max_len`, with BOS before and EOS behind where asked for.

        Raises ValueError for text that has no UTF-8 form, as a terminal in another encoding gives.
        """
        if any("\ud800" <= character <= "\udfff" for character in s):
            raise ValueError(f"the text {s[:40]!r} is not UTF-8; check the terminal's encoding")
        ids = self.sp_model.encode(s)[: self.max_len]
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def encode_batch(self, texts: Sequence[str], bos: bool, eos: bool) -> list[list[int]]:
        """`encode` of every text, on all cores."""
        rows = self.sp_model.encode(list(texts), num_threads=-1)
        return [[self.bos_id] * bos + ids[: self.max_len] + [self.eos_id] * eos for ids in rows]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids; BOS, EOS and other control pieces are silent."""
        return self.sp_model.decode(ids)


class TiktokenTokenizer:
    """Byte-level BPE through tiktoken: `tiktoken:gpt2`, whose vocabulary tiktoken fetches, or
    `tiktoken:PATH`, a local file of lines `BASE64 RANK`, split with GPT-2's pattern.

    <|endoftext|> has the id behind the last rank and is BOS, EOS and padding in one; in a text it
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

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        """Token ids of `s`, cut to `max_len`, with BOS before and EOS behind where asked for."""
        ids = self.encoding.encode_ordinary(s)[: self.max_len]
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def encode_batch(self, texts: Sequence[str], bos: bool, eos: bool) -> list[list[int]]:
        """`encode` of every text, on several cores."""
        rows = self.encoding.encode_ordinary_batch(list(texts))
        return [[self.bos_id] * bos + ids[: self.max_len] + [self.eos_id] * eos for ids in rows]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids; <|endoftext|> is silent, bytes that are no UTF-8 become U+FFFD."""
        return self.encoding.decode([i for i in ids if i != self.eos_id])


def _load_encoding(name: str, source: str) -> "Encoding":
    try:
        import tiktoken
    except ImportError:
        raise ValueError(
            f"tokenizer {name} needs tiktoken, which is not installed: pip install tiktoken"
        ) from None
    if source == "gpt2":
        try:
            return tiktoken.get_encoding("gpt2")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"tokenizer {name}: its vocabulary cannot be fetched ({type(error).__name__}); "
                "connect to the network, set TIKTOKEN_CACHE_DIR to a folder that has it, "
                f"or give a local ranks file as {TIKTOKEN_PREFIX}PATH"
            ) from None
    ranks = _read_ranks(Path(source))
    special = {END_OF_TEXT: len(ranks)}
    return tiktoken.Encoding(
        source, pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )


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


def load_tokenizer(name: str | Path, max_len: int | None = None) -> Tokenizer | TiktokenTokenizer:
    """`tiktoken:gpt2`, `tiktoken:PATH`, or the path of a SentencePiece model.

    Raises what the tokenizer's class raises.
    """
    if str(name).startswith(TIKTOKEN_PREFIX):
        return TiktokenTokenizer(str(name), max_len)
    return Tokenizer(max_len, name)


AnyTokenizer = Tokenizer | TiktokenTokenizer


def find_tokenizer(checkpoint: str | Path, explicit: str | Path | None = None) -> Path:
    """The tokenizer file for a checkpoint: the explicit one, else <checkpoint stem>.model, else the
    only .model file beside the checkpoint (of a folder: in or beside it), else tokenizer.model in
    the current folder.
    """
    if explicit is not None:
        return Path(explicit)
    checkpoint = Path(checkpoint)
    same_stem = checkpoint.with_suffix(".model")
    if same_stem.is_file():
        return same_stem
    beside = list(checkpoint.glob("*.model")) if checkpoint.is_dir() else []
    beside = beside or list(checkpoint.parent.glob("*.model"))
    return beside[0] if len(beside) == 1 else Path(TOKENIZER_MODEL)


def check_vocabulary(tokenizer: AnyTokenizer, vocab_size: int, checkpoint: str | Path) -> None:
    """Raise ValueError unless the tokenizer has exactly the model's `vocab_size` pieces."""
    if tokenizer.n_words != vocab_size:
        raise ValueError(
            f"tokenizer {tokenizer.model_path} has {tokenizer.n_words} pieces, but {checkpoint} "
            f"was trained with {vocab_size}; give its own tokenizer with --tokenizer"
        )
