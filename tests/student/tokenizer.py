import os
from typing import List

from sentencepiece import SentencePieceProcessor

TOKENIZER_MODEL = "tokenizer.model"


class Tokenizer:
    def __init__(self, max_len=None, tokenizer_model=None):
        place = tokenizer_model or TOKENIZER_MODEL
        assert os.path.isfile(place), place
        self.sp_model = SentencePieceProcessor(model_file=place)
        self.max_len = max_len
        self.bos_id = self.sp_model.bos_id()
        self.eos_id = self.sp_model.eos_id()
        self.pad_id = self.sp_model.piece_to_id("<0x00>")

    def encode(self, s: str, bos: bool, eos: bool) -> List[int]:
        ids = self.sp_model.encode(s)[: self.max_len]
        return bos * [self.bos_id] + ids + eos * [self.eos_id]

    def decode(self, t: List[int]) -> str:
        return self.sp_model.decode(t)
