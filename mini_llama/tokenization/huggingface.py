"""Hugging Face's tokenizer.json, of both kinds that Llamas have, through the package tokenizers.

One kind is byte-level (GPT-2, Llama 3, SmolLM2): every character of a token stands for a byte. The
other is SentencePiece's (Llama 2, Mistral): "▁" stands for a space, <0x0A> for a byte, and one
space is put before a text. The package splits a text into ids; what the ids stand for in bytes is
worked out here, so that ids can be decoded one at a time.

Control tokens are those that tokenizer.json or the files beside it call special. Text that spells
one is ordinary text.
"""

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mini_llama.optional_imports import import_optional
from mini_llama.tokenization.base import EACH_BYTE, MAXIMAL_PART, BaseTokenizer, NamedToken
from mini_llama.tokenization.chat_files import END_NAMES
from utils import read_json

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_JSON = "tokenizer.json"
NAME_FILES = ("tokenizer_config.json", "special_tokens_map.json")
ID_FILES = ("config.json", "generation_config.json")
# The names to try if no file next to tokenizer.json says which tokens are BOS, EOS and padding.
USUAL_NAMES = {
    "bos": ("<s>", "<|begin_of_text|>"),
    "eos": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
    "pad": (),
}
SPACE, BYTE_ZERO = "▁", "<0x00>"
LARGEST_VOCABULARY = 2**24
MODELS = ("BPE", "Unigram")
# Rows without a token that a model's embedding may have, so that its size is a round number.
PADDING_ROWS, PADDING_SHARE = 127, 16
PRIVATE = range(0x100000, 0x10FFFE)  # characters that Unicode leaves to whoever wants them
_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
# GPT-2's alphabet: a byte that prints is its own character; the others, in order, are U+0100 on.
BYTE_OF = {chr(byte): byte for byte in _PRINTED} | {
    chr(0x100 + n): byte for n, byte in enumerate(sorted(set(range(256)) - set(_PRINTED)))
}


class HuggingFaceTokenizer(BaseTokenizer):
    """A tokenizer.json, with BOS, EOS and padding from the files beside it.

    `encode(bos=True)` adds BOS where this tokenizer's own post-processing does, or add_bos_token in
    tokenizer_config.json decides it: some Llamas (SmolLM2) were trained without. An empty text then
    still gets BOS, or EOS, since a model needs at least one token. The file's own post-processing
    is not applied. `pad_id` is pad_token, else <0x00>, else EOS, else 0. Raises
    OSError, ValueError for what is no such file, or if tokenizers is not installed.
    """

    def __init__(self, path: str | Path, max_len: int | None = None) -> None:
        path = Path(path)
        self._set_up(path, read_json(path), Settings.beside(path.parent), max_len)

    def _set_up(
        self, path: Path, content: dict[str, Any], settings: "Settings", max_len: int | None
    ) -> None:
        """Of the content of a tokenizer.json, wherever it is from."""
        self.model_path = path
        self.max_len = max_len
        self.library = _load(content, settings.control_names, self.model_path)
        self.kind = _Decoding(content.get("decoder"), self.model_path)
        self.byte_errors = EACH_BYTE if self.kind.has_byte_pieces else MAXIMAL_PART
        ids = self.library.get_vocab(with_added_tokens=True)
        self.n_words = _count(ids, self.model_path)
        self.bos_id = settings.find("bos", ids)
        self.eos_id = settings.find("eos", ids)
        padding = (settings.find("pad", ids), ids.get(BYTE_ZERO), self.eos_id, 0)
        self.pad_id = next(i for i in padding if i is not None)
        self.has_padding = padding[:2] != (None, None)
        added = self.library.get_added_tokens_decoder()
        self.control_ids = {i for i, token in added.items() if token.special}
        self.control_ids |= {i for i in (self.bos_id, self.eos_id) if i is not None}
        unknown = ids.get(getattr(self.library.model, "unk_token", None) or "")
        self.forbidden_ids = self.control_ids - {unknown}
        self.adds_bos = settings.adds_bos
        if self.adds_bos is None:
            self.adds_bos = self.bos_id is not None and self._template_begins() == self.bos_id
        text_ids = set(ids.values()) - self.control_ids
        text_ids |= {i for i in (self.bos_id, self.eos_id, self.pad_id) if i is not None}
        self.largest_id = max(text_ids)

    @property
    def padding_only(self) -> int | None:
        return super().padding_only if self.has_padding else None

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """As in the base class; and control tokens by the names that end a turn elsewhere."""
        named = map(self.library.token_to_id, END_NAMES)
        ends = (i for i in named if i is not None and i in self.control_ids)
        return tuple(dict.fromkeys((*super().eos_ids, *ends)))

    def text_ids(self, text: str) -> list[int]:
        """Raises ValueError where the package makes a control token of ordinary text."""
        return self.batch_ids([text])[0]

    def batch_ids(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            encodings = self.library.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(f"tokenizer {self.model_path}: {error}") from None
        rows = [encoding.ids for encoding in encodings]
        for ids in rows:
            self._check_text_ids(ids)
        return rows

    def _check_text_ids(self, ids: Iterable[int]) -> None:
        for control in self.forbidden_ids.intersection(ids):
            raise ValueError(self._taken_for(str(self.library.id_to_token(control))))

    @functools.cached_property
    def named_tokens(self) -> dict[str, NamedToken]:
        added = self.library.get_added_tokens_decoder()
        names = {i: token.content for i, token in added.items()}
        names |= {i: self.library.id_to_token(i) or "" for i in self.control_ids}
        return {name: NamedToken(i, i in self.control_ids) for i, name in names.items() if name}

    def prompt_ids(self, parts: Sequence[str | int]) -> list[int]:
        """The prompt is encoded as one text, as transformers does. In it named tokens go by names
        that no text has, and those that they have are ordinary text.
        """
        texts = [part for part in parts if isinstance(part, str)]
        wanted = [part for part in parts if isinstance(part, int)]
        used = set().union(*texts)
        first = next(chr(code) for code in PRIVATE if chr(code) not in used)
        for keeps_flags in (True, False):
            stand_ins = self._stand_ins(first, keeps_flags)
            whole = "".join(p if isinstance(p, str) else stand_ins.names[p] for p in parts)
            ids = stand_ins.encode(whole)
            if [stand_ins.ids[i] for i in ids if i in stand_ins.ids] == wanted:
                break
        self._check_text_ids(ids)
        return [stand_ins.ids.get(i, i) for i in ids]

    @functools.lru_cache(maxsize=4)  # noqa: B019  # a chat has one tokenizer
    def _stand_ins(self, first: str, keeps_flags: bool) -> "_StandIns":
        return _StandIns(self, first, keeps_flags)

    def _template_begins(self) -> int | None:
        """The id that the file's own post-processing puts before a text, if any."""
        try:
            ids = self.library.encode("").ids
        except Exception as error:
            raise ValueError(f"tokenizer {self.model_path}: {error}") from None
        return ids[0] if ids else None

    def _frame(self, ids: list[int], bos: bool, eos: bool) -> list[int]:
        return super()._frame(ids, bos and (self.adds_bos or not ids), eos)

    def token_bytes(self, token_id: int, at_start: bool) -> bytes | None:
        """As in the base class; an id above the vocabulary, a row of padding, is silent."""
        token = self.library.id_to_token(token_id)
        if token is None or token_id in self.control_ids:
            return None
        return self.kind.token_bytes(token, at_start)

    def fits(self, vocab_size: int) -> bool:
        """A model may have rows of padding beyond the vocabulary, and lack control tokens that were
        added after its training, but for BOS, EOS and padding.
        """
        padding = max(PADDING_ROWS, self.n_words // PADDING_SHARE)
        return self.largest_id < vocab_size <= self.n_words + padding


class _StandIns:
    """The package's object with other names for the named tokens, which begin with the character
    `first`; the names that they have are text to it. With `keeps_flags` they are found where those
    would be, after normalisation as well.
    """

    def __init__(self, tokenizer: HuggingFaceTokenizer, first: str, keeps_flags: bool) -> None:
        library = import_optional("tokenizers", "a tokenizer.json")
        self.path = tokenizer.model_path
        content = json.loads(tokenizer.library.to_str())
        content["added_tokens"] = [
            token | {"special": True} for token in content.get("added_tokens") or []
        ]
        self.library = library.Tokenizer.from_str(json.dumps(content))
        self.library.encode_special_tokens = True
        added = tokenizer.library.get_added_tokens_decoder()
        self.names: dict[int, str] = {}
        tokens = []
        for n, token in enumerate(tokenizer.named_tokens.values()):
            self.names[token.id] = name = f"{first}{n}{first}"
            like = added.get(token.id)
            flags = {
                k: bool(like and getattr(like, k))
                for k in ("lstrip", "rstrip", "single_word", "normalized")
            }
            flags["normalized"] &= keeps_flags
            tokens.append(library.AddedToken(name, special=False, **flags))
        self.library.add_tokens(tokens)
        self.ids = {self.library.token_to_id(name): i for i, name in self.names.items()}

    def encode(self, text: str) -> list[int]:
        try:
            ids: list[int] = self.library.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(f"tokenizer {self.path}: {error}") from None
        return ids


class _Decoding:
    """Tokens → bytes, as the decoder in a tokenizer.json says. Raises ValueError for a decoder that
    is of neither kind.
    """

    def __init__(self, decoder: Any, path: Path) -> None:
        steps = _flatten(decoder)
        kinds = {step.get("type") for step in steps}
        self.is_byte_level = kinds == {"ByteLevel"}
        spaces = [step for step in steps if _is_metaspace(step)]
        known = kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
        if not self.is_byte_level and not (spaces and known):
            named = ", ".join(map(str, kinds)) or "none"
            raise ValueError(
                f"{path}: its decoder ({named}) is not supported; only ByteLevel, as in Llama 3, "
                "and Metaspace with bytes, as in Llama 2, are"
            )
        self.has_byte_pieces = "ByteFallback" in kinds
        self.strips_space = any(map(_strips_space, steps))

    def token_bytes(self, token: str, at_start: bool) -> bytes:
        if self.is_byte_level:
            is_encoded = all(character in BYTE_OF for character in token)
            return bytes(map(BYTE_OF.__getitem__, token)) if is_encoded else token.encode()
        if self.has_byte_pieces and len(token) == len(BYTE_ZERO) and token.startswith("<0x"):
            try:
                text = bytes([int(token[3:5], 16)])
            except ValueError:
                text = token.encode()
        else:
            text = token.replace(SPACE, " ").encode()
        return text.removeprefix(b" ") if at_start and self.strips_space else text


def _flatten(decoder: Any) -> list[dict[str, Any]]:
    """The steps of a decoder, whether it is one or a sequence of them."""
    if not isinstance(decoder, dict):
        return []
    steps = decoder.get("decoders") if decoder.get("type") == "Sequence" else [decoder]
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def _is_metaspace(step: dict[str, Any]) -> bool:
    if step.get("type") == "Replace":
        return step.get("pattern") == {"String": SPACE} and step.get("content") == " "
    return step.get("type") == "Metaspace" and step.get("replacement") == SPACE


def _strips_space(step: dict[str, Any]) -> bool:
    if step.get("type") == "Metaspace":
        always = "always" if step.get("add_prefix_space", True) else "never"
        return step.get("prepend_scheme", always) != "never"
    return step.get("type") == "Strip" and step.get("content") == " " and step.get("start") == 1


class Settings:
    """What is said of control tokens outside a tokenizer.json: `names` are the contents of
    NAME_FILES, with where they are from, `ids` those of ID_FILES; any may be empty.
    """

    def __init__(
        self, names: Sequence[tuple[Path, dict[str, Any]]], ids: Sequence[dict[str, Any]] = ()
    ) -> None:
        self.names, self.ids = names, ids
        self.control_names = {
            _name(content.get(f"{role}_token")) for _, content in self.names for role in USUAL_NAMES
        }
        adds_bos = self.names[0][1].get("add_bos_token")
        self.adds_bos = adds_bos if isinstance(adds_bos, bool) else None

    @classmethod
    def beside(cls, folder: Path) -> "Settings":
        """Of the files beside a tokenizer.json."""
        names = [(folder / name, _read_if_there(folder / name)) for name in NAME_FILES]
        return cls(names, [_read_if_there(folder / name) for name in ID_FILES])

    def find(self, role: str, ids: dict[str, int]) -> int | None:
        """The id of "bos", "eos" or "pad" by the first of these that is set: a name in NAME_FILES,
        where null means that there is none; a number in ID_FILES (of several, the first); a usual
        name. Raises ValueError for a name that the vocabulary does not have.
        """
        key = f"{role}_token"
        for path, content in self.names:
            name = _name(content.get(key))
            if name is not None and name not in ids:
                raise ValueError(f"{path}: {key} {name!r} is not in {TOKENIZER_JSON}; correct it")
            if key in content:
                return None if name is None else ids[name]
        known = set(ids.values())
        for content in self.ids:
            number = content.get(f"{key}_id")
            number = number[0] if isinstance(number, list) and number else number
            if type(number) is int and number in known:
                return number
        return next((ids[name] for name in USUAL_NAMES[role] if name in ids), None)


def _name(token: Any) -> str | None:
    """A token's text, which stands alone or in an object."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _load(content: dict[str, Any], control: set[str | None], path: Path) -> "tokenizers.Tokenizer":
    """The package's object, without truncation, padding and dropout; text that spells a control
    token is ordinary text to it.
    """
    library = import_optional("tokenizers", "a tokenizer.json")
    content = content | {"truncation": None, "padding": None}
    added = content.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and token.get("content") in control:
            token["special"] = True
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") not in MODELS:
        kind = model.get("type") if isinstance(model, dict) else model
        raise ValueError(
            f"{path}: its model is {kind!r}; only 'BPE', which Llamas have, and 'Unigram' "
            "are supported"
        )
    content["model"] = model | ({"dropout": None} if model.get("type") != "Unigram" else {})
    try:
        loaded: tokenizers.Tokenizer = library.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(f"{path} is not a {TOKENIZER_JSON}: {error}") from None
    loaded.encode_special_tokens = True
    return loaded


def _count(ids: dict[str, int], path: Path) -> int:
    """One more than the largest id. Raises ValueError for ids that are given twice or absurd."""
    if not ids:
        raise ValueError(f"{path} has no tokens")
    if len(set(ids.values())) < len(ids):
        raise ValueError(f"{path} gives one id to several of its {len(ids)} tokens")
    n_words = max(ids.values()) + 1
    if n_words > LARGEST_VOCABULARY:
        raise ValueError(f"{path} has the id {n_words - 1}; only ids below 2^24 are supported")
    return n_words
