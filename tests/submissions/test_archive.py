"""archive.py: malicious zips, built by hand where zipfile cannot write them."""

import io
import os
import random
import stat
import struct
import tracemalloc
import warnings
import zipfile

import pytest

from mini_llama.submissions import archive, zip_files
from mini_llama.submissions.archive import (
    MEBIBYTE,
    Submission,
    parse_submission,
    read_folder,
    read_submission,
)
from tests.submissions.samples import entry, patch_directory

GOOD = {"ab1/a.py": b"import torch\n", "ab1/b.txt": b"0 ||| fine\n" * 9}


def zip_bytes(*more, compression=zipfile.ZIP_DEFLATED):
    """A zip of GOOD and of `more`: pairs of a name or ZipInfo and its content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicate names
        for name, content in (*GOOD.items(), *more):
            archive.writestr(name, content)
    return buffer.getvalue()


def only(submission, *parts):
    """Assert exactly one problem, in one printable line that contains all the parts."""
    lines = [str(problem) for problem in submission.problems]
    assert len(lines) == 1, lines
    assert lines[0].isprintable()
    for part in parts:
        assert part in lines[0], lines[0]


def peak_memory(data):
    tracemalloc.start()
    try:
        return parse_submission(data), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_good_zip(tmp_path):
    path = tmp_path / "ab1.zip"
    path.write_bytes(zip_bytes(("ab1/", b"")))
    files = {name[4:]: content for name, content in GOOD.items()}
    assert read_submission(path) == Submission("ab1", ("a.py", "b.txt"), files, ())


def zip_with_name(stored):
    """GOOD's zip with one more entry, whose name is these bytes without the UTF-8 flag."""
    placeholder = "n" * len(stored)
    return zip_bytes((placeholder, b"x")).replace(placeholder.encode(), stored)


@pytest.mark.parametrize(
    ("stored", "part"),
    [
        (b"../evil.py", "'..'"),
        (b"ab1/../../evil.py", "'..'"),
        (b"ab1//evil.py", "empty"),
        (b"/etc/passwd", "absolute"),
        (b"C:/evil.py", "drive letter"),
        (b"ab1\\evil.py", "backslash"),
        (b"ab1/evil\x1b[31m.py", "control characters"),
        (b"ab1/evil\npassed.py", "control characters"),
        (b"ab1/evil.py\x00.txt", "control characters"),
        (b"ab1/\xff\xfe", "not UTF-8"),
    ],
)
def test_unsafe_names(stored, part):
    submission = parse_submission(zip_with_name(stored))
    only(submission, "error", part)
    assert submission.names == ("a.py", "b.txt")


def test_names_beyond_ascii():
    flagged = zip_bytes(("ab1/d\u00e9", b"x"))
    assert "d\u00e9" in parse_submission(flagged).files
    only(parse_submission(flagged.replace(b"d\xc3\xa9", b"d\xff\xff")), "error", "utf-8")
    unflagged = zip_with_name("ab1/d\u00e9".encode())  # as macOS writes it
    assert parse_submission(unflagged).files["d\u00e9"] == b"x"


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["ab1/a.py"], "more than once"),
        (["ab1/A.py"], "only in case"),
        (["ab1/d\u00e9", "ab1/de\u0301"], "only in case"),
        (["ab1/b.txt/c"], "both a file and a folder"),
    ],
)
def test_names_that_collide(names, part):
    only(parse_submission(zip_bytes(*((name, b"x") for name in names))), "error", part)


@pytest.mark.parametrize("name", ["other/c.txt", "c.txt"])
def test_files_outside_the_folder_are_not_read(name):
    submission = parse_submission(zip_bytes((name, b"x")))
    only(submission, "warning", "exactly one top folder", "the files in 'ab1' are read")
    assert submission.names == ("a.py", "b.txt")


def test_files_in_no_folder():
    submission = parse_submission(zip_bytes().replace(b"ab1/", b"ab1-"))
    only(submission, "error", "exactly one top folder", "files in no folder")
    assert submission.names == ("ab1-a.py", "ab1-b.txt")


def test_macos_files_are_one_warning():
    names = ("__MACOSX/ab1/._a.py", "ab1/.DS_Store", "ab1/._a.py")
    submission = parse_submission(zip_bytes(*((name, b"\xff") for name in names)))
    only(submission, "warning", "3 macOS files", "__MACOSX")
    assert submission.names == ("a.py", "b.txt")


@pytest.mark.parametrize(
    ("info", "part"),
    [
        (entry("ab1/c", stat.S_IFLNK | 0o777), "symbolic link"),
        (entry("ab1/c", stat.S_IFIFO | 0o644), "special file"),
        (entry("ab1/c", method=zipfile.ZIP_BZIP2), "method 12: only stored"),
        (entry("ab1/c", method=zipfile.ZIP_LZMA), "method 14: only stored"),
    ],
)
def test_entries_that_are_not_read(info, part):
    submission = parse_submission(zip_bytes((info, b"/etc/passwd")))
    only(submission, "error: c:", part)
    assert submission.names == ("a.py", "b.txt", "c")
    assert set(submission.files) == {"a.py", "b.txt"}


@pytest.mark.parametrize(("flag", "part"), [(0x1, "without a password"), (0x40, "encryption")])
def test_encrypted_entry(flag, part):
    only(parse_submission(patch_directory(zip_bytes(), "ab1/b.txt", 8, flag, "<H")), "b.txt", part)


# --- folders ---


@pytest.fixture
def folder(tmp_path):
    for name, content in GOOD.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path / "ab1"


def test_good_folder(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "c.txt").write_bytes(b"c")
    for hidden in (".git", "__pycache__"):
        (folder / hidden).mkdir()
        (folder / hidden / "x").write_bytes(b"x")
    files = {name[4:]: content for name, content in GOOD.items()} | {"sub/c.txt": b"c"}
    assert read_folder(folder) == Submission("", ("a.py", "b.txt", "sub/c.txt"), files, ())


def test_links_and_pipes_of_a_folder_are_not_read(folder):
    (folder / "c.txt").symlink_to("/etc/passwd")
    only(read_folder(folder), "error: c.txt: is a symbolic link")
    (folder / "c.txt").unlink()
    (folder / "c").symlink_to("/etc")
    only(read_folder(folder), "error: c: is a symbolic link")
    (folder / "c").unlink()
    os.mkfifo(folder / "c")
    only(read_folder(folder), "error: c: is a symbolic link or a special file")
    assert read_folder(folder).problems[0].is_fatal


def test_bounds_of_a_folder(folder, monkeypatch):
    with (folder / "model.pt").open("wb") as file:
        file.truncate(10**9)
    submission = read_folder(folder)
    only(submission, "warning: model.pt: has 1,000,000,000 bytes, more than the 10,485,760 allowed")
    assert not submission.problems[0].is_fatal
    assert submission.names == ("a.py", "b.txt", "model.pt")
    monkeypatch.setattr(archive, "MAX_ENTRIES", 2)
    only(read_folder(folder), "error: folder: holds more than 2 files")


@pytest.mark.parametrize(
    ("name", "part"), [(b"\xff.txt", "not UTF-8"), (b"a\nb", "control"), (b"a\\b", "backslash")]
)
def test_names_in_a_folder(folder, name, part):
    try:
        with open(os.fsencode(folder) + b"/" + name, "wb"):
            pass
    except OSError:
        pytest.skip("this file system does not take such names")
    only(read_folder(folder), "error", part)


# --- damage, false claims and bombs ---


def test_overlapping_entries():
    """Two directory entries for the same bytes, and one that starts inside another."""
    content = zip_bytes(("ab1/c.txt", b"0 ||| fine\n" * 9))
    offset = content.index(b"PK\x03\x04", 4)
    twice = patch_directory(content, "ab1/c.txt", 42, offset, "<I")
    only_zip = [p for p in parse_submission(twice).problems if p.where == "zip"]
    assert ["'ab1/b.txt' and 'ab1/c.txt' overlap" in str(p) for p in only_zip] == [True]
    assert only_zip[0].is_fatal
    longer = patch_directory(content, "ab1/a.py", 20, 60, "<I")
    assert "'ab1/a.py' and 'ab1/b.txt' overlap" in str(parse_submission(longer).problems[0])


@pytest.mark.parametrize(
    ("content", "is_fatal"),
    [
        (b"hello", True),
        (zip_bytes(("ab1/../x", b"")), True),
        (zip_bytes(("ab1/a.py", b"")), True),
        (zip_bytes((entry("ab1/c", stat.S_IFLNK | 0o777), b"a.py")), True),
        (zip_bytes(("ab1/A.py", b"")), False),
        (zip_bytes(("c.txt", b"")), False),
    ],
)
def test_what_is_fatal(content, is_fatal):
    assert [problem.is_fatal for problem in parse_submission(content).problems] == [is_fatal]


def test_content_that_is_not_what_the_directory_claims():
    content = zip_bytes(compression=zipfile.ZIP_STORED).replace(b"import torch", b"import horch")
    only(parse_submission(content), "error: a.py", "CRC")
    content = patch_directory(zip_bytes(), "ab1/b.txt", 24, 5_000, "<I")
    only(parse_submission(content), "error: b.txt", "99 bytes where the directory claims 5,000")


@pytest.mark.parametrize(
    ("size", "claim", "part"),
    [
        (40_000_000, None, "more than 100 times"),
        (9_000_000, None, "more than 100 times"),
        (200_000_000, 10, "CRC"),
    ],
)
def test_bomb_is_not_unpacked(size, claim, part):
    content = zip_bytes(("ab1/bomb", bytes(size)))
    if claim is not None:
        content = patch_directory(content, "ab1/bomb", 24, claim, "<I")
    submission, peak = peak_memory(content)
    only(submission, "error: bomb", part)
    assert peak < 2_000_000


def test_bound_on_the_total_size():
    # deflate's window of 32 kB sees the noise repeat: the zip stays small, its ratio below 100
    noise = random.Random(0).randbytes(30_000) * 300
    submission = parse_submission(zip_bytes(*((f"ab1/n{i}", noise) for i in range(7))))
    only(submission, "error: zip", "more than 52,428,800 bytes", "'n5' and the files after it")
    assert sum(map(len, submission.files.values())) <= 52_428_800


def test_number_of_entries_is_bounded_whatever_the_header_says():
    record = b"PK\x01\x02" + bytes(42)
    n = 200_000
    end = b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 1, 1, n * len(record), 0, 0)
    submission, peak = peak_memory(record * n + end)
    only(submission, "error", "more than 1000 entries")
    assert peak < 25_000_000  # entry objects alone would be some 100 MB


def test_large_zip_is_read_in_chunks(tmp_path):
    """The edition's limit is checked in rules.py; an entry beyond the bound is not unpacked."""
    path = tmp_path / "ab1.zip"
    noise = random.Random(0).randbytes(MEBIBYTE) * 11
    path.write_bytes(zip_bytes(("ab1/c.pt", noise), compression=zipfile.ZIP_STORED))
    submission = read_submission(path)
    only(
        submission,
        "warning: c.pt",
        "11,534,336 bytes, more than the 10,485,760 allowed: it was not read",
    )
    assert not submission.problems[0].is_fatal
    assert set(submission.files) == {"a.py", "b.txt"}
    assert submission.size == path.stat().st_size


def test_occurrences_across_chunks_are_counted(monkeypatch):
    data = b"..PK\x01\x02.PK\x01\x02PK\x01\x02."
    for size in range(1, 12):
        monkeypatch.setattr(zip_files, "CHUNK_BYTES", size)
        assert zip_files.count_occurrences(io.BytesIO(data), b"PK\x01\x02") == 3


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", zip_bytes()[:-30], zip_bytes()[:60]],
    ids=["empty", "text", "cut at the end", "cut in the middle"],
)
def test_damaged_zips(content):
    only(parse_submission(content), "error: zip: is not a zip file, or it is damaged")


def test_empty_zip():
    only(parse_submission(b"PK\x05\x06" + bytes(18)), "error: zip: holds no usable file")


def test_path_that_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "none.zip", tmp_path / "pipe"):
        with pytest.raises(OSError, match="is not a file"):
            read_submission(path)


def test_damage_never_raises():
    content = zip_bytes()
    generator = random.Random(0)
    for start in (0, content.index(b"PK\x01\x02")) * 500:
        damaged = bytearray(content)
        for _ in range(generator.randint(1, 6)):
            damaged[generator.randrange(start, len(damaged))] = generator.randrange(256)
        for line in map(str, parse_submission(bytes(damaged)).problems):
            assert line.isprintable()
