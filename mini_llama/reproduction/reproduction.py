"""Do all runs, one after another, and report the results."""

import sys
from collections.abc import Sequence

from mini_llama.reproduction.processes import run_all
from mini_llama.reproduction.report import report
from mini_llama.reproduction.results import DONE, Results
from mini_llama.reproduction.runs import Run, Settings
from utils import raise_on_sigterm

RESULTS = "results.json"


def reproduce(settings: Settings, runs: Sequence[Run], is_resumed: bool) -> bool:
    """Run, compare and report; returns whether all runs succeeded. Raises OSError or ValueError."""
    raise_on_sigterm()
    results = Results(settings.out / RESULTS)
    if results.path.exists() and not is_resumed:
        raise ValueError(
            f"{results.path} has the results of earlier runs: "
            "continue them with --resume, or give another --out"
        )
    foreign = [name for name in ("runs", "report.html") if (settings.out / name).exists()]
    if foreign and not results.path.exists():
        raise ValueError(
            f"{settings.out / foreign[0]} is there already, and {results.path} is not, so it is "
            "of no run to go on with: give another --out"
        )
    results.read()
    settings.out.mkdir(parents=True, exist_ok=True)
    pairs = []
    try:
        for pair in run_all(runs, results):
            pairs.append(pair)
    except (KeyboardInterrupt, SystemExit):
        print(f"stopped; finished runs are in {results.path}: use --resume", file=sys.stderr)
        raise
    report(settings, pairs, results)
    return all(record.status == DONE for _, record in pairs)
