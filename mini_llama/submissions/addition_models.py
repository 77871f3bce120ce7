"""The experiments of Spring 2026's addition task, as they are handed in: one folder each."""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from mini_llama.submissions.archive import Problem
from mini_llama.submissions.handed_in import ADDITION_MODELS
from mini_llama.submissions.untrusted_text import decode_text, listed

MIN_ABLATIONS = 5
MIN_BELOW = 2  # of the ablations, with an accuracy below 1
BEST = "best_model"
SUMMARY = "experiment_summary.json"
# A folder of ablations is not one itself.
EXPERIMENT = re.compile(rf"(?!ablations?$)ablation.*|{BEST}", re.IGNORECASE)
PLOTS = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
LOGS = (".log", ".txt", ".csv", ".tsv", ".jsonl", ".out", ".md")


def check_experiments(files: Mapping[str, bytes], names: Collection[str]) -> Iterator[Problem]:
    """At least five ablations and the best model, each with a plot and a log."""
    experiments = _find_experiments(names)
    if not experiments:
        what = f"holds no experiment: {MIN_ABLATIONS} ablations and {BEST} are required"
        yield Problem("error", f"{ADDITION_MODELS}/", what)
        return
    ablations = [name for name in experiments if name.casefold() != BEST]
    if len(ablations) < MIN_ABLATIONS:
        what = f"holds {len(ablations)} ablations, required are at least {MIN_ABLATIONS}"
        yield Problem(
            "error", f"{ADDITION_MODELS}/", f"{what}: folders ablation_1, ablation_2, ..."
        )
    if len(ablations) == len(experiments):
        yield Problem(
            "error",
            f"{ADDITION_MODELS}/",
            f"holds no {BEST}: put the smallest model that reaches 100% there",
        )
    for kind, endings in (("plot", PLOTS), ("log", LOGS)):
        without = [
            name
            for name, paths in experiments.items()
            if not any(path.casefold().endswith(endings) for path in paths)
        ]
        if without:
            what = f"no {kind} ({', '.join(endings)}) is in {listed(without, limit=8)}"
            yield Problem("warning", f"{ADDITION_MODELS}/", what)
    found = [_accuracy(files, experiments[name]) for name in ablations]
    accuracies = [accuracy for accuracy in found if accuracy is not None]
    below = sum(accuracy < 1 for accuracy in accuracies)
    if len(accuracies) >= MIN_ABLATIONS and below < MIN_BELOW:
        what = f"{below} ablations are below 100%, asked for are at least {MIN_BELOW}"
        yield Problem("warning", f"{ADDITION_MODELS}/", what)


def _find_experiments(names: Collection[str]) -> dict[str, list[str]]:
    """Paths by the name of their experiment's folder."""
    experiments = defaultdict(list)
    for name in names:
        top, *folders, _ = name.split("/") if "/" in name else ("", "")
        matching = [folder for folder in folders if EXPERIMENT.fullmatch(folder)]
        if top == ADDITION_MODELS and matching:
            experiments[matching[0]].append(name)
    return experiments


def _accuracy(files: Mapping[str, bytes], paths: Collection[str]) -> float | None:
    """What an experiment's summary says, None if it says nothing that can be read."""
    for path in paths:
        if path.rpartition("/")[2] == SUMMARY:
            try:
                accuracy = json.loads(decode_text(files.get(path, b"")))["accuracy"]
                return float(accuracy)
            except (ValueError, TypeError, KeyError, RecursionError):
                return None
    return None
