"""tiktoken's ranks behind the assignment's interface, against ids worked out by hand."""

import sys

import pytest

from mini_llama.tokenization.find import load_tokenizer
from tests.tokenization.conftest import write_ranks


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
        with pytest.raises(ValueError, match=r"not installed: .*, or pip install tiktoken"):
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
