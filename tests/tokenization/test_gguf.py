"""Tokenizers inside GGUF files, compared with those that they were made from."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from mini_llama.tokenization.find import find_tokenizer, load_tokenizer
from mini_llama.tokenization.huggingface import BYTE_OF
from mini_llama.tokenization.pre_tokenizers import RULES
from tests.gguf_files import add_pieces, smollm2
from tests.helpers import ROOT, SHARED

gguf = pytest.importorskip("gguf")
tokenizers = pytest.importorskip("tokenizers")
ALPHABET = {byte: character for character, byte in BYTE_OF.items()}
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = (  # as Meta's tokenizer.py has it
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
POOLS = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x600, 0x700), (0x900, 0x980)]
POOLS += [
    (0x2000, 0x20A0),
    (0x2150, 0x2190),
    (0x3040, 0x3100),
    (0x4E00, 0x5200),
    (0x1F300, 0x1F700),
]
WORDS = ["'s", "'RE", " ", "  ", "\n", "\t", "\r\n", "12", "123456", "...", "the", "<|im_end|>"]


def random_texts(count: int) -> list[str]:
    generator = random.Random(0)

    def part() -> str:
        if generator.random() < 0.3:
            return generator.choice(WORDS)
        return chr(generator.randrange(*generator.choice(POOLS)))

    return ["".join(part() for _ in range(generator.randint(1, 40))) for _ in range(count)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """SST's, or the demo's where it is not here, and 2,000 random ones."""
    paths = sorted((SHARED / "data").glob("sst-*.txt"))
    paths = paths or sorted((ROOT / "data" / "demo").glob("demo-*.txt"))
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return [line.partition("|||")[2].strip() for line in lines] + random_texts(2000)


@pytest.fixture(scope="module")
def trained(texts: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens, control tokens first, and merges that were trained on these texts."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1500, special_tokens=CONTROLS, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(texts[::3], trainer)
    model = json.loads(library.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [tuple(pair) for pair in model["merges"]]


def write(path: Path, fill: Callable[[Any], object]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_byte_pairs(path: Path, trained: Any, pre: str, **flags: bool) -> Path:
    tokens, merges = trained

    def fill(writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([3] * len(CONTROLS) + [1] * (len(tokens) - len(CONTROLS)))
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_chat_template("{{ messages }}")
        for name, value in flags.items():
            getattr(writer, name)(value)

    return write(path, fill)


def library_of(trained: Any, *cuts: Any) -> Any:
    tokens, merges = trained
    vocabulary = {token: i for i, token in enumerate(tokens)}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(list(cuts))
    return library


@pytest.mark.parametrize("pre", ["smollm", "gpt-2"])
def test_byte_pairs_equal_the_published_tokenizers(tmp_path, texts, trained, pre: str):
    """SmolLM's tokenizer.json cuts by the package's own Digits and GPT-2's ByteLevel."""
    cuts = [tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if pre == "smollm":
        cuts.insert(0, tokenizers.pre_tokenizers.Digits(individual_digits=True))
    expected = [e.ids for e in library_of(trained, *cuts).encode_batch(texts)]
    tokenizer = load_tokenizer(write_byte_pairs(tmp_path / "t.gguf", trained, pre))
    assert tokenizer.encode_batch(texts, bos=False, eos=False) == expected
    assert [tokenizer.decode(ids) for ids in expected[::20]] == texts[::20]


def test_llama_3_equals_tiktoken(tmp_path, texts, trained):
    tiktoken = pytest.importorskip("tiktoken")
    tokens, _ = trained
    ranks = {bytes(map(BYTE_OF.__getitem__, t)): i for i, t in enumerate(tokens[3:], 3)}
    encoding = tiktoken.Encoding("t", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={})
    tokenizer = load_tokenizer(write_byte_pairs(tmp_path / "t.gguf", trained, "llama-bpe"))
    ours = tokenizer.encode_batch(texts, bos=False, eos=False)
    assert ours == encoding.encode_ordinary_batch(texts)
    assert tokenizer.encode("a", bos=True, eos=True)[0::2] == [1, 2]


@pytest.mark.parametrize("pre", RULES)
def test_every_rule_keeps_the_text(tmp_path, trained, pre: str):
    tokenizer = load_tokenizer(write_byte_pairs(tmp_path / "t.gguf", trained, pre))
    for text in random_texts(50):
        assert tokenizer.decode(tokenizer.encode(text, bos=True, eos=True)) == text


def test_the_default_rule_cuts_digits_by_three(tmp_path):
    """Whatever the merges would do first: 34 here."""
    tokens = [*CONTROLS, "1", "2", "3", "4", "34", "12", "123"]
    small = (tokens, [("3", "4"), ("1", "2"), ("12", "3")])
    for pre, expected in (("default", ["123", "4"]), ("gpt-2", ["12", "34"])):
        tokenizer = load_tokenizer(write_byte_pairs(tmp_path / f"{pre}.gguf", small, pre))
        ids = tokenizer.encode("1234", bos=False, eos=False)
        assert [tokens[i] for i in ids] == expected


def test_control_tokens_template_and_ends(tmp_path, trained):
    path = write_byte_pairs(tmp_path / "t.gguf", trained, "smollm", add_add_bos_token=False)
    tokenizer = load_tokenizer(path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_ids) == (1, 2, (2, 0))
    assert tokenizer.chat_template == "{{ messages }}"
    ids = tokenizer.encode("a<|im_end|>", bos=True, eos=False)
    assert not {0, 1, 2}.intersection(ids)  # it is ordinary text
    assert tokenizer.encode("", bos=True, eos=False) == [1]
    assert find_tokenizer(path) == path
    (tmp_path / "t.model").write_bytes(b"")
    assert find_tokenizer(path) == path


def pieces_of(path: Path) -> tuple[SentencePieceProcessor, tuple[list, list, list]]:
    model = SentencePieceProcessor(model_file=str(path))
    kinds = [(model.is_unknown, 2), (model.is_control, 3), (model.is_unused, 5), (model.is_byte, 6)]
    ids = range(model.vocab_size())
    types = [next((kind for test, kind in kinds if test(i)), 1) for i in ids]
    return model, ([*map(model.id_to_piece, ids)], [*map(model.get_score, ids)], types)


@pytest.mark.parametrize("name", ["demo.model", "tokenizer.model"])
def test_pieces_equal_sentencepiece(tmp_path, texts, name: str):
    path = {
        "demo.model": ROOT / "data" / "demo" / name,
        "tokenizer.model": SHARED / "reference" / name,
    }[name]
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    model, lists = pieces_of(path)
    tokenizer = load_tokenizer(write(tmp_path / "t.gguf", lambda w: add_pieces(w, *lists)))
    assert tokenizer.encode_batch(texts, bos=False, eos=False) == model.encode(texts)
    assert (tokenizer.n_words, tokenizer.bos_id, tokenizer.eos_id) == (model.vocab_size(), 1, 2)
    assert tokenizer.pad_id == model.piece_to_id("<0x00>")
    assert tokenizer.encode("a", bos=True, eos=True)[0] == 1
    assert [tokenizer.decode(i) for i in model.encode(texts[:200])] == [
        model.decode(i) for i in model.encode(texts[:200])
    ]


def test_pieces_without_a_space_in_front(tmp_path):
    _, lists = pieces_of(ROOT / "data" / "demo" / "demo.model")

    def fill(writer: Any) -> None:
        add_pieces(writer, *lists)
        writer.add_add_space_prefix(False)
        writer.add_add_bos_token(False)

    tokenizer = load_tokenizer(write(tmp_path / "t.gguf", fill))
    ids = tokenizer.encode("the", bos=True, eos=False)
    assert lists[0][ids[0]][0] == "t" and tokenizer.encode("", bos=True, eos=False) == [1]


def fill_wrong(key: str) -> Callable[[Any], None]:
    def fill(writer: Any) -> None:
        writer.add_tokenizer_model("bert" if key == "kind" else "gpt2")
        writer.add_tokenizer_pre("nosuch" if key == "pre" else "gpt-2")
        if key != "tokens":
            writer.add_token_list(["a", "a" if key == "twice" else "b", "ab"])
        writer.add_token_types([1] * (2 if key == "types" else 3))
        if key != "merges":
            writer.add_token_merges(["a c" if key == "merge" else "a b"])
        writer.add_eos_token_id(7 if key == "eos" else 2)

    return fill


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("kind", "of the kind 'bert', and only 'llama' and 'gpt2'"),
        ("pre", "tokenizer.ggml.pre is 'nosuch', a rule that is not known here (known: default"),
        ("tokens", "has no tokens"),
        ("twice", "tokens 0 and 1 are both 'a'"),
        ("types", "token_type has 2 values for 3 tokens"),
        ("merges", "has no merges"),
        ("merge", "merge 'a c' is not one of two tokens"),
        ("eos", "eos_token_id is 7, and there are 3 tokens"),
    ],
)
def test_what_is_no_tokenizer_is_refused(tmp_path, key: str, part: str):
    path = write(tmp_path / "t.gguf", fill_wrong(key))
    with pytest.raises(ValueError) as caught:
        load_tokenizer(path)
    assert part in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_a_tokenizer_leaves_it_to_the_others(tmp_path):
    path = write(tmp_path / "t.gguf", lambda writer: None)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_tokenizer(path)
    (tmp_path / "t.model").write_bytes(b"")
    assert find_tokenizer(path) == tmp_path / "t.model"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
        ("Café déjà vu.", [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]),
        ("  multiple   spaces", [216, 2701, 256, 5600]),
    ],
)
def test_smollm2_as_published(text: str, ids: list[int]):
    """The ids are those that others report of SmolLM2's own tokenizer."""
    assert load_tokenizer(smollm2()).encode(text, bos=True, eos=False) == ids
