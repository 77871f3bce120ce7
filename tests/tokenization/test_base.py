"""StreamDecoder and decode, over a vocabulary of single bytes, against Python's own decoder."""

import random

import pytest

from mini_llama.tokenization.base import EACH_BYTE, MAXIMAL_PART, BaseTokenizer, StreamDecoder
from mini_llama.tokenization.find import load_tokenizer


class Bytes(BaseTokenizer):
    """Every byte is its own id, BOS is 256; a space before a text is taken off."""

    max_len, n_words, bos_id, eos_id, pad_id = None, 257, 256, None, 0

    def text_ids(self, text: str) -> list[int]:
        return list(f" {text}".encode())

    def token_bytes(self, token_id: int, at_start: bool) -> bytes | None:
        if token_id == 256:
            return None
        return b"" if at_start and token_id == 0x20 else bytes([token_id])


def stream(ids: list[int], errors: str = MAXIMAL_PART) -> list[str]:
    tokenizer = Bytes()
    tokenizer.byte_errors = errors
    decoder = StreamDecoder(tokenizer)
    return [*map(decoder.feed, ids), decoder.finish()]


def test_a_character_comes_with_its_last_byte():
    assert stream(list("aé🦙".encode())) == ["a", "", "é", "", "", "", "🦙", ""]
    assert stream([256, 0x20, 0x20, 0x61]) == ["", "", " ", "a", ""]


@pytest.mark.parametrize("errors", [MAXIMAL_PART, EACH_BYTE])
def test_what_is_no_character_is_replaced(errors: str):
    each = errors == EACH_BYTE
    assert stream([0xE2, 0x82, 0x61], errors) == ["", "", "��a" if each else "�a", ""]
    assert stream([0xF0, 0x9F], errors) == ["", "", "��" if each else "�"]
    assert stream([0xFF], errors) == ["�", ""]
    # BOS ends a character: what stands behind it begins another
    assert stream([0xC3, 256, 0xA9], errors) == ["", "�", "�", ""]


def test_any_bytes():
    rng = random.Random(0)
    for _ in range(2000):
        content = bytes(rng.choices([0x61, 0x80, 0xA0, 0xC3, 0xE2, 0xED, 0xF0, 0xF4, 0xFF], k=9))
        assert "".join(stream(list(content))) == content.decode(errors="replace")
        assert Bytes().decode(content) == content.decode(errors="replace")


def test_finish_makes_ready_for_another_text():
    decoder = StreamDecoder(Bytes())
    assert [decoder.feed(0xC3), decoder.finish()] == ["", "�"]
    assert [decoder.feed(0x20), decoder.feed(0xA9), decoder.finish()] == ["", "�", ""]


def test_a_token_that_is_not_there_is_not_added():
    assert Bytes().encode("a", bos=True, eos=True) == [256, 0x20, 0x61]
    assert Bytes().encode_batch(["a", ""], bos=False, eos=True) == [[0x20, 0x61], [0x20]]
    for call in (Bytes().encode, lambda text, *flags: Bytes().encode_batch([text], *flags)):
        with pytest.raises(ValueError, match=r"the text 'a\\ud800' is not UTF-8; check"):
            call("a\ud800", True, False)


@pytest.mark.parametrize("which", ["sentencepiece", "tiktoken"])
def test_ids_decode_one_by_one_as_together(which: str, tokenizer_model, ranks):
    """This SentencePiece model takes all spaces before a text off, unlike Llama's."""
    tokenizer = load_tokenizer(tokenizer_model if which == "sentencepiece" else ranks)
    rng = random.Random(0)
    pieces = range(tokenizer.n_words)
    for _ in range(1000):
        ids = [rng.choice((rng.choice(pieces), *pieces[-40:-30])) for _ in range(rng.randrange(9))]
        stream = StreamDecoder(tokenizer)
        assert "".join(map(stream.feed, ids)) + stream.finish() == tokenizer.decode(ids)
