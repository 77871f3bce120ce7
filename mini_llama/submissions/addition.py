"""Check and score the experiments of Spring 2026's addition task, submitted in addition_models/.

The files are untrusted and read in memory. Accuracy is recomputed from predictions.json and the
number of parameters from model_config.json; both are compared with experiment_summary.json.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from config import EDITIONS, LlamaConfig
from mini_llama.addition.additions import ADDITION, MAX_LENGTH
from mini_llama.addition.options import (
    CAPACITY,
    EDITION,
    FIXED_SHAPE,
    PROGRESS,
    SHAPE,
    count_samples,
)
from mini_llama.checkpoints.sizes import count_parameters
from mini_llama.submissions.archive import Problem
from mini_llama.submissions.requirements import ADDITION_MODELS
from mini_llama.submissions.untrusted_text import decode_text, quoted, quoted_list

MIN_ABLATIONS = 5
MIN_BELOW_100 = 2  # ablations with an accuracy below 100%
BEST = "best_model"
# A folder named "ablations" holds ablations and is not one itself.
EXPERIMENT = re.compile(rf"(?!ablations?$)ablation.*|{BEST}", re.IGNORECASE)
PLOTS = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
LOGS = (".log", ".txt", ".csv", ".tsv", ".jsonl", ".out", ".md")
MODEL, SUMMARY, PREDICTIONS = "best_model.pth", "experiment_summary.json", "predictions.json"
MODEL_CONFIG, TRAINING_CONFIG = "model_config.json", "training_config.json"
RECORDS = (SUMMARY, PREDICTIONS, MODEL_CONFIG, TRAINING_CONFIG)
N_TEST = 10_000
MAX_LAYERS = 1000  # more would be a mistake

Finding = tuple[Literal["error", "warning"], str, str]  # severity, message, file


@dataclass
class Experiment:
    """One experiment's folder: `paths` are its files, by file name. `accuracy` and `parameters` are
    recomputed, None if that is impossible; `claimed` is the accuracy in experiment_summary.json.
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
        """The recomputed accuracy, or else the claimed one."""
        return self.claimed if self.accuracy is None else self.accuracy


@dataclass(frozen=True)
class AdditionTask:
    """All experiments of a submission, by name, and their problems."""

    experiments: Mapping[str, Experiment]
    problems: Sequence[Problem]

    @property
    def best(self) -> Experiment | None:
        return next(
            (experiment for experiment in self.experiments.values() if experiment.is_best), None
        )

    @property
    def ablations(self) -> list[Experiment]:
        return [experiment for experiment in self.experiments.values() if not experiment.is_best]


def _percent(experiment: Experiment) -> str:
    if experiment.known_accuracy is None:
        return "unknown accuracy"
    note = " (claimed, not recomputed)" if experiment.accuracy is None else ""
    return f"{100 * experiment.known_accuracy:.2f}% accuracy{note}"


def read_addition_task(
    files: Mapping[str, bytes], names: Collection[str], test: Sequence[str] = ()
) -> AdditionTask:
    """Check the experiments of a submission, given the `names` of all its files and the contents
    of those that were read.

    `test` holds the lines of the course's test file; without it a prediction is right if its sum
    is. Never raises, whatever the files hold.
    """
    experiments = find_experiments(names)
    problems = []
    for experiment in experiments.values():
        for severity, message, file in check_experiment(experiment, files, test):
            place = experiment.paths.get(file) or f"{ADDITION_MODELS}/{experiment.name}/{file}"
            problems.append(Problem(severity, place, message))
    task = AdditionTask(experiments, problems)
    return AdditionTask(experiments, [*check_experiments(task), *check_files(task), *problems])


def find_experiments(names: Collection[str]) -> dict[str, Experiment]:
    """Experiments by the name of their folder, at any depth in addition_models/."""
    paths: dict[str, dict[str, str]] = defaultdict(dict)
    for name in sorted(names):
        top, *folders, file = name.split("/") if "/" in name else ("", name)
        matching = [folder for folder in folders if EXPERIMENT.fullmatch(folder)]
        if top == ADDITION_MODELS and matching:
            paths[matching[0]].setdefault(file, name)
    return {name: Experiment(name, files) for name, files in paths.items()}


def check_experiments(task: AdditionTask) -> Iterator[Problem]:
    """Check that there are five ablations, two of them below 100%, and a best model at 100%."""
    place, ablations = f"{ADDITION_MODELS}/", task.ablations
    if not task.experiments:
        message = f"holds no experiments: {MIN_ABLATIONS} ablations and {BEST} are required"
        yield Problem("error", place, message)
        return
    if len(ablations) < MIN_ABLATIONS:
        message = f"holds {len(ablations)} ablations, at least {MIN_ABLATIONS} are required"
        yield Problem("error", place, f"{message}: folders ablation_1, ablation_2, ...")
    if task.best is None:
        message = f"holds no {BEST}: put the smallest model that reaches 100% there"
        yield Problem("error", place, message)
    elif task.best.known_accuracy is not None and task.best.known_accuracy < 1:
        message = f"{BEST} has {_percent(task.best)}, it must reach 100%"
        yield Problem("warning", place, f"{message}: train it longer, or use a larger one")
    for path in (e.paths[PROGRESS] for e in task.experiments.values() if PROGRESS in e.paths):
        message = "is the state of a run that has not ended: end it with --resume, or leave it out"
        yield Problem("warning", path, message)
    known = [a.known_accuracy for a in ablations if a.known_accuracy is not None]
    below = sum(accuracy < 1 for accuracy in known)
    if len(known) >= MIN_ABLATIONS and below < MIN_BELOW_100:
        count = f"{below} ablation is" if below == 1 else f"{below} ablations are"
        message = f"{count} below 100%, at least {MIN_BELOW_100} are required"
        yield Problem("warning", place, message)


def check_files(task: AdditionTask) -> Iterator[Problem]:
    """Check that each experiment has a plot, a log and the records of its test."""
    missing: dict[str, list[str]] = {}
    for kind, endings in (("plot", PLOTS), ("log", LOGS)):
        missing[f"no {kind} ({', '.join(endings)})"] = [
            experiment.name
            for experiment in task.experiments.values()
            if not any(file.casefold().endswith(endings) for file in experiment.paths)
        ]
    missing[f"not all of {', '.join(RECORDS)}"] = [
        experiment.name
        for experiment in task.experiments.values()
        if not experiment.paths.keys() >= set(RECORDS)
    ]
    for message, names in missing.items():
        if names:
            message = f"{message} in {quoted_list(names, limit=8)}"
            yield Problem("warning", f"{ADDITION_MODELS}/", message)
    if task.best is not None and MODEL not in task.best.paths:
        message = f"has no {MODEL}: its test cannot be repeated"
        yield Problem("warning", f"{ADDITION_MODELS}/{task.best.name}/", message)


def check_experiment(
    experiment: Experiment, files: Mapping[str, bytes], test: Sequence[str]
) -> Iterator[Finding]:
    """Recompute one experiment's parameters and accuracy, and compare its records with them."""
    contents: dict[str, Any] = {}
    kinds = {SUMMARY: dict, MODEL_CONFIG: dict, TRAINING_CONFIG: dict, PREDICTIONS: list}
    for file, kind in kinds.items():
        content = files.get(experiment.paths.get(file, ""))
        if content is not None:
            try:
                contents[file] = parse(content, kind)
            except ValueError as error:
                yield "error", str(error), file
    summary = contents.get(SUMMARY, {})
    claimed = summary.get("accuracy")
    is_number = isinstance(claimed, (int, float)) and not isinstance(claimed, bool)
    if is_number and 0 <= claimed <= 1:
        experiment.claimed = float(claimed)
    elif SUMMARY in contents:
        message = "has no accuracy from 0 to 1: write it with addition_run.py test"
        yield "warning", message, SUMMARY
    config = contents.get(MODEL_CONFIG) or summary.get("model_config")
    yield from check_parameters(experiment, config, summary)
    yield from check_training(
        experiment, contents.get(TRAINING_CONFIG) or summary.get("train_config")
    )
    if PREDICTIONS in contents:
        yield from check_predictions(experiment, contents[PREDICTIONS], test)


def parse(content: bytes, kind: type) -> Any:
    """Parse JSON of the given type. Raises ValueError."""
    try:
        value = json.loads(decode_text(content.removeprefix(b"\xef\xbb\xbf")))
    except RecursionError:
        raise ValueError("is JSON nested too deeply: write it again with addition_run.py") from None
    except ValueError as error:
        raise ValueError(f"is not JSON ({error}): write it again with addition_run.py") from None
    if not isinstance(value, kind):
        expected = "object" if kind is dict else "list"
        raise ValueError(f"is not a JSON {expected}: write it again with addition_run.py")
    return value


def check_parameters(
    experiment: Experiment, config: object, summary: Mapping[str, Any]
) -> Iterator[Finding]:
    """Count the model's parameters from its shape, and compare the summary's with them."""
    if not isinstance(config, dict):
        return
    try:
        experiment.parameters = parameters_of(config)
    except ValueError as error:
        yield "warning", f"does not describe a model: {error}", MODEL_CONFIG
        return
    changed = [
        f"{name}={quoted(str(config.get(name)))}"
        for name, value in FIXED_SHAPE.items()
        if config.get(name, value) != value and name != "hidden_dim"
    ]
    if changed:
        yield "warning", f"changes what the task fixes: {', '.join(changed)}", MODEL_CONFIG
    claimed = summary.get("num_params")
    if claimed is not None and claimed != experiment.parameters:
        message = f"claims {quoted(str(claimed))} parameters, the shape has {experiment.parameters}"
        yield "warning", f"{message}: is it from another model?", SUMMARY
    recorded = summary.get("model_config")
    if isinstance(recorded, dict) and any(recorded.get(k) != config.get(k) for k in SHAPE):
        message = "has a different shape from model_config.json: test the model that you submit"
        yield "warning", message, SUMMARY


def parameters_of(config: Mapping[str, Any]) -> int:
    """The number of parameters of the edition's model with this shape.

    Raises ValueError for an impossible shape.
    """
    names = (*SHAPE, "vocab_size", "multiple_of")
    shape: dict[str, Any] = {name: config.get(name) for name in names}
    for name, value in shape.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{name} is {quoted(str(value))}, not a whole number")
    if shape["n_layers"] > MAX_LAYERS:
        raise ValueError(f"n_layers is more than {MAX_LAYERS:,}")
    norm, hidden_dim = EDITIONS[EDITION].norm, config.get("hidden_dim")
    if hidden_dim is not None:
        shape["hidden_dim"] = hidden_dim
    return count_parameters(LlamaConfig(norm=norm, **shape))


def check_training(experiment: Experiment, training: object) -> Iterator[Finding]:
    """Check that the capacity is within the course's, and allows the number of samples."""
    file = TRAINING_CONFIG
    if not isinstance(training, dict):
        return
    numbers = [training.get(name) for name in ("capacity", "n_epochs", "train_samples")]
    if not all(isinstance(n, int) and 0 < n < 10**18 for n in numbers):
        message = "lacks capacity, n_epochs or train_samples: write it with addition_run.py"
        yield "warning", message, file
        return
    capacity, epochs, samples = (int(n) for n in numbers if n is not None)
    if capacity > CAPACITY:
        message = f"has a capacity of {capacity:,}, the course allows {CAPACITY:,}"
        yield "warning", f"{message}: train with less", file
    if experiment.parameters is not None:
        allowed = count_samples(capacity, experiment.parameters, epochs)[0]
        if samples > allowed:
            message = f"claims {samples:,} training samples, its capacity allows {allowed:,}"
            yield "warning", f"{message}: capacity / (6 · parameters · epochs)", file


def check_predictions(
    experiment: Experiment, predictions: Sequence[Any], test: Sequence[str]
) -> Iterator[Finding]:
    """Count the right answers, and compare the summary's accuracy with them."""
    n_expected = len(test) or N_TEST
    if not predictions or not all(isinstance(text, str) for text in predictions):
        yield "error", "is not a list of strings: write it with addition_run.py test", PREDICTIONS
        return
    if len(predictions) != n_expected:
        message = f"has {len(predictions)} predictions, the test has {n_expected}"
        yield "error", f"{message}: test on all of them", PREDICTIONS
        return
    if n_wrong := count_wrong_questions(predictions, test):
        question = "the test's question on that line" if test else "a question"
        message = f"{n_wrong} predictions do not start with {question}"
        yield "error", f"{message}: test with the course's file", PREDICTIONS
        return
    if not test and len({text.partition("=")[0] for text in predictions}) < n_expected:
        message = "has a question more than once: is it from the course's test file?"
        yield "warning", message, PREDICTIONS
    experiment.accuracy = sum(map(is_right, predictions)) / len(predictions)
    yield from compare_accuracy(experiment, predictions)


def compare_accuracy(experiment: Experiment, predictions: Sequence[str]) -> Iterator[Finding]:
    """Compare the summary's accuracy with the recomputed one."""
    claimed, counted, margin = experiment.claimed, experiment.accuracy, 0.5 / len(predictions)
    if claimed is None or counted is None or abs(claimed - counted) <= margin:
        return
    message = f"claims accuracy {claimed:.4f}, {PREDICTIONS} has {counted:.4f}"
    lenient = sum(map(starts_right, predictions)) / len(predictions)
    if abs(claimed - lenient) <= margin:
        yield "warning", f"{message}: an answer followed by more text is wrong", SUMMARY
    else:
        yield "error", f"{message}: test again", SUMMARY


def count_wrong_questions(predictions: Sequence[str], test: Sequence[str]) -> int:
    """How many predictions do not start with the question on the same line of the test file or,
    without a test file, with any question.
    """
    if not test:
        return sum(re.match(r"[0-9]{1,9}\+[0-9]{1,9}=", text) is None for text in predictions)
    questions = (line.partition("=")[0] + "=" for line in test)
    pairs = zip(predictions, questions, strict=True)
    return sum(not prediction.startswith(question) for prediction, question in pairs)


def is_right(prediction: str) -> bool:
    """Whether the prediction is a correct addition and nothing else follows the sum."""
    match = ADDITION.fullmatch(prediction) if len(prediction) <= MAX_LENGTH else None
    if match is None:
        return False
    a, b, c = match.groups()
    return str(int(a) + int(b)) == c


def starts_right(prediction: str) -> bool:
    """Whether it is right as the course's own test counts, which ignores what follows the sum."""
    match = ADDITION.match(prediction[: 4 * MAX_LENGTH])
    return match is not None and is_right(match[0])
