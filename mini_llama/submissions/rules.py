"""What a submission must hold, and what is wrong with one; nothing of it is run."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from config import DEFAULT_EDITION, EDITIONS
from mini_llama.assignment.reviews import BOM
from mini_llama.submissions.addition import AdditionTask, read_addition_task
from mini_llama.submissions.archive import Problem, Submission
from mini_llama.submissions.handed_in import (
    ADDITION_MODELS,
    GENERATED_FILES,
    HAND_INS,
    MEBIBYTE,
    HandIn,
    is_checkpoint,
)
from mini_llama.submissions.imports import follow_imports
from mini_llama.submissions.prediction_files import (
    LABEL_WORDS,
    MARKED,
    PREDICTION_FILES,
    AnotherPromptError,
    PredictionFiles,
    Sentences,
    harmless_oddities,
    prediction_files,
    read_predictions,
)
from mini_llama.submissions.untrusted_text import decode_text, listed, shown

GREEDY_TEXT = GENERATED_FILES[0]
PROMPT_TEXTS = tuple(dict.fromkeys(edition.prompt_text for edition in EDITIONS.values()))
# The courses use Python 3.11, whose library had these.
STANDARD_LIBRARY = sys.stdlib_module_names | {"distutils", "imp", "asyncore", "asynchat"}


@dataclass(frozen=True)
class Expected:
    """What submissions are held to: prediction files by name, the `sentences` that they must
    repeat (where a data file is not there, the known number of its lines counts), the beginnings
    that a generated text may have, and the `additions` of the addition task's test, if known.
    """

    predictions: PredictionFiles = field(default_factory=lambda: PREDICTION_FILES)
    sentences: Sentences = field(default_factory=dict)
    prompts: tuple[str, ...] = PROMPT_TEXTS
    hand_in: HandIn = HAND_INS[DEFAULT_EDITION]
    additions: Sequence[str] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All files that are asked for."""
        return (*self.hand_in.names, *self.predictions)


def expect(
    edition: str = DEFAULT_EDITION,
    sentences: Sentences | None = None,
    label_words: Mapping[str, Sequence[str]] = LABEL_WORDS,
    prompts: tuple[str, ...] = PROMPT_TEXTS,
) -> Expected:
    """What the submissions of an edition are held to."""
    hand_in = HAND_INS[edition]
    files = prediction_files(label_words, hand_in.options)
    return Expected(files, sentences or {}, prompts, hand_in)


@dataclass(frozen=True)
class Checked:
    """Everything wrong with a submission, errors first; the labels of every prediction file
    without a fault, by file name; the files among them that were made with another prompt; and the
    experiments of the addition task, where the edition has it.
    """

    problems: list[Problem]
    labels: dict[str, list[int]]
    other_prompts: list[str]
    addition: AdditionTask | None = None

    @property
    def comparable(self) -> dict[str, list[int]]:
        """The labels that reference outputs can be compared with."""
        return {k: v for k, v in self.labels.items() if k not in self.other_prompts}


def check_submission(submission: Submission, student_id: str, expected: Expected) -> Checked:
    """Check names, sources, texts and prediction files. Never raises for what it holds."""
    asked, task = set(expected.names), None
    if submission.names and ADDITION_MODELS in expected.hand_in.folders:
        task = read_addition_task(submission.files, submission.names, expected.additions)
    checked = Checked(
        [replace(p, severity="error") if p.where in asked else p for p in submission.problems],
        {},
        [],
        task,
    )
    problems = checked.problems
    if submission.names:
        problems += _check_names(submission, student_id, expected)
        problems += _check_sources(submission, expected.hand_in)
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
                what = "is empty: is this the file you meant?"
                problems.append(Problem("warning", name, what))
    problems.sort(key=lambda problem: problem.severity)  # "error" < "warning"
    return checked


def _check_names(submission: Submission, student_id: str, expected: Expected) -> Iterator[Problem]:
    if submission.top not in ("", student_id):
        what = f"its top folder is {shown(submission.top)}, not {shown(student_id)}: rename it"
        yield Problem("error", "zip", what)
    allowed = expected.hand_in.max_bytes
    if submission.size > allowed:
        what = f"has {submission.size:,} bytes, allowed are {allowed:,} ({allowed // MEBIBYTE} MB)"
        whence = "leave out checkpoints and whatever else is not asked for"
        yield Problem("error", "zip", f"{what}: {whence}")
    required = expected.names
    missing = [name for name in required if name not in submission.names]
    if missing:
        what = f"{len(missing)} of {len(required)} required files are missing"
        yield Problem("error", "zip", f"{what}: {', '.join(missing)}{_whence(missing)}")
    weights = [
        name
        for name in submission.names
        if is_checkpoint(name) and not expected.hand_in.is_in_folder(name)
    ]
    if weights:
        what = "checkpoints are not handed in, one alone can pass the allowed size: remove"
        yield Problem("error", "zip", f"{what} {listed(weights)}")


def _whence(missing: list[str]) -> str:
    sources = {
        ".data": "setup.sh brings the .data file",
        ".txt": "the commands of docs/assignment.md write the .txt files",
    }
    said = [text for end, text in sources.items() if any(name.endswith(end) for name in missing)]
    return f"; {', '.join(said)}" if said else ""


def _check_predictions(
    name: str, content: bytes, expected: Expected, checked: Checked
) -> Iterator[Problem]:
    """The faults of a prediction file; its labels, if it has none, are put into `checked`."""
    for oddity in harmless_oddities(content):
        yield Problem("warning", name, oddity)
    try:
        found = read_predictions(expected.predictions[name], content, expected.sentences)
    except AnotherPromptError as error:
        yield Problem("warning", name, str(error))
        checked.other_prompts.append(name)
        found = error.labels
    except ValueError as error:
        yield Problem("error", name, str(error))
        return
    checked.labels[name] = found
    if len(found) > 1 and len(set(found)) == 1:
        what = f"only one class is predicted, {found[0]} on all {len(found)} lines"
        yield Problem("warning", name, f"{what}: is this the output of a trained model?")


def _check_generated(name: str, content: bytes, prompts: tuple[str, ...]) -> Iterator[Problem]:
    """A generated text starts with one of the prompts."""
    if content.startswith(BOM):
        yield Problem("warning", name, MARKED)
    try:
        text = decode_text(content.removeprefix(BOM))
    except ValueError as error:
        yield Problem("error", name, str(error))
        return
    if not text.startswith(prompts):
        found = f"starts with {shown(text[:20])}" if text.strip() else "is empty"
        starts = " or ".join(shown(prompt[:20]) for prompt in prompts)
        again = "write it with run_llama.py --option generate"
        what = f"{found}, it must start with the prompt, {starts}: {again}"
        yield Problem("error", name, what)


def _check_sources(submission: Submission, hand_in: HandIn) -> Iterator[Problem]:
    sources = follow_imports(hand_in.sources, submission.files.get)
    for name, source in sources.items():
        if source.fault:
            yield Problem("error", name, source.fault)
    present = {name.split("/")[0].removesuffix(".py") for name in submission.names}
    imported = frozenset().union(*(source.imports for source in sources.values()))
    roots = {module for module in imported if "." not in module}
    unknown = sorted(roots - present - hand_in.packages - STANDARD_LIBRARY)
    if unknown:
        what = f"imports what is neither in it nor installed for the assignment: {listed(unknown)}"
        yield Problem("warning", "zip", f"{what}; --with-imports adds modules of your own")
