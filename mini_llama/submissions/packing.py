"""Make the submission zip from a folder, with the modules that its programs import if asked."""

import io
import re
import stat
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from config import DEFAULT_EDITION
from mini_llama.submissions.archive import Problem, has_errors, parse_submission
from mini_llama.submissions.handed_in import (
    ALL_EXTRAS,
    ASKED_FOR,
    HAND_INS,
    REPORTS,
    HandIn,
    find_clutter,
    is_like,
)
from mini_llama.submissions.imports import follow_imports
from mini_llama.submissions.prediction_files import LABEL_WORDS, prediction_files
from mini_llama.submissions.rules import Expected, check_submission
from mini_llama.submissions.untrusted_text import listed, shown

VALID_ID = re.compile(r'[^/\\:*?"<>|]{0,99}[^/\\:*?"<>|.]')  # Windows drops a dot at the end


def make_submission(
    folder: Path, student_id: str, expected: Expected, with_imports: bool = False
) -> list[Problem]:
    """Write what is asked for of `folder` to STUDENT_ID.zip, in one top folder of that name.

    The zip is checked first: if the problems returned hold an error, nothing was written and an
    older zip is as it was. Raises OSError for a file that cannot be read or written.
    """
    files = collect_files(folder, with_imports, expected.hand_in)
    content = build_zip(files, student_id)
    problems = check_submission(parse_submission(content), student_id, expected).problems
    problems += _check_reports(files, student_id)
    problems += _check_left_out(folder, files)
    if not has_errors(problems):
        from utils import atomic_write  # numpy comes with it, which a mere check need not have

        with atomic_write(f"{student_id}.zip", "wb") as file:
            file.write(content)
    return problems


def collect_files(
    folder: Path, with_imports: bool, hand_in: HandIn = HAND_INS[DEFAULT_EDITION]
) -> dict[str, bytes]:
    """What is asked for and may be added, as far as it is there; `with_imports` adds the modules
    that the required ones import.
    """

    def read(name: str) -> bytes | None:
        path = folder / name
        return path.read_bytes() if path.is_file() else None

    imported = follow_imports(hand_in.sources, read) if with_imports else {}
    required = {*hand_in.names, *prediction_files(LABEL_WORDS, hand_in.options)}
    contents = {name: read(name) for name in {*required, *imported, *_extras(folder, hand_in)}}
    return {name: content for name, content in contents.items() if content is not None}


def _extras(folder: Path, hand_in: HandIn) -> list[str]:
    paths = [path for path in folder.iterdir() if path.is_file()]
    paths += [path for name in hand_in.folders for path in (folder / name).rglob("*")]
    names = [path.relative_to(folder).as_posix() for path in paths]
    clutter = find_clutter(names)
    return [name for name in names if hand_in.is_extra(name) and name not in clutter]


def _check_reports(files: Collection[str], student_id: str) -> Iterator[Problem]:
    for name in files:
        if is_like(name, (REPORTS,)) and name != f"{student_id}-report.pdf":
            yield Problem("warning", name, f"a report is to be called {student_id}-report.pdf")


def _check_left_out(folder: Path, files: Collection[str]) -> Iterator[Problem]:
    """What other editions ask for is not left out without a word."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    asked = [name for name in names if name in ASKED_FOR or is_like(name, ALL_EXTRAS)]
    if left_out := [name for name in asked if name not in files]:
        what = f"this edition does not ask for {listed(left_out)}: not in the zip"
        yield Problem("warning", "zip", f"{what}; --edition names another")


def build_zip(files: Mapping[str, bytes], top: str) -> bytes:
    """A zip of `files` in the folder `top`; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(f"{top}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # Unix on every platform, so that the mode below is read
            info.external_attr = (stat.S_IFREG | (0o755 if name.endswith(".sh") else 0o644)) << 16
            archive.writestr(info, files[name], zipfile.ZIP_DEFLATED, compresslevel=9)
    return buffer.getvalue()


def validate_id(student_id: str) -> str:
    """The id without outer white space. Raises ValueError if it cannot name a folder anywhere."""
    student_id = student_id.strip()
    if not (student_id.isprintable() and VALID_ID.fullmatch(student_id)):
        raise ValueError(
            f"ID {shown(student_id)} cannot name a folder everywhere: it must have 1 to 100 "
            'printable characters, none of / \\ : * ? " < > | and no dot at its end'
        )
    return student_id
