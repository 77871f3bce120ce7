"""What all tokenizers share: the assignment's encode and decode, and decoding one id at a time.

A format's own class splits a text into ids and gives the bytes of each id; BOS, EOS, the longest
length, and characters that are spread over several ids are handled here.
"""

import codecs
import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mini_llama.tokenization.chat_files import read_chat_template

REPLACEMENT = "\ufffd"
# Error handlers: U+FFFD for each wrong byte, as SentencePiece has it, or for as many bytes as
# begin one character, as Unicode (section 3.9) advises and byte-level tokenizers do.
EACH_BYTE, MAXIMAL_PART = "mini_llama.each_byte", "replace"


def _replace_one_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)  # codecs passes what the codec raised
    return REPLACEMENT, error.start + 1


codecs.register_error(EACH_BYTE, _replace_one_byte)


class NamedToken(NamedTuple):
    """A token that a chat template writes by its name. Without `is_control` it is also a token of
    ordinary text.
    """

    id: int
    is_control: bool


class BaseTokenizer(ABC):
    """A vocabulary with `encode` and `decode`. `max_len` bounds the tokens of a text, BOS and EOS
    not counted.

    `model_path` is the file it came from, `n_words` one more than its largest id. `bos_id` and
    `eos_id` are None where the vocabulary has no such token: encode then adds none.
    """

    model_path: Path
    max_len: int | None
    n_words: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int
    byte_errors = MAXIMAL_PART

    @functools.cached_property
    def chat_template(self) -> str | None:
        """The chat template in Jinja that came with it, if one did. Raises OSError, ValueError."""
        return read_chat_template(self.model_path.parent)

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """All ids that end a text or a chat's answer, `eos_id` first, as far as the vocabulary
        itself shows; stop_ids.stop_ids has what a model's folder says as well.
        """
        return () if self.eos_id is None else (self.eos_id,)

    @abstractmethod
    def text_ids(self, text: str) -> list[int]:
        """Token ids of all of `text`, nothing added, nothing in it taken for a control token."""

    @abstractmethod
    def token_bytes(self, token_id: int, at_start: bool) -> bytes | None:
        """What one id adds to a text, as its first if `at_start`: tokenizers that put a space
        before a text take it off there. None for a control token, which is silent.
        """

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        """Token ids of `s`, cut to `max_len`, with BOS before it if `bos`, EOS after it if `eos`.
        An empty text in a vocabulary without BOS begins with EOS, as a model needs a token.

        Raises ValueError as check_utf8 does, and for an empty text where there is neither.
        """
        check_utf8(s)
        return self._frame(self.text_ids(s), bos, eos)

    def encode_batch(self, texts: Sequence[str], bos: bool, eos: bool) -> list[list[int]]:
        """`encode` of every text, on several cores where the library can. Raises ValueError."""
        for text in texts:
            check_utf8(text)
        return [self._frame(ids, bos, eos) for ids in self.batch_ids(texts)]

    def batch_ids(self, texts: Sequence[str]) -> Iterable[list[int]]:
        """`text_ids` of every text."""
        return map(self.text_ids, texts)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids: control tokens are silent, bytes that are no UTF-8 U+FFFD."""
        stream = StreamDecoder(self)
        return "".join(map(stream.feed, ids)) + stream.finish()

    def fits(self, vocab_size: int) -> bool:
        """Whether a model of `vocab_size` pieces can be this vocabulary's."""
        return self.n_words == vocab_size

    @functools.cached_property
    def named_tokens(self) -> dict[str, NamedToken]:
        """The tokens that are made of their names alone, never of what stands around them."""
        return {}

    def prompt_ids(self, parts: Sequence[str | int]) -> list[int]:
        """Token ids of a prompt: texts, in which nothing is taken for a named token, and the ids of
        named tokens. The base class encodes the text between two control tokens by itself. Raises
        ValueError for a text that has a token's name where the two cannot be told apart.
        """
        names = {token.id: name for name, token in self.named_tokens.items()}
        control = {token.id for token in self.named_tokens.values() if token.is_control}
        ids: list[int] = []
        text = ""
        for part in (*parts, None):
            if isinstance(part, str) or (part is not None and part not in control):
                text += part if isinstance(part, str) else names[part]
            else:
                ids += self.text_ids(text) if text else []
                ids += [] if part is None else [part]
                text = ""
        found = [i for i in ids if i in names]
        wanted = [part for part in parts if isinstance(part, int)]
        for i in found if found != wanted else ():
            if found.count(i) != wanted.count(i):
                raise ValueError(self._taken_for(names[i]))
        return ids

    def _taken_for(self, name: str) -> str:
        return (
            f"the text holds {name!r}, which tokenizer {self.model_path} takes for its control "
            "token; take it out of the text"
        )

    @property
    def padding_only(self) -> int | None:
        """The id that only pads batches and so never belongs to a text, if there is one: padding
        may share its id with BOS, EOS or an ordinary token.
        """
        return None if self.pad_id in (self.bos_id, self.eos_id) else self.pad_id

    def _frame(self, ids: list[int], bos: bool, eos: bool) -> list[int]:
        before = [self.bos_id] if bos and self.bos_id is not None else []
        if bos and not ids and not before:
            if self.eos_id is None:
                raise ValueError(
                    f"tokenizer {self.model_path} has no BOS and no EOS, so an empty text has no "
                    "token: give a text"
                )
            before = [self.eos_id]
        after = [self.eos_id] if eos and self.eos_id is not None else []
        return before + ids[: self.max_len] + after


class StreamDecoder:
    """Turns ids into text one by one: each character as soon as its last byte is there.

    What `feed` returns for each id, and `finish` at the end, make up the tokenizer's `decode`. A
    control token ends a character that is not complete; after `finish` another text may follow.
    `at_start=False` is for ids that continue a text: a space before the first word then counts.
    """

    def __init__(self, tokenizer: BaseTokenizer, at_start: bool = True) -> None:
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")(tokenizer.byte_errors)
        self.at_start = at_start

    def feed(self, token_id: int) -> str:
        """The text that is complete with this id and was not before; often a word, or nothing."""
        piece = self.tokenizer.token_bytes(token_id, self.at_start)
        if piece is None:
            return self.decoder.decode(b"", final=True)
        self.at_start = False
        return self.decoder.decode(piece)

    def finish(self) -> str:
        """U+FFFD for what is left of a character, or nothing."""
        self.at_start = True
        return self.decoder.decode(b"", final=True)


def check_utf8(text: str) -> None:
    """Raise ValueError for text that has no UTF-8 form, as a terminal in another encoding gives."""
    try:
        text.encode()
    except UnicodeEncodeError:
        message = f"the text {text[:40]!r} is not UTF-8; check the terminal's encoding"
        raise ValueError(message) from None
