"""tokenizer.json of both kinds, against the package tokenizers itself and transformers."""

import json
import random
import sys
from pathlib import Path

import pytest

from mini_llama.tokenization.base import StreamDecoder
from mini_llama.tokenization.find import check_vocabulary, find_tokenizer, load_tokenizer
from mini_llama.tokenization.huggingface import HuggingFaceTokenizer
from tests.tokenization.test_llama2c import TEXTS, random_texts
from tokenizer import Tokenizer

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

KINDS = ["byte-level", "llama2"]
CORPUS = ["the cat sat on the mat, and the dog didn't", "déjà vu 北京 🦙 12 345"] * 20


def byte_level(template: bool = True) -> "tokenizers.Tokenizer":
    """As Llama 3's: <|begin|> is 0, <|end|> 1, <|pad|> 2."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    names = ["<|begin|>", "<|end|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=names, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    if template:
        pair = [("<|begin|>", 0)]
        made.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=pair)
    return made


def llama2() -> "tokenizers.Tokenizer":
    """As Llama 2's: <unk>, <s>, </s>, 256 bytes, then pieces; trained on words behind "▁"."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    learnt = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {name: i for i, name in enumerate([*names, *learnt["vocab"]])}
    merges = [tuple(pair) for pair in learnt["merges"]]
    made = tokenizers.Tokenizer(
        models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    pair = [("<s>", 1)]
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=pair)
    return made


MADE = {"byte-level": byte_level, "llama2": llama2}
NAMES = {
    "byte-level": {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"},
    "llama2": {"bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}},
}


def save(folder: Path, made: "tokenizers.Tokenizer", names: dict | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    if names is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("made") / kind, MADE[kind](), NAMES[kind])


@pytest.fixture
def library(folder: Path) -> "tokenizers.Tokenizer":
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_ids_and_texts_are_the_librarys(folder, library):
    ours = load_tokenizer(folder)
    library.encode_special_tokens = True
    texts = TEXTS + random_texts(3, 300)
    for text in texts:
        ids = library.encode(text).ids
        assert ours.encode(text, bos=True, eos=False) == ids, repr(text)
        assert ours.decode(ids) == text, repr(text)
    rows = [library.encode(text, add_special_tokens=False).ids for text in texts]
    assert ours.encode_batch(texts, bos=False, eos=True) == [[*ids, ours.eos_id] for ids in rows]
    assert ours.decode(rows[8]) == library.decode(rows[8])


def test_ids_are_those_of_transformers(folder, kind):
    transformers = pytest.importorskip("transformers")
    names = {k: v["content"] if isinstance(v, dict) else v for k, v in NAMES[kind].items()}
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), split_special_tokens=True, **names
    )
    ours = HuggingFaceTokenizer(folder / "tokenizer.json")
    for text in ["", " the cat", "<s> </s> <|end|> the", "déjà  vu\n🦙", *random_texts(4, 50)]:
        assert ours.encode(text, bos=True, eos=False) == theirs(text).input_ids, repr(text)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_ids_decode_one_by_one_as_together(folder, library):
    ours = load_tokenizer(folder)
    rng = random.Random(5)
    for _ in range(1000):
        ids = [rng.randrange(ours.n_words + 3) for _ in range(rng.randrange(10))]
        stream = StreamDecoder(ours)
        text = "".join(map(stream.feed, ids)) + stream.finish()
        assert text == ours.decode(ids)
        # the library's other kind replaces a whole run of bytes where one of them is wrong
        if ours.kind.is_byte_level and set(ids) <= set(range(3, ours.n_words)):
            assert text == library.decode(ids), ids


def test_control_tokens_and_padding(tmp_path):
    ours = load_tokenizer(save(tmp_path / "a", byte_level(), NAMES["byte-level"]))
    assert (ours.n_words, ours.bos_id, ours.eos_id, ours.pad_id) == (300, 0, 1, 2)
    assert ours.decode([0, *ours.encode("the <|end|>", True, True), 2]) == "the <|end|>"
    ours = load_tokenizer(save(tmp_path / "b", llama2()))  # nothing beside it: usual names
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (1, 2, 3)


def test_where_the_ids_come_from(tmp_path):
    folder = save(tmp_path / "a", byte_level())
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2], "pad_token_id": -1}')
    ours = load_tokenizer(folder)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (None, 1, 1)
    (folder / "config.json").write_text('{"bos_token_id": 0, "eos_token_id": 2}')
    ours = load_tokenizer(folder)
    assert (ours.bos_id, ours.eos_id) == (0, 2)
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|end|>"}}')
    (folder / "tokenizer_config.json").write_text('{"bos_token": null}')
    ours = load_tokenizer(folder)
    assert (ours.bos_id, ours.eos_id) == (None, 1)
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<bos>"}')
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: bos_token '<bos>' is not in"):
        load_tokenizer(folder)


def test_bos_is_added_where_the_tokenizer_itself_adds_it(tmp_path):
    ours = load_tokenizer(save(tmp_path, byte_level(template=False), NAMES["byte-level"]))
    ids = ours.encode("the", bos=False, eos=False)
    assert ours.encode("the", bos=True, eos=False) == ids
    assert ours.encode("", bos=True, eos=False) == [0]  # a model must begin with something
    for adds in (True, False):
        names = NAMES["byte-level"] | {"add_bos_token": adds}
        ours = load_tokenizer(save(tmp_path, byte_level(), names))
        assert ours.encode("the", bos=True, eos=False) == [0] * adds + ids
    names = {"bos_token": None, "eos_token": "<|end|>"}
    ours = load_tokenizer(save(tmp_path, byte_level(), names))
    assert ours.encode("the", True, True) == [*ids, 1] and ours.encode("", True, False) == [1]


def test_settings_that_would_cut_pad_or_draw_lots_are_not_used(tmp_path):
    made = byte_level()
    expected = made.encode("the cat sat on", add_special_tokens=False).ids
    made.enable_truncation(2)
    made.enable_padding(length=64)
    made.model.dropout = 0.9
    ours = load_tokenizer(save(tmp_path, made, NAMES["byte-level"]))
    assert ours.encode("the cat sat on", bos=True, eos=False) == [0, *expected]
    assert load_tokenizer(tmp_path, max_len=2).encode("the cat sat on", True, True) == [
        0, *expected[:2], 1,
    ]  # fmt: skip


def test_a_control_token_that_the_text_cannot_be_told_from_is_refused(tmp_path):
    folder = save(tmp_path, llama2(), {"bos_token": "<s>", "eos_token": "▁the"})
    ours = load_tokenizer(folder)
    with pytest.raises(ValueError, match=r"the text holds '▁the', which tokenizer .*; take it out"):
        ours.encode("the cat", bos=True, eos=False)


def test_vocabularies_that_fit(tmp_path):
    made = byte_level()
    made.add_special_tokens(["<|late|>"])
    ours = load_tokenizer(save(tmp_path, made, NAMES["byte-level"]))
    assert ours.n_words == 301
    for size in (300, 301, 384, 428):  # without the added token, exactly, padded
        check_vocabulary(ours, size, "m.pt")
    for size in (299, 429, 32000):
        with pytest.raises(ValueError, match=rf"has 301 pieces, but m\.pt was trained with {size}"):
            check_vocabulary(ours, size, "m.pt")
    assert ours.decode([300, 350]) == ""
    late = NAMES["byte-level"] | {"pad_token": "<|late|>"}
    assert not load_tokenizer(save(tmp_path, made, late)).fits(300)


WORDPIECE = {"type": "WordPiece", "prefix": "##", "cleanup": True}


def changed(**changes: object) -> dict:
    return json.loads(byte_level().to_str()) | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "its model is None; only 'BPE'"),
        (json.dumps(changed(decoder=None)), "its decoder (none) is not supported"),
        (json.dumps(changed(decoder=WORDPIECE)), "its decoder (WordPiece) is not supported"),
        (json.dumps(changed(model={"type": "WordPiece", "vocab": []})), "its model is 'WordPiece'"),
        (json.dumps(changed(added_tokens=3)), "is not a tokenizer.json"),
        (json.dumps(changed(model={"vocab": {}, "merges": [["a", "b"]]})), "is not a tokenizer"),
        (json.dumps(changed(model={"vocab": {"a": -1}, "merges": []})), "is not a tokenizer.json"),
        (json.dumps(changed(model={"vocab": {"a": 2**31}, "merges": []})), "only ids below 2^24"),
        (json.dumps(changed(model={"vocab": {"a": 9, "b": 9}, "merges": []})), "one id to several"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, content: str, message: str):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        load_tokenizer(path)
    assert str(path) in str(error.value) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_tokenizers_is_optional(folder, monkeypatch, tokenizer_model, tmp_path):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        ValueError, match=r"tokenizer\.json needs tokenizers, .*, or pip install tokenizers"
    ):
        load_tokenizer(folder)
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_text("{}")
    assert find_tokenizer(tmp_path) == tmp_path / "tokenizer.json"
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_model.read_bytes())
    assert find_tokenizer(tmp_path) == tmp_path / "tokenizer.model"
    assert isinstance(load_tokenizer(tmp_path), Tokenizer)


def test_find_prefers_tokenizer_json(tmp_path):
    for name in ("tokenizer.json", "config.json", "tokenizer.model", "other.model"):
        (tmp_path / name).touch()
    for checkpoint in (tmp_path, tmp_path / "model.safetensors"):
        assert find_tokenizer(checkpoint) == tmp_path / "tokenizer.json"
