"""Mapped files are opened once, and their pages given back: what stays in memory, by Linux's own
count, and the same numbers whatever happens to the file.
"""

import io
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llama import Llama
from mini_llama.checkpoints import lazy_tensors, mapped_pages
from mini_llama.checkpoints.conversion import prepare
from mini_llama.checkpoints.formats import llama2c
from mini_llama.checkpoints.formats.folder import save_folder
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.lazy_tensors import StreamedTensors
from mini_llama.checkpoints.mapped_pages import MappedPages
from mini_llama.checkpoints.reading import read_checkpoint
from tests.checkpoints.formats.test_meta import write_meta
from tests.helpers import random_llama, tiny_config

MEGABYTE = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is in memory")


@pytest.fixture(scope="module")
def llama() -> Llama:
    """36 MB in float32, its largest matrix below 1 MB."""
    changes = {"norm": "rmsnorm", "attention": "causal", "tie_word_embeddings": False}
    return random_llama(
        tiny_config(vocab_size=900, dim=256, hidden_dim=688, n_layers=12, n_kv_heads=4, **changes)
    )


def write_q80(path: Path, llama: Llama) -> None:
    llama2c.write_q80(path, llama.config, llama.state_dict())


WRITERS: dict[str, Callable[[Path, Llama], object]] = {
    "torch": lambda path, llama: save_checkpoint(path, llama.config, llama.state_dict()),
    "folder": lambda path, llama: save_folder(path, llama.config, llama.state_dict()),
    "meta": lambda path, llama: write_meta(path, llama, 2),
    "q80": write_q80,
}


def bytes_in_memory(path: Path) -> int:
    """Of the file, or of the files in the folder, what is mapped and counts as this process's."""
    total, is_counted = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *values = line.split()
        if not key.endswith(":"):
            is_counted = str(path) in line
        elif key == "Rss:" and is_counted:
            total += 1024 * int(values[0])
    return total


@linux
@pytest.mark.parametrize("kind", WRITERS)
def test_what_was_used_does_not_stay_in_memory(tmp_path, monkeypatch, llama, kind: str):
    WRITERS[kind](tmp_path / "m", llama)
    checkpoint = read_checkpoint(tmp_path / "m")
    expected = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    size = sum(f.stat().st_size for f in [tmp_path / "m", *tmp_path.glob("m/*")] if f.is_file())
    assert bytes_in_memory(tmp_path / "m") > 0.9 * size
    numbers = sum(tensor.nbytes for tensor in expected.values())
    monkeypatch.setattr(lazy_tensors, "STREAMED_BYTES", numbers // 8)
    tensors = StreamedTensors(checkpoint.tensors, checkpoint.pages)
    assert bytes_in_memory(tmp_path / "m") < MEGABYTE / 10  # a zip file's own records
    for number, (name, tensor) in enumerate(tensors.items()):
        assert torch.equal(tensor, expected[name])
        if number % 5:  # asking takes a while
            continue
        # A tensor more, and at either end what Linux maps with a page: 2 MB, where it has them.
        assert bytes_in_memory(tmp_path / "m") < size / 8 + 5 * MEGABYTE < 0.75 * size
    tensors.give_back()
    assert bytes_in_memory(tmp_path / "m") < MEGABYTE / 10


@linux
@pytest.mark.parametrize("kind", WRITERS)
def test_conversions_open_a_checkpoint_once(tmp_path, monkeypatch, llama, kind: str):
    """And give its pages back many times; the result is the same without."""
    WRITERS[kind](tmp_path / "m", llama)
    opened, forgotten = [], []
    watch, forget = MappedPages.watch, mapped_pages._find_forget()
    monkeypatch.setattr(lazy_tensors, "STREAMED_BYTES", 2 * MEGABYTE)
    monkeypatch.setattr(MappedPages, "watch", lambda p, f: opened.append(f) or watch(p, f))
    monkeypatch.setattr(
        mapped_pages, "_find_forget", lambda: lambda *area: forgotten.append(area) or forget(*area)
    )
    prepare(tmp_path / "m", tmp_path / "a.pt", "assignment", "llama2").write()
    assert len(opened) == len(set(opened)) == (2 if kind == "meta" else 1)
    assert sum(length for _, length in forgotten) > 10 * sum(file.stat().st_size for file in opened)
    monkeypatch.setattr(mapped_pages, "_find_forget", lambda: None)
    prepare(tmp_path / "m", tmp_path / "b.pt", "assignment", "llama2").write()
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


# Files that change meanwhile


def convert_and(act: Callable[[], object], source: Path, destination: Path) -> None:
    """`act` once a third of the source has been read."""
    plan = prepare(source, destination, "assignment")
    left = [plan.bytes_to_read // 3]

    def on_read(count: int) -> None:
        left[0] -= count
        if left[0] <= 0 < left[0] + count:
            act()

    plan.write(on_read)


@pytest.fixture
def source(tmp_path, monkeypatch, llama) -> Path:
    monkeypatch.setattr(lazy_tensors, "STREAMED_BYTES", 2 * MEGABYTE)
    WRITERS["torch"](tmp_path / "m", llama)
    return tmp_path / "m"


def test_a_file_that_is_changed_in_place_is_refused(source: Path):
    def change() -> None:
        with open(source, "r+b") as file:
            file.seek(-1000, os.SEEK_END)
            file.write(b"x")

    with pytest.raises(ValueError, match=f"{source} was changed while it was read; try again"):
        convert_and(change, source, source.with_name("a.pt"))
    assert not source.with_name("a.pt").exists()


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_file_that_is_replaced_or_removed_is_read_to_its_end(source: Path, is_replaced: bool):
    other = source.with_name("other")
    other.write_bytes(bytes(source.stat().st_size))
    convert_and(lambda: None, source, source.with_name("a.pt"))
    act = (lambda: other.replace(source)) if is_replaced else source.unlink
    convert_and(act, source, source.with_name("b.pt"))
    assert source.with_name("a.pt").read_bytes() == source.with_name("b.pt").read_bytes()


def test_bytes_that_are_swapped_in_memory_are_kept(source: Path, llama: Llama):
    """A torch file from a machine with the other byte order."""
    foreign = io.BytesIO()
    with zipfile.ZipFile(source) as native, zipfile.ZipFile(foreign, "w") as archive:
        for entry in native.infolist():
            content = native.read(entry)
            if entry.filename.endswith("/byteorder"):
                content = b"big" if sys.byteorder == "little" else b"little"
            elif "/data/" in entry.filename:
                content = torch.frombuffer(bytearray(content), dtype=torch.float32)
                content = content.numpy().byteswap().tobytes()
            archive.writestr(entry.filename, content)
    source.write_bytes(foreign.getvalue())
    prepare(source, source.with_name("a.pt"), "assignment").write()
    written = read_checkpoint(source.with_name("a.pt")).tensors
    assert all(torch.equal(written[name], t) for name, t in llama.state_dict().items())
