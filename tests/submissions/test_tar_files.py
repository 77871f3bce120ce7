"""tar_files.py: tars are read by the rules for zips, and none of them is trusted."""

import gzip
import io
import random
import tarfile
import zipfile

import pytest

from mini_llama.submissions import tar_files
from mini_llama.submissions.archive import parse_submission, read_folder
from mini_llama.submissions.finding import find_submissions
from mini_llama.submissions.reading import read_source
from tests.submissions.test_platforms import CODE, DOWNLOADS, make_zip

NOTE = "is a tar archive, which was read: submit a zip"


def member(name: str, kind: bytes = tarfile.REGTYPE, **more: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in more.items():
        setattr(info, key, value)
    return info


def make_tar(members, packed: bool = True, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of (name or member, content) pairs."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, content in members:
            info = member(info) if isinstance(info, str) else info
            info.size = info.size or len(content)
            archive.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue()) if packed else buffer.getvalue()


def fatal(data: bytes) -> list[str]:
    return [problem.message for problem in parse_submission(data).problems if problem.is_fatal]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("top", ["ab1/", "./ab1/", "./", ""])
def test_the_same_files_as_of_a_zip(top: str, packed: bool, form: int):
    members = [(top + name, content) for name, content in CODE.items()]
    if top:
        members.insert(0, (member(top.rstrip("/"), tarfile.DIRTYPE), b""))
        members.append((f"{top}._llama.py", b"of macOS"))
    of_tar = parse_submission(make_tar(members, packed, form))
    plain = top.removeprefix("./")
    of_zip = parse_submission(make_zip({plain + name: text for name, text in CODE.items()}))
    assert (of_tar.top, of_tar.names, of_tar.files) == (of_zip.top, of_zip.names, of_zip.files)
    assert next(p.message for p in of_tar.problems if p.severity == "error") == NOTE
    assert not [problem for problem in of_tar.problems if problem.is_fatal]


def test_long_and_foreign_names():
    name = "ab1/" + "é" * 60 + "/" + "n" * 90 + ".py"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        found = parse_submission(make_tar([("ab1/llama.py", b"x"), (name, b"y")], form=form))
        assert "llama.py" in found.files and not [p for p in found.problems if p.is_fatal]


@pytest.mark.parametrize(
    ("info", "part"),
    [
        (member("../llama.py"), "'.' or '..' part"),
        (member("/etc/llama.py"), "absolute"),
        (member("ab1/../../x.py"), "'.' or '..' part"),
        (member("C:/x.py"), "colon"),
        (member("ab1/llama.py", tarfile.SYMTYPE, linkname="/etc/passwd"), "symbolic link"),
        (member("ab1/llama.py", tarfile.LNKTYPE, linkname="rope.py"), "symbolic link"),
        (member("ab1/llama.py", tarfile.CHRTYPE), "special file"),
        (member("ab1/llama.py", tarfile.FIFOTYPE), "special file"),
    ],
)
def test_what_is_not_safe_is_refused(info, part: str):
    assert any(part in message for message in fatal(make_tar([(info, b""), ("ab1/rope.py", b"x")])))


def test_a_file_twice_is_refused():
    found = fatal(make_tar([("ab1/llama.py", b"one"), ("ab1/llama.py", b"two")]))
    assert any("more than once" in message for message in found)


def test_a_sparse_file_of_any_size_is_refused():
    """GNU's: a header that claims 8 GB, of which nothing is stored."""
    info = member("ab1/llama.py", tarfile.GNUTYPE_SPARSE)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:398], block[398:410] = b"00000000000\0", b"00000000000\0"  # one empty part
    block[483:495] = b"100000000000"[:12]
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    found = parse_submission(bytes(block) + bytes(1024))
    assert not found.files and any(problem.is_fatal for problem in found.problems)


def test_bombs_are_refused_before_they_are_unpacked():
    bomb = make_tar([("ab1/llama.py", bytes(20_000_000))])
    assert len(bomb) < 100_000
    (message,) = fatal(bomb)
    assert "unpacks to more than" in message and "bomb" in message


def test_claims_beyond_the_end_and_too_many_entries(monkeypatch):
    data = make_tar([("ab1/llama.py", b"x" * 2000)], packed=False)
    assert any("damaged" in message for message in fatal(data[:1500]))
    monkeypatch.setattr(tar_files, "MAX_MEMBERS", 3)
    (message,) = fatal(make_tar([(f"ab1/{i}.py", b"") for i in range(4)]))
    assert message.startswith("holds more than")


def test_damaged_ones_never_raise():
    rng = random.Random(0)
    whole = make_tar([(f"ab1/{name}", text) for name, text in CODE.items()], packed=False)
    for data in (whole[:2048], gzip.compress(whole)):
        for _ in range(300):
            damaged = bytearray(data)
            for _ in range(rng.randint(1, 6)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            parse_submission(bytes(damaged[: rng.randint(100, len(damaged))]))


def test_downloads_with_tars_in_them(tmp_path):
    """As platforms give them, unpacked or not: the same people, and a remark for each."""
    files, people = DOWNLOADS["moodle"]
    tars = {
        name.replace("hw.zip", "hw.tar.gz").replace("my work.ZIP", "my work.TGZ"): make_tar(
            [(f"ab1/{n}", text) for n, text in CODE.items()]
        )
        for name in files
        if name.casefold().endswith(".zip")
    }
    path = tmp_path / "download.zip"
    path.write_bytes(make_zip(tars))
    zipfile.ZipFile(path).extractall(tmp_path / "download")
    for place in (path, tmp_path / "download"):
        found = find_submissions([place])
        assert sorted(found) == sorted(people)
        for source in found.values():
            submission = read_source(source)
            assert set(CODE) <= set(submission.files)
            assert any(problem.message == NOTE for problem in submission.problems)


def test_a_class_of_tars(tmp_path):
    for name in ("ada.tar", "bo.tgz", "cy.tar.gz"):
        members = [(f"x/{n}", text) for n, text in CODE.items()]
        (tmp_path / name).write_bytes(make_tar(members, packed=not name.endswith(".tar")))
    found = find_submissions([tmp_path])
    assert list(found) == ["ada", "bo", "cy"]
    assert all(set(CODE) <= set(read_source(source).files) for source in found.values())


def test_archives_that_are_not_opened_are_named(tmp_path):
    (tmp_path / "hw.7z").write_bytes(b"x")
    (found,) = [problem for problem in read_folder(tmp_path).problems if problem.is_fatal]
    assert "holds no usable file, only 'hw.7z'" in found.message
