"""Atomic writes, devices and seeds."""

import errno
import functools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import ROOT
from utils import (
    atomic_folder,
    atomic_write,
    available_bytes,
    check_outputs,
    choose_device,
    get_parameter_dtype,
    raise_on_sigterm,
    require_free_disk,
    seed_everything,
)


def test_atomic_write_replaces_whole_files(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write("né\nw")
        assert path.read_text() == "old"
    assert path.read_bytes() == "né\nw".encode()
    assert os.listdir(tmp_path) == ["out.txt"]


@pytest.fixture
def disk(monkeypatch) -> list[tuple]:
    """What reaches the disk, in order: ("fsync", inode, bytes) of a file, ("rename", inode)."""
    events: list[tuple] = []
    rename = {name: getattr(os, name) for name in ("rename", "replace")}

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        events.append(("fsync", status.st_ino, status.st_size))

    def record(name: str, source: str, target: str) -> None:
        events.append(("rename", os.stat(source).st_ino))
        rename[name](source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    for name in rename:
        monkeypatch.setattr(os, name, functools.partial(record, name))
    return events


def test_atomic_write_is_on_the_disk_before_it_takes_the_name(tmp_path, disk):
    """Else a power failure after the rename would leave an empty file where the old one was."""
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    with atomic_write(path, "wb") as file:
        file.write(b"all of it")
    inode = path.stat().st_ino
    assert disk == [("fsync", inode, len(b"all of it")), ("rename", inode)]


def test_atomic_folder_is_on_the_disk_before_it_takes_the_name(tmp_path, disk):
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_bytes(b"a")
        (folder / "b").write_bytes(b"bb")
    path = tmp_path / "out"
    files = {("fsync", (path / name).stat().st_ino, n) for name, n in (("a", 1), ("b", 2))}
    assert set(disk[:2]) == files and disk[2:] == [("rename", path.stat().st_ino)]


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path):
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path, "wb") as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["out.bin"]


def test_kill_leaves_the_old_file_and_the_next_write_cleans_up(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    code = (
        "import os, signal\nfrom utils import atomic_write\n"
        f"with atomic_write({str(path)!r}) as f:\n"
        "    f.write('half'); f.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert path.read_text() == "old" and len(os.listdir(tmp_path)) == 2
    with atomic_write(path) as file:
        file.write("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["out.txt"]


def test_atomic_folder_appears_whole(tmp_path):
    path = tmp_path / "out"
    for _ in range(2):  # new, and empty
        with atomic_folder(path) as folder:
            (folder / "a").write_text("a")
            assert not path.exists() or not any(path.iterdir())
        assert os.listdir(tmp_path) == ["out"] and (path / "a").read_text() == "a"
        (path / "a").unlink()
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "other") as folder:
        (folder / "a").write_text("a")
        raise RuntimeError
    assert os.listdir(tmp_path) == ["out"]


def test_atomic_folder_takes_no_other_place(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "mine").write_text("mine")
    for place, message in (
        (path, "folder with files in it; give another name"),
        (path / "mine", "is not a folder"),
        (tmp_path / "no" / "out", "does not exist; create it"),
    ):
        with pytest.raises(ValueError, match=message), atomic_folder(place):
            pass
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_killed_processs_folder_is_cleaned_up(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1, text=True
    )
    (tmp_path / f".out.{done.stdout.strip()}.tmp" / "deep").mkdir(parents=True)
    with atomic_folder(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_running_process_writes_is_left_alone(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as writer:
        temporary = tmp_path / f".out.txt.{writer.pid}.tmp"
        temporary.touch()
        with atomic_write(tmp_path / "out.txt"):
            pass
        assert temporary.exists() and writer.poll() is None
        writer.communicate(b"\n")
    assert writer.returncode == 0


def test_check_outputs(tmp_path):
    new, old = tmp_path / "new.txt", tmp_path / "old.txt"
    check_outputs([new], [])
    assert not os.listdir(tmp_path)
    old.write_text("old")
    check_outputs([new, old], [tmp_path / "input.txt"])
    assert old.read_text() == "old"
    for outputs, inputs, message in (
        ([tmp_path], [], "is a directory; give a file name"),
        ([tmp_path / "nothere" / "new.txt"], [], "does not exist; create it"),
        (["/proc/new.txt"], [], "choose another folder"),
        ([new, tmp_path / "." / "new.txt"], [], "is the output .*new.txt as well; give two names"),
        (
            [new, old],
            [tmp_path / ".." / tmp_path.name / "old.txt"],
            "is the input .*old.txt as well",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            check_outputs(outputs, inputs)


def test_a_failed_write_names_the_file(tmp_path):
    message = r"No space left on device: '.*out\.txt'"
    with pytest.raises(OSError, match=message), atomic_write(tmp_path / "out.txt"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not os.listdir(tmp_path)


def test_other_errors_of_a_writer_are_its_own(tmp_path):
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "out.txt"):
        raise OSError("the writer's own")
    assert str(caught.value) == "the writer's own"


def test_require_free_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=2_000_000))
    require_free_disk(tmp_path, 2_000_000, "a checkpoint", "name another folder")
    message = f"{tmp_path} has 2 MB free, a checkpoint needs 3 MB; free some, or name another"
    with pytest.raises(ValueError, match=re.escape(message)):
        require_free_disk(tmp_path, 3_000_000, "a checkpoint", "name another folder")


def test_only_regular_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(ValueError, match="not a regular file"):
            check_outputs([path], [])
        with pytest.raises(ValueError, match="not a regular file"), atomic_write(path):
            pass
    assert (tmp_path / "pipe").is_fifo() and Path("/dev/null").is_char_device()


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with atomic_write(tmp_path / "link") as file:
        file.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_choose_device(monkeypatch):
    assert choose_device(False) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="neither a CUDA nor an MPS device"):
        choose_device(True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device(True) == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(True) == torch.device("cuda")


def test_available_bytes(monkeypatch):
    memory = "MemTotal: 900 kB\nMemAvailable: 10 kB\nSwapFree: 2 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda self, **_: memory)
    assert available_bytes() == 1024 * 12
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 7))
    assert available_bytes("cuda") == 5
    for pages in ("", "MemAvailable: much"):
        monkeypatch.setattr(Path, "read_text", lambda self, text=pages, **_: text)
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 8, "SC_AVPHYS_PAGES": 3}.__getitem__)
        assert available_bytes() == 24
    monkeypatch.delattr(os, "sysconf")
    assert available_bytes() is None


def test_sigterm_ends_as_ctrl_c_does():
    raise_on_sigterm()
    with pytest.raises(SystemExit) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM


def test_seed_everything():
    def draw() -> tuple:
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_everything(7)
    first = draw()
    seed_everything(7)
    assert draw() == first
    seed_everything(8)
    assert all(a != b for a, b in zip(draw(), first, strict=True))
    seed_everything(2**40)  # numpy takes 32 bits only
    seed_everything(2**32 - 1)
    first = np.random.rand()
    seed_everything(2**33 - 1)
    assert np.random.rand() == first
    cudnn = torch.backends.cudnn
    assert cudnn.deterministic and not cudnn.benchmark


def test_get_parameter_dtype():
    assert get_parameter_dtype(torch.nn.Linear(2, 2).bfloat16()) == torch.bfloat16
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        get_parameter_dtype(torch.nn.ReLU())


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "out"
    path.write_text("old")
    path.chmod(0o600)
    with atomic_write(path) as file:
        file.write("new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o600


def test_an_output_link_into_a_missing_folder_is_noticed(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "none" / "out")
    with pytest.raises(ValueError, match="it is a link to"):
        check_outputs([link], [])
    (tmp_path / "none").mkdir()
    check_outputs([link], [])
    assert not (tmp_path / "none" / "out").exists()


def test_files_are_replaced_only_on_request(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="is there already: --overwrite replaces it"):
        check_outputs([tmp_path / "out"], [], overwrite=False)
    check_outputs([tmp_path / "out"], [])
