"""llama2.c's tokenizer.bin: reading, writing, and the byte-pair encoding that goes with it.

A file is one int32, the longest piece's bytes, then a piece after another up to the end: float32
score, int32 length, bytes; little-endian, the piece's place its id. It is made from a SentencePiece
model: "▁" is written as the space it stands for, BOS and EOS, ids 1 and 2, have line ends around
them, and <0x00> to <0xFF> stand for single bytes. Normalisation is not recorded: a text is encoded
as it stands, after one space.
"""

import functools
import heapq
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from mini_llama.tokenization.base import EACH_BYTE, BaseTokenizer, NamedToken
from mini_llama.tokenization.sentencepiece_file import BPE, BYTE, CONTROL, NORMAL, SentencePieceFile
from mini_llama.tokenization.sentencepiece_file import UNKNOWN as SPM_UNKNOWN
from utils import atomic_write

UNKNOWN_ID, BOS_ID, EOS_ID = range(3)
UNKNOWN, UNKNOWN_SURFACE = "<unk>", b" \xe2\x81\x87 "  # SentencePiece's text for it
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
INNER_SPACE, WORD, WHOLE = (re.compile(p, re.DOTALL) for p in ("[^ ] ", " *[^ ]+| +", ".+"))
CACHED_WORDS = 2**16
LONGEST_PIECE = 2**16 - 1
LENGTH, SCORE_AND_LENGTH = struct.Struct("<i"), struct.Struct("<fi")
REMEDY = "give a whole tokenizer.bin of llama2.c, or its SentencePiece model"


def is_llama2c(start: bytes) -> bool:
    """Whether a file that begins so may be a tokenizer.bin: the two upper bytes of the first int32
    are 0 in one, and never in a SentencePiece model.
    """
    return len(start) >= LENGTH.size and start[2:4] == b"\0\0"


class Llama2cTokenizer(BaseTokenizer):
    """A tokenizer.bin; encodes by merging the neighbours of the highest score first, the left one
    of equals (Sennrich et al. 2016, with scores for ranks, as SentencePiece and llama2.c do).

    Every text decodes to itself. `pad_id` is the id of <0x00>, as in Tokenizer. Raises OSError, or
    ValueError for what is not a whole file with pieces for a space and all bytes.
    """

    byte_errors = EACH_BYTE

    def __init__(self, path: str | Path, max_len: int | None = None) -> None:
        self.model_path = Path(path)
        self.max_len = max_len
        with open(path, "rb") as file:
            self.pieces, self.scores = _read_pieces(file, self.model_path)
        self.n_words = len(self.pieces)
        self.bos_id, self.eos_id = BOS_ID, EOS_ID
        ids = {piece: i for i, piece in enumerate(self.pieces)}
        self._check(ids)
        self.byte_ids = [ids[piece] for piece in BYTE_PIECES]
        self.pad_id = self.byte_ids[0]
        self.bytes_of = {i: bytes([byte]) for byte, i in enumerate(self.byte_ids)}
        control = {UNKNOWN_ID, BOS_ID, EOS_ID} | self.bytes_of.keys()
        self.text_pieces = {piece: i for piece, i in ids.items() if i not in control}
        # Where no piece has a space after another character, nothing is merged across that place: a
        # text is cut there, and the ids of a word are cached.
        is_cut = not any(INNER_SPACE.search(piece) for piece in self.text_pieces)
        self.word = WORD if is_cut else WHOLE
        self.word_ids = functools.lru_cache(CACHED_WORDS)(self._word_ids)

    def _check(self, ids: dict[str, int]) -> None:
        if len(ids) < self.n_words:
            i = next(i for i, piece in enumerate(self.pieces) if ids[piece] != i)
            again = f"piece {i}, {self.pieces[i]!r}, is piece {ids[self.pieces[i]]} as well"
            raise ValueError(f"{self.model_path}: {again}; {REMEDY}")
        for i, piece in ((BOS_ID, "<s>"), (EOS_ID, "</s>")):
            if i >= self.n_words or self.pieces[i].strip() != piece:
                raise ValueError(f"{self.model_path}: piece {i} is not {piece}; {REMEDY}")
        lacking = [piece for piece in (" ", *BYTE_PIECES) if piece not in ids]
        if lacking:
            raise ValueError(f"{self.model_path} has no piece {lacking[0]!r}; {REMEDY}")

    @functools.cached_property
    def named_tokens(self) -> dict[str, NamedToken]:
        return {self.pieces[i].strip(): NamedToken(i, True) for i in (BOS_ID, EOS_ID)}

    def text_ids(self, text: str) -> list[int]:
        """The ids of `text` after a space; none for an empty text."""
        words = self.word.findall(" " + text) if text else []
        return [i for word in words for i in self.word_ids(word)]

    def _word_ids(self, word: str) -> list[int]:
        ids: list[int] = []
        for character, piece in zip(word, self._merge(word), strict=True):
            if piece is None:
                ids += [self.byte_ids[byte] for byte in character.encode()]
            elif piece:
                ids.append(self.text_pieces[piece])
        return ids

    def _merge(self, characters: str) -> list[str | None]:
        """A place for each character: the piece that begins there, "" inside a piece, None for a
        character that is no piece.
        """
        known, scores = self.text_pieces, self.scores
        pieces = [character if character in known else None for character in characters]
        before = list(range(-1, len(pieces) - 1))
        after = [*range(1, len(pieces)), -1]
        heap: list[tuple[float, int, int, str]] = []

        def joined(left: int, right: int) -> str | None:
            first, second = pieces[left], pieces[right]
            return first + second if first and second else None

        def consider(left: int, right: int) -> None:
            merged = joined(left, right) if left >= 0 and right >= 0 else None
            if merged in known:
                heapq.heappush(heap, (-scores[known[merged]], left, right, merged))

        for left, right in enumerate(after):
            consider(left, right)
        while heap:
            _, left, right, merged = heapq.heappop(heap)
            # either may have been merged with another neighbour since
            if after[left] != right or joined(left, right) != merged:
                continue
            pieces[left], pieces[right] = merged, ""
            after[left], after[right] = after[right], -1
            if after[left] >= 0:
                before[after[left]] = left
            consider(before[left], left)
            consider(left, after[left])
        return pieces

    def token_bytes(self, token_id: int, at_start: bool) -> bytes | None:
        if token_id in (BOS_ID, EOS_ID):
            return None
        if token_id in self.bytes_of:
            return self.bytes_of[token_id]
        piece = self.pieces[token_id]
        if token_id == UNKNOWN_ID and piece == UNKNOWN:
            return UNKNOWN_SURFACE
        return piece.removeprefix(" " if at_start else "").encode()

    def scored_pieces(self) -> Iterator[tuple[str, float]]:
        """What `export_llama2c_tokenizer` writes: the file's own content."""
        return zip(self.pieces, self.scores, strict=True)


def as_sentencepiece(tokenizer: Llama2cTokenizer) -> SentencePieceFile | None:
    """The vocabulary as a SentencePiece model that changes nothing in a text but for the space
    before it; None where equal scores leave the order of merges to their places in a text. Runs of
    spaces, which share a score in Llama 2's vocabulary, come out the same in any order.
    """
    spelt = {UNKNOWN_ID: UNKNOWN, BOS_ID: "<s>", EOS_ID: "</s>"}
    kinds = dict.fromkeys(tokenizer.byte_ids, BYTE)
    kinds |= {UNKNOWN_ID: SPM_UNKNOWN, BOS_ID: CONTROL, EOS_ID: CONTROL}
    words = {piece: i for piece, i in tokenizer.text_pieces.items() if piece.strip(" ")}
    merged = [tokenizer.scores[i] for piece, i in words.items() if len(piece) > 1]
    if len(set(merged)) < len(merged):
        return None
    pieces = [
        (spelt.get(i, piece.replace(" ", "▁")), score, kinds.get(i, NORMAL))
        for i, (piece, score) in enumerate(zip(tokenizer.pieces, tokenizer.scores, strict=True))
    ]
    return SentencePieceFile(pieces, BPE, byte_fallback=True, joins_spaces=False)


def _read_pieces(file: BinaryIO, path: Path) -> tuple[list[str], list[float]]:
    longest = LENGTH.unpack(file.read(LENGTH.size).ljust(LENGTH.size, b"\0"))[0]
    if not 0 < longest <= LONGEST_PIECE:
        raise ValueError(f"{path} begins with a longest piece of {longest} bytes; {REMEDY}")
    pieces: list[str] = []
    scores: list[float] = []
    while start := file.read(SCORE_AND_LENGTH.size):
        where = f"{path}: piece {len(pieces)}"
        if len(start) < SCORE_AND_LENGTH.size:
            raise ValueError(f"{where} is cut short; {REMEDY}")
        score, length = SCORE_AND_LENGTH.unpack(start)
        if not math.isfinite(score):
            raise ValueError(f"{where} has the score {score}; {REMEDY}")
        if not 0 < length <= longest:
            raise ValueError(f"{where} has {length} bytes, not 1 to {longest}; {REMEDY}")
        piece = file.read(length)
        if len(piece) < length:
            raise ValueError(f"{where} is cut short; {REMEDY}")
        try:
            pieces.append(piece.decode())
        except UnicodeDecodeError:
            raise ValueError(f"{where}, {piece!r}, is not UTF-8; {REMEDY}") from None
        scores.append(score)
    return pieces, scores


@runtime_checkable
class ScoredTokenizer(Protocol):
    """A vocabulary whose pieces have scores."""

    def scored_pieces(self) -> Iterator[tuple[str, float]]:
        """Pieces and scores, in llama2.c's form, in the order of their ids."""


def export_llama2c_tokenizer(tokenizer: BaseTokenizer, path: str | Path) -> None:
    """Write a SentencePiece tokenizer (or a tokenizer.bin that was read) as a tokenizer.bin,
    atomically, in the bytes that llama2.c's own export writes.

    Raises ValueError for another tokenizer, and what `scored_pieces` and writing raise.
    """
    if not isinstance(tokenizer, ScoredTokenizer):
        raise ValueError(
            f"{tokenizer.model_path} is no SentencePiece model, and only such a one has the scores "
            "that a tokenizer.bin of llama2.c needs; give the tokenizer.model"
        )
    rows = [(piece.encode(), score) for piece, score in tokenizer.scored_pieces()]
    with atomic_write(path, "wb") as file:
        file.write(LENGTH.pack(max(len(piece) for piece, _ in rows)))
        for piece, score in rows:
            file.write(SCORE_AND_LENGTH.pack(score, len(piece)) + piece)
