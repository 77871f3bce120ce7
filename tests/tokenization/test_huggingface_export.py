"""tokenizer.json of SentencePiece models: transformers then has the SentencePiece library's ids."""

import io
import json
import random
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from mini_llama.checkpoints.formats.huggingface_tokenizer import write_tokenizer
from mini_llama.tokenization.find import load_tokenizer
from mini_llama.tokenization.llama2c import Llama2cTokenizer, export_llama2c_tokenizer
from tests.helpers import ROOT
from tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

ODD = [
    "Hi  Hello",
    " leading and trailing  ",
    "tabs\tand\nlines\r\n\n here",
    "emoji 🎬🍿 👩‍👩‍👧‍👦 🇫🇷",
    "日本語のテキスト 한국어 العربية עברית हिन्दी ไทย",
    "naïve café — “quotes” … ½ ﬁ ﬂ Å Å",
    "\u00a0no-break\u2003em\u3000ideographic spaces",
    "\u200bzero\u200dwidth\ufeff",
    "bytes \x00 \x01 \x7f \x80",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ᚠᛇᚻ ꙮ 𒀀",
    "a" * 40 + " aaaa aa",
    "e\u0301 combining \u0308\u0327",
    "▁ the space's own sign▁",
    "x",
    " ",
    "    ",
    "",
    "<0x0A> <unk>",
]


def texts() -> list[str]:
    """533 lines of reviews, and odd ones."""
    lines: list[str] = []
    for path in (ROOT.parent / "shared/data/sst-dev.txt", ROOT / "data/demo/demo-dev.txt"):
        if path.exists():
            lines += [line.split("|||")[1] for line in path.read_text().splitlines()[:533]]
    words = lines[:40]
    spaced = [text.replace(" ", "  ") for text in words[:20]]
    return [*lines[:533], *spaced, *ODD, *(text.upper() + "\t" + text for text in words[20:])]


def train(**options: object) -> bytes:
    model = io.BytesIO()
    lines = [*texts()[:300], *ODD[3:10]]
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2, vocab_size=700, **options
    )
    return model.getvalue()


def export(model: Path, folder: Path) -> tuple[SentencePieceProcessor, object]:
    folder.mkdir()
    write_tokenizer(Tokenizer(tokenizer_model=model), folder)
    return (
        SentencePieceProcessor(model_file=str(model)),
        transformers.AutoTokenizer.from_pretrained(folder),
    )


def assert_same_ids(model: Path, folder: Path) -> None:
    library, theirs = export(model, folder)
    begin = [] if library.bos_id() < 0 else [library.bos_id()]
    ours = load_tokenizer(folder / "tokenizer.json")
    for text in texts():
        expected = library.encode(text)
        if "<unk>" in text:  # transformers takes the spelling of a control token for the token
            continue
        assert theirs.encode(text) == begin + expected, repr(text)
        assert ours.encode(text, bos=False, eos=False) == expected, repr(text)
        if "▁" not in text:
            assert theirs.decode(expected) == library.decode(expected), repr(text)


def test_the_real_vocabulary(tmp_path, shared):
    assert len(texts()) >= 571
    model = shared / "reference" / "tokenizer.model"
    assert_same_ids(model, tmp_path / "t")
    assert export(model, tmp_path / "u")[1].encode("Hi  Hello") == [1, 6324, 29871, 15043]


def test_a_model_that_joins_spaces(tmp_path, shared):
    assert_same_ids(shared / "checkpoints" / "tok512.model", tmp_path / "t")


@pytest.mark.parametrize(
    "options",
    [
        dict(model_type="bpe", byte_fallback=True, normalization_rule_name="nmt_nfkc"),
        dict(model_type="bpe", byte_fallback=True, bos_id=-1, add_dummy_prefix=False),
        dict(model_type="bpe", byte_fallback=True, eos_id=-1, remove_extra_whitespaces=False),
        dict(model_type="unigram", byte_fallback=True, normalization_rule_name="identity"),
    ],
    ids=str,
)
def test_models_of_other_kinds(tmp_path, options: dict):
    """Its own normaliser, no prefix, no BOS or EOS, unigram."""
    model = tmp_path / "m.model"
    model.write_bytes(train(**options))
    assert_same_ids(model, tmp_path / "t")
    named = json.loads((tmp_path / "t" / "tokenizer_config.json").read_text())
    assert named["add_bos_token"] == (options.get("bos_id") != -1)
    assert (named["eos_token"] is None) == (options.get("eos_id") == -1)


def test_word_models_have_no_such_form(tmp_path):
    model = tmp_path / "m.model"
    model.write_bytes(train(model_type="char"))
    (tmp_path / "t").mkdir()
    write_tokenizer(Tokenizer(tokenizer_model=model), tmp_path / "t")
    assert not (tmp_path / "t" / "tokenizer.json").exists()
    assert (tmp_path / "t" / "tokenizer.model").read_bytes() == model.read_bytes()


@pytest.mark.parametrize("lacking", ["bos", "eos", "bos and eos"])
def test_vocabularies_without_bos_or_eos(tmp_path, lacking: str):
    """SentencePiece says -1, which is no id."""
    model = tmp_path / "m.model"
    ids = {f"{name}_id": -1 for name in lacking.split(" and ")}
    model.write_bytes(train(model_type="bpe", byte_fallback=True, **ids))
    tokenizer = Tokenizer(tokenizer_model=model)
    assert (tokenizer.bos_id is None) == ("bos" in lacking)
    assert (tokenizer.eos_id is None) == ("eos" in lacking)
    ids = SentencePieceProcessor(model_file=str(model)).encode("a film")
    framed = [tokenizer.bos_id, *ids, tokenizer.eos_id]
    assert tokenizer.encode("a film", bos=True, eos=True) == [i for i in framed if i is not None]
    if lacking == "bos":
        assert tokenizer.encode("", bos=True, eos=False) == [tokenizer.eos_id]
    elif lacking == "bos and eos":
        with pytest.raises(ValueError, match="no BOS and no EOS"):
            tokenizer.encode("", bos=True, eos=False)


def exported_bin(model: Path, folder: Path) -> tuple[Llama2cTokenizer, object]:
    """A tokenizer.bin, and transformers' tokenizer of the folder that is made of it."""
    folder.mkdir()
    export_llama2c_tokenizer(Tokenizer(tokenizer_model=model), folder / "tokenizer.bin")
    tokenizer = Llama2cTokenizer(folder / "tokenizer.bin")
    write_tokenizer(tokenizer, folder)
    return tokenizer, transformers.AutoTokenizer.from_pretrained(folder)


def test_tokenizer_bin(tmp_path, shared):
    tokenizer, theirs = exported_bin(shared / "reference" / "tokenizer.model", tmp_path / "t")
    rng = random.Random(0)
    odd = ["".join(chr(rng.randrange(32, 0x3000)) for _ in range(20)) for _ in range(300)]
    runs = [f"a{' ' * n}b" for n in range(80)]
    for text in [*texts(), *odd, *runs]:
        if "▁" in text or "<unk>" in text:  # which a tokenizer.bin alone tells from a space
            continue
        expected = tokenizer.encode(text, bos=True, eos=False)
        assert theirs.encode(text) == expected, repr(text)
        assert theirs.decode(expected, skip_special_tokens=True) == tokenizer.decode(expected)


def test_a_tokenizer_bin_of_equal_scores_gets_none(tmp_path):
    model = tmp_path / "m.model"
    model.write_bytes(train(model_type="bpe", byte_fallback=True))
    tokenizer, _ = exported_bin(model, tmp_path / "t")
    assert (tmp_path / "t" / "tokenizer.json").exists()
    tokenizer.scores = [0.0] * tokenizer.n_words
    (tmp_path / "u").mkdir()
    write_tokenizer(tokenizer, tmp_path / "u")
    assert not list((tmp_path / "u").iterdir())
