"""A tokenizer → the metadata of a GGUF file, from which tokenization/gguf.py makes it again."""

import json
from typing import Any

import numpy as np

from mini_llama.gguf_file import read_gguf
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.gguf import ROLES, GGUFBytePairs, GGUFPieces
from mini_llama.tokenization.huggingface import HuggingFaceTokenizer
from mini_llama.tokenization.pre_tokenizers import GPT2, RULES
from mini_llama.tokenization.sentencepiece_file import (
    BPE,
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    parse,
)
from tokenizer import Tokenizer

PREFIX, TEMPLATE = "tokenizer.ggml.", "tokenizer.chat_template"


def tokenizer_metadata(tokenizer: BaseTokenizer, vocab_size: int) -> dict[str, Any]:
    """The metadata of a tokenizer for a model of `vocab_size` rows; rows beyond the vocabulary
    become unused tokens. Raises ValueError for a kind that the format has no name for.
    """
    if isinstance(tokenizer, GGUFPieces | GGUFBytePairs):
        metadata = read_gguf(tokenizer.model_path).metadata
        return {k: _number(v) for k, v in metadata.items() if k.startswith("tokenizer.")}
    if isinstance(tokenizer, Tokenizer):
        content = _of_pieces(tokenizer)
        adds_bos = tokenizer.bos_id is not None
    elif isinstance(tokenizer, HuggingFaceTokenizer):
        content = _of_byte_pairs(tokenizer)
        adds_bos = bool(tokenizer.adds_bos)
    else:
        raise ValueError("only SentencePiece models and tokenizer.json have a form in GGUF files")
    for key, filler in (("scores", -1000.0), ("token_type", UNUSED)):
        if key in content:
            content[key] += [filler] * (vocab_size - len(content[key]))
    names = content["tokens"]
    names += [f"[PAD{i}]" for i in range(len(names), vocab_size)]
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    if isinstance(tokenizer, Tokenizer):
        ids["unk"] = tokenizer.sp_model.unk_id()
    elif tokenizer.has_padding:
        ids["pad"] = tokenizer.pad_id
    content |= {f"{ROLES[k]}_token_id": np.uint32(i) for k, i in ids.items() if i is not None}
    metadata = {PREFIX + key: value for key, value in content.items()}
    metadata[f"{PREFIX}add_bos_token"] = adds_bos
    template = tokenizer.chat_template
    return metadata | ({TEMPLATE: template} if template else {})


def _number(value: Any) -> Any:
    """An integer of a file that was read, as the type that llama.cpp expects of ids."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return np.uint32(value) if is_integer and 0 <= value < 2**32 else value


def _of_pieces(tokenizer: Tokenizer) -> dict[str, Any]:
    file = parse(tokenizer.sp_model.serialized_model_proto())
    if file.model_type != BPE or file.space_is_suffix or not file.escapes_spaces:
        raise ValueError("GGUF files have no form for SentencePiece models other than BPE")
    content: dict[str, Any] = {"model": "llama", "pre": "default"}
    content["tokens"] = [text for text, _, _ in file.pieces]
    content["scores"] = [score for _, score, _ in file.pieces]
    content["token_type"] = [kind for _, _, kind in file.pieces]
    content["add_space_prefix"] = file.adds_prefix
    if file.characters or file.joins_spaces:
        content["remove_extra_whitespaces"] = file.joins_spaces
    if file.characters:
        content["precompiled_charsmap"] = np.frombuffer(file.characters, np.uint8)
    return content


def _of_byte_pairs(tokenizer: HuggingFaceTokenizer) -> dict[str, Any]:
    if not tokenizer.kind.is_byte_level:
        raise ValueError(
            "a tokenizer.json of Llama 2's kind lacks the scores that GGUF files have: put its "
            "tokenizer.model beside it"
        )
    file = json.loads(tokenizer.library.to_str())
    model, added = file["model"], file["added_tokens"]
    tokens = {i: token for token, i in tokenizer.library.get_vocab(with_added_tokens=True).items()}
    if sorted(tokens) != list(range(len(tokens))):
        raise ValueError("GGUF files have no form for vocabularies with gaps")
    types = [NORMAL] * len(tokens)
    for token in added:
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    for i in tokenizer.control_ids:
        types[i] = CONTROL
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    content: dict[str, Any] = {"model": "gpt2", "pre": find_rule(file)}
    content |= {"tokens": [tokens[i] for i in range(len(tokens))], "merges": merges}
    return content | {"token_type": types, "add_space_prefix": False}


def find_rule(content: dict[str, Any]) -> str:
    """The name of the rule by which a tokenizer.json cuts texts. Raises ValueError for another."""
    if content.get("normalizer") is not None:
        raise ValueError("GGUF files have no form for a byte-level tokenizer that normalizes")
    whole = content.get("pre_tokenizer") or {}
    steps = whole.get("pretokenizers", []) if whole.get("type") == "Sequence" else [whole]
    expressions = tuple(e for step in steps for e in _expressions(step))
    keeps_words = bool(content["model"].get("ignore_merges"))
    for name, rule in RULES.items():
        if (rule.expressions, rule.keeps_words) == (expressions, keeps_words):
            return name
    raise ValueError(
        "the way in which its tokenizer.json cuts a text has no name here that GGUF files know"
    )


def _expressions(step: dict[str, Any]) -> list[str]:
    if step.get("type") == "ByteLevel" and not step.get("add_prefix_space"):
        return [GPT2] if step.get("use_regex", True) else []
    if step.get("type") == "Digits" and step.get("individual_digits"):
        return [r"\p{N}"]
    is_cut = step.get("type") == "Split" and step.get("behavior") in ("Isolated", "Removed")
    if is_cut and "Regex" in step.get("pattern", {}):
        removes_gaps = step["behavior"] == "Removed" and step.get("invert")
        return [step["pattern"]["Regex"]] if removes_gaps or not step.get("invert") else ["?"]
    return ["?"]
