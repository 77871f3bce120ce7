"""The options of grade.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from config import DEFAULT_EDITION, EDITIONS
from mini_llama.bounds import check_usage
from mini_llama.command_line import argument
from mini_llama.submissions.student_code import Limits


@dataclass(frozen=True)
class GradeOptions:
    """What grade.py is asked to do. Raises ValueError for a value out of bounds, and for options
    that contradict each other.
    """

    edition: str = argument(
        DEFAULT_EDITION,
        "whose required files, figures and reference outputs apply",
        choices=tuple(EDITIONS),
    )
    data: Path | None = argument(
        None, "folder of the data files (the project's data/)", metavar="DIR"
    )
    reference: Path | None = argument(
        None,
        "folder of reference outputs that replace the built-in ones, or one such folder per "
        "edition; prompting outputs are compared by line, the text at temperature 0 by word",
        metavar="DIR",
    )
    rubric: Path | None = argument(
        None, "give points by this TOML or JSON file (docs/grading.md)", metavar="FILE"
    )
    csv: Path | None = argument(None, "write one row per submission", metavar="FILE")
    json: Path | None = argument(None, "write all findings", metavar="FILE")
    html: Path | None = argument(None, "write one self-contained page", metavar="FILE")
    feedback: Path | None = argument(
        None, "write a page for each student, without remarks on others", metavar="DIR"
    )
    overwrite: bool = argument(False, "replace existing files of these names")
    jobs: int = argument(-1, "parallel processes", metavar="N", shown="-1, all processors")
    run: bool = argument(False, "also run the code: three checks and one generation")
    diagnose: bool = argument(False, "also run the modules and name their mistakes, as diagnose.py")
    seconds: float = argument(Limits.seconds, "time limit of each check")
    memory: float = argument(Limits.memory, "GiB that each check may use")

    def __post_init__(self) -> None:
        processes = "a number of processes, or -1 for all processors"
        check_usage(f"--jobs {self.jobs}", self.jobs != 0, processes)
        self.limits  # noqa: B018  # raises out of bounds

    @property
    def limits(self) -> Limits:
        return Limits(self.seconds, self.memory)

    @property
    def result_files(self) -> Sequence[Path]:
        return [path for path in (self.csv, self.json, self.html) if path is not None]

    def check_names(self, inputs: Sequence[Path]) -> None:
        """Raise ValueError for a result that is an input as well, or another result."""
        from utils import check_distinct  # imports numpy

        check_distinct(self.result_files, inputs)
