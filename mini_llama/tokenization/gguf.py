"""The tokenizer inside a GGUF file, of either kind that files of Llamas have.

`llama` is SentencePiece's: pieces, scores and types, from which its model is made again. `gpt2` is
byte-level: tokens and merges, and the name of the rule that cuts a text.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sentencepiece import SentencePieceProcessor

from mini_llama.gguf_file import GGUFFile, read_gguf
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.chat_files import END_NAMES
from mini_llama.tokenization.huggingface import LARGEST_VOCABULARY, HuggingFaceTokenizer, Settings
from mini_llama.tokenization.huggingface_export import begin_with
from mini_llama.tokenization.pre_tokenizers import RULES
from mini_llama.tokenization.sentencepiece_file import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
)
from tokenizer import Tokenizer

MODEL, PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
END_ROLES = ("eos", "eot", "eom")
BYTES = 256


class Vocabulary(NamedTuple):
    """What both kinds of tokenizer have. `ids` are those of ROLES and END_ROLES that are given."""

    file: GGUFFile
    tokens: list[str]
    types: list[int]
    ids: dict[str, int]

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a turn: by their roles, then control tokens by their names."""
        places = {token: i for i, token in enumerate(self.tokens) if self.types[i] == CONTROL}
        roles = [self.ids[role] for role in END_ROLES if role in self.ids]
        return tuple(dict.fromkeys([*roles, *(places[n] for n in END_NAMES if n in places)]))


def has_tokenizer(path: Path) -> bool:
    """Whether a GGUF file has a tokenizer. Raises OSError, ValueError."""
    return read_gguf(path).metadata.get(MODEL) not in (None, "none", "no_vocab")


def load_gguf_tokenizer(path: Path, max_len: int | None = None) -> BaseTokenizer:
    """The tokenizer of a GGUF file. Raises OSError, or ValueError for a file without one, of
    another kind, or whose parts do not fit each other.
    """
    file = read_gguf(path)
    kind = file.text(MODEL)
    if kind == "llama":
        return GGUFPieces(_read_vocabulary(file), max_len)
    if kind == "gpt2":
        return GGUFBytePairs(_read_vocabulary(file), max_len)
    remedy = "give the model's own with --tokenizer"
    if kind in (None, "none", "no_vocab"):
        raise ValueError(f"{path} holds no tokenizer: {remedy}")
    raise ValueError(
        f"{path} has a tokenizer of the kind {kind!r}, and only 'llama' and 'gpt2' are supported: "
        f"{remedy}"
    )


def _read_vocabulary(file: GGUFFile) -> Vocabulary:
    tokens = file.texts("tokenizer.ggml.tokens")
    if not tokens:
        raise file.error("its tokenizer has no tokens")
    if len(tokens) > LARGEST_VOCABULARY:
        raise file.error(f"its tokenizer has {len(tokens)} tokens, more than {LARGEST_VOCABULARY}")
    places = {token: i for i, token in enumerate(tokens)}
    if len(places) < len(tokens):
        i = next(i for i, token in enumerate(tokens) if places[token] != i)
        raise file.error(f"its tokens {i} and {places[tokens[i]]} are both {tokens[i][:40]!r}")
    types = _numbers(file, "tokenizer.ggml.token_type", len(tokens), NORMAL)
    ids = {}
    for role, name in {**ROLES, **{role: role for role in END_ROLES}}.items():
        key = f"tokenizer.ggml.{name}_token_id"
        number = file.integer(key)
        if number is not None and 0 <= number < 2**32 - 1:  # llama.cpp's number for none
            if number >= len(tokens):
                raise file.error(f"{key} is {number}, and there are {len(tokens)} tokens")
            ids[role] = number
    return Vocabulary(file, tokens, [int(kind) for kind in types], ids)


def _numbers(file: GGUFFile, key: str, count: int, default: float) -> list[Any]:
    """As many numbers as there are tokens; `default` where the file has none."""
    numbers = file.numbers(key)
    if numbers is None:
        return [default] * count
    if len(numbers) != count:
        raise file.error(f"{key} has {len(numbers)} values for {count} tokens")
    return numbers.tolist()


class GGUFBytePairs(HuggingFaceTokenizer):
    """The kind gpt2, as the tokenizer.json that it was made from."""

    def __init__(self, vocabulary: Vocabulary, max_len: int | None = None) -> None:
        file = vocabulary.file
        names: dict[str, Any] = {
            f"{role}_token": vocabulary.tokens[vocabulary.ids[role]]
            for role in ("bos", "eos", "pad")
            if role in vocabulary.ids
        }
        pre = file.text(PRE) or "default"
        if pre not in RULES:
            raise ValueError(
                f"{file.path}: {PRE} is {pre[:40]!r}, a rule that is not known here (known: "
                f"{', '.join(RULES)}); give the model's tokenizer.json with --tokenizer"
            )
        said = file.flag("tokenizer.ggml.add_bos_token")
        names["add_bos_token"] = RULES[pre].adds_bos if said is None else said
        self.content, self.names = tokenizer_json(vocabulary, pre), names
        if names["add_bos_token"] and "bos" in vocabulary.ids:
            self.content["post_processor"] = begin_with(names["bos_token"], vocabulary.ids["bos"])
        self._set_up(file.path, self.content, Settings([(file.path, names)]), max_len)
        self.chat_template = file.text("tokenizer.chat_template")
        self.eos_ids = vocabulary.end_ids


def tokenizer_json(vocabulary: Vocabulary, pre: str) -> dict[str, Any]:
    """The content of a tokenizer.json. Raises ValueError for merges that do not fit the tokens."""
    file, tokens, rule = vocabulary.file, vocabulary.tokens, RULES[pre]
    places = {token: i for i, token in enumerate(tokens)}
    merges = file.texts("tokenizer.ggml.merges")
    if merges is None:
        raise file.error("its tokenizer of the kind 'gpt2' has no merges")
    pairs = []
    for merge in merges:
        left, _, right = merge[:1] + merge[1:].partition(" ")[0], "", merge[1:].partition(" ")[2]
        if left not in places or right not in places or left + right not in places:
            raise file.error(f"its merge {merge[:40]!r} is not one of two tokens to a third")
        pairs.append([left, right])
    added = [
        {
            **{"id": i, "content": tokens[i], "special": kind != USER_DEFINED},
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
        for i, kind in enumerate(vocabulary.types)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and tokens[i]
    ]
    cuts: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": e}, "behavior": "Isolated", "invert": False}
        for e in rule.expressions
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level["use_regex"] = False
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": places,
            "merges": pairs,
            "ignore_merges": rule.keeps_words,
        },
    }


class GGUFPieces(Tokenizer):
    """The kind llama, by SentencePiece itself."""

    def __init__(self, vocabulary: Vocabulary, max_len: int | None = None) -> None:
        file, tokens, ids = vocabulary.file, vocabulary.tokens, vocabulary.ids
        self.model_path, self.max_len = file.path, max_len
        self.proto = sentencepiece_model(vocabulary)
        try:
            self.sp_model = SentencePieceProcessor(model_proto=self.proto)
        except RuntimeError as error:
            reason = str(error).rpartition("] ")[2] or "it cannot be read"
            raise file.error(f"its tokenizer is no SentencePiece model: {reason}") from None
        self.n_words = len(tokens)
        self.bos_id = ids.get("bos")
        self.eos_id = ids.get("eos")
        self.pad_id = ids.get("pad", ids.get("eos", 0))
        if "<0x00>" in tokens:  # as in the tokenizer.model that it was made from
            self.pad_id = tokens.index("<0x00>")
        said = file.flag("tokenizer.ggml.add_bos_token")
        self.adds_bos = True if said is None else said
        self.chat_template = file.text("tokenizer.chat_template")
        self.eos_ids = vocabulary.end_ids

    def _frame(self, ids: list[int], bos: bool, eos: bool) -> list[int]:
        return super()._frame(ids, bos and (self.adds_bos or not ids), eos)


def sentencepiece_model(vocabulary: Vocabulary) -> bytes:
    """The content of a tokenizer.model. Raises ValueError for types that SentencePiece lacks.

    The fields are those of sentencepiece_model.proto: pieces, trainer_spec, normalizer_spec.
    """
    file, ids, types = vocabulary.file, vocabulary.ids, list(vocabulary.types)
    scores = _numbers(file, "tokenizer.ggml.scores", len(types), 0.0)
    unknown = ids.get("unk", types.index(UNKNOWN) if UNKNOWN in types else 0)
    types = [NORMAL if kind == UNKNOWN else kind for kind in types]
    types[unknown] = UNKNOWN
    wrong = next((kind for kind in types if not NORMAL <= kind <= BYTE), None)
    if wrong is not None:
        raise file.error(f"its tokenizer has a token of type {wrong}, not {NORMAL} to {BYTE}")
    prefix = file.flag("tokenizer.ggml.add_space_prefix")
    strips = file.flag("tokenizer.ggml.remove_extra_whitespaces")
    charsmap = file.numbers("tokenizer.ggml.precompiled_charsmap")
    trainer: list[tuple[int, Any]] = [(3, BPE), (35, types.count(BYTE) == BYTES), (40, unknown)]
    roles = [("bos", 41, 46), ("eos", 42, 47), ("pad", 43, 48)]
    for role, number, name in roles:
        trainer.append((number, ids.get(role, -1)))
        if role in ids:
            trainer.append((name, vocabulary.tokens[ids[role]].encode()))
    trainer.append((45, vocabulary.tokens[unknown].encode()))
    normalizer = [
        *[(1, b"identity"), (3, prefix is not False), (4, strips is True), (5, True)],
        *([] if charsmap is None else [(2, charsmap.tobytes())]),
    ]
    rows = zip(vocabulary.tokens, scores, types, strict=True)
    pieces = [(1, _message([(1, t.encode()), (2, float(s)), (3, k)])) for t, s, k in rows]
    return _message([*pieces, (2, _message(trainer)), (3, _message(normalizer))])


def _message(fields: Sequence[tuple[int, Any]]) -> bytes:
    """Fields, by number, in Protocol Buffers' encoding: integers, float32 and bytes."""
    return b"".join(part for number, value in fields for part in _field(number, value))


def _field(number: int, value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield _varint(number << 3 | 2)
        yield _varint(len(value))
        yield value
    elif isinstance(value, float):
        yield _varint(number << 3 | 5)
        yield struct.pack("<f", value)
    else:
        yield _varint(number << 3)
        yield _varint(int(value) % 2**64)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])
