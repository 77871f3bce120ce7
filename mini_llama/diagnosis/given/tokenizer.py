"""The course's tokenizer, which wants its model in the working directory."""

import os


class Tokenizer:
    """Text to token ids and back. Raises FileNotFoundError without a model."""

    def __init__(self, max_len: int | None = None, tokenizer_model: str | None = None) -> None:
        from sentencepiece import SentencePieceProcessor

        self.model_path = tokenizer_model or "tokenizer.model"
        if not os.path.isfile(self.model_path):
            raise FileNotFoundError(f"{self.model_path} is not here: the tokenizer's model")
        self.sp_model = SentencePieceProcessor(model_file=self.model_path)
        self.max_len = max_len
        self.n_words = self.sp_model.vocab_size()
        self.bos_id, self.eos_id = self.sp_model.bos_id(), self.sp_model.eos_id()
        self.pad_id = self.sp_model.piece_to_id("<0x00>")

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        """At most max_len ids, not counting those of the beginning and the end."""
        ids = self.sp_model.encode(s)[: self.max_len]
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def decode(self, t: list[int]) -> str:
        return self.sp_model.decode(t)
