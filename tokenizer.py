"""Text ↔ token ids: SentencePiece (Kudo and Richardson 2018), tiktoken, and which tokenizer
belongs to a checkpoint.

llama2.c's tokenizer.bin and Hugging Face's tokenizer.json have files of their own. The file knows
no model; whether a vocabulary fits one is asked with `check_vocabulary`. As a command,

    python tokenizer.py export tokenizer.model tokenizer.bin

writes llama2.c's file of a SentencePiece model.
"""

import base64
import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sentencepiece import SentencePieceProcessor

from mini_llama.command_line import OneLineParser, one_line_errors
from mini_llama.tokenization.base import EACH_BYTE, BaseTokenizer
from mini_llama.tokenization.huggingface import TOKENIZER_JSON, HuggingFaceTokenizer
from mini_llama.tokenization.llama2c import (
    BYTE_PIECES,
    Llama2cTokenizer,
    export_llama2c_tokenizer,
    is_llama2c,
)

if TYPE_CHECKING:
    from tiktoken import Encoding

TOKENIZER_MODEL, TOKENIZER_BIN = "tokenizer.model", "tokenizer.bin"
TIKTOKEN_PREFIX = "tiktoken:"
END_OF_TEXT = "<|endoftext|>"
# GPT-2's, in the form without backtracking that tiktoken itself uses
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# How a file of ranks begins, which is given with the prefix.
RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+=* [0-9]+\r?\n")
SNIFFED_BYTES = 256
PROGRAM = "tokenizer.py"
AnyTokenizer = BaseTokenizer


class Tokenizer(BaseTokenizer):
    """A SentencePiece model; `max_len` bounds the tokens of a text, BOS and EOS not counted.

    `pad_id` is the id of the piece <0x00>, as in the assignment (3 in Llama 2's vocabulary, not 0).
    Raises FileNotFoundError or ValueError if `tokenizer_model` is no SentencePiece model.
    """

    byte_errors = EACH_BYTE

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

    def text_ids(self, text: str) -> list[int]:
        return self.sp_model.encode(text)

    def batch_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.sp_model.encode(list(texts), num_threads=-1)

    def token_bytes(self, token_id: int, at_start: bool) -> bytes | None:
        model = self.sp_model
        if model.is_control(token_id):
            return None
        piece = model.id_to_piece(token_id)
        if model.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])  # <0x0A>
        if at_start and not model.decode([token_id, token_id]):
            return None  # a space, where the model takes all those before a text off
        is_whole = at_start or model.is_unknown(token_id)
        return (model.decode([token_id]) if is_whole else piece.replace("▁", " ")).encode()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; BOS, EOS and other control pieces are silent."""
        return self.sp_model.decode(list(ids))

    def scored_pieces(self) -> Iterator[tuple[str, float]]:
        """What `export_llama2c_tokenizer` writes: pieces and scores in llama2.c's form. Raises
        ValueError for a model that cannot have one.
        """
        model = self.sp_model
        is_usual = (model.unk_id(), self.bos_id, self.eos_id) == (0, 1, 2)
        if not is_usual or any(model.is_unknown(i) for i in map(model.piece_to_id, BYTE_PIECES)):
            raise ValueError(
                f"{self.model_path} cannot be a tokenizer.bin of llama2.c, which needs <unk>, BOS "
                "and EOS as 0, 1 and 2, and pieces for all bytes"
            )
        for i in range(self.n_words):
            piece = model.id_to_piece(i).replace("▁", " ")
            yield f"\n{piece}\n" if i in (self.bos_id, self.eos_id) else piece, model.get_score(i)


class TiktokenTokenizer(BaseTokenizer):
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

    def text_ids(self, text: str) -> list[int]:
        return self.encoding.encode_ordinary(text)

    def batch_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.encoding.encode_ordinary_batch(list(texts))

    def token_bytes(self, token_id: int, at_start: bool) -> bytes | None:
        return (
            None if token_id == self.eos_id else self.encoding.decode_single_token_bytes(token_id)
        )


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


def load_tokenizer(name: str | Path, max_len: int | None = None) -> BaseTokenizer:
    """`tiktoken:gpt2`, `tiktoken:PATH`, a folder with a tokenizer, or a file, told apart by its
    content: tokenizer.json, llama2.c's tokenizer.bin, or else a SentencePiece model.

    Raises what the tokenizer's class raises; ValueError for a file of tiktoken's ranks without its
    prefix, since it does not say how text is split.
    """
    if str(name).startswith(TIKTOKEN_PREFIX):
        return TiktokenTokenizer(str(name), max_len)
    path = Path(name)
    path = (_in_folder(path) or path) if path.is_dir() else path
    start = _start(path)
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


def find_tokenizer(checkpoint: str | Path, explicit: str | Path | None = None) -> Path:
    """The tokenizer for a checkpoint: the explicit one; else <checkpoint stem>.model; else the one
    in the checkpoint's folder, if the checkpoint is a folder or has config.json beside it; else the
    only .model file beside the checkpoint, tokenizer.bin beside it, or the only .bin file beside it
    that is a tokenizer; else tokenizer.model in the current folder.
    """
    if explicit is not None:
        return Path(explicit)
    checkpoint = Path(checkpoint)
    same_stem, beside = checkpoint.with_suffix(".model"), checkpoint.parent
    if same_stem.is_file():
        return same_stem
    folder = checkpoint if checkpoint.is_dir() else beside
    has_own = folder is checkpoint or (folder / "config.json").is_file()
    inside = _in_folder(folder) if has_own else None
    return inside or _only(beside) or Path(TOKENIZER_MODEL)


def _in_folder(folder: Path) -> Path | None:
    """tokenizer.json where its package is installed, else tokenizer.model, else the only one."""
    whole, model = folder / TOKENIZER_JSON, folder / TOKENIZER_MODEL
    if whole.is_file() and importlib.util.find_spec("tokenizers") is not None:
        return whole
    found = model if model.is_file() else _only(folder)
    return found or (whole if whole.is_file() else None)  # whose error says what to install


def _only(folder: Path) -> Path | None:
    """The only .model file of a folder, its tokenizer.bin, or its only .bin that is a tokenizer."""
    models = list(folder.glob("*.model"))
    if len(models) == 1:
        return models[0]
    if (folder / TOKENIZER_BIN).is_file():
        return folder / TOKENIZER_BIN
    starts = {path: _start(path) for path in folder.glob("*.bin")}
    # a model's file may begin as a tokenizer does, but has no such piece near its beginning
    bins = [p for p, start in starts.items() if is_llama2c(start) and b"<0x00>" in start]
    return bins[0] if len(bins) == 1 else None


def _start(path: Path) -> bytes:
    """The first bytes of a file, or none of what is not a file that can be read."""
    try:
        with open(path, "rb") as file:
            return file.read(SNIFFED_BYTES)
    except OSError:
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


def main(argv: Sequence[str] | None = None) -> None:
    """`export MODEL BIN`: write llama2.c's tokenizer.bin of a SentencePiece model."""
    parser = OneLineParser(prog=PROGRAM, description=main.__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="export")
    export = commands.add_parser("export", help="write llama2.c's tokenizer.bin")
    export.add_argument("model", help="SentencePiece model")
    export.add_argument("bin", help="file to write")
    args = parser.parse_args(argv)
    with one_line_errors(PROGRAM):
        from utils import check_outputs

        check_outputs([args.bin], [args.model])
        tokenizer = load_tokenizer(args.model)
        export_llama2c_tokenizer(tokenizer, args.bin)
        print(f"Wrote {tokenizer.n_words} pieces to {args.bin}.")


if __name__ == "__main__":
    main()
