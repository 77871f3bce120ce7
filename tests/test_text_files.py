"""Text as other systems write it, in every place that reads text; pipes and devices as input."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from mini_llama.addition.additions import read_additions
from mini_llama.assignment.reviews import read_examples, read_label_names
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.pretraining.data import read_documents
from mini_llama.resume import digest
from mini_llama.submissions.prediction_files import read_data_file
from mini_llama.text_files import read_chunks, read_lines
from mini_llama.tokenization.find import load_tokenizer
from utils import read_json

LINES = ["0 ||| one\u2028still one", "1 ||| two\x0cstill two", "0 ||| thr\u00e9e \U0001f600"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "not ended"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
def test_line_ends_are_pythons(tmp_path, end: str, last: bool, mark: bytes):
    path = tmp_path / "text"
    path.write_bytes(mark + (end.join(LINES) + end * last).encode())
    with open(path, encoding="utf-8-sig") as file:  # universal newlines: the courses' reading
        expected = [line.rstrip("\n") for line in file]
    assert read_lines(path) == expected == LINES
    sentences = [line.partition(" ||| ")[2] for line in LINES]
    assert [example.sentence for example in read_examples(path)] == sentences
    assert [sentence for _, sentence in read_data_file(path)] == sentences
    for size in (1, 2, 3, 64):
        assert "".join(read_chunks(path, size)) == "\n".join(LINES) + "\n" * last
    assert list(read_documents([path], separator="\n")) == LINES
    path.write_bytes(mark + (end.join(["1000+1000=2000", "1234+1000=2234"]) + end * last).encode())
    assert read_additions(path) == ["1000+1000=2000", "1234+1000=2234"]


READERS: dict[str, Callable[[Path], object]] = {
    "reviews": read_examples,
    "labels": read_label_names,
    "gold": read_data_file,
    "corpus": lambda path: list(read_documents([path])),
    "additions": read_additions,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("0 ||| one\n".encode("utf-16"), "UTF-16"),
        ("0 ||| one\n".encode("utf-16-be").join([b"\xfe\xff", b""]), "UTF-16"),
        ("0 ||| one\n".encode("utf-32"), "UTF-32"),
        (b"0 ||| one\n1 ||| t\0wo\n", "NUL byte"),
        (b"0 ||| one\r1 ||| caf\xe9\r", "0xe9"),
    ],
    ids=["utf-16-le", "utf-16-be", "utf-32", "nul", "latin-1"],
)
def test_other_encodings_are_named(tmp_path, reader: str, content: bytes, part: str):
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        READERS[reader](path)
    message = str(caught.value)
    assert part in message and str(path) in message and "UTF-8" in message
    assert "\n" not in message
    if part in ("NUL byte", "0xe9") and reader != "corpus":
        assert f"{path} line 2" in message


def test_half_a_surrogate_pair_is_the_label_files_fault(tmp_path):
    (tmp_path / "labels").write_text(r'["good", "\ud800"]')
    with pytest.raises(ValueError, match=r"labels: label word '\\ud800' has half"):
        read_label_names(tmp_path / "labels")


def special(folder: Path, kind: str) -> Path:
    if kind == "fifo":
        os.mkfifo(folder / "it")
        return folder / "it"
    if kind == "socket":
        os.chdir(folder)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("it")
        return folder / "it"
    return Path(f"/dev/{kind}")


OTHERS = {
    "checkpoint": read_checkpoint,
    "tokenizer": load_tokenizer,
    "json": read_json,
    "digest": digest,
}


@pytest.mark.parametrize("reader", [*READERS, *OTHERS])
@pytest.mark.parametrize("kind", ["fifo", "socket", "null", "zero"])
def test_what_cannot_be_read_twice_is_refused(tmp_path, monkeypatch, reader: str, kind: str):
    monkeypatch.chdir(tmp_path)
    path = special(tmp_path, kind)
    with pytest.raises(ValueError, match="save it as a file first"):
        (READERS | OTHERS)[reader](path)
