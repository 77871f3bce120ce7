"""Make the submission zip from a folder, with the modules that its programs import if asked."""

import io
import re
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

from mini_llama.submissions.archive import Problem, has_errors, parse_submission
from mini_llama.submissions.imports import follow_imports
from mini_llama.submissions.rules import REQUIRED_FILES, SOURCE_FILES, Expected, check_submission
from mini_llama.submissions.untrusted_text import shown

VALID_ID = re.compile(r'[^/\\:*?"<>|]{0,99}[^/\\:*?"<>|.]')  # Windows drops a dot at the end


def make_submission(
    folder: Path, student_id: str, expected: Expected, with_imports: bool = False
) -> list[Problem]:
    """Write the required files of `folder` to STUDENT_ID.zip, in one top folder of that name.

    The zip is checked first: if the problems returned hold an error, nothing was written and an
    older zip is as it was. Raises OSError for a file that cannot be read or written.
    """
    content = build_zip(collect_files(folder, with_imports), student_id)
    problems = check_submission(parse_submission(content), student_id, expected).problems
    if not has_errors(problems):
        from utils import atomic_write  # numpy comes with it, which a mere check need not have

        with atomic_write(f"{student_id}.zip", "wb") as file:
            file.write(content)
    return problems


def collect_files(folder: Path, with_imports: bool) -> dict[str, bytes]:
    """The required files that are there; `with_imports` adds the modules that they import."""

    def read(name: str) -> bytes | None:
        path = folder / name
        return path.read_bytes() if path.is_file() else None

    imported = follow_imports(SOURCE_FILES, read) if with_imports else {}
    contents = {name: read(name) for name in {*REQUIRED_FILES, *imported}}
    return {name: content for name, content in contents.items() if content is not None}


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
