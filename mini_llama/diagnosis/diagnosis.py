"""A student's modules beside ours, component by component, and beside every known mistake.

Small fixed inputs are given to both (probes.py); what the student's give comes from a limited
process (worker.py) and is compared with what ours give, and with what they would give with each
known mistake (catalogue.py, judging.py).
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from config import DEFAULT_EDITION, EDITIONS
from mini_llama.diagnosis import worker
from mini_llama.diagnosis.catalogue import Catalogue, settings_of
from mini_llama.diagnosis.comparison import Given
from mini_llama.diagnosis.findings import Finding, reported_once
from mini_llama.diagnosis.judging import MAX_TEXT, judge
from mini_llama.diagnosis.limits import MEMORY_BYTES, SECONDS, START_SECONDS
from mini_llama.diagnosis.probes import PROBES
from mini_llama.diagnosis.sources import copy_sources
from mini_llama.submissions.limited_process import run_limited
from mini_llama.submissions.untrusted_text import one_line

COMPONENTS = tuple(PROBES)


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
        yield list(reported_once(findings))


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
            [sys.executable, "-P", worker.__file__],
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
    """What worker.main wrote; lines that it cannot have written are passed over."""
    answers: list[dict[str, Given]] = [{} for _ in range(n_folders)]
    for line in stdout.splitlines():
        try:
            folder, component, given = json.loads(line)
            if isinstance(given, dict) and component in COMPONENTS:
                answers[int(folder)][component] = given
        except (ValueError, TypeError, IndexError, RecursionError):
            continue
    return answers
