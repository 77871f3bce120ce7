"""What a submission must hold, and what is wrong with one; nothing of it is run."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from config import EDITIONS
from mini_llama.assignment.options import default_of
from mini_llama.submissions.archive import Problem, Submission
from mini_llama.submissions.imports import follow_imports
from mini_llama.submissions.prediction_files import (
    PREDICTION_FILES,
    PredictionFiles,
    Sentences,
    harmless_oddities,
    read_predictions,
)
from mini_llama.submissions.untrusted_text import decode_text, listed, shown

SOURCE_FILES = (
    "run_llama.py",
    "base_llama.py",
    "llama.py",
    "rope.py",
    "lora.py",
    "classifier.py",
    "config.py",
    "optimizer.py",
    "sanity_check.py",
    "tokenizer.py",
    "utils.py",
)
OTHER_FILES = ("README.md", "structure.md", "checklist.md", "sanity_check.data", "setup.sh")
GENERATED_FILES = (
    default_of("generated_sentence_low_temp_out"),
    default_of("generated_sentence_high_temp_out"),
)
GREEDY_TEXT = GENERATED_FILES[0]
PROMPT_TEXTS = tuple(dict.fromkeys(edition.prompt_text for edition in EDITIONS.values()))
REQUIRED_FILES = (*SOURCE_FILES, *OTHER_FILES, *GENERATED_FILES, *PREDICTION_FILES)
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
PACKAGES = {"torch", "numpy", "sentencepiece", "tqdm", "sklearn", "jinja2"}
EXTRAS = {
    "bitsandbytes",
    "matplotlib",
    "pytest",
    "safetensors",
    "tensorboard",
    "tiktoken",
    "tokenizers",
}


@dataclass(frozen=True)
class Expected:
    """What submissions are held to: prediction files by name, the `sentences` that they must
    repeat (where a data file is not there, the known number of its lines counts), and the
    beginnings that a generated text may have.
    """

    predictions: PredictionFiles = field(default_factory=lambda: PREDICTION_FILES)
    sentences: Sentences = field(default_factory=dict)
    prompts: tuple[str, ...] = PROMPT_TEXTS

    @property
    def names(self) -> tuple[str, ...]:
        """All files that are asked for."""
        return (*SOURCE_FILES, *OTHER_FILES, *GENERATED_FILES, *self.predictions)


@dataclass(frozen=True)
class Checked:
    """Everything wrong with a submission, errors first, and the labels of every prediction file
    without a fault, by file name.
    """

    problems: list[Problem]
    labels: dict[str, list[int]]


def check_submission(submission: Submission, student_id: str, expected: Expected) -> Checked:
    """Check names, sources, texts and prediction files. Never raises for what it holds."""
    problems = list(submission.problems)
    labels: dict[str, list[int]] = {}
    if submission.names:
        problems += _check_names(submission, student_id, expected.names)
        problems += _check_sources(submission, expected.names)
        for name in expected.names:
            content = submission.files.get(name)
            if content is None:
                continue
            if name in GENERATED_FILES:
                problems += _check_generated(name, content, expected.prompts)
            elif name in expected.predictions:
                problems += _check_predictions(name, content, expected, labels)
            elif not content.strip():
                what = "is empty: is this the file you meant?"
                problems.append(Problem("warning", name, what))
    problems.sort(key=lambda problem: problem.severity)  # "error" < "warning"
    return Checked(problems, labels)


def _check_names(
    submission: Submission, student_id: str, required: Sequence[str]
) -> Iterator[Problem]:
    if submission.top not in ("", student_id):
        what = f"its top folder is {shown(submission.top)}, not {shown(student_id)}: rename it"
        yield Problem("error", "zip", what)
    missing = [name for name in required if name not in submission.names]
    if missing:
        what = f"{len(missing)} of {len(required)} required files are missing"
        whence = "setup.sh brings the .data file, the commands of docs/assignment.md the .txt files"
        yield Problem("error", "zip", f"{what}: {', '.join(missing)}; {whence}")
    checkpoints = list(filter(_is_checkpoint, submission.names))
    if checkpoints:
        what = "checkpoints are not handed in, one alone can pass the 10 MB: remove"
        yield Problem("error", "zip", f"{what} {listed(checkpoints)}")


def _is_checkpoint(name: str) -> bool:
    return name.casefold().endswith(CHECKPOINT_SUFFIXES)


def _check_predictions(
    name: str, content: bytes, expected: Expected, labels: dict[str, list[int]]
) -> Iterator[Problem]:
    """The faults of a prediction file; its labels, if it has none, are put into `labels`."""
    for oddity in harmless_oddities(content):
        yield Problem("warning", name, oddity)
    try:
        found = read_predictions(expected.predictions[name], content, expected.sentences)
    except ValueError as error:
        yield Problem("error", name, str(error))
        return
    labels[name] = found
    if len(found) > 1 and len(set(found)) == 1:
        what = f"only one class is predicted, {found[0]} on all {len(found)} lines"
        yield Problem("warning", name, f"{what}: is this the output of a trained model?")


def _check_generated(name: str, content: bytes, prompts: tuple[str, ...]) -> Iterator[Problem]:
    """A generated text starts with one of the prompts."""
    try:
        text = decode_text(content)
    except ValueError as error:
        yield Problem("error", name, str(error))
        return
    if not text.startswith(prompts):
        found = f"starts with {shown(text[:20])}" if text.strip() else "is empty"
        starts = " or ".join(shown(prompt[:20]) for prompt in prompts)
        again = "write it with run_llama.py --option generate"
        what = f"{found}, it must start with the prompt, {starts}: {again}"
        yield Problem("error", name, what)


def _check_sources(submission: Submission, required: Sequence[str]) -> Iterator[Problem]:
    sources = follow_imports(SOURCE_FILES, submission.files.get)
    for name, source in sources.items():
        if source.fault:
            yield Problem("error", name, source.fault)
    present = {name.split("/")[0].removesuffix(".py") for name in submission.names}
    imported = frozenset().union(*(source.imports for source in sources.values()))
    roots = {module for module in imported if "." not in module}
    unknown = sorted(roots - present - PACKAGES - EXTRAS - sys.stdlib_module_names)
    if unknown:
        what = f"imports what is neither in it nor installed for the assignment: {listed(unknown)}"
        yield Problem("warning", "zip", f"{what}; --with-imports adds modules of your own")
    asked = {*required, *sources, *filter(_is_checkpoint, submission.names)}
    if unasked := [name for name in submission.names if name not in asked]:
        yield Problem("warning", "zip", f"not asked for, leave out: {listed(unasked)}")
