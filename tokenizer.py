"""Text ↔ token ids through SentencePiece (Kudo and Richardson 2018).

The file knows no model; whether a vocabulary fits one is asked with `check_vocabulary`.
"""

from pathlib import Path

from sentencepiece import SentencePieceProcessor

TOKENIZER_MODEL = "tokenizer.model"


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
        """Token ids of `s`, cut to `max_len`, with BOS before and EOS behind where asked for."""
        ids = self.sp_model.encode(s)[: self.max_len]
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def decode(self, ids: list[int]) -> str:
        """The text of token ids; BOS, EOS and other control pieces are silent."""
        return self.sp_model.decode(ids)


def find_tokenizer(checkpoint: str | Path, explicit: str | Path | None = None) -> Path:
    """The tokenizer file for a checkpoint: the explicit one, else <checkpoint stem>.model, else the
    only .model file beside the checkpoint, else tokenizer.model in the current folder.
    """
    if explicit is not None:
        return Path(explicit)
    checkpoint = Path(checkpoint)
    same_stem = checkpoint.with_suffix(".model")
    if same_stem.is_file():
        return same_stem
    beside = list(checkpoint.parent.glob("*.model"))
    return beside[0] if len(beside) == 1 else Path(TOKENIZER_MODEL)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, checkpoint: str | Path) -> None:
    """Raise ValueError unless the tokenizer has exactly the model's `vocab_size` pieces."""
    if tokenizer.n_words != vocab_size:
        raise ValueError(
            f"tokenizer {tokenizer.model_path} has {tokenizer.n_words} pieces, but {checkpoint} "
            f"was trained with {vocab_size}; give its own tokenizer with --tokenizer"
        )
