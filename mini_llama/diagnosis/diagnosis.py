"""Say what is wrong with a student's modules, component by component, and how to mend it.

    python diagnose.py STUDENT_FOLDER [--edition mmia] [--json FILE]

The modules of the folder are run on small fixed inputs in a limited process, and what they give
is compared with what ours give, and with what ours would give with each known mistake
(mistakes.py). Exit status: 0 every component is correct, 1 one is not, 2 wrong usage.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import numpy as np

from config import DEFAULT_EDITION, EDITIONS
from mini_llama.diagnosis import probes
from mini_llama.diagnosis.mistakes import MISTAKES, Mistake, made
from mini_llama.diagnosis.probes import PROBES, Settings, examine
from mini_llama.submissions.limited_process import run_limited
from mini_llama.submissions.untrusted_text import one_line

COMPONENTS = tuple(PROBES)
# Largest errors, as shares of the largest magnitude. Known mistakes lie further from each other
# and from what is right than MATCH.
EXACT, DRIFT, MATCH = 2e-6, 1e-4, 3e-4
DRAWN = {"frequencies": 0.1}  # what is counted over random draws, and how far chance takes it
SECONDS = 10.0  # for one component
START_SECONDS = 120.0  # for importing torch on a slow disk
MEMORY_BYTES = 4 * 2**30
MAX_SOURCE_BYTES = 2**20
MAX_FILES = 200
MAX_TEXT = 500  # characters of a student's that a line of the report shows
FEW = 8  # numbers that a line of the report can show

Arrays = dict[str, np.ndarray]
Given = Mapping[str, Any]  # what diagnose_probes.examine gave, or says of a process without answer


@dataclass(frozen=True)
class Finding:
    """What is to be said of one component.

    `error` is the largest one, as a share of the largest magnitude; `where` a line of the
    student's, "llama.py:12: code"; `editions` those whose arithmetic the component has instead.
    """

    component: str
    verdict: str
    detail: str = ""
    mistake: str | None = None
    rule: str | None = None
    remedy: str | None = None
    where: str | None = None
    error: float | None = None
    editions: tuple[str, ...] = ()

    @property
    def is_correct(self) -> bool:
        return self.verdict.startswith("correct")

    def __str__(self) -> str:
        detail = f": {self.detail}" if self.detail else ""
        lines = [f"{self.component:<13} {self.verdict}{detail}"]
        if self.editions:
            lines.append(f"right for the editions {', '.join(self.editions)} (--edition)")
        lines += [f"at {self.where}"] if self.where else []
        lines += [f"the assignment, {self.rule}"] if self.rule else []
        lines += [f"to mend it: {self.remedy}"] if self.remedy else []
        return ("\n" + " " * 14).join(lines)


def settings_of(edition: str) -> Settings:
    """Of all editions fall2024 alone has no clipping in AdamW."""
    facts = EDITIONS[edition]
    clips = edition != "fall2024"
    return Settings(facts.norm, facts.attention, facts.epsilon, facts.top_p, clips)


class Catalogue:
    """What one component gives in one edition: rightly, and with each mistake that shows there."""

    def __init__(self, component: str, edition: str) -> None:
        self.component, self.settings = component, settings_of(edition)

    @cached_property
    def right(self) -> Arrays:
        return read_arrays(examine(self.component, self.settings))

    @cached_property
    def wrong(self) -> list[tuple[Mistake, Given]]:
        """Every variant that is not right in this edition, with what it gives."""
        given = []
        for mistake in MISTAKES:
            for variant in mistake.variants if mistake.component == self.component else ():
                with made(variant):
                    given.append((mistake, examine(self.component, self.settings)))
        return [(mistake, one) for mistake, one in given if self.distance(one) > MATCH]

    def distance(self, given: Given) -> float:
        arrays = read_arrays(given)
        return np.inf if arrays is None else distance(arrays, self.right)


def read_arrays(given: Given) -> Arrays | None:
    """The values as arrays; None if there are none, or they are no numbers in a shape."""
    values = given.get("values")
    if not isinstance(values, dict) or not values:
        return None
    try:
        return {
            str(name): np.array(value["numbers"], dtype=np.float64).reshape(value["shape"])
            for name, value in values.items()
        }
    except (TypeError, ValueError, KeyError, OverflowError):
        return None


def errors(actual: Arrays, expected: Arrays) -> dict[str, float]:
    """Largest error of each output, as a share of the largest magnitude expected; infinite where
    shapes, or places that are not numbers, differ.
    """
    found = {}
    for name, array in actual.items():
        other = expected.get(name)
        if other is None or array.shape != other.shape:
            found[name] = np.inf
            continue
        is_same = (array == other) | (np.isnan(array) & np.isnan(other))
        with np.errstate(invalid="ignore"):
            gap = np.where(is_same, 0.0, np.abs(array - other)).max(initial=0.0)
        scale = np.abs(other[np.isfinite(other)]).max(initial=0.0) or 1.0
        share = np.inf if np.isnan(gap) else float(gap / scale)
        found[name] = 0.0 if share <= DRAWN.get(name, 0.0) else share
    return found


def distance(actual: Arrays, expected: Arrays) -> float:
    return max(errors(actual, expected).values())


def judge(component: str, given: Given, edition: str, catalogues: Mapping) -> Finding:
    """`catalogues` maps (component, edition) to a Catalogue."""
    catalogue: Catalogue = catalogues[component, edition]
    arrays = read_arrays(given)
    if arrays is not None and not arrays.keys() <= catalogue.right.keys():
        arrays = None  # no probe gave that
    error = None if arrays is None else distance(arrays, catalogue.right)
    if error is not None and error <= DRIFT:
        if error <= EXACT:
            return Finding(component, "correct", error=error)
        detail = f"largest error {error:.1e} of the largest value"
        return Finding(component, "correct within float drift", detail, error=error)
    where = given.get("where")
    facts: dict[str, Any] = {"error": error}
    facts["where"] = one_line(where[:MAX_TEXT]) if isinstance(where, str) else None
    if arrays is not None:
        others = (name for name in EDITIONS if name != edition)
        facts["editions"] = tuple(
            name for name in others if distance(arrays, catalogues[component, name].right) <= DRIFT
        )
    if made_ones := explain(given, arrays, catalogue):
        facts["mistake"] = "; ".join(mistake.name for mistake in made_ones)
        facts["rule"] = "; ".join(dict.fromkeys(mistake.rule for mistake in made_ones))
        facts["remedy"] = " ".join(mistake.remedy for mistake in made_ones)
        return Finding(component, "wrong", facts["mistake"], **facts)
    verdict, detail = failure(given) if arrays is None else unknown(arrays, catalogue)
    return Finding(component, verdict, detail, **facts)


def explain(given: Given, arrays: Arrays | None, catalogue: Catalogue) -> list[Mistake]:
    """The mistake that gives the same; else two that do together, each in other outputs."""
    if arrays is None:
        same = (m for m, wrong in catalogue.wrong if given.get("error") == wrong.get("error", ""))
        return list(islice(same, 1))
    known = [(m, a) for m, wrong in catalogue.wrong if (a := read_arrays(wrong)) is not None]
    for mistake, expected in known:
        if distance(arrays, expected) <= MATCH:
            return [mistake]
    for (mistake, one), (other, two) in permutations(known, 2):
        shown = {name for name, size in errors(one, catalogue.right).items() if size > DRIFT}
        both = two | {name: one[name] for name in shown}
        if mistake is not other and distance(arrays, both) <= MATCH:
            return [mistake, other]
    return []


def failure(given: Given) -> tuple[str, str]:
    """Verdict and detail where nothing was measured."""
    for key, verdict, form in (
        ("missing", "missing", "{}"),
        ("unwritten", "not written yet", "it raises NotImplementedError"),
        ("result", "wrong result", "{}"),
        ("error", "exception", "{}"),
        ("timeout", "endless loop", "killed after {} seconds"),
        ("died", "its process died", "{}"),
    ):
        if key in given:
            return verdict, one_line(form.format(given[key])[:MAX_TEXT])
    return "no answer", "what its process sent cannot be read"


def unknown(arrays: Arrays, catalogue: Catalogue) -> tuple[str, str]:
    """Verdict and detail of outputs that no known mistake gives."""
    for name, array in arrays.items():
        expected = catalogue.right.get(name)
        if expected is not None and array.shape != expected.shape:
            return "wrong shape", f"{name}: got {array.shape}, expected {expected.shape}"
        if np.isnan(array).any() and not (expected is not None and np.isnan(expected).any()):
            return "NaN", f"{name}: {np.isnan(array).sum()} of {array.size} values"
    found = {name: size for name, size in errors(arrays, catalogue.right).items() if size > DRIFT}
    told = "; ".join(compared(name, arrays, catalogue.right, size) for name, size in found.items())
    near = sorted(
        (distance(arrays, expected), mistake.name)
        for mistake, wrong in catalogue.wrong
        if (expected := read_arrays(wrong)) is not None
    )
    detail = f"no known mistake; {told}"
    if near and near[0][0] < max(found.values()):
        detail += f"; nearest: {near[0][1]}, {near[0][0]:.2g} away"
    return "wrong", detail


def compared(name: str, arrays: Arrays, right: Arrays, size: float) -> str:
    """One output against what is right: its numbers if they are few, else the largest error."""
    if name in right and arrays[name].size <= FEW:
        got, expected = (" ".join(f"{x:.4g}" for x in a[name].flat) for a in (arrays, right))
        return f"{name}: got {got}, expected {expected}"
    return f"{name}: largest error {size:.2g} of the largest value"


# --- running a student's modules ---


def copy_sources(folder: Path, target: Path) -> None:
    """The folder's own Python files, and those of the packages in it. Raises ValueError if there
    are none, or too many.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name the one that llama.py is in")
    paths = sorted(folder.glob("*.py"))
    paths += (path for init in folder.glob("*/__init__.py") for path in init.parent.rglob("*.py"))
    sources = [path for path in paths if path.is_file() and not path.is_symlink()]
    if not sources:
        raise ValueError(f"{folder} holds no Python files: name the folder that llama.py is in")
    if len(sources) > MAX_FILES:
        raise ValueError(f"{folder} holds {len(sources)} Python files: at most {MAX_FILES} are run")
    target.mkdir()
    for path in sources:
        if path.stat().st_size > MAX_SOURCE_BYTES:
            raise ValueError(f"{path} is larger than {MAX_SOURCE_BYTES} bytes: it is no source")
        copy = target / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)


def run_probes(
    folders: Sequence[Path], edition: str, seconds: float = SECONDS
) -> list[dict[str, Given]]:
    """For each folder what each component gives. Raises ValueError if the process cannot run."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        for i, folder in enumerate(folders):
            copy_sources(folder, Path(scratch) / str(i))
        request = {
            "folders": [str(i) for i in range(len(folders))],
            "components": COMPONENTS,
            "settings": asdict(settings_of(edition)),
            "seconds": seconds,
        }
        outcome = run_limited(
            [sys.executable, "-P", probes.__file__],
            Path(scratch),
            START_SECONDS + seconds * len(COMPONENTS) * len(folders),
            MEMORY_BYTES,
            json.dumps(request).encode(),
        )
    answers = parse_answers(outcome.stdout, len(folders))
    if not any(answers):
        reason = one_line(outcome.stderr.decode(errors="replace")[-MAX_TEXT:])
        raise ValueError(f"the probes could not run: {reason or 'their process was killed'}")
    return answers


def parse_answers(stdout: bytes, n_folders: int) -> list[dict[str, Given]]:
    """What diagnose_probes.main wrote; lines that it cannot have written are passed over."""
    answers: list[dict[str, Given]] = [{} for _ in range(n_folders)]
    for line in stdout.splitlines():
        try:
            folder, component, given = json.loads(line)
            if isinstance(given, dict) and component in COMPONENTS:
                answers[int(folder)][component] = given
        except (ValueError, TypeError, IndexError, RecursionError):
            continue
    return answers


def diagnose(
    folders: Sequence[Path], edition: str = DEFAULT_EDITION, seconds: float = SECONDS
) -> Iterator[list[Finding]]:
    """For each folder a finding for each of COMPONENTS.

    Raises ValueError for a folder without sources or an unknown edition, OSError for one that
    cannot be read.
    """
    if edition not in EDITIONS:
        raise ValueError(f"unknown edition {edition!r}: choose one of {', '.join(EDITIONS)}")
    catalogues = {(c, e): Catalogue(c, e) for c in COMPONENTS for e in EDITIONS}
    for answers in run_probes(folders, edition, seconds):
        findings = [judge(c, answers.get(c, {}), edition, catalogues) for c in COMPONENTS]
        yield list(told_once(findings))


def told_once(findings: Sequence[Finding]) -> Iterator[Finding]:
    """An exception that stops several components, of a class that all are made with, is shown
    with the first of them.
    """
    first: dict[tuple, str] = {}
    for finding in findings:
        key = finding.detail, finding.where
        if finding.verdict == "exception" and finding.where and key in first:
            finding = Finding(finding.component, "not examined", f"stopped as {first[key]} was")
        first.setdefault(key, finding.component)
        yield finding


def as_json(folder: Path, edition: str, findings: Sequence[Finding]) -> str:
    components = {finding.component: asdict(finding) for finding in findings}
    for entry in components.values():
        entry.pop("component")
        entry["error"] = None if entry["error"] in (None, np.inf) else entry["error"]
    correct = all(finding.is_correct for finding in findings)
    report = {"folder": str(folder), "edition": edition, "correct": correct}
    return json.dumps(report | {"components": components}, indent=2, ensure_ascii=False) + "\n"
