"""Documents, tokenizer training, token files and batches, against values worked out by hand or
with sentencepiece, numpy and zlib directly.
"""

import base64
import itertools
import json
import multiprocessing
import os
import random
import sys
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

import tales
from mini_llama.pretraining import data as pretrain_data
from mini_llama.pretraining.data import (
    TokenFile,
    TokenWindows,
    build_token_files,
    fingerprint_paths,
    make_loader,
    read_documents,
    train_tokenizer,
)
from mini_llama.tokenization.find import load_tokenizer
from tests.helpers import WORDS
from tokenizer import Tokenizer

CHUNKS = [1, 2, 3, 5, 64]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def make_documents(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [
        f"{' '.join(rng.choices(WORDS, k=12))}.\n{' '.join(rng.choices(WORDS, k=5))} {i}"
        for i in range(count)
    ]


# --- documents ---


@pytest.mark.parametrize("chunk", CHUNKS)
def test_documents_do_not_depend_on_chunks(tmp_path, monkeypatch, chunk: int):
    monkeypatch.setattr(pretrain_data, "_CHUNK", chunk)
    file = write(tmp_path / "a", "  one  1\n\n\n\n two\nlines\t\n\n\n 🙂é\n\n \t\n\nlast\n")
    assert list(read_documents([file])) == ["one  1", "two\nlines", "🙂é", "last"]
    file = write(tmp_path / "b", "<|end|>a<|e<|end|><|end|>\n<|end|>b\n\nc<|end|")
    assert list(read_documents([file], "<|end|>")) == ["a<|e", "b\n\nc<|end|"]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_line_ends_and_byte_order_mark(tmp_path, monkeypatch, chunk: int):
    monkeypatch.setattr(pretrain_data, "_CHUNK", chunk)
    file = write(tmp_path / "w.txt", b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n")
    assert list(read_documents([file])) == ["one\ntwo", "three"]
    assert list(read_documents([file], "\r\n\r\n")) == ["one\ntwo", "three"]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_text_without_separator_is_cut(tmp_path, monkeypatch, chunk: int):
    monkeypatch.setattr(pretrain_data, "_CHUNK", chunk)
    monkeypatch.setattr(pretrain_data, "MAX_DOCUMENT", 8)
    file = write(tmp_path / "long", "abcdefghIJKLMNOPqrs\n\nabcdefg\n\nxy\n\nabcdefgh\n\nz")
    assert list(read_documents([file])) == [
        *("abcdefgh", "IJKLMNOP", "qrs"),
        *("abcdefg", "xy", "abcdefgh", "z"),
    ]
    file = write(tmp_path / "straddling", "abcdefg<|end|>abcdefgh<|end|>xy")
    assert list(read_documents([file], "<|end|>")) == ["abcdefg", "abcdefgh", "xy"]


def test_folders_and_order(tmp_path):
    for name in ("d/b.txt", "d/a.txt", "d/sub/c.txt", "d/B.txt", "d/skipped.md", "first"):
        write(tmp_path / name, name)
    names = list(read_documents([tmp_path / "first", tmp_path / "d", tmp_path / "d" / "a.txt"]))
    assert names == ["first", "d/B.txt", "d/a.txt", "d/b.txt", "d/sub/c.txt"]
    assert list(read_documents([write(tmp_path / "empty", "")])) == []


def test_generated_text_is_read_like_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "a", "one")
    expected = ["one", *itertools.islice(tales.tales(3), 5)]
    assert list(read_documents([file, "tales:5:3"])) == expected
    expected = list(itertools.islice(tales.unlabelled_reviews(0), 4))
    assert list(read_documents(["reviews:4"])) == expected
    prints = {fingerprint_paths([name], "\n\n") for name in ("tales:5:3", "tales:5", "tales:6")}
    assert len(prints) == 3
    with pytest.raises(FileNotFoundError, match="poems:5 does not exist"):
        read_documents(["poems:5"])
    write(tmp_path / "tales:5", "a file of that name")
    assert list(read_documents(["tales:5"])) == ["a file of that name"]


def test_path_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothere does not exist; give a text file"):
        read_documents([tmp_path / "nothere"])
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"none has no \.txt file in it; give one"):
        read_documents([tmp_path / "none"])
    with pytest.raises(ValueError, match="separator is empty; give at least one"):
        read_documents([tmp_path], "")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe is a pipe, and is read more than once"):
        read_documents([tmp_path / "pipe"])


def read_as_nobody(folder: Path, answer) -> None:
    if os.geteuid() == 0:  # root may read everything
        os.setuid(65534)
    try:
        answer.put(list(read_documents([folder])))
    except OSError as error:
        answer.put(str(error))


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_unreadable_files_and_folders():
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()

    def read() -> list[str] | str:
        worker = context.Process(target=read_as_nobody, args=(folder, answer))
        worker.start()
        return answer.get()

    with tempfile.TemporaryDirectory() as name:  # tmp_path lies in a folder that is closed itself
        folder = Path(name)
        folder.chmod(0o755)
        file = write(folder / "sub" / "a.txt", "a")
        write(folder / "b.txt", "b")
        assert read() == ["b", "a"]
        file.chmod(0)
        assert read().endswith(
            "sub/a.txt is not a readable file; check its permissions, or leave it out"
        )
        file.parent.chmod(0)
        assert read() == f"cannot read folder {folder}/sub: Permission denied; leave it out"
        file.parent.chmod(0o700)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(
    ("content", "byte", "offset"),
    [
        (b"abc\n\nd\xc3\xa9 \xff.", "ff", 9),
        (b"\xef\xbb\xbfa\xe9b", "e9", 4),
        (b"ok \xf0\x9f", "f0", 3),
    ],
)
def test_invalid_utf8(tmp_path, monkeypatch, chunk: int, content: bytes, byte: str, offset: int):
    monkeypatch.setattr(pretrain_data, "_CHUNK", chunk)
    file = write(tmp_path / "bad.txt", content)
    message = rf"bad\.txt is not UTF-8: byte 0x{byte} at offset {offset}; save it as UTF-8"
    with pytest.raises(ValueError, match=message):
        list(read_documents([file]))


def peak_of(work) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("separator", ["\n\n", "never"])
def test_reading_takes_bounded_memory(tmp_path, separator: str):
    paragraph = ("x" * 999 + " ") * 2 + "\n\n"
    file = tmp_path / "large.txt"
    with open(file, "w") as out:
        for _ in range(25):
            out.write(paragraph * 1000)
    assert file.stat().st_size > 50_000_000
    read = []
    peak = peak_of(lambda: read.append(sum(map(len, read_documents([file], separator)))))
    assert read[0] > 49_000_000
    assert peak < 10_000_000, f"{peak:,} bytes"


def test_fingerprint(tmp_path):
    file = write(tmp_path / "d" / "a.txt", "one")
    os.utime(file, ns=(5, 5))
    original = fingerprint_paths([tmp_path / "d"], "\n\n")
    assert fingerprint_paths([tmp_path / "d" / ".." / "d" / "a.txt"], "\n\n") == original
    changed = {original, fingerprint_paths([file], "\n")}
    os.utime(file, ns=(5, 6))
    changed.add(fingerprint_paths([file], "\n\n"))
    write(file, "four")
    os.utime(file, ns=(5, 5))
    changed.add(fingerprint_paths([file], "\n\n"))
    file = file.rename(tmp_path / "d" / "b.txt")
    changed.add(fingerprint_paths([file], "\n\n"))
    assert len(changed) == 5
    with pytest.raises(FileNotFoundError, match="does not exist"):
        fingerprint_paths([tmp_path / "nothere"], "\n\n")


# --- training a tokenizer ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "own.model"
    train_tokenizer(iter(make_documents(300)), 330, path)
    return path


TEXTS = [
    "a dull film\n\n\nthe plot\tis  good,   no?\r\n",
    "  leading, trailing  ",
    "\n\n",
    " ",
    "",
    "🦙 Ünïcödé é \u3000 ﬁ ½ \ufeff 北京 \x00 \x7f",
    "<s> </s> <unk> <0x41> 1234567890 3.14",
]


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_decodes_to_itself(trained, text: str):
    tokenizer = Tokenizer(tokenizer_model=trained)
    assert tokenizer.decode(tokenizer.encode(text, bos=True, eos=True)) == text
    assert tokenizer.decode(tokenizer.encode(text, bos=False, eos=False)) == text


def test_pieces_are_laid_out_as_in_llama(trained):
    tokenizer = Tokenizer(tokenizer_model=trained)
    model = tokenizer.sp_model
    pieces = [model.id_to_piece(i) for i in range(len(model))]
    assert len(pieces) == tokenizer.n_words == 330
    assert pieces[:3] == ["<unk>", "<s>", "</s>"]
    assert pieces[3:259] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 3)
    assert all(len(p) == 1 for p in pieces[259:] if any(c.isdigit() for c in p))
    assert "\n" in pieces and "▁acting" in pieces


def test_training_is_deterministic_silent_and_atomic(trained, tmp_path, capfd):
    train_tokenizer(make_documents(300), 330, tmp_path / "again.model")
    assert (tmp_path / "again.model").read_bytes() == trained.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["again.model"]
    assert capfd.readouterr() == ("", "")


def test_long_documents_without_spaces(tmp_path):
    rng = random.Random(0)
    letters = "".join(rng.choices("abcdefgh", k=70_000))
    train_tokenizer([letters], 300, tmp_path / "m.model")
    tokenizer = Tokenizer(tokenizer_model=tmp_path / "m.model")
    assert tokenizer.decode(tokenizer.encode(letters, bos=True, eos=True)) == letters


def test_vocabulary_bounds(tmp_path):
    text = ["aaaa bbbb"] * 3  # 3 + 256 + the characters ▁, a and b
    target = write(tmp_path / "m.model", "old")
    for size in (-1, 0, 100, 259, 261):
        message = rf"^vocab_size {size} is not allowed: .* need 262 pieces; give a larger one$"
        with pytest.raises(ValueError, match=message):
            train_tokenizer(text, size, target)
    with pytest.raises(ValueError, match=r"vocab_size 5000 is .* at most ") as caught:
        train_tokenizer(text, 5000, target)
    bound = int(str(caught.value).split("at most ")[1].split()[0])
    with pytest.raises(ValueError, match=f"at most {bound} pieces; give a smaller one, or more"):
        train_tokenizer(text, bound + 1, target)
    with pytest.raises(ValueError, match="there is no text to train a tokenizer on; give"):
        train_tokenizer([], 300, target)
    assert target.read_text() == "old"
    train_tokenizer(text, bound, target)
    assert Tokenizer(tokenizer_model=target).n_words == bound


def test_digits_stand_alone(tmp_path):
    # 3 + 256 + the characters ▁, 0, 1, 2, 4 and 9, and nothing to merge
    train_tokenizer(["2024 1999"] * 20, 265, tmp_path / "m.model")
    with pytest.raises(ValueError, match="at most 265 pieces"):
        train_tokenizer(["2024 1999"] * 20, 266, tmp_path / "m.model")


def test_indents_are_pieces(tmp_path):
    train_tokenizer(["if a:\n        b\n        c"] * 20, 272, tmp_path / "m.model")
    assert Tokenizer(tokenizer_model=tmp_path / "m.model").sp_model.piece_to_id("▁▁▁▁") > 258


@pytest.mark.parametrize("error", [ValueError("bad byte"), KeyboardInterrupt(), OSError("gone")])
def test_training_raises_what_the_documents_raise(tmp_path, error: BaseException):
    def failing():
        yield from make_documents(300)
        raise error

    with pytest.raises(type(error)) as caught:
        train_tokenizer(failing(), 330, tmp_path / "m.model")
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_training_looks_at_a_bounded_text(trained, tmp_path, monkeypatch):
    documents = make_documents(300)
    monkeypatch.setattr(pretrain_data, "MAX_TRAINING_TEXT", sum(map(len, documents)))
    stream = iter([*documents, *make_documents(100, seed=1)])
    train_tokenizer(stream, 330, tmp_path / "m.model")
    assert len(list(stream)) == 100
    assert (tmp_path / "m.model").read_bytes() == trained.read_bytes()


# --- token files ---


@pytest.fixture
def tokenizer(tokenizer_model) -> Tokenizer:
    return Tokenizer(tokenizer_model=tokenizer_model)


def expected_ids(tokenizer: Tokenizer, documents: list[str]) -> list[int]:
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.model_path))
    return [i for document in documents for i in [1, *model.encode(document), 2]]


def assert_holds(files: tuple[TokenFile, TokenFile], tokenizer: Tokenizer, every: int, documents):
    val = documents[::every]
    train = [document for document in documents if document not in val]
    for file, part in zip(files, (train, val), strict=True):
        ids = expected_ids(tokenizer, part)
        assert file.open().tolist() == ids
        assert (file.count, file.vocab_size) == (len(ids), tokenizer.n_words)


def test_token_files(tmp_path, tokenizer, capfd):
    documents = make_documents(23)
    folder = tmp_path / "new" / "cache"
    files = build_token_files(lambda: iter(documents), "f", tokenizer, folder, 0.2)
    assert_holds(files, tokenizer, 5, documents)
    ids = files[0].open()
    assert isinstance(ids, np.memmap) and ids.dtype == np.uint16 and not ids.flags.writeable
    assert {path.name for path in folder.iterdir()} == {"train.bin", "val.bin", "tokens.json"}
    sidecar = json.loads((folder / "tokens.json").read_text())
    for file, split in zip(files, ("train", "val"), strict=True):
        content = file.path.read_bytes()
        assert sidecar[split] == {
            "count": file.count,
            "bytes": 2 * file.count,
            "crc32": zlib.crc32(content),
        }
    assert capfd.readouterr() == ("", "")


def test_default_is_one_document_of_a_hundred(tmp_path, tokenizer):
    documents = make_documents(201)
    files = build_token_files(lambda: documents, "f", tokenizer, tmp_path)
    assert_holds(files, tokenizer, 100, documents)


def test_batches_do_not_show(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(pretrain_data, "_BATCH_CHARACTERS", 200)
    documents = ["", *make_documents(20), "x" * 1000, ""]
    train, val = build_token_files(lambda: documents, "f", tokenizer, tmp_path, 0.5)
    assert train.open().tolist() == expected_ids(tokenizer, documents[1::2])
    assert val.open().tolist() == expected_ids(tokenizer, documents[::2])


def test_large_vocabularies_take_32_bits(tmp_path):
    pytest.importorskip("tiktoken")
    singles = [bytes([a]) for a in range(256)]
    pairs = [a + b for a in singles for b in singles]
    ranks = [base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(singles + pairs)]
    path = write(tmp_path / "large.tiktoken", b"".join(ranks))
    large = load_tokenizer(f"tiktoken:{path}")
    train, val = build_token_files(lambda: ["ab", "\xff"], "f", large, tmp_path / "c", 0.5)
    end = 256 + 65536
    assert train.open().dtype == np.uint32 and train.vocab_size == end + 1
    assert train.open().tolist() == [end, 256 + 0xC3 * 256 + 0xBF, end]
    assert val.open().tolist() == [end, 256 + ord("a") * 256 + ord("b"), end]


def no_documents() -> list[str]:
    raise AssertionError("whole files were built again")


def test_whole_files_are_used_again(tmp_path, tokenizer, capfd):
    documents = make_documents(10)
    first = build_token_files(lambda: documents, "f", tokenizer, tmp_path, 0.25)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert build_token_files(no_documents, "f", tokenizer, tmp_path, 0.25) == first
    after = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert after == before and len(after) == 3
    assert capfd.readouterr() == ("", "")


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: flip_byte(d / "train.bin"), "CRC-32 of train.bin is not the one in tokens.json"),
        (lambda d: flip_byte(d / "val.bin"), "CRC-32 of val.bin is not"),
        (lambda d: os.truncate(d / "val.bin", 10), "the size or the CRC-32 of val.bin is not"),
        (lambda d: os.truncate(d / "train.bin", 0), "the size or the CRC-32 of train.bin is not"),
        (lambda d: (d / "tokens.json").unlink(), "tokens.json is missing"),
        (lambda d: (d / "train.bin").unlink(), "train.bin is missing"),
        (lambda d: os.truncate(d / "tokens.json", 20), "tokens.json is damaged"),
        (lambda d: (d / "tokens.json").write_bytes(b"\xff\xfe"), "tokens.json is damaged"),
        (lambda d: (d / "tokens.json").write_text("[]"), "tokens.json is damaged"),
        (
            lambda d: (d / "tokens.json").write_text("{}"),
            "tokens.json was made with another format",
        ),
    ],
)
def test_damaged_files_are_built_again(tmp_path, tokenizer, capfd, damage, reason: str):
    documents = make_documents(10)
    build_token_files(lambda: documents, "f", tokenizer, tmp_path, 0.25)
    damage(tmp_path)
    files = build_token_files(lambda: documents, "f", tokenizer, tmp_path, 0.25)
    assert_holds(files, tokenizer, 4, documents)
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and reason in err and str(tmp_path) in err
    assert build_token_files(no_documents, "f", tokenizer, tmp_path, 0.25) == files


def test_another_text_tokenizer_or_fraction_is_built_again(tmp_path, tokenizer, trained, capfd):
    documents = make_documents(10)
    build_token_files(lambda: documents, "f", tokenizer, tmp_path, 0.25)
    other = Tokenizer(tokenizer_model=trained)
    for fingerprint, chosen, every, reason in (
        ("g", tokenizer, 4, "another fingerprint"),
        ("g", other, 4, "another tokenizer_sha256, vocab_size"),
        ("g", other, 5, "another val_every"),
    ):
        files = build_token_files(lambda: documents, fingerprint, chosen, tmp_path, 1 / every)
        assert_holds(files, chosen, every, documents)
        err = capfd.readouterr().err
        assert err.count("\n") == 1 and reason in err


def test_a_tokenizer_of_the_same_size_is_another_tokenizer(tmp_path, tokenizer, capfd):
    train_tokenizer(make_documents(100, seed=1), tokenizer.n_words, tmp_path / "t.model")
    other = Tokenizer(tokenizer_model=tmp_path / "t.model")
    documents = make_documents(10)
    build_token_files(lambda: documents, "f", tokenizer, tmp_path / "c", 0.25)
    files = build_token_files(lambda: documents, "f", other, tmp_path / "c", 0.25)
    assert_holds(files, other, 4, documents)
    assert "another tokenizer_sha256\n" in capfd.readouterr().err


def test_a_failed_build_leaves_the_old_files(tmp_path, tokenizer):
    def failing():
        yield from make_documents(2000)
        raise ValueError("disk on fire")

    documents = make_documents(10)
    files = build_token_files(lambda: documents, "f", tokenizer, tmp_path, 0.25)
    with pytest.raises(ValueError, match="disk on fire"):
        build_token_files(failing, "g", tokenizer, tmp_path, 0.25)
    assert len(list(tmp_path.iterdir())) == 3
    assert build_token_files(no_documents, "f", tokenizer, tmp_path, 0.25) == files


def test_too_few_documents_and_fractions_out_of_bounds(tmp_path, tokenizer):
    for documents in ([], ["one"]):
        message = f"the text has {len(documents)} documents, but .* at least one each; give more"
        with pytest.raises(ValueError, match=message):
            build_token_files(lambda: documents, "f", tokenizer, tmp_path)  # noqa: B023
    for fraction in (0, -0.1, 0.51, float("nan")):
        with pytest.raises(ValueError, match=rf"val_fraction {fraction} is not allowed: .*0\.5"):
            build_token_files(no_documents, "f", tokenizer, tmp_path, fraction)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="the text has 0 documents"):
        build_token_files(
            lambda: read_documents([write(tmp_path / "e", "\n \n")]), "f", tokenizer, tmp_path
        )


def test_a_token_file_that_was_cut(tmp_path, tokenizer):
    train, _ = build_token_files(lambda: make_documents(10), "f", tokenizer, tmp_path)
    os.truncate(train.path, 10)
    with pytest.raises(ValueError):
        train.open()


def build_in_a_process(folder: Path, model: Path, barrier) -> None:
    documents = make_documents(400)
    barrier.wait()
    for _ in range(3):
        files = build_token_files(lambda: documents, "f", Tokenizer(None, model), folder, 0.1)
        assert files[0].count > files[1].count == len(files[1].open())
        (folder / "tokens.json").unlink(missing_ok=True)
    build_token_files(lambda: documents, "f", Tokenizer(None, model), folder, 0.1)


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_processes_that_build_at_once(tmp_path, tokenizer):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    arguments = (tmp_path, tokenizer.model_path, barrier)
    workers = [context.Process(target=build_in_a_process, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"train.bin", "val.bin", "tokens.json"}
    documents = make_documents(400)
    files = build_token_files(lambda: documents, "f", tokenizer, tmp_path, 0.1)
    assert_holds(files, tokenizer, 10, documents)


def test_building_takes_bounded_memory(tmp_path, tokenizer):
    documents = make_documents(200)
    size = sum(map(len, documents))
    repeats = 1_500_000 // size
    stream = itertools.chain.from_iterable(itertools.repeat(documents, repeats))
    built = []
    peak = peak_of(
        lambda: built.extend(build_token_files(lambda: stream, "f", tokenizer, tmp_path))
    )
    assert sum(file.count for file in built) > 400_000  # as a list of integers, 36 bytes each
    assert peak < 4_000_000, f"{peak:,} bytes"


# --- windows and batches ---


def test_windows():
    windows = TokenWindows(np.arange(26, dtype=np.uint16), context=4)
    assert [w.tolist() for w in windows] == [list(range(i, i + 5)) for i in (0, 4, 8, 12, 16, 20)]
    assert all(w.dtype == torch.int64 and w.shape == (5,) for w in windows)
    for count, expected in ((5, 1), (8, 1), (9, 2), (24, 5), (25, 6)):
        assert len(TokenWindows(np.arange(count), 4)) == expected
    assert TokenWindows(np.array([70000, 2], np.uint32), 1)[0].tolist() == [70000, 2]
    for i in (-1, 6):
        with pytest.raises(IndexError, match=f"window {i} is out of range: there are 6"):
            windows[i]


def test_window_bounds():
    message = r"context 4 does not fit a corpus of 4 tokens: .* context from 1 to 3"
    with pytest.raises(ValueError, match=message):
        TokenWindows(np.arange(4), 4)
    with pytest.raises(ValueError, match="context 0 does not fit"):
        TokenWindows(np.arange(4), 0)


def numbered(count: int, context: int = 3) -> TokenWindows:
    """Window i begins with token i·context."""
    return TokenWindows(np.arange(count * context + 1, dtype=np.uint16), context)


def take(loader, steps: int) -> list[list[int]]:
    """The window numbers of the first batches."""
    return [(batch[:, 0] // 3).tolist() for batch in itertools.islice(loader, steps)]


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (10, 10), (3, 8), (1, 2), (100, 7)])
def test_every_epoch_is_another_permutation(count: int, batch_size: int):
    epochs = 4
    steps = -(-epochs * count // batch_size)
    batches = take(make_loader(numbered(count), batch_size, seed=5), steps)
    assert {len(batch) for batch in batches} == {batch_size}
    order = [i for batch in batches for i in batch]
    parts = [order[e * count : (e + 1) * count] for e in range(epochs)]
    assert all(sorted(part) == list(range(count)) for part in parts)
    if count >= 10:
        assert len({tuple(part) for part in parts} | {tuple(range(count))}) == epochs + 1


def test_start_step_goes_on_where_it_stopped():
    whole = take(make_loader(numbered(10), 4, seed=1), 12)
    for start in range(8):
        loader = make_loader(numbered(10), 4, seed=1, start_step=start)
        assert take(loader, 5) == whole[start : start + 5]
        assert take(loader, 2) == whole[start : start + 2]


@pytest.mark.parametrize("world_size", [2, 3, 6])
@pytest.mark.parametrize("start", [0, 4])
def test_ranks_divide_the_global_batches(world_size: int, start: int):
    whole = take(make_loader(numbered(10), 6, seed=2, start_step=start), 8)
    ranks = [
        take(make_loader(numbered(10), 6, 2, start, rank, world_size), 8)
        for rank in range(world_size)
    ]
    assert [sum(rows, []) for rows in zip(*ranks, strict=True)] == whole  # noqa: RUF017


def test_batches_have_shape_and_type():
    batch = next(iter(make_loader(numbered(10), 6, seed=2, world_size=2)))
    assert batch.shape == (3, 4) and batch.dtype == torch.int64
    first = batch[0, 0].item()
    assert batch[0].tolist() == [first, first + 1, first + 2, first + 3]


def test_one_pass_in_order():
    def batches(rank: int = 0, world_size: int = 1, start: int = 0) -> list[list[int]]:
        loader = make_loader(numbered(10), 4, 0, start, rank, world_size, shuffle=False)
        assert take(loader, 99) == take(loader, 99)
        return take(loader, 99)

    assert batches() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert batches(start=2) == [[8, 9]]
    assert batches(0, 2) == [[0, 1], [4, 5], [8, 9]]
    assert batches(1, 2) == [[2, 3], [6, 7]]
    assert batches(1, 4) == [[1], [5], [9]]


def test_global_randomness_is_neither_used_nor_changed():
    expected = take(make_loader(numbered(20), 4, seed=3), 7)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert take(make_loader(numbered(20), 4, seed=3), 7) == expected
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
    assert take(make_loader(numbered(20), 4, seed=4), 7) != expected


def test_loader_bounds():
    windows = numbered(10)
    with pytest.raises(ValueError, match="batch_size 6 cannot be divided among world_size 4 ranks"):
        make_loader(windows, 6, 0, world_size=4)
    for bad in ({"batch_size": 0}, {"world_size": 0}):
        with pytest.raises(ValueError, match="cannot be divided"):
            make_loader(windows, **{"batch_size": 4, "seed": 0, **bad})
    for bad in ({"rank": 2}, {"rank": -1}, {"start_step": -1}, {"seed": -1}):
        with pytest.raises(ValueError, match="must be at least 0, and rank less than world_size 2"):
            make_loader(windows, **{"batch_size": 4, "seed": 0, "world_size": 2, **bad})


def test_from_text_to_batches(tmp_path, trained):
    documents = make_documents(60)
    for i in range(3):
        text = "\n\n".join(documents[20 * i : 20 * i + 20])
        write(tmp_path / "text" / f"{i}.txt", text + "\n")
    paths = [tmp_path / "text"]
    tokenizer = Tokenizer(tokenizer_model=trained)
    train, _ = build_token_files(
        lambda: read_documents(paths), fingerprint_paths(paths, "\n\n"), tokenizer, tmp_path / "c"
    )
    windows = TokenWindows(train.open(), 8)
    rows = torch.cat(list(make_loader(windows, 4, 0, shuffle=False)))
    ids = expected_ids(tokenizer, documents[1:])
    assert rows[:, :-1].flatten().tolist() == ids[: len(windows) * 8]
    assert rows[:, 1:].flatten().tolist() == ids[1 : len(windows) * 8 + 1]
