"""One HTML page a student, from templates/feedback.html, that says nothing of other students."""

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_llama.bounds import UsageError
from mini_llama.command_line import visible
from mini_llama.submissions.answer_key import AnswerKey
from mini_llama.submissions.grading import Grade, Output
from mini_llama.submissions.report import own_details, points_cell, scored_files

ALLOWED = " -_.,()&'"  # besides letters and digits of any script
MAX_NAME_BYTES = 150
RESERVED = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{i}" for port in ("com", "lpt") for i in range(10)),
}
STATUS = {
    "ok": "Your submission has no errors",
    "errors": "Your submission has errors",
    "refused": "Your submission could not be graded",
}


@dataclass(frozen=True)
class FeedbackFolder:
    """The folder of the pages. Files that are there are replaced only with `overwrite`."""

    path: Path
    overwrite: bool = False

    def check(self, names: Collection[str], inputs: Sequence[Path]) -> None:
        """Raise ValueError if the pages cannot be written or would replace a file."""
        from utils import check_not_there, check_outputs  # imports numpy

        folder = self.path
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--feedback {folder} is not a folder: give another name")
        if folder.resolve() in [path.resolve() for path in inputs]:
            raise UsageError(f"--feedback {folder} holds the submissions: give another folder")
        files = [folder / file for file in file_names(names).values()]
        first = files[:1] if folder.is_dir() else [folder] if folder.parent.is_dir() else []
        check_outputs(first, [])
        for file in files:
            check_not_there(file, self.overwrite)
            if file.is_dir() or file.is_symlink():
                raise ValueError(f"{file} is a folder or a link, not a page: remove it")

    def write(self, grades: Sequence[Grade], answer_key: AnswerKey) -> None:
        """Write the pages, each whole or not at all; the folder is made if need be."""
        from utils import atomic_write  # imports numpy

        self.path.mkdir(parents=True, exist_ok=True)
        files = file_names(grade.name for grade in grades)
        for grade in grades:
            with atomic_write(self.path / files[grade.name]) as file:
                file.write(feedback_page(grade, answer_key))


def file_names(names: Iterable[str]) -> dict[str, str]:
    """A file name for each submission's name: safe on every system, and no two alike there."""
    files: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        stem, number = _safe(name), 1
        file = f"{stem}.html"
        while file.casefold() in taken:
            number += 1
            file = f"{stem} ({number}).html"
        taken.add(file.casefold())
        files[name] = file
    return files


def _safe(name: str) -> str:
    name = unicodedata.normalize("NFC", student_of(name))
    kept = ""
    for char in name:
        is_mark = unicodedata.category(char).startswith("M") and kept[-1:].isalpha()
        kept += char if char.isalnum() or char in ALLOWED or is_mark else "_"
    kept = kept.encode()[:MAX_NAME_BYTES].decode(errors="ignore").strip(" .")
    return f"_{kept}" if kept.split(".")[0].casefold() in RESERVED else kept or "submission"


def student_of(name: str) -> str:
    """The last part of a name that is a path: the folders above it are not the student's affair."""
    return name.rstrip("/").rpartition("/")[2] or name


def feedback_page(grade: Grade, answer_key: AnswerKey) -> str:
    """A self-contained page, without scripts."""
    from mini_llama.html_page import render  # imports jinja2

    outputs = {output.file: output for output in grade.outputs}
    scored = [outputs[file] for file in scored_files(answer_key) if file in outputs]
    return render(
        "feedback.html",
        visible,
        title=student_of(grade.name),
        edition=answer_key.edition,
        status=STATUS[grade.status],
        total=points_cell(grade),
        points=[(p.name, f"{p.awarded:.10g}", f"{p.possible:.10g}") for p in grade.points],
        outputs=[_row(output) for output in scored],
        findings=list(own_details(grade)),
    )


RESULTS = {"within": "within the band", "below": "below the band", "above": "above the band"}


def _row(output: Output) -> list[str]:
    numbers = (output.accuracy, output.macro_f1, output.figure)
    cells = ["-" if number is None else f"{number:.3f}" for number in numbers]
    return [output.file, *cells, RESULTS.get(output.verdict, output.verdict)]
