"""Text ↔ token ids with a SentencePiece model (Kudo and Richardson 2018), as in the assignment.

As a command, it converts a SentencePiece model to llama2.c's tokenizer.bin:

    python tokenizer.py export tokenizer.model tokenizer.bin
"""

import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

if sys.flags.safe_path:  # python -P and PYTHONSAFEPATH leave a command's own folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import mini_llama  # noqa: F401  # says which packages are missing, before one is imported

# isort: split

from sentencepiece import SentencePieceProcessor

from mini_llama.command_line import OneLineParser, one_line_errors, visible
from mini_llama.tokenization.base import EACH_BYTE, BaseTokenizer, NamedToken
from mini_llama.tokenization.llama2c import (
    BYTE_PIECES,
    Llama2cTokenizer,
    export_llama2c_tokenizer,
    is_llama2c,
)
from mini_llama.tokenization.sentencepiece_file import CONTROL, USER_DEFINED, parse
from utils import check_outputs

TOKENIZER_MODEL = "tokenizer.model"
PROGRAM = "tokenizer.py"


class Tokenizer(BaseTokenizer):
    """A SentencePiece model; `max_len` bounds the tokens of a text, BOS and EOS not counted.

    `pad_id` is the id of the piece <0x00>, as in the assignment (3 in Llama 2's vocabulary, not 0).
    Raises FileNotFoundError or ValueError if `tokenizer_model` is not a SentencePiece model.
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
            # its bytes: SentencePiece opens no path that is not UTF-8, and none are no model to it
            self.sp_model = SentencePieceProcessor(model_proto=self.model_path.read_bytes() or b"-")
        except (RuntimeError, OSError):
            raise ValueError(
                f"tokenizer {self.model_path} is not a SentencePiece model; "
                "give one with --tokenizer, or get it again with bash setup.sh"
            ) from None
        self.max_len = max_len
        self.n_words: int = self.sp_model.vocab_size()
        # -1 is SentencePiece's way to say that there is none
        ids = (self.sp_model.bos_id(), self.sp_model.eos_id())
        self.bos_id, self.eos_id = (i if i >= 0 else None for i in ids)
        self.pad_id: int = self.sp_model.piece_to_id("<0x00>")

    def text_ids(self, text: str) -> list[int]:
        return self.sp_model.encode(text)

    def batch_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.sp_model.encode(list(texts), num_threads=-1)

    @functools.cached_property
    def named_tokens(self) -> dict[str, NamedToken]:
        pieces = parse(self.sp_model.serialized_model_proto()).pieces
        return {
            name: NamedToken(i, kind == CONTROL)
            for i, (name, _, kind) in enumerate(pieces)
            if kind in (CONTROL, USER_DEFINED)
        }

    def token_bytes(self, token_id: int, at_start: bool) -> bytes | None:
        model = self.sp_model
        if model.is_control(token_id):
            return None
        piece = model.id_to_piece(token_id)
        if model.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])  # <0x0A>
        if at_start and not model.decode([token_id, token_id]):
            return None  # a space, where the model strips all leading spaces
        is_whole = at_start or model.is_unknown(token_id)
        return (model.decode([token_id]) if is_whole else piece.replace("▁", " ")).encode()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; BOS, EOS and other control tokens add nothing."""
        return self.sp_model.decode(list(ids))

    def scored_pieces(self) -> Iterator[tuple[str, float]]:
        """Pieces and scores in llama2.c's form, for `export_llama2c_tokenizer`. Raises ValueError
        for a model that has no such form.
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


def _read(path: Path) -> BaseTokenizer:
    """A SentencePiece model, or an existing tokenizer.bin."""
    is_written = path.is_file() and is_llama2c(path.read_bytes())
    return Llama2cTokenizer(path) if is_written else Tokenizer(tokenizer_model=path)


@one_line_errors(PROGRAM)
def main(argv: Sequence[str] | None = None) -> None:
    """`export MODEL BIN`: write llama2.c's tokenizer.bin of a SentencePiece model."""
    parser = OneLineParser(prog=PROGRAM, description=main.__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="export")
    export = commands.add_parser("export", help="write llama2.c's tokenizer.bin")
    export.add_argument("model", help="SentencePiece model")
    export.add_argument("bin", help="file to write")
    export.add_argument("--overwrite", action="store_true", help="replace an existing file")
    args = parser.parse_args(argv)
    check_outputs([args.bin], [args.model], args.overwrite)
    tokenizer = _read(Path(args.model))
    export_llama2c_tokenizer(tokenizer, args.bin)
    print(f"Wrote {tokenizer.n_words} pieces to {visible(args.bin)}.")


if __name__ == "__main__":
    main()
