"""Make the submission zip from a folder, optionally with the modules that its programs import."""

import io
import re
import stat
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from config import DEFAULT_EDITION
from mini_llama.addition.options import PROGRESS
from mini_llama.submissions.archive import Problem, has_errors, parse_submission
from mini_llama.submissions.imports import follow_imports
from mini_llama.submissions.prediction_files import LABEL_WORDS, prediction_files
from mini_llama.submissions.requirements import (
    EXTRA_PATTERNS,
    REPORTS,
    REQUIRED_NAMES,
    REQUIREMENTS,
    Requirements,
    find_clutter,
    is_like,
)
from mini_llama.submissions.rules import Expected, check_submission
from mini_llama.submissions.untrusted_text import quoted, quoted_list

VALID_ID = re.compile(r'[^/\\:*?"<>|]{0,99}[^/\\:*?"<>|.]')  # Windows drops a dot at the end


def make_submission(
    folder: Path, student_id: str, expected: Expected, with_imports: bool = False
) -> list[Problem]:
    """Write the required files of `folder` to STUDENT_ID.zip, in a top folder of that name.

    The zip is checked first: if the returned problems include an error, nothing is written and an
    existing zip is unchanged. Raises OSError for a file that cannot be read or written,
    ValueError as check_replaceable does.
    """
    files = collect_files(folder, with_imports, expected.requirements)
    content = build_zip(files, student_id)
    problems = check_submission(parse_submission(content), student_id, expected).problems
    problems += _check_reports(files, student_id)
    problems += _check_left_out(folder, files)
    problems += _check_unfinished(folder, expected.requirements)
    if not has_errors(problems):
        from utils import atomic_write  # imports numpy, which a check does not need

        check_replaceable(Path(f"{student_id}.zip"), student_id)
        with atomic_write(f"{student_id}.zip", "wb") as file:
            file.write(content)
    return problems


def check_replaceable(target: Path, student_id: str) -> None:
    """Raise ValueError for a file that is no earlier zip of this student, which may be replaced."""
    if not target.exists():
        return
    names: list[str] = []
    if zipfile.is_zipfile(target):
        with zipfile.ZipFile(target) as archive:
            names = archive.namelist()
    if not names or not all(name.startswith(f"{student_id}/") for name in names):
        raise ValueError(
            f"{target} is there already, and no submission of {student_id}: move it away first"
        )


def collect_files(
    folder: Path, with_imports: bool, requirements: Requirements = REQUIREMENTS[DEFAULT_EDITION]
) -> dict[str, bytes]:
    """The contents of the required and optional files that exist; `with_imports` adds the modules
    that the required ones import.
    """

    def read(name: str) -> bytes | None:
        path = folder / name
        return path.read_bytes() if path.is_file() else None

    imported = follow_imports(requirements.sources, read) if with_imports else {}
    required = {*requirements.names, *prediction_files(LABEL_WORDS, requirements.options)}
    contents = {name: read(name) for name in {*required, *imported, *_extras(folder, requirements)}}
    return {name: content for name, content in contents.items() if content is not None}


def _extras(folder: Path, requirements: Requirements) -> list[str]:
    paths = [path for path in folder.iterdir() if path.is_file()]
    paths += [path for name in requirements.folders for path in (folder / name).rglob("*")]
    names = [path.relative_to(folder).as_posix() for path in paths]
    clutter = find_clutter(names)
    extras = [name for name in names if requirements.is_extra(name) and name not in clutter]
    return [name for name in extras if Path(name).name != PROGRESS]


def _check_unfinished(folder: Path, requirements: Requirements) -> Iterator[Problem]:
    """Warn of addition runs that have not ended, whose state is left out."""
    paths = [path for name in requirements.folders for path in (folder / name).rglob(PROGRESS)]
    if found := sorted(path.relative_to(folder).as_posix() for path in paths):
        message = f"left out, the state of runs that have not ended: {quoted_list(found)}"
        yield Problem("warning", "zip", f"{message}; addition_run.py train --resume ends them")


def _check_reports(files: Collection[str], student_id: str) -> Iterator[Problem]:
    for name in files:
        if is_like(name, (REPORTS,)) and name != f"{student_id}-report.pdf":
            yield Problem("warning", name, f"a report must be named {student_id}-report.pdf")


def _check_left_out(folder: Path, files: Collection[str]) -> Iterator[Problem]:
    """Warn of files that another edition requires and this one does not."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    known = [name for name in names if name in REQUIRED_NAMES or is_like(name, EXTRA_PATTERNS)]
    if left_out := [name for name in known if name not in files]:
        message = f"not in the zip, this edition does not require it: {quoted_list(left_out)}"
        yield Problem("warning", "zip", f"{message}; choose another with --edition")


def build_zip(files: Mapping[str, bytes], top: str) -> bytes:
    """Zip `files` in the folder `top`; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(f"{top}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # Unix on every platform, so that the mode below is honored
            info.external_attr = (stat.S_IFREG | (0o755 if name.endswith(".sh") else 0o644)) << 16
            archive.writestr(info, files[name], zipfile.ZIP_DEFLATED, compresslevel=9)
    return buffer.getvalue()


def validate_id(student_id: str) -> str:
    """Strip the id. Raises ValueError unless it is a valid folder name on every system."""
    student_id = student_id.strip()
    if not (student_id.isprintable() and VALID_ID.fullmatch(student_id)):
        raise ValueError(
            f"ID {quoted(student_id)} is not a valid folder name everywhere: it must have 1 to 100 "
            'printable characters, none of / \\ : * ? " < > | and no dot at the end'
        )
    return student_id
