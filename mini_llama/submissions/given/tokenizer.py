"""SentencePiece with the course's interface."""

from pathlib import Path

from sentencepiece import SentencePieceProcessor

TOKENIZER_MODEL = "tokenizer.model"


class Tokenizer:
    """`max_len` limits a text's tokens, not counting BOS and EOS."""

    def __init__(self, max_len: int | None = None, tokenizer_model: str | None = None) -> None:
        self.model_path = tokenizer_model or TOKENIZER_MODEL
        if not Path(self.model_path).is_file():
            raise FileNotFoundError(f"{self.model_path} does not exist: setup.sh downloads it")
        self.sp_model = SentencePieceProcessor(model_file=self.model_path)
        self.max_len = max_len
        self.n_words: int = self.sp_model.vocab_size()
        self.bos_id: int = self.sp_model.bos_id()
        self.eos_id: int = self.sp_model.eos_id()
        self.pad_id: int = self.sp_model.piece_to_id("<0x00>")

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        ids = self.sp_model.encode(s)[: self.max_len]
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def decode(self, t: list[int]) -> str:
        return self.sp_model.decode(t)
