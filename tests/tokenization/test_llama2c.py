"""tokenizer.bin against SentencePiece on the model that it is made from, against the pair that
llama2.c's own export wrote, and against a merge that is worked out the slow way.
"""

import itertools
import random
import struct
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

import run_llama
import tokenizer as tokenizer_module
from mini_llama.tokenization.base import StreamDecoder
from mini_llama.tokenization.find import load_tokenizer
from mini_llama.tokenization.llama2c import Llama2cTokenizer, export_llama2c_tokenizer
from tests.helpers import ROOT, refusal_of
from tokenizer import Tokenizer

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n\tx\r\n",
    "a  b ",
    "é ﬁ ½ Å",
    "北京 🦙 👩‍👩‍👧",
    "\x00",
    "\ufeffa",
]
TEXTS += [
    "\x00",
    "\ufeffa",
    "<s></s>",
    "<unk> <0x41>",
    "\n<s>\n",
    "don't",
    "\u2028",
    "x" * 500,
    " " * 50 + "x",
]


def record(piece: bytes, score: float = 0.0, length: int | None = None) -> bytes:
    return struct.pack("<fi", score, len(piece) if length is None else length) + piece


FIRST = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256)), b" "]


def write(path: Path, extra: bytes = b"", first: list[bytes] = FIRST, longest: int = 9) -> Path:
    path.write_bytes(struct.pack("<i", longest) + b"".join(map(record, first)) + extra)
    return path


def random_texts(seed: int, count: int) -> list[str]:
    """Any Unicode but U+2581, SentencePiece's own sign for a space."""
    rng = random.Random(seed)
    near = [*map(chr, range(0x2FF)), "the", " of", "ing ", "\n", "  ", "é", "🦙", "北"]

    def character() -> str:
        far = chr(rng.randrange(0x110000))
        return rng.choice(near) if rng.random() < 0.7 or "\ud800" <= far <= "\udfff" else far

    texts = ("".join(character() for _ in range(rng.randrange(40))) for _ in range(count))
    return [text.replace("▁", "") for text in texts]


def test_export_is_byte_for_byte_llama2c(shared, tmp_path, capsys):
    folder = shared / "checkpoints"
    tokenizer_module.main(["export", str(folder / "tok512.model"), str(tmp_path / "t.bin")])
    assert (tmp_path / "t.bin").read_bytes() == (folder / "tok512.bin").read_bytes()
    assert capsys.readouterr().out == f"Wrote 512 pieces to {tmp_path / 't.bin'}.\n"
    tokenizer_module.main(["export", str(folder / "tok512.bin"), str(tmp_path / "again.bin")])
    assert (tmp_path / "again.bin").read_bytes() == (folder / "tok512.bin").read_bytes()


@pytest.fixture(scope="module")
def pair(shared, tmp_path_factory) -> tuple[Tokenizer, Llama2cTokenizer]:
    """Llama 2's own vocabulary, which does not normalise, as both files."""
    model = Tokenizer(tokenizer_model=shared / "reference" / "tokenizer.model")
    path = tmp_path_factory.mktemp("llama2") / "tokenizer.bin"
    export_llama2c_tokenizer(model, path)
    return model, load_tokenizer(path)


def test_ids_of_any_text_are_sentencepieces(pair):
    model, ours = pair
    assert isinstance(ours, Llama2cTokenizer)
    assert (ours.n_words, ours.bos_id, ours.eos_id, ours.pad_id) == (32000, 1, 2, 3)
    for text in TEXTS + random_texts(0, 400):
        ids = model.sp_model.encode(text)
        assert ours.encode(text, bos=True, eos=True) == [1, *ids, 2], repr(text)
        assert ours.decode(ids) == text == model.decode(ids)
    assert ours.decode(ours.encode("▁x▁", bos=True, eos=False)) == "▁x▁"


def test_ids_of_reviews_are_sentencepieces(shared, pair):
    lines = (shared / "data" / "sst-train.txt").read_text(encoding="utf-8").splitlines()
    texts = [line.split(" ||| ")[1].strip() for line in lines]
    assert len(texts) == 8544
    model = SentencePieceProcessor(model_file=str(shared / "checkpoints" / "tok512.model"))
    small = Llama2cTokenizer(shared / "checkpoints" / "tok512.bin")
    assert small.encode_batch(texts, bos=False, eos=False) == model.encode(texts)
    assert pair[1].encode_batch(texts, False, False) == pair[0].sp_model.encode(texts)


@pytest.mark.parametrize("which", [0, 1])
def test_any_ids_decode_as_in_sentencepiece_also_one_by_one(pair, which: int):
    rng = random.Random(1)
    model, ours = pair[0].sp_model, pair[which]
    pools = [range(32000), range(3, 259), range(3), [29871, 259], range(3 + 0xE0, 3 + 0xF5)]
    for _ in range(1500):
        ids = [rng.choice(rng.choice(pools)) for _ in range(rng.randrange(12))]
        stream = StreamDecoder(ours)
        parts = [stream.feed(i) for i in ids]
        expected = model.decode(ids)
        assert "".join(parts) + stream.finish() == expected == ours.decode(ids), ids


def slow_merge(text: str, scores: dict[str, float]) -> list[str]:
    """llama2.c's own order: look at all pairs, merge the best, the first of equals, and again."""
    pieces = list(text)
    while True:
        pairs = ["".join(pair) for pair in itertools.pairwise(pieces)]
        best = max(range(len(pairs)), key=lambda i: scores.get(pairs[i], -1e9), default=None)
        if best is None or pairs[best] not in scores:
            return pieces
        pieces[best : best + 2] = [pairs[best]]


@pytest.mark.parametrize("inner_space", [False, True])
def test_merges_are_those_of_the_slow_way(tmp_path, inner_space: bool):
    """With scores that are equal or unsorted, and pieces that reach across a space or not."""
    rng = random.Random(2)
    scores = dict.fromkeys("ab ", 0.0)
    while len(scores) < 40:
        piece = "".join(rng.choices(list(scores), k=2))
        if (inner_space or " " not in piece[1:]) and len(piece) < 9:
            scores.setdefault(piece, float(-rng.randrange(6)))
    rows = [record(piece.encode(), score) for piece, score in scores.items() if piece != " "]
    ours = Llama2cTokenizer(write(tmp_path / "t.bin", b"".join(rows)))
    for _ in range(300):
        text = "".join(rng.choices("aab ", k=rng.randrange(1, 30)))
        pieces = [ours.pieces[i] for i in ours.encode(text, bos=False, eos=False)]
        assert pieces == slow_merge(" " + text, scores), repr(text)


def test_characters_without_a_piece_become_bytes(tmp_path):
    ours = Llama2cTokenizer(write(tmp_path / "t.bin", record(b"a") + record(b" a", 1)), max_len=3)
    assert ours.encode("a🦙", bos=True, eos=True) == [1, 261, 3 + 0xF0, 3 + 0x9F, 2]
    ours.max_len = None
    assert ours.encode("aé", bos=False, eos=False) == [261, 3 + 0xC3, 3 + 0xA9]
    assert ours.encode("<s>", False, False) == [259, *(3 + byte for byte in b"<s>")]
    with pytest.raises(ValueError, match="is not UTF-8; check the terminal"):
        ours.encode("\ud800", bos=True, eos=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with a longest piece of 0 bytes"),
        (struct.pack("<i", -1), "begins with a longest piece of -1 bytes"),
        (struct.pack("<i", 2**30), "begins with a longest piece of 1073741824 bytes"),
        (struct.pack("<i", 9), "piece 1 is not <s>"),
        (struct.pack("<i", 9) + record(b"a")[:5], "piece 0 is cut short"),
        (struct.pack("<i", 9) + record(b"abc", length=9), "piece 0 is cut short"),
        (struct.pack("<i", 9) + record(b"a", length=-1), "piece 0 has -1 bytes, not 1 to 9"),
        (struct.pack("<i", 9) + record(b"", length=0), "piece 0 has 0 bytes, not 1 to 9"),
        (struct.pack("<i", 9) + record(b"a", length=2**31 - 1), "has 2147483647 bytes, not 1 to 9"),
        (struct.pack("<i", 9) + record(b"a", float("nan")), "piece 0 has the score nan"),
        (struct.pack("<i", 9) + record(b"a", float("inf")), "piece 0 has the score inf"),
        (struct.pack("<i", 9) + record(b"\xff"), r"piece 0, b'\xff', is not UTF-8"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, content: bytes, message: str):
    path = tmp_path / "bad.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        Llama2cTokenizer(path)
    assert f"{path}" in str(error.value) and message in str(error.value)
    assert str(error.value).endswith(
        "give a whole tokenizer.bin of llama2.c, or its SentencePiece model"
    )


def test_pieces_that_must_be_there_once(tmp_path):
    path = tmp_path / "bad.bin"
    with pytest.raises(ValueError, match=r"piece 260, 'a', is piece 261 as well; give a whole"):
        Llama2cTokenizer(write(path, record(b"a") * 2))
    with pytest.raises(ValueError, match="has no piece '<0x03>'; give a whole"):
        Llama2cTokenizer(write(path, first=[p for p in FIRST if p != b"<0x03>"]))
    with pytest.raises(ValueError, match="has no piece ' '; give a whole"):
        Llama2cTokenizer(write(path, first=FIRST[:-1]))
    with pytest.raises(ValueError, match="piece 2 is not </s>; give a whole"):
        Llama2cTokenizer(write(path, first=[*FIRST[:2], b"x", *FIRST[3:]]))
    with pytest.raises(FileNotFoundError):
        Llama2cTokenizer(tmp_path / "nothere.bin")


def test_generation_is_the_same_through_either_file(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shared / "checkpoints"
    names = ["--generated_sentence_low_temp_out", "--generated_sentence_high_temp_out"]
    texts = []
    for kind in ("model", "bin"):
        command = ["--edition", "llama2", "--prompt_text", "Lily é", "--max_new_tokens", "40"]
        command += ["--pretrained-model-path", str(folder / "stories260K.bin")]
        command += ["--tokenizer", str(folder / f"tok512.{kind}")]
        run_llama.main([*command, names[0], f"0.{kind}", names[1], f"1.{kind}"])
        texts.append([(tmp_path / f"{i}.{kind}").read_text(encoding="utf-8") for i in (0, 1)])
    assert texts[0] == texts[1] and texts[0][0].startswith("Lily é")


def test_export_refuses_what_the_format_cannot_hold(tmp_path, shared, capsys):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d"] * 9),
        model_prefix=str(tmp_path / "plain"),
        vocab_size=9,
        model_type="bpe",
        minloglevel=2,
    )
    target = tmp_path / "t.bin"
    with pytest.raises(SystemExit, match=r"plain\.model cannot be a tokenizer\.bin of llama2\.c"):
        tokenizer_module.main(["export", str(tmp_path / "plain.model"), str(target)])
    pytest.importorskip("tiktoken")
    ranks = ROOT / "nothere"
    with pytest.raises(SystemExit, match="is not a file"):
        tokenizer_module.main(["export", f"tiktoken:{ranks}", str(target)])
    model = str(tmp_path / "plain.model")
    status, error = refusal_of(tokenizer_module.main, ["export", model, model])
    assert status == 2 and "is the input" in error
    assert not target.exists()


def test_a_file_is_replaced_only_with_overwrite(tokenizer_model: Path, tmp_path: Path):
    target = tmp_path / "t.bin"
    target.write_bytes(b"somebody's")
    words = ["export", str(tokenizer_model), str(target)]
    status, error = refusal_of(tokenizer_module.main, words)
    assert status == 1 and error.startswith(f"tokenizer.py: error: {target} is there already: ")
    assert "--overwrite replaces it" in error and target.read_bytes() == b"somebody's"
    tokenizer_module.main([*words, "--overwrite"])
    assert Llama2cTokenizer(target).n_words == 300
