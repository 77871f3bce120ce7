"""What was handed in of Spring 2026's addition task: the experiments of addition_models/.

All of it is read in memory from files that are not trusted. Accuracies are counted again in
predictions.json, parameters in model_config.json; what experiment_summary.json says is compared.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from config import EDITIONS, LlamaConfig
from mini_llama.addition.additions import ADDITION, MAX_LENGTH
from mini_llama.addition.options import CAPACITY, EDITION, FIXED_SHAPE, SHAPE, count_samples
from mini_llama.checkpoints.sizes import count_parameters
from mini_llama.submissions.archive import Problem
from mini_llama.submissions.untrusted_text import decode_text, listed, shown

FOLDER = "addition_models"
BEST = "best_model"
N_ABLATIONS, N_IMPERFECT = 5, 2  # asked for at least, of which at least so many below 100 %
N_TEST = 10_000
LOG_SUFFIXES = (".txt", ".log", ".csv", ".jsonl", ".out")
RECORDS = ("experiment_summary.json", "predictions.json")
MOST_LAYERS = 1000  # a larger number is no model's


@dataclass
class Experiment:
    """One folder. `accuracy` and `parameters` are counted here, None where they cannot be."""

    name: str
    accuracy: float | None = None
    parameters: int | None = None
    claimed_accuracy: float | None = None
    problems: list[Problem] = field(default_factory=list)

    @property
    def is_best(self) -> bool:
        return self.name == BEST


@dataclass(frozen=True)
class AdditionTask:
    """All experiments of a submission, by name, and everything wrong with them."""

    experiments: Mapping[str, Experiment]
    problems: Sequence[Problem]

    @property
    def ablations(self) -> list[Experiment]:
        return [found for found in self.experiments.values() if not found.is_best]


def read_addition_task(
    names: Collection[str], files: Mapping[str, bytes], test: Sequence[str] | None = None
) -> AdditionTask:
    """The experiments of a submission: `names` of all its files, contents of those that were read.

    `test` are the lines of the course's test file; without it a prediction is right if its sum is.
    Never raises for what was handed in.
    """
    below = [name.split("/") for name in names if name.startswith(f"{FOLDER}/")]
    folders = dict.fromkeys(parts[1] for parts in below if len(parts) > 2)
    experiments = {
        name: read_experiment(
            name, {"/".join(parts[2:]) for parts in below if parts[1] == name}, files, test
        )
        for name in sorted(folders)
    }
    problems = [problem for found in experiments.values() for problem in found.problems]
    task = AdditionTask(experiments, problems)
    return AdditionTask(experiments, [*check_experiments(task), *problems])


def check_experiments(task: AdditionTask) -> Iterator[Problem]:
    """What is asked of all experiments together."""
    if not task.experiments:
        what = "is missing or empty: train and test with addition_run.py, one folder a run"
        yield Problem("error", f"{FOLDER}/", what)
        return
    best, ablations = task.experiments.get(BEST), task.ablations
    if best is None:
        what = f"is missing: the smallest model that reaches 100 % goes to {FOLDER}/{BEST}/"
        yield Problem("error", f"{FOLDER}/{BEST}", what)
    elif best.accuracy is not None and best.accuracy < 1:
        what = f"answers {best.accuracy:.2%} of the test right: the best model must reach 100 %"
        yield Problem("warning", f"{FOLDER}/{BEST}", what)
    if len(ablations) < N_ABLATIONS:
        what = f"holds {len(ablations)} ablations, at least {N_ABLATIONS} are asked for"
        yield Problem("warning", f"{FOLDER}/", f"{what}: one folder each, ablation_1 and so on")
    accuracies = [found.accuracy for found in ablations if found.accuracy is not None]
    if (imperfect := sum(accuracy < 1 for accuracy in accuracies)) < N_IMPERFECT:
        what = f"{imperfect} ablations are below 100 %, at least {N_IMPERFECT} are asked for"
        yield Problem("warning", f"{FOLDER}/", f"{what}: add some that fail")
    odd = [found.name for found in ablations if not found.name.startswith("ablation")]
    if odd:
        what = f"is counted as ablations, though it is not named so: {listed(odd)}"
        yield Problem("warning", f"{FOLDER}/", f"{what}; the course asks for ablation_1 and so on")


def read_experiment(
    name: str,
    present: Collection[str],
    files: Mapping[str, bytes],
    test: Sequence[str] | None,
) -> Experiment:
    """One folder with the files `present` in it."""
    found = Experiment(name)
    place = f"{FOLDER}/{name}"

    def say(severity: Any, what: str, file: str = "") -> None:
        found.problems.append(Problem(severity, f"{place}/{file}".rstrip("/"), what))

    def read(file: str, kind: type) -> Any:
        content = files.get(f"{place}/{file}")
        if content is None:
            return None
        try:
            return parse(content, kind)
        except ValueError as error:
            say("error", str(error), file)
            return None

    for file in RECORDS:
        if file not in present:
            say("error", "is missing: addition_run.py test writes it", file)
    if "loss_curve.png" not in present:
        say("warning", "is missing: addition_run.py train draws it", "loss_curve.png")
    if not any(file.endswith(LOG_SUFFIXES) for file in present):
        say("warning", "has no training log: keep what train prints (| tee FOLDER/log.txt)")
    if "best_model.pth" not in present and found.is_best:
        say("warning", "is missing: the best model's weights are handed in", "best_model.pth")
    summary = read("experiment_summary.json", dict) or {}
    config = read("model_config.json", dict) or summary.get("model_config")
    training = read("training_config.json", dict) or summary.get("train_config")
    predictions = read("predictions.json", list)
    for check in (
        check_parameters(found, config, summary),
        check_training(found, training),
        check_predictions(found, predictions, summary, test),
    ):
        for severity, what, file in check:
            say(severity, what, file)
    return found


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


Finding = tuple[str, str, str]  # severity, what, file


def check_parameters(
    found: Experiment, config: object, summary: Mapping[str, Any]
) -> Iterator[Finding]:
    """Count the model's parameters from its shape, and compare what the summary claims."""
    if not isinstance(config, dict):
        yield "error", "is missing: addition_run.py train writes it", "model_config.json"
        return
    try:
        found.parameters = parameters_of(config)
    except ValueError as error:
        yield "error", f"describes no model: {error}", "model_config.json"
        return
    changed = [
        f"{name}={shown(str(config.get(name)))}"
        for name, value in FIXED_SHAPE.items()
        if config.get(name, value) != value and name != "hidden_dim"
    ]
    if changed:
        yield "warning", f"is not the task's: {', '.join(changed)}", "model_config.json"
    claimed = summary.get("num_params")
    if claimed is not None and claimed != found.parameters:
        what = f"says {shown(str(claimed))} parameters, the shape has {found.parameters}"
        yield "warning", f"{what}: is it another model's?", "experiment_summary.json"
    recorded = summary.get("model_config")
    if isinstance(recorded, dict) and any(recorded.get(k) != config.get(k) for k in SHAPE):
        what = "has another shape than model_config.json: test the model that is handed in"
        yield "warning", what, "experiment_summary.json"


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
    file = "training_config.json"
    if not isinstance(training, dict):
        yield "warning", "is missing: addition_run.py train writes it", file
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
    found: Experiment,
    predictions: list[Any] | None,
    summary: Mapping[str, Any],
    test: Sequence[str] | None,
) -> Iterator[Finding]:
    """Count the right answers, and compare what the summary claims."""
    claimed, file = summary.get("accuracy"), "predictions.json"
    if isinstance(claimed, (int, float)) and not isinstance(claimed, bool):
        found.claimed_accuracy = float(claimed)
    if predictions is None:
        return
    n_expected = len(test) if test is not None else N_TEST
    if not predictions or not all(isinstance(text, str) for text in predictions):
        yield "error", "is not a list of texts: addition_run.py test writes it", file
        return
    if len(predictions) != n_expected:
        what = f"has {len(predictions)} predictions, the test has {n_expected}"
        yield "error", f"{what}: test on all of it", file
        return
    n_strangers = count_other_questions(predictions, test)
    if n_strangers:
        yield "error", f"answers {n_strangers} other questions than the test's, in order", file
        return
    if test is None and len({text.partition("=")[0] for text in predictions}) < n_expected:
        yield "warning", "has a question more than once: is it the course's test?", file
    found.accuracy = sum(map(is_right, predictions)) / len(predictions)
    yield from compare_accuracy(found, predictions)


def compare_accuracy(found: Experiment, predictions: Sequence[str]) -> Iterator[Finding]:
    """What the summary claims, against what was counted."""
    claimed, counted = found.claimed_accuracy, found.accuracy
    file, margin = "experiment_summary.json", 0.5 / len(predictions)
    if claimed is None or counted is None:
        yield "warning", "does not say the accuracy: addition_run.py test writes it", file
    elif not abs(claimed - counted) <= margin:
        what = f"says accuracy {claimed:.4f}, predictions.json has {counted:.4f}"
        begun = sum(map(begins_right, predictions)) / len(predictions)
        if abs(claimed - begun) <= margin:
            yield "warning", f"{what}: answers with a rest after the sum are no answers", file
        else:
            yield "error", f"{what}: test again", file


def count_other_questions(predictions: Sequence[str], test: Sequence[str] | None) -> int:
    """How many predictions do not begin with the test's question, or, without it, with one."""
    if test is None:
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
