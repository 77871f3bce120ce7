"""What was handed in of Spring 2026's addition task: the experiments of addition_models/.

All of it is read in memory from files that are not trusted. Accuracies are counted again in
predictions.json, parameters in model_config.json; what experiment_summary.json says is compared.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from config import EDITIONS, LlamaConfig
from mini_llama.addition.additions import ADDITION, MAX_LENGTH
from mini_llama.addition.options import CAPACITY, EDITION, FIXED_SHAPE, SHAPE, count_samples
from mini_llama.checkpoints.sizes import count_parameters
from mini_llama.submissions.archive import Problem
from mini_llama.submissions.handed_in import ADDITION_MODELS
from mini_llama.submissions.untrusted_text import decode_text, listed, shown

MIN_ABLATIONS = 5
MIN_BELOW = 2  # of the ablations, with an accuracy below 1
BEST = "best_model"
# A folder of ablations is not one itself.
EXPERIMENT = re.compile(rf"(?!ablations?$)ablation.*|{BEST}", re.IGNORECASE)
PLOTS = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
LOGS = (".log", ".txt", ".csv", ".tsv", ".jsonl", ".out", ".md")
MODEL, SUMMARY, PREDICTIONS = "best_model.pth", "experiment_summary.json", "predictions.json"
MODEL_CONFIG, TRAINING_CONFIG = "model_config.json", "training_config.json"
RECORDS = (SUMMARY, PREDICTIONS, MODEL_CONFIG, TRAINING_CONFIG)
N_TEST = 10_000
MOST_LAYERS = 1000  # a larger number is no model's

Finding = tuple[Literal["error", "warning"], str, str]  # severity, what, file


@dataclass
class Experiment:
    """One folder: the `paths` in it, by file name. `accuracy` and `parameters` are counted here,
    None where they cannot be; `claimed` is the accuracy that the summary says.
    """

    name: str
    paths: dict[str, str]
    accuracy: float | None = None
    parameters: int | None = None
    claimed: float | None = None

    @property
    def is_best(self) -> bool:
        return self.name.casefold() == BEST

    @property
    def known_accuracy(self) -> float | None:
        """The one that was counted, or else claimed."""
        return self.claimed if self.accuracy is None else self.accuracy


@dataclass(frozen=True)
class AdditionTask:
    """All experiments of a submission, by name, and everything wrong with them."""

    experiments: Mapping[str, Experiment]
    problems: Sequence[Problem]

    @property
    def best(self) -> Experiment | None:
        return next((found for found in self.experiments.values() if found.is_best), None)

    @property
    def ablations(self) -> list[Experiment]:
        return [found for found in self.experiments.values() if not found.is_best]


def _percent(found: Experiment) -> str:
    if found.known_accuracy is None:
        return "accuracy unknown"
    note = " (claimed, not counted)" if found.accuracy is None else ""
    return f"{100 * found.known_accuracy:.2f}% right{note}"


def read_addition_task(
    files: Mapping[str, bytes], names: Collection[str], test: Sequence[str] = ()
) -> AdditionTask:
    """The experiments of a submission: `names` of all its files, contents of those that were read.

    `test` are the lines of the course's test file; without it a prediction is right if its sum is.
    Never raises for what was handed in.
    """
    experiments = find_experiments(names)
    problems = []
    for found in experiments.values():
        for severity, what, file in check_experiment(found, files, test):
            place = found.paths.get(file) or f"{ADDITION_MODELS}/{found.name}/{file}"
            problems.append(Problem(severity, place, what))
    task = AdditionTask(experiments, problems)
    return AdditionTask(experiments, [*check_experiments(task), *check_files(task), *problems])


def find_experiments(names: Collection[str]) -> dict[str, Experiment]:
    """By the name of their folder, wherever in addition_models/ it is."""
    paths: dict[str, dict[str, str]] = defaultdict(dict)
    for name in sorted(names):
        top, *folders, file = name.split("/") if "/" in name else ("", name)
        matching = [folder for folder in folders if EXPERIMENT.fullmatch(folder)]
        if top == ADDITION_MODELS and matching:
            paths[matching[0]].setdefault(file, name)
    return {name: Experiment(name, found) for name, found in paths.items()}


def check_experiments(task: AdditionTask) -> Iterator[Problem]:
    """At least five ablations, of which two fail, and a best model that does not."""
    place, ablations = f"{ADDITION_MODELS}/", task.ablations
    if not task.experiments:
        what = f"holds no experiment: {MIN_ABLATIONS} ablations and {BEST} are required"
        yield Problem("error", place, what)
        return
    if len(ablations) < MIN_ABLATIONS:
        what = f"holds {len(ablations)} ablations, required are at least {MIN_ABLATIONS}"
        yield Problem("error", place, f"{what}: folders ablation_1, ablation_2, ...")
    if task.best is None:
        what = f"holds no {BEST}: put the smallest model that reaches 100% there"
        yield Problem("error", place, what)
    elif task.best.known_accuracy is not None and task.best.known_accuracy < 1:
        what = f"{BEST} has {_percent(task.best)}, it must reach 100%"
        yield Problem("warning", place, f"{what}: train it longer, or take a larger one")
    known = [a.known_accuracy for a in ablations if a.known_accuracy is not None]
    below = sum(accuracy < 1 for accuracy in known)
    if len(known) >= MIN_ABLATIONS and below < MIN_BELOW:
        what = f"{below} ablations are below 100%, asked for are at least {MIN_BELOW}"
        yield Problem("warning", place, what)


def check_files(task: AdditionTask) -> Iterator[Problem]:
    """Each experiment has a plot, a log and the records of its test."""
    without: dict[str, list[str]] = {}
    for kind, endings in (("plot", PLOTS), ("log", LOGS)):
        without[f"no {kind} ({', '.join(endings)}) is"] = [
            found.name
            for found in task.experiments.values()
            if not any(file.casefold().endswith(endings) for file in found.paths)
        ]
    without[f"not all of {', '.join(RECORDS)} are"] = [
        found.name for found in task.experiments.values() if not found.paths.keys() >= set(RECORDS)
    ]
    for what, names in without.items():
        if names:
            said = f"{what} in {listed(names, limit=8)}"
            yield Problem("warning", f"{ADDITION_MODELS}/", said)
    if task.best is not None and MODEL not in task.best.paths:
        what = f"no {MODEL} is in it: its test cannot be repeated"
        yield Problem("warning", f"{ADDITION_MODELS}/{task.best.name}/", what)


def check_experiment(
    found: Experiment, files: Mapping[str, bytes], test: Sequence[str]
) -> Iterator[Finding]:
    """Count one experiment's parameters and right answers; what its records say is compared."""
    contents: dict[str, Any] = {}
    kinds = {SUMMARY: dict, MODEL_CONFIG: dict, TRAINING_CONFIG: dict, PREDICTIONS: list}
    for file, kind in kinds.items():
        content = files.get(found.paths.get(file, ""))
        if content is not None:
            try:
                contents[file] = parse(content, kind)
            except ValueError as error:
                yield "error", str(error), file
    summary = contents.get(SUMMARY, {})
    claimed = summary.get("accuracy")
    is_number = isinstance(claimed, (int, float)) and not isinstance(claimed, bool)
    if is_number and 0 <= claimed <= 1:
        found.claimed = float(claimed)
    elif SUMMARY in contents:
        what = "says no accuracy from 0 to 1: addition_run.py test writes it"
        yield "warning", what, SUMMARY
    config = contents.get(MODEL_CONFIG) or summary.get("model_config")
    yield from check_parameters(found, config, summary)
    yield from check_training(found, contents.get(TRAINING_CONFIG) or summary.get("train_config"))
    if PREDICTIONS in contents:
        yield from check_predictions(found, contents[PREDICTIONS], test)


def parse(content: bytes, kind: type) -> Any:
    """JSON of one kind. Raises ValueError saying what it is instead."""
    try:
        value = json.loads(decode_text(content.removeprefix(b"\xef\xbb\xbf")))
    except RecursionError:
        raise ValueError("is JSON nested too deeply: write it again with addition_run.py") from None
    except ValueError as error:
        raise ValueError(f"is not JSON ({error}): write it again with addition_run.py") from None
    if not isinstance(value, kind):
        expected = "an object" if kind is dict else "a list"
        raise ValueError(f"is not {expected} in JSON: write it again with addition_run.py")
    return value


def check_parameters(
    found: Experiment, config: object, summary: Mapping[str, Any]
) -> Iterator[Finding]:
    """Count the model's parameters from its shape, and compare what the summary claims."""
    if not isinstance(config, dict):
        return
    try:
        found.parameters = parameters_of(config)
    except ValueError as error:
        yield "warning", f"describes no model: {error}", MODEL_CONFIG
        return
    changed = [
        f"{name}={shown(str(config.get(name)))}"
        for name, value in FIXED_SHAPE.items()
        if config.get(name, value) != value and name != "hidden_dim"
    ]
    if changed:
        yield "warning", f"is not the task's: {', '.join(changed)}", MODEL_CONFIG
    claimed = summary.get("num_params")
    if claimed is not None and claimed != found.parameters:
        what = f"says {shown(str(claimed))} parameters, the shape has {found.parameters}"
        yield "warning", f"{what}: is it another model's?", SUMMARY
    recorded = summary.get("model_config")
    if isinstance(recorded, dict) and any(recorded.get(k) != config.get(k) for k in SHAPE):
        what = "has another shape than model_config.json: test the model that is handed in"
        yield "warning", what, SUMMARY


def parameters_of(config: Mapping[str, Any]) -> int:
    """Of the edition's model with this shape. Raises ValueError for one that no model has."""
    names = (*SHAPE, "vocab_size", "multiple_of")
    shape: dict[str, Any] = {name: config.get(name) for name in names}
    for name, value in shape.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{name} is {shown(str(value))}, not a whole number")
    if shape["n_layers"] > MOST_LAYERS:
        raise ValueError(f"n_layers is more than {MOST_LAYERS:,}")
    norm, hidden_dim = EDITIONS[EDITION].norm, config.get("hidden_dim")
    if hidden_dim is not None:
        shape["hidden_dim"] = hidden_dim
    return count_parameters(LlamaConfig(norm=norm, **shape))


def check_training(found: Experiment, training: object) -> Iterator[Finding]:
    """The capacity: within the course's, and what the number of samples follows from."""
    file = TRAINING_CONFIG
    if not isinstance(training, dict):
        return
    numbers = [training.get(name) for name in ("capacity", "n_epochs", "train_samples")]
    if not all(isinstance(n, int) and 0 < n < 10**18 for n in numbers):
        what = "does not say capacity, n_epochs and train_samples: write it with addition_run.py"
        yield "warning", what, file
        return
    capacity, epochs, samples = (int(n) for n in numbers if n is not None)
    if capacity > CAPACITY:
        what = f"has a capacity of {capacity:,}, the course allows {CAPACITY:,}"
        yield "warning", f"{what}: train with less", file
    if found.parameters is not None:
        allowed = count_samples(capacity, found.parameters, epochs)[0]
        if samples > allowed:
            what = f"says {samples:,} training samples, its capacity pays for {allowed:,}"
            yield "warning", f"{what}: capacity / (6 · parameters · epochs)", file


def check_predictions(
    found: Experiment, predictions: Sequence[Any], test: Sequence[str]
) -> Iterator[Finding]:
    """Count the right answers, and compare what the summary claims."""
    n_expected = len(test) or N_TEST
    if not predictions or not all(isinstance(text, str) for text in predictions):
        yield "error", "is not a list of texts: addition_run.py test writes it", PREDICTIONS
        return
    if len(predictions) != n_expected:
        what = f"has {len(predictions)} predictions, the test has {n_expected}"
        yield "error", f"{what}: test on all of it", PREDICTIONS
        return
    if n_others := count_other_questions(predictions, test):
        what = f"answers {n_others} other questions than the test's, in its order"
        yield "error", f"{what}: test with the course's file", PREDICTIONS
        return
    if not test and len({text.partition("=")[0] for text in predictions}) < n_expected:
        yield "warning", "has a question more than once: is it the course's test?", PREDICTIONS
    found.accuracy = sum(map(is_right, predictions)) / len(predictions)
    yield from compare_accuracy(found, predictions)


def compare_accuracy(found: Experiment, predictions: Sequence[str]) -> Iterator[Finding]:
    """What the summary claims, against what was counted."""
    claimed, counted, margin = found.claimed, found.accuracy, 0.5 / len(predictions)
    if claimed is None or counted is None or abs(claimed - counted) <= margin:
        return
    what = f"says accuracy {claimed:.4f}, {PREDICTIONS} has {counted:.4f}"
    begun = sum(map(begins_right, predictions)) / len(predictions)
    if abs(claimed - begun) <= margin:
        yield "warning", f"{what}: answers with a rest after the sum are no answers", SUMMARY
    else:
        yield "error", f"{what}: test again", SUMMARY


def count_other_questions(predictions: Sequence[str], test: Sequence[str]) -> int:
    """How many predictions do not begin with the test's question, or, without it, with one."""
    if not test:
        return sum(re.match(r"[0-9]{1,9}\+[0-9]{1,9}=", text) is None for text in predictions)
    questions = (line.partition("=")[0] + "=" for line in test)
    pairs = zip(predictions, questions, strict=True)
    return sum(not prediction.startswith(question) for prediction, question in pairs)


def is_right(prediction: str) -> bool:
    """Whether it is a true addition and nothing else: no rest after the sum."""
    match = ADDITION.fullmatch(prediction) if len(prediction) <= MAX_LENGTH else None
    if match is None:
        return False
    a, b, c = match.groups()
    return str(int(a) + int(b)) == c


def begins_right(prediction: str) -> bool:
    """Whether it is right, as the course's own test counts: whatever follows the sum."""
    match = ADDITION.match(prediction[: 4 * MAX_LENGTH])
    return match is not None and is_right(match[0])
