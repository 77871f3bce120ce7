"""Check a submission against its edition's requirements, without running any of it."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from config import DEFAULT_EDITION, EDITIONS
from mini_llama.submissions.addition import AdditionTask, read_addition_task
from mini_llama.submissions.archive import Problem, Submission
from mini_llama.submissions.imports import follow_imports
from mini_llama.submissions.prediction_files import (
    BOM_WARNING,
    LABEL_WORDS,
    PREDICTION_FILES,
    DifferentPromptError,
    OtherLinesError,
    PredictionFiles,
    Sentences,
    editor_artifacts,
    prediction_files,
    read_predictions,
)
from mini_llama.submissions.requirements import (
    ADDITION_MODELS,
    GENERATED_FILES,
    MEBIBYTE,
    REQUIREMENTS,
    Requirements,
    is_checkpoint,
)
from mini_llama.submissions.untrusted_text import decode_text, quoted, quoted_list
from mini_llama.text_files import BOM

GREEDY_TEXT = GENERATED_FILES[0]
PROMPT_TEXTS = tuple(dict.fromkeys(edition.prompt_text for edition in EDITIONS.values()))
LIKE_THE_PROMPT = 10  # equal characters; a text with fewer is another text
# The courses use Python 3.11, whose library had these.
STANDARD_LIBRARY = sys.stdlib_module_names | {"distutils", "imp", "asyncore", "asynchat"}


@dataclass(frozen=True)
class Expected:
    """What submissions must contain: prediction files by name, the `sentences` that these repeat
    (without a data file only the number of lines is checked), the `prompts` that a generated text
    may start with, and the `additions` of the addition task's test file, if known.
    """

    predictions: PredictionFiles = field(default_factory=lambda: PREDICTION_FILES)
    sentences: Sentences = field(default_factory=dict)
    prompts: tuple[str, ...] = PROMPT_TEXTS
    requirements: Requirements = REQUIREMENTS[DEFAULT_EDITION]
    additions: Sequence[str] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All required files."""
        return (*self.requirements.names, *self.predictions)


def expect(
    edition: str = DEFAULT_EDITION,
    sentences: Sentences | None = None,
    label_words: Mapping[str, Sequence[str]] = LABEL_WORDS,
    prompts: tuple[str, ...] = PROMPT_TEXTS,
) -> Expected:
    """What the submissions of an edition must contain."""
    requirements = REQUIREMENTS[edition]
    files = prediction_files(label_words, requirements.options)
    return Expected(files, sentences or {}, prompts, requirements)


@dataclass(frozen=True)
class Checked:
    """The problems of a submission, errors first; the labels of each valid prediction file, by
    file name; the files among them with a different prompt; the experiments of the addition
    task, if the edition has it; and the files with the lines of another data file.
    """

    problems: list[Problem]
    labels: dict[str, list[int]]
    other_prompts: list[str]
    addition: AdditionTask | None = None
    foreign: dict[str, OtherLinesError] = field(default_factory=dict)

    @property
    def comparable(self) -> dict[str, list[int]]:
        """The labels that reference outputs can be compared with."""
        return {k: v for k, v in self.labels.items() if k not in self.other_prompts}


def check_submission(submission: Submission, student_id: str, expected: Expected) -> Checked:
    """Check names, source files, texts and prediction files. Never raises for bad content."""
    required, task = set(expected.names), None
    if submission.names and ADDITION_MODELS in expected.requirements.folders:
        task = read_addition_task(submission.files, submission.names, expected.additions)
    checked = Checked(
        [replace(p, severity="error") if p.where in required else p for p in submission.problems],
        {},
        [],
        task,
    )
    problems = checked.problems
    if submission.names:
        problems += _check_names(submission, student_id, expected)
        problems += _check_sources(submission, expected.requirements)
        problems += task.problems if task else []
        for name in expected.names:
            content = submission.files.get(name)
            if content is None:
                continue
            if name in GENERATED_FILES:
                problems += _check_generated(name, content, expected.prompts)
            elif name in expected.predictions:
                problems += _check_predictions(name, content, expected, checked)
            elif not content.strip():
                message = "is empty: is this the file you meant?"
                problems.append(Problem("warning", name, message))
        problems += _check_foreign(checked, expected)
    problems.sort(key=lambda problem: problem.severity)  # "error" < "warning"
    return checked


def _check_names(submission: Submission, student_id: str, expected: Expected) -> Iterator[Problem]:
    if submission.top not in ("", student_id):
        message = f"its top folder is {quoted(submission.top)}, not {quoted(student_id)}: rename it"
        yield Problem("error", "zip", message)
    allowed = expected.requirements.max_bytes
    if submission.size > allowed:
        bound = f"at most {allowed:,} ({allowed // MEBIBYTE} MB) are allowed"
        message = f"has {submission.size:,} bytes, {bound}"
        if submission.largest:
            sizes = (f"{quoted(name)} ({size / 1e6:.1f} MB)" for name, size in submission.largest)
            message += f"; the largest in it: {', '.join(sizes)}"
        remedy = "leave out checkpoints and all files that are not required"
        yield Problem("error", "zip", f"{message}: {remedy}")
    required = expected.names
    missing = [name for name in required if name not in submission.names]
    if missing:
        message = f"{len(missing)} of {len(required)} required files are missing"
        yield Problem("error", "zip", f"{message}: {', '.join(missing)}{_how_to_get(missing)}")
    weights = [
        name
        for name in submission.names
        if is_checkpoint(name) and not expected.requirements.is_in_folder(name)
    ]
    if weights:
        message = "checkpoints are not submitted, one alone can exceed the allowed size: remove"
        yield Problem("error", "zip", f"{message} {quoted_list(weights)}")


def _how_to_get(missing: list[str]) -> str:
    sources = {
        ".data": "setup.sh downloads the .data file",
        ".txt": "the commands of docs/assignment.md write the .txt files",
    }
    hints = [hint for end, hint in sources.items() if any(name.endswith(end) for name in missing)]
    return f"; {', '.join(hints)}" if hints else ""


def _check_predictions(
    name: str, content: bytes, expected: Expected, checked: Checked
) -> Iterator[Problem]:
    """The problems of a prediction file; if it is valid, its labels are added to `checked`."""
    for artifact in editor_artifacts(content):
        yield Problem("warning", name, artifact)
    try:
        found = read_predictions(expected.predictions[name], content, expected.sentences)
    except DifferentPromptError as error:
        yield Problem("warning", name, str(error))
        checked.other_prompts.append(name)
        found = error.labels
    except OtherLinesError as error:
        if error.data_name != expected.predictions[name].data_name:
            checked.foreign[name] = error
            return
        yield Problem("error", name, str(error))
        if error.labels is None:
            return
        found = error.labels
    except ValueError as error:
        yield Problem("error", name, str(error))
        return
    checked.labels[name] = found
    if len(found) > 1 and len(set(found)) == 1:
        message = f"only one class is predicted, {found[0]} on all {len(found)} lines"
        yield Problem("warning", name, f"{message}: is this the output of a trained model?")


def _check_foreign(checked: Checked, expected: Expected) -> Iterator[Problem]:
    """Files with the lines of another data file; two that are swapped are scored as they are."""
    for name, error in checked.foreign.items():
        own = expected.predictions[name].data_name
        other = name.replace(own, error.data_name, 1)
        back = checked.foreign.get(other)
        if back is None or back.data_name != own or back.labels is None or error.labels is None:
            yield Problem("error", name, str(error))
            continue
        labels = expected.predictions[name].labels
        if not all(str(label) in labels for label in back.labels):
            yield Problem("error", name, str(error))
            continue
        checked.labels[name] = back.labels
        message = f"its lines are those of {error.data_name}, and {other} has those of {own}"
        remedy = "the two are swapped and scored as what they hold: rename them"
        yield Problem("error", name, f"{message}: {remedy}")


def _n_equal(a: str, b: str) -> int:
    """The number of equal characters at the start."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def first_difference(text: str, prompts: Sequence[str]) -> str | None:
    """Where a text that starts with none of the prompts leaves the nearest; None if it is another
    text from the start.
    """
    n, nearest = max((_n_equal(text, prompt), prompt) for prompt in prompts)
    if n < LIKE_THE_PROMPT:
        return None
    if n == len(text):
        found = f"ends after {quoted(text[-20:])}"
    else:
        found = f"has {quoted(text[n - 10 : n + 20])} at character {n - 9}"
    return f"{found} where the prompt has {quoted(nearest[n - 10 : n + 20])}"


def _check_generated(name: str, content: bytes, prompts: tuple[str, ...]) -> Iterator[Problem]:
    """Check that a generated text starts with one of the prompts."""
    if content.startswith(BOM):
        yield Problem("warning", name, BOM_WARNING)
    try:
        text = decode_text(content.removeprefix(BOM))
    except ValueError as error:
        yield Problem("error", name, str(error))
        return
    if not text.startswith(prompts):
        starts = " or ".join(quoted(prompt[:20]) for prompt in prompts)
        again = "write it with run_llama.py --option generate"
        if difference := first_difference(text, prompts):
            message = f"{difference}, it must start with the prompt"
        else:
            found = f"starts with {quoted(text[:20])}" if text.strip() else "is empty"
            message = f"{found}, it must start with the prompt, {starts}"
        yield Problem("error", name, f"{message}: {again}")


def _check_sources(submission: Submission, requirements: Requirements) -> Iterator[Problem]:
    sources = follow_imports(requirements.sources, submission.files.get)
    for name, source in sources.items():
        if source.fault:
            yield Problem("error", name, source.fault)
    present = {name.split("/")[0].removesuffix(".py") for name in submission.names}
    imported = frozenset().union(*(source.imports for source in sources.values()))
    roots = {module for module in imported if "." not in module}
    unknown = sorted(roots - present - requirements.packages - STANDARD_LIBRARY)
    if unknown:
        message = "imports modules that are neither in the zip nor installed for the assignment"
        remedy = "--with-imports adds modules of your own"
        yield Problem("warning", "zip", f"{message}: {quoted_list(unknown)}; {remedy}")
