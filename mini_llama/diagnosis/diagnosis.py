"""Compare a student's modules with ours, component by component, and with every known mistake.

Both get the same small fixed inputs (probes/). The student's outputs come from a process with
limits (worker.py); they are compared with ours, and with ours after each known mistake
(catalogue.py, judging.py).
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
from mini_llama.diagnosis.comparison import ProbeOutput
from mini_llama.diagnosis.findings import Finding, Report, reported_once
from mini_llama.diagnosis.judging import MAX_TEXT, judge
from mini_llama.diagnosis.limits import MEMORY_BYTES, SECONDS, START_SECONDS
from mini_llama.diagnosis.places import Place
from mini_llama.diagnosis.probes.examine import PROBES
from mini_llama.diagnosis.sources import copy_sources
from mini_llama.submissions.limited_process import run_limited
from mini_llama.submissions.untrusted_text import one_line

COMPONENTS = tuple(PROBES)
# Components that an edition does not require; the other editions require all of them.
NOT_REQUIRED = {
    "fall2024": ("lora",),
    "spring2025": ("lora",),
    "spring2026": ("lora", "classifier"),
}
ADDITION = ("addition_data", "train_one_epoch", "evaluate_loss")  # of ADDITION_EDITION only
ADDITION_EDITION = "spring2026"
PER_PROCESS = 50  # submissions examined one after another by one process

_PARSING = threading.Lock()  # Python 3.11's parser is not thread-safe

Answers = dict[str, ProbeOutput]  # of one submission, by component


def diagnose(
    folders: Sequence[Path], edition: str = DEFAULT_EDITION, seconds: float = SECONDS
) -> Iterator[list[Finding]]:
    """Yield the findings of each folder: one for each component that is required or present.

    Raises ValueError for a folder without sources or an unknown edition, OSError for a folder that
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
    """Yield a report on each place, in order, using `jobs` processes.

    A submission that cannot be examined gets a report with a refusal. Raises ValueError for an
    unknown edition, or if no process can run.
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
            judge(c, output, edition, catalogues)
            for c in components
            if (output := required_output(c, answers.get(c, {}), edition)) is not None
        ]
        yield Report(place.name, place.path, edition, tuple(reported_once(findings)))


def components_of(edition: str) -> tuple[str, ...]:
    """Components to examine: those that the edition requires, and optional ones if present."""
    return tuple(c for c in COMPONENTS if edition == ADDITION_EDITION or c not in ADDITION)


def required_output(component: str, output: ProbeOutput, edition: str) -> ProbeOutput | None:
    """Remove failures due to a file that the edition does not require; None if only that failed."""
    if component not in NOT_REQUIRED.get(edition, ()):
        return output
    file = f"{component}.py"
    if output.get("missing") == file:
        return None
    failed = output.get("failed")
    if not isinstance(failed, Mapping):
        return output
    required = {
        k: v for k, v in failed.items() if not (isinstance(v, dict) and v.get("missing") == file)
    }
    return {**output, "failed": required}


def run_probes(
    places: Sequence[Place], edition: str, seconds: float = SECONDS, jobs: int = 1
) -> Iterator[Answers | str]:
    """Yield each place's outputs by component, or the reason why it was not examined.

    One process examines several places. Raises ValueError if no process can run.
    """
    size = max(1, min(PER_PROCESS, -(-len(places) // jobs)))
    chunks = [places[i : i + size] for i in range(0, len(places), size)]
    with ThreadPoolExecutor(jobs) as pool:
        for answers in pool.map(lambda chunk: run_with_retries(chunk, edition, seconds), chunks):
            yield from answers


def run_with_retries(places: Sequence[Place], edition: str, seconds: float) -> list[Answers | str]:
    """Run the chunk; if a place ends the process, run it alone, then the places after it."""
    answers = run_chunk(places, edition, seconds)
    left = [i for i, answer in enumerate(answers) if not answer]
    if left and len(places) > 1:
        again = run_with_retries([places[left[0]]], edition, seconds)
        again += run_with_retries([places[i] for i in left[1:]], edition, seconds)
        for i, answer in zip(left, again, strict=True):
            answers[i] = answer
    return answers


def run_chunk(places: Sequence[Place], edition: str, seconds: float) -> list[Answers | str]:
    """Run one process: each place's outputs (empty if there were none), or why it was refused."""
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
    """Return the outputs by folder of `scratch`; folders without any output are left out.

    Raises ValueError if there is only one folder and it has no output.
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
    """Parse the lines of worker.main; lines that it cannot have written are ignored."""
    answers: dict[str, Answers] = {}
    for line in stdout.splitlines():
        try:
            folder, component, output = json.loads(line)
            if isinstance(output, dict) and component in COMPONENTS and folder in folders:
                answers.setdefault(folder, {})[component] = output
        except (ValueError, TypeError, RecursionError):
            continue
    return answers
