"""A SentencePiece model → Hugging Face's tokenizer.json, with the same ids for a text.

transformers makes a tokenizer of a tokenizer.model too, but orders its merges by id instead of
score, and puts no space before a text.
"""

import base64
from collections.abc import Iterator
from typing import Any

from mini_llama.tokenization.sentencepiece_file import (
    BPE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceFile,
)

SPACE = "▁"


def tokenizer_json(
    content: SentencePieceFile, bos_id: int | None, more: dict[str, int]
) -> dict[str, Any] | None:
    """The content of tokenizer.json; None for what has no such form: word and character models,
    spaces after words, spaces that are not escaped. `more` are tokens that were added to the
    pieces, with their ids.
    """
    is_known = content.model_type in (BPE, UNIGRAM)
    if not is_known or content.space_is_suffix or not content.escapes_spaces:
        return None
    added = [
        _added(i, text, kind != USER_DEFINED)
        for i, (text, _, kind) in enumerate(content.pieces)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    count = len(content.pieces)
    added += [_added(i, text, True) for text, i in more.items() if i >= count]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "normalizer": _normalizer(content),
        "pre_tokenizer": None,
        "post_processor": None if bos_id is None else begin_with(content.pieces[bos_id][0], bos_id),
        "decoder": _decoder(content),
        "model": _unigram(content) if content.model_type == UNIGRAM else _bpe(content),
    }


def _added(token_id: int, text: str, is_special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": text, **flags, "special": is_special}


def _normalizer(content: SentencePieceFile) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if content.characters:
        mapped = base64.b64encode(content.characters).decode()
        if content.normalizer.startswith("nmt"):
            # Both become a space; transformers takes the two for one character, and would make one.
            steps.append({"type": "Replace", "pattern": {"String": "\r\n"}, "content": "\n\n"})
        steps.append({"type": "Precompiled", "precompiled_charsmap": mapped})
    if content.joins_spaces:
        # Not Strip, which would take tabs and line ends, too.
        for pattern, text in ((r"\A +", ""), (rf"[ {SPACE}]+\z", ""), (" {2,}", " ")):
            steps.append({"type": "Replace", "pattern": {"Regex": pattern}, "content": text})
    if content.adds_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return {"type": "Sequence", "normalizers": steps}


def begin_with(token: str, token_id: int) -> dict[str, Any]:
    """The post-processing that puts a token, BOS, before a text."""
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, begin, second],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def _decoder(content: SentencePieceFile) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if content.adds_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _unknown_id(content: SentencePieceFile) -> int:
    return next(i for i, (_, _, kind) in enumerate(content.pieces) if kind == UNKNOWN)


def _unigram(content: SentencePieceFile) -> dict[str, Any]:
    vocabulary = [[text, score] for text, score, _ in content.pieces]
    unknown = _unknown_id(content)
    fallback = {"byte_fallback": content.byte_fallback}
    return {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, **fallback}


def _bpe(content: SentencePieceFile) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": content.pieces[_unknown_id(content)][0],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": content.byte_fallback,
        "ignore_merges": False,
        "vocab": {text: i for i, (text, _, _) in enumerate(content.pieces)},
        "merges": list(_merges(content)),
    }


def _merges(content: SentencePieceFile) -> Iterator[list[str]]:
    """Every way to put a piece together from two, the pieces of the highest score first."""
    normal = {text: score for text, score, kind in content.pieces if kind == NORMAL}
    for text in sorted(normal, key=lambda text: -normal[text]):  # stable: equals by id
        for cut in range(1, len(text)):
            if text[:cut] in normal and text[cut:] in normal:
                yield [text[:cut], text[cut:]]
