"""A student's modules beside ours, component by component, and beside every known mistake.

Small fixed inputs are given to both (probes/); what the student's give comes from a limited
process (worker.py) and is compared with what ours give, and with what they would give with each
known mistake (catalogue.py, judging.py).
"""

import json
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from config import DEFAULT_EDITION, EDITIONS
from mini_llama.diagnosis import worker
from mini_llama.diagnosis.catalogue import Catalogue, settings_of
from mini_llama.diagnosis.comparison import Given
from mini_llama.diagnosis.findings import Finding, Report, reported_once
from mini_llama.diagnosis.judging import MAX_TEXT, judge
from mini_llama.diagnosis.limits import MEMORY_BYTES, SECONDS, START_SECONDS
from mini_llama.diagnosis.places import Place
from mini_llama.diagnosis.probes.examine import PROBES
from mini_llama.diagnosis.sources import copy_sources
from mini_llama.submissions.limited_process import run_limited
from mini_llama.submissions.untrusted_text import one_line

COMPONENTS = tuple(PROBES)
# What an edition does not ask for; the others ask for every component.
NOT_ASKED = {"fall2024": ("lora",), "spring2025": ("lora",), "spring2026": ("lora", "classifier")}
ADDITION = ("addition_data", "train_one_epoch", "evaluate_loss")  # of one edition alone
ADDITION_EDITION = "spring2026"
PER_PROCESS = 50  # submissions that one process examines in turn

_PARSING = threading.Lock()  # Python 3.11's parser fails where threads parse at once

Answers = dict[str, Given]  # of one submission, by component


def diagnose(
    folders: Sequence[Path], edition: str = DEFAULT_EDITION, seconds: float = SECONDS
) -> Iterator[list[Finding]]:
    """For each folder a finding for each of COMPONENTS that the edition asks for, or that is there.

    Raises ValueError for a folder without sources or an unknown edition, OSError for one that
    cannot be read.
    """
    for report in diagnose_all([Place(f.name, f) for f in folders], edition, seconds):
        if report.refusal:
            raise ValueError(report.refusal)
        yield list(report.findings)


def diagnose_all(
    places: Sequence[Place],
    edition: str = DEFAULT_EDITION,
    seconds: float = SECONDS,
    jobs: int = 1,
) -> Iterator[Report]:
    """A report on each, in their order, from `jobs` processes.

    One that cannot be examined has a refusal. Raises ValueError for an unknown edition, or where
    no process can run.
    """
    if edition not in EDITIONS:
        raise ValueError(f"unknown edition {edition!r}: choose one of {', '.join(EDITIONS)}")
    components = components_of(edition)
    catalogues = {(c, e): Catalogue(c, e) for c in components for e in EDITIONS}
    for place, answers in zip(places, run_probes(places, edition, seconds, jobs), strict=True):
        if isinstance(answers, str):
            yield Report(place.name, place.path, edition, refusal=answers)
            continue
        findings = [
            judge(c, asked, edition, catalogues)
            for c in components
            if (asked := what_is_asked(c, answers.get(c, {}), edition)) is not None
        ]
        yield Report(place.name, place.path, edition, tuple(reported_once(findings)))


def components_of(edition: str) -> tuple[str, ...]:
    """Those that may be examined; what the edition does not ask for is, where it is there."""
    return tuple(c for c in COMPONENTS if edition == ADDITION_EDITION or c not in ADDITION)


def what_is_asked(component: str, given: Given, edition: str) -> Given | None:
    """The answer without what the edition does not ask for; None if nothing is left of it."""
    if component not in NOT_ASKED.get(edition, ()):
        return given
    file = f"{component}.py"
    if given.get("missing") == file:
        return None
    failed = given.get("failed")
    if not isinstance(failed, Mapping):
        return given
    asked = {
        k: v for k, v in failed.items() if not (isinstance(v, dict) and v.get("missing") == file)
    }
    return {**given, "failed": asked}


def run_probes(
    places: Sequence[Place], edition: str, seconds: float = SECONDS, jobs: int = 1
) -> Iterator[Answers | str]:
    """For each place what each component gives, or why it is not examined.

    A process examines several. Raises ValueError if no process can run.
    """
    size = max(1, min(PER_PROCESS, -(-len(places) // jobs)))
    chunks = [places[i : i + size] for i in range(0, len(places), size)]
    with ThreadPoolExecutor(jobs) as pool:
        for answers in pool.map(lambda chunk: run_to_the_end(chunk, edition, seconds), chunks):
            yield from answers


def run_to_the_end(places: Sequence[Place], edition: str, seconds: float) -> list[Answers | str]:
    """Where one of them ended the process, it is run by itself, and what came after it again."""
    answers = run_chunk(places, edition, seconds)
    left = [i for i, answer in enumerate(answers) if not answer]
    if left and len(places) > 1:
        again = run_to_the_end([places[left[0]]], edition, seconds)
        again += run_to_the_end([places[i] for i in left[1:]], edition, seconds)
        for i, answer in zip(left, again, strict=True):
            answers[i] = answer
    return answers


def run_chunk(places: Sequence[Place], edition: str, seconds: float) -> list[Answers | str]:
    """The answers from one process, empty where it gave none; why, where it was for one place."""
    refused: dict[int, str] = {}
    folders: dict[int, str] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        scratch = Path(name).resolve()
        for i, place in enumerate(places):
            try:
                with _PARSING:
                    home = copy_sources(place, scratch / f"submission{i}")
                folders[i] = str(home.relative_to(scratch))
            except (ValueError, OSError) as error:
                refused[i] = str(error)
        try:
            answers = run_worker(scratch, list(folders.values()), edition, seconds)
        except ValueError as error:
            answers, refused = {}, refused | {i: str(error) for i in folders}
    return [refused[i] if i in refused else answers.get(folders[i], {}) for i in range(len(places))]


def run_worker(
    scratch: Path, folders: Sequence[str], edition: str, seconds: float
) -> dict[str, Answers]:
    """By folder of `scratch`; a folder of which nothing came is left out.

    Raises ValueError where nothing came of the only one.
    """
    if not folders:
        return {}
    request: dict[str, Any] = {
        "folders": folders,
        "components": components_of(edition),
        "settings": asdict(settings_of(edition)),
        "seconds": seconds,
    }
    outcome = run_limited(
        [sys.executable, "-P", worker.__file__],
        scratch,
        START_SECONDS + seconds * len(request["components"]) * len(folders),
        MEMORY_BYTES,
        json.dumps(request).encode(),
    )
    answers = parse_answers(outcome.stdout, folders)
    if not answers and len(folders) == 1:
        reason = one_line(outcome.stderr.decode(errors="replace")[-MAX_TEXT:])
        raise ValueError(f"the probes could not run: {reason or 'their process was killed'}")
    return answers


def parse_answers(stdout: bytes, folders: Sequence[str]) -> dict[str, Answers]:
    """What worker.main wrote; lines that it cannot have written are passed over."""
    answers: dict[str, Answers] = {}
    for line in stdout.splitlines():
        try:
            folder, component, given = json.loads(line)
            if isinstance(given, dict) and component in COMPONENTS and folder in folders:
                answers.setdefault(folder, {})[component] = given
        except (ValueError, TypeError, RecursionError):
            continue
    return answers
