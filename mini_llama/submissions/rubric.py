"""Points for what grading finds, from a small TOML or JSON file:

    [files]       "llama.py" = 1           the file is there, without an error
    [accuracy]    sst-dev-prompting = 5    the accuracy is within the figure's band, or above it
    [reference]   sst-dev-prompting = 2    equal to the reference outputs, or float drift; "text"
    [checks]      rope_test = 10           the check of --run passes
    [diagnosis]   lora = 5                 --diagnose finds the component correct

`all` in a section means all that it can name. Nothing is partly awarded.
"""

import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mini_llama.submissions.answer_key import AnswerKey
from mini_llama.submissions.grading import Grade, Points, find_figures
from mini_llama.submissions.report import scored_files, split_name
from mini_llama.submissions.rules import GREEDY_TEXT
from mini_llama.submissions.student_code import CHECK_NAMES
from mini_llama.submissions.untrusted_text import decode_text, quoted

ALL = "all"
TEXT = "text"
MAX_POINTS = 1_000_000
MAX_RUBRIC_BYTES = 1024 * 1024
NEEDS = {"checks": "--run", "diagnosis": "--diagnose"}  # the flag without which nothing is awarded
OUTPUT = "-output.txt"


# --- reading ---


@dataclass(frozen=True)
class Item:
    """Points for one thing that a section names."""

    section: str
    name: str
    points: float


@dataclass(frozen=True)
class Rubric:
    """All items, and by section what `all` means."""

    items: tuple[Item, ...]
    names: Mapping[str, Sequence[str]]

    @property
    def needs(self) -> dict[str, str]:
        """The sections used that need a flag, with the flag."""
        used = dict.fromkeys(item.section for item in self.items)
        return {section: NEEDS[section] for section in used if section in NEEDS}


def read_rubric(path: Path, answer_key: AnswerKey) -> Rubric:
    """Raises OSError for a file that cannot be read, ValueError for one that is no rubric for these
    submissions.
    """
    try:
        content = _parse(path)
        if not content:
            raise ValueError(f"has no section: it must have some of {', '.join(SECTIONS)}")
        items, names = [], {}
        for section, entries in content.items():
            if section not in SECTIONS:
                raise ValueError(f"section {quoted(section)} {_not_one_of(section, SECTIONS)}")
            names[section] = SECTIONS[section].names(answer_key)
            items += _items(section, entries, names[section])
    except ValueError as error:
        raise ValueError(f"--rubric {path}: {error}") from error
    return Rubric(tuple(items), names)


def _parse(path: Path) -> Mapping[str, Any]:
    suffix = path.suffix.casefold()
    if suffix not in (".toml", ".json"):
        raise ValueError("is neither .toml nor .json: rename it")
    with path.open("rb") as file:
        data = file.read(MAX_RUBRIC_BYTES + 1)
    if len(data) > MAX_RUBRIC_BYTES:
        raise ValueError(f"has more than {MAX_RUBRIC_BYTES:,} bytes: is this the rubric?")
    text = decode_text(data.removeprefix(b"\xef\xbb\xbf"))
    try:
        if suffix == ".toml":
            return tomllib.loads(text.replace("\r\n", "\n"))
        content = json.loads(text, object_pairs_hook=_no_duplicates)
    except RecursionError as error:
        raise ValueError("is nested too deeply: sections hold numbers") from error
    if not isinstance(content, dict):
        raise ValueError(f"holds {quoted(str(content))}, not an object of sections")
    return content


def _no_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{quoted(twice[0])} is there twice: keep one")
    return dict(pairs)


def _items(section: str, entries: Any, names: Sequence[str]) -> list[Item]:
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"[{section}] must hold lines NAME = POINTS")
    items = []
    for name, points in entries.items():
        if isinstance(points, dict):
            whole = f"{name}.{next(iter(points), '')}"
            remedy = f"write a name with a dot in quotes, {quoted(whole)}"
            raise ValueError(f"[{section}] {name} holds a table: {remedy}")
        if name not in (ALL, *names):
            raise ValueError(f"[{section}] {quoted(name)} {_not_one_of(name, (ALL, *names))}")
        is_number = isinstance(points, int | float) and not isinstance(points, bool)
        if not is_number or not math.isfinite(points) or not 0 <= points <= MAX_POINTS:
            bound = f"a number from 0 to {MAX_POINTS:,}"
            raise ValueError(f"[{section}] {name} = {quoted(str(points))}: it must be {bound}")
        items.append(Item(section, name, points))
    return items


def _not_one_of(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {quoted(near[0])}?" if near else ""
    return f"is not one of {', '.join(known)}{hint}"


# --- awarding ---


def award(rubric: Rubric, grade: Grade) -> tuple[Points, ...]:
    """The points of a submission, in the rubric's order; a refused one gets none."""
    points = []
    for item in rubric.items:
        names = rubric.names[item.section] if item.name == ALL else [item.name]
        holds = SECTIONS[item.section].holds
        is_met = grade.refusal is None and all(holds(grade, name) for name in names)
        awarded = item.points if is_met else 0
        points.append(Points(f"{item.section} {item.name}", awarded, item.points))
    return tuple(points)


@dataclass(frozen=True)
class Section:
    """What a section can name, and whether a submission has it."""

    names: Callable[[AnswerKey], Sequence[str]]
    holds: Callable[[Grade, str], bool]


def _has_file(grade: Grade, name: str) -> bool:
    errors = {problem.where for problem in grade.problems if problem.severity == "error"}
    return name not in grade.missing and name not in errors


def _files_with_figure(answer_key: AnswerKey) -> list[str]:
    def has_figure(file: str) -> bool:
        data_name, method = split_name(file, answer_key)
        figure, _ = find_figures(answer_key.edition, data_name, method)
        return figure is not None and data_name in answer_key.gold

    return [f.removesuffix(OUTPUT) for f in scored_files(answer_key) if has_figure(f)]


def _is_accurate(grade: Grade, name: str) -> bool:
    verdicts = {output.file: output.verdict for output in grade.outputs}
    return verdicts.get(name + OUTPUT) in ("within", "above")


def _files_with_reference(answer_key: AnswerKey) -> list[str]:
    references = answer_key.references.values()
    files = [f for f in answer_key.expected.predictions if any(f in r.labels for r in references)]
    has_text = any(reference.text is not None for reference in references)
    return [*(file.removesuffix(OUTPUT) for file in files), *[TEXT] * has_text]


def _is_like_reference(grade: Grade, name: str) -> bool:
    verdicts = {agreement.file: agreement.verdict for agreement in grade.agreements}
    file = GREEDY_TEXT if name == TEXT else name + OUTPUT
    return verdicts.get(file) in ("equal", "drift")


def _passes(grade: Grade, name: str) -> bool:
    return any(check.name == name and check.verdict == "pass" for check in grade.checks)


def _components(answer_key: AnswerKey) -> list[str]:
    from mini_llama.diagnosis.diagnosis import COMPONENTS, NOT_REQUIRED  # imports torch

    return [name for name in COMPONENTS if name not in NOT_REQUIRED.get(answer_key.edition, ())]


def _is_right(grade: Grade, name: str) -> bool:
    return any(v.component == name and v.is_accepted for v in grade.examination.verdicts)


SECTIONS = {
    "files": Section(lambda answer_key: answer_key.expected.names, _has_file),
    "accuracy": Section(_files_with_figure, _is_accurate),
    "reference": Section(_files_with_reference, _is_like_reference),
    "checks": Section(lambda _: CHECK_NAMES, _passes),
    "diagnosis": Section(_components, _is_right),
}
