"""SentencePiece and tiktoken behind the assignment's interface, against the contract's token ids
and ids worked out by hand.
"""

import base64
import random
import sys
from pathlib import Path

import pytest

from mini_llama.tokenization.base import StreamDecoder
from mini_llama.tokenization.llama2c import Llama2cTokenizer
from tokenizer import (
    TiktokenTokenizer,
    Tokenizer,
    check_vocabulary,
    find_tokenizer,
    load_tokenizer,
)


@pytest.fixture
def llama_tokenizer(shared) -> Tokenizer:
    return Tokenizer(tokenizer_model=shared / "reference" / "tokenizer.model")


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("I believe the meaning of life is", "1 306 4658 278 6593 310 2834 338"),
        (
            "Simply put, the theory of relativity states that ",
            "1 3439 17632 1925 29892 278 6368 310 14215 537 5922 393 29871",
        ),
    ],
)
def test_contract_ids(llama_tokenizer, text: str, ids: str):
    assert llama_tokenizer.encode(text, bos=True, eos=False) == [int(i) for i in ids.split()]
    assert llama_tokenizer.encode(text, bos=False, eos=True)[-1] == 2


def test_special_ids(llama_tokenizer):
    t = llama_tokenizer
    assert (t.n_words, t.bos_id, t.eos_id, t.pad_id) == (32000, 1, 2, 3)


def test_decode_is_silent_about_bos_and_eos(llama_tokenizer):
    text = "Ein Café, 北京 and 🦙!"
    assert llama_tokenizer.decode(llama_tokenizer.encode(text, bos=True, eos=True)) == text


def test_max_len_counts_neither_bos_nor_eos(tokenizer_model):
    whole = Tokenizer(None, tokenizer_model).encode("the plot is good", bos=True, eos=True)
    cut = Tokenizer(2, tokenizer_model).encode("the plot is good", bos=True, eos=True)
    assert cut == [*whole[:3], whole[-1]] and len(whole) > 4
    assert Tokenizer(99, tokenizer_model).encode("the plot is good", True, True) == whole


def test_bytes_of_unknown_characters(tokenizer_model):
    tokenizer = Tokenizer(tokenizer_model=tokenizer_model)
    assert tokenizer.decode(tokenizer.encode("good 🦙 plot", bos=True, eos=False)) == "good 🦙 plot"


def test_find_tokenizer(tmp_path):
    checkpoint = tmp_path / "m.pt"
    assert str(find_tokenizer(checkpoint)) == "tokenizer.model"
    (tmp_path / "tok512.model").touch()
    assert find_tokenizer(checkpoint) == tmp_path / "tok512.model"
    (tmp_path / "other.model").touch()
    assert str(find_tokenizer(checkpoint)) == "tokenizer.model"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside.model").touch()
    assert find_tokenizer(tmp_path / "folder") == tmp_path / "folder" / "inside.model"
    (tmp_path / "m.model").touch()
    assert find_tokenizer(checkpoint) == tmp_path / "m.model"
    assert str(find_tokenizer(checkpoint, "mine.model")) == "mine.model"


def test_errors(tmp_path, tokenizer_model):
    with pytest.raises(FileNotFoundError, match="--tokenizer"):
        Tokenizer(tokenizer_model=tmp_path / "nothere.model")
    (tmp_path / "garbage.model").write_bytes(b"garbage" * 100)
    with pytest.raises(ValueError, match=r"garbage\.model is not a SentencePiece model"):
        Tokenizer(tokenizer_model=tmp_path / "garbage.model")
    (tmp_path / "empty.model").touch()
    with pytest.raises(ValueError, match=r"empty\.model is not a SentencePiece model"):
        Tokenizer(tokenizer_model=tmp_path / "empty.model")
    tokenizer = Tokenizer(tokenizer_model=tokenizer_model)
    check_vocabulary(tokenizer, 300, "m.pt")
    with pytest.raises(ValueError, match=r"has 300 pieces, but m\.pt was trained with 512"):
        check_vocabulary(tokenizer, 512, "m.pt")


def test_a_batch_is_encoded_as_its_texts(tokenizer_model):
    texts = ["the plot is good", "", "a\n\nb  🦙"]
    for max_len in (None, 2):
        tokenizer = Tokenizer(max_len, tokenizer_model)
        for bos, eos in ((True, False), (False, True)):
            rows = [tokenizer.encode(text, bos, eos) for text in texts]
            assert tokenizer.encode_batch(texts, bos, eos) == rows


MERGES = [b"th", b"the", b" the", b"e1", b"\n\n"]


def write_ranks(path: Path, tokens: list[bytes]) -> str:
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    path.write_bytes(b"".join(lines))
    return f"tiktoken:{path}"


@pytest.fixture
def ranks(tmp_path) -> str:
    """Bytes are their own ids, the merges 256 to 260, and <|endoftext|> is 261."""
    pytest.importorskip("tiktoken")
    return write_ranks(tmp_path / "tiny.tiktoken", [bytes([b]) for b in range(256)] + MERGES)


def test_tiktoken_ids(ranks):
    tokenizer = load_tokenizer(ranks)
    assert (tokenizer.n_words, tokenizer.bos_id, tokenizer.eos_id) == (262, 261, 261)
    assert tokenizer.pad_id == 261 and f"tiktoken:{tokenizer.model_path}" == ranks
    ids = tokenizer.encode("the the1\n\n", bos=True, eos=True)
    assert ids == [261, 257, 258, ord("1"), 260, 261]  # GPT-2 never joins letters and digits
    assert tokenizer.encode("the", bos=False, eos=False) == [257]


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n", "a\tb  c\r\n 12 🦙 é \x00", "the <|endoftext|> the", "▁ ½ ﬁ"]
)
def test_tiktoken_round_trip(ranks, text: str):
    tokenizer = load_tokenizer(ranks)
    ids = tokenizer.encode(text, bos=True, eos=True)
    assert tokenizer.decode(ids) == text
    assert max(ids[1:-1], default=0) < 261 == ids[0] == ids[-1]
    assert tokenizer.encode_batch([text, "the"], bos=True, eos=True) == [ids, [261, 257, 261]]


def test_tiktoken_max_len_counts_neither_bos_nor_eos(ranks):
    tokenizer = load_tokenizer(ranks, max_len=2)
    assert tokenizer.encode("the the1", bos=True, eos=True) == [261, 257, 258, 261]
    assert tokenizer.encode_batch(["the the1"], bos=False, eos=True) == [[257, 258, 261]]


def test_load_tokenizer_chooses_by_prefix(ranks, tokenizer_model):
    assert isinstance(load_tokenizer(ranks), TiktokenTokenizer)
    assert isinstance(load_tokenizer(Path(ranks)), TiktokenTokenizer)
    for name in (tokenizer_model, str(tokenizer_model)):
        tokenizer = load_tokenizer(name, 2)
        assert isinstance(tokenizer, Tokenizer) and tokenizer.max_len == 2
    check_vocabulary(load_tokenizer(ranks), 262, "m.pt")
    with pytest.raises(ValueError, match=r"tiny\.tiktoken has 262 pieces, but m\.pt"):
        check_vocabulary(load_tokenizer(ranks), 300, "m.pt")


def test_tiktoken_file_errors(ranks, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothere is not a file; give tiktoken:gpt2 or"):
        load_tokenizer(f"tiktoken:{tmp_path / 'nothere'}")
    singles = [bytes([b]) for b in range(256)]
    for tokens in (singles[1:], [], [*singles, b"a"]):
        name = write_ranks(tmp_path / "bad", tokens)
        with pytest.raises(ValueError, match=r"bad has \d+ tokens, which are not all 256 bytes"):
            load_tokenizer(name)
    for line in (b"QQ==", b"QQ== x", b"?? 3", b"QQ== 1 2", b"\xff\xfe 1"):
        (tmp_path / "bad").write_bytes(b"QQ== 0\n" + line + b"\n")
        with pytest.raises(ValueError, match="bad line 2 is not BASE64 RANK; give a ranks file"):
            load_tokenizer(f"tiktoken:{tmp_path / 'bad'}")


def test_a_changed_ranks_file_is_read_again(ranks, tmp_path):
    assert load_tokenizer(ranks).n_words == 262
    write_ranks(tmp_path / "tiny.tiktoken", [bytes([b]) for b in range(256)])
    assert load_tokenizer(ranks).n_words == 257


def test_tiktoken_is_optional(ranks, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    for name in (ranks, "tiktoken:gpt2"):
        with pytest.raises(ValueError, match="which is not installed: pip install tiktoken"):
            load_tokenizer(name)


def test_gpt2_without_a_network(tmp_path, monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the port that discards
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    message = r"^tokenizer tiktoken:gpt2: its vocabulary cannot be fetched \(\w+\); connect .*PATH$"
    with pytest.raises(ValueError, match=message):
        load_tokenizer("tiktoken:gpt2")


def test_find_tokenizer_bin(tmp_path, shared):
    checkpoint = tmp_path / "m.bin"
    checkpoint.write_bytes((shared / "checkpoints" / "stories260K.bin").read_bytes())
    assert str(find_tokenizer(checkpoint)) == "tokenizer.model"
    (tmp_path / "any.bin").write_bytes((shared / "checkpoints" / "tok512.bin").read_bytes())
    assert find_tokenizer(checkpoint) == tmp_path / "any.bin"
    (tmp_path / "tokenizer.bin").touch()
    assert find_tokenizer(checkpoint) == tmp_path / "tokenizer.bin"
    (tmp_path / "one.model").touch()
    assert find_tokenizer(checkpoint) == tmp_path / "one.model"


def test_load_tokenizer_goes_by_content(tmp_path, shared, ranks, tokenizer_model):
    (tmp_path / "x.model").write_bytes((shared / "checkpoints" / "tok512.bin").read_bytes())
    assert isinstance(load_tokenizer(tmp_path / "x.model"), Llama2cTokenizer)
    (tmp_path / "x.bin").write_bytes(tokenizer_model.read_bytes())
    assert isinstance(load_tokenizer(tmp_path / "x.bin"), Tokenizer)
    with pytest.raises(ValueError, match=r"has tiktoken's ranks: give tiktoken:.*tiktoken if"):
        load_tokenizer(tmp_path / "tiny.tiktoken")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty is not a file; give one with --tokenizer"):
        load_tokenizer(tmp_path / "empty")


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
