"""Run diagnose.py's examination on the modules of submissions, in its limited processes."""

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mini_llama.diagnosis.findings import Finding
from mini_llama.diagnosis.places import Place, course_folders
from mini_llama.submissions.archive import Submission
from mini_llama.submissions.untrusted_text import one_line

NO_CODE = "not examined: no Python files"
EXAMINED = (".py", "tokenizer.model")  # endings of the files that may be needed


@dataclass(frozen=True)
class Verdict:
    """What diagnose.py says of one component; `lines` are its cause, place, rule and remedy."""

    component: str
    verdict: str
    is_accepted: bool
    is_correct: bool
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        return one_line(f"{self.component}: {'; '.join([self.verdict, *self.lines])}")


@dataclass(frozen=True)
class Examination:
    """The verdicts on one submission, or why it could not be examined."""

    verdicts: tuple[Verdict, ...] = ()
    refusal: str = ""


NOT_EXAMINED = Examination()


def examine(
    submissions: Iterable[Submission], edition: str, seconds: float, jobs: int | None
) -> list[Examination]:
    """Examine the modules of each submission, `seconds` a component, in `jobs` processes."""
    from mini_llama.diagnosis.diagnosis import diagnose_all  # imports torch

    found: list[Examination] = []
    places: dict[int, Place] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        for i, submission in enumerate(submissions):  # one at a time is in memory
            found.append(Examination(refusal=NO_CODE))
            if place := _copy(submission.files, Path(name) / str(i)):
                places[i] = place
        processes = jobs if jobs and jobs > 0 else os.cpu_count() or 1
        reports = diagnose_all(list(places.values()), edition, seconds, processes)
        for i, report in zip(places, reports, strict=True):
            refusal = one_line(report.refusal.replace(f"{name}/", ""))
            verdicts = tuple(map(_verdict, report.findings))
            found[i] = Examination(verdicts, f"not examined: {refusal}" if refusal else "")
    return found


def _copy(files: Mapping[str, bytes], folder: Path) -> Place | None:
    names = [name for name in files if name.endswith(EXAMINED)]
    inner = course_folders(name for name in names if name.endswith(".py"))
    if not inner:
        return None
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[name])
    return Place(folder.name, folder, inner[0])


def _verdict(finding: Finding) -> Verdict:
    lines = tuple(finding.lines)
    return Verdict(
        finding.component, finding.verdict, finding.is_accepted, finding.is_correct, lines
    )
