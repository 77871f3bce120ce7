"""The assignment's tokenizer against the contract's token ids."""

import re

import pytest

from tokenizer import Tokenizer, main


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


def test_errors(tmp_path, tokenizer_model):
    with pytest.raises(FileNotFoundError, match="--tokenizer"):
        Tokenizer(tokenizer_model=tmp_path / "nothere.model")
    (tmp_path / "garbage.model").write_bytes(b"garbage" * 100)
    with pytest.raises(ValueError, match=r"garbage\.model is not a SentencePiece model"):
        Tokenizer(tokenizer_model=tmp_path / "garbage.model")
    (tmp_path / "empty.model").touch()
    with pytest.raises(ValueError, match=r"empty\.model is not a SentencePiece model"):
        Tokenizer(tokenizer_model=tmp_path / "empty.model")


def test_a_batch_is_encoded_as_its_texts(tokenizer_model):
    texts = ["the plot is good", "", "a\n\nb  🦙"]
    for max_len in (None, 2):
        tokenizer = Tokenizer(max_len, tokenizer_model)
        for bos, eos in ((True, False), (False, True)):
            rows = [tokenizer.encode(text, bos, eos) for text in texts]
            assert tokenizer.encode_batch(texts, bos, eos) == rows


@pytest.mark.parametrize("arguments", [[], ["import"], ["export"], ["export", "only.model"]])
def test_wrong_usage_is_one_line(arguments: list[str], capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert re.fullmatch(r"tokenizer\.py.*: error: .* \(see --help\)\n", capsys.readouterr().err)
