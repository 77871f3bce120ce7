"""Make the submission zip from a folder, or check a finished one.

    python prepare_submit.py FOLDER ID      writes ID.zip
    python prepare_submit.py FILE.zip [ID]  checks it

It looks at names, formats and line counts, not at accuracies, and runs no submitted code.
Exit status: 0 no errors, 1 errors, 2 wrong usage or a file that cannot be read or written.
"""

import ast
import io
import re
import stat
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat, zip_longest
from pathlib import Path

from config import EDITIONS
from mini_llama.assignment.options import OUTPUT_ENDINGS, default_of
from mini_llama.submissions.archive import (
    Problem,
    Submission,
    decode_text,
    has_errors,
    listed,
    parse_submission,
    shown,
)

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
PROMPT_TEXTS = tuple(dict.fromkeys(edition.prompt_text for edition in EDITIONS.values()))

# The rules of sentiment_data.py for prompts and data lines stand here a second time, because it
# imports torch, which a check need not have; a test holds them equal.
SEPARATOR = " ||| "
N_LABELS = {"sst": 5, "cfimdb": 2}
PROMPT_SUFFIXES = {
    5: " Is this movie awful, bad, average, good, or excellent? This movie is ",
    2: " Is this movie bad or good? This movie is ",
}
N_LINES = {"sst-dev": 1101, "sst-test": 2210, "cfimdb-dev": 245, "cfimdb-test": 488}
Sentences = Mapping[str, Sequence[str]]  # of the data files, by data name ("sst-dev")


@dataclass(frozen=True)
class PredictionFile:
    """What is known of a prediction file; `suffix` follows the data's sentence on every line."""

    data_name: str
    n_labels: int
    suffix: str

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.n_labels)))


PredictionFiles = Mapping[str, PredictionFile]  # by file name


def prediction_files(n_labels: Mapping[str, int]) -> dict[str, PredictionFile]:
    """What is handed in for each data set, by the number of its labels."""
    return {
        f"{dataset}-{split}-{method}-output.txt": PredictionFile(
            f"{dataset}-{split}", n, PROMPT_SUFFIXES[n] if option == "prompt" else ""
        )
        for dataset, n in n_labels.items()
        for split in ("dev", "test")
        for option, method in OUTPUT_ENDINGS.items()
    }


PREDICTION_FILES = prediction_files(N_LABELS)
REQUIRED_FILES = (*SOURCE_FILES, *OTHER_FILES, *GENERATED_FILES, *PREDICTION_FILES)
BOM = b"\xef\xbb\xbf"
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")

# a syntax tree takes up to 800 times its source's memory, and a long f-string quadratic time
MAX_SOURCE_BYTES = 128 * 1024
PACKAGES = {"torch", "numpy", "sentencepiece", "tqdm", "sklearn"}
EXTRAS = {"matplotlib", "pytest", "safetensors", "tensorboard", "tiktoken", "tokenizers"}
VALID_ID = re.compile(r'[^/\\:*?"<>|]{0,99}[^/\\:*?"<>|.]')  # Windows drops a dot at the end


def check_submission(
    submission: Submission,
    student_id: str,
    sentences: Sentences,
    predictions: PredictionFiles = PREDICTION_FILES,
    prompts: tuple[str, ...] = PROMPT_TEXTS,
) -> list[Problem]:
    """Everything wrong with a submission, errors first; an empty list if nothing is.

    Where `sentences` has none of a data file, the known number of its lines is used. Never raises
    for what the submission holds.
    """
    problems = list(submission.problems)
    required = (*SOURCE_FILES, *OTHER_FILES, *GENERATED_FILES, *predictions)
    if submission.names:
        problems += _check_names(submission, student_id, required)
        problems += _check_sources(submission, required)
        for name in required:
            content = submission.files.get(name)
            if content is not None and name in GENERATED_FILES:
                problems += _check_generated(name, content, prompts)
            elif content is not None:
                problems += _check_file(name, content, predictions.get(name), sentences)
    return sorted(problems, key=lambda problem: problem.severity)  # "error" < "warning"


def _check_names(
    submission: Submission, student_id: str, required: Sequence[str]
) -> Iterator[Problem]:
    if submission.top not in ("", student_id):
        what = f"its top folder is {shown(submission.top)}, not {shown(student_id)}: rename it"
        yield Problem("error", "zip", what)
    missing = [name for name in required if name not in submission.names]
    if missing:
        what = f"{len(missing)} of {len(required)} required files are missing"
        whence = "setup.sh brings the .data file, the eight commands of README.md the .txt files"
        yield Problem("error", "zip", f"{what}: {', '.join(missing)}; {whence}")
    checkpoints = list(filter(_is_checkpoint, submission.names))
    if checkpoints:
        what = "checkpoints are not handed in, one alone can pass the 10 MB: remove"
        yield Problem("error", "zip", f"{what} {listed(checkpoints)}")


def _is_checkpoint(name: str) -> bool:
    return name.casefold().endswith(CHECKPOINT_SUFFIXES)


def _check_file(
    name: str, content: bytes, file: PredictionFile | None, sentences: Sentences
) -> Iterator[Problem]:
    try:
        if file is not None:
            for oddity in harmless_oddities(content):
                yield Problem("warning", name, oddity)
            labels = read_predictions(file, content, sentences)
            if len(labels) > 1 and len(set(labels)) == 1:
                what = f"only one class is predicted, {labels[0]} on all {len(labels)} lines"
                yield Problem("warning", name, f"{what}: is this the output of a trained model?")
        elif not content.strip():
            yield Problem("warning", name, "is empty: is this the file you meant?")
    except ValueError as error:
        yield Problem("error", name, str(error))


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


# --- prediction files ---


def harmless_oddities(content: bytes) -> Iterator[str]:
    """What an editor did to a prediction file, which is read in spite of it."""
    if content.startswith(BOM):
        yield "starts with a byte order mark, which is ignored: save it as UTF-8 without one"
    blank = content[len(content.rstrip(b"\r\n")) :].count(b"\n") - 1
    if blank > 0 and content.strip():
        yield f"empty lines at its end, which are ignored: {blank}: remove them"


def read_predictions(file: PredictionFile, content: bytes, sentences: Sentences) -> list[int]:
    """The labels of a prediction file; `sentences` as for `check_submission`.

    Raises ValueError that names the first faulty line.
    """
    text = decode_text(content.removeprefix(BOM))
    known = sentences.get(file.data_name)
    n_expected = N_LINES[file.data_name] if known is None else len(known)
    lines = text.rstrip("\r\n").split("\n")
    again = f"write it again with run_llama.py on {file.data_name}.txt"
    if not text.strip():
        raise ValueError(f"is empty: {again}")
    if len(lines) != n_expected:
        what = f"has {len(lines)} lines, {file.data_name}.txt has {n_expected}"
        raise ValueError(f"{what}: {again}")
    pairs = zip(lines, known or repeat(None), strict=False)
    faults = {i: fault for i, pair in enumerate(pairs, 1) if (fault := _line_fault(file, *pair))}
    if faults:
        i = min(faults)
        more = f" (and {len(faults) - 1} more of {len(lines)} lines)" if len(faults) > 1 else ""
        raise ValueError(f"line {i}{more}: {faults[i]}: {again}")
    return [int(line.partition(SEPARATOR)[0]) for line in lines]


def _line_fault(file: PredictionFile, line: str, sentence: str | None) -> str | None:
    """What is wrong with one line; white space at its end is not (Windows adds, editors strip)."""
    label, separator, found = line.partition(SEPARATOR)
    if not separator:
        return f"{shown(line)} is not of the form PREDICTION{SEPARATOR}SENTENCE"
    if label not in file.labels:
        return f"label {shown(label)} is not one of {', '.join(file.labels)}"
    found, expected = found.rstrip(), ((sentence or "") + file.suffix).rstrip()
    if sentence is None:  # only the prompt is known
        found = found[max(0, len(found) - len(expected)) :]
    if found == expected:
        return None
    pairs = zip_longest(found, expected)
    start = max(0, next(i for i, (a, b) in enumerate(pairs) if a != b) - 10)
    source = f"{file.data_name}.txt" + (" and the prompt" if file.suffix else "")
    what = f"found {shown(found[start:])}, expected {shown(expected[start:])}"
    return f"sentence differs from {source}: {what}"


def read_data(folder: str | Path) -> Sentences:
    """The sentences of the data files that are in `folder`.

    Raises ValueError for one that is not `LABEL ||| SENTENCE` in UTF-8.
    """
    paths = {name: Path(folder) / f"{name}.txt" for name in N_LINES}
    found = {name: read_examples(path) for name, path in paths.items() if path.is_file()}
    return {name: [sentence for _, sentence in examples] for name, examples in found.items()}


def read_examples(path: Path) -> list[tuple[str, str]]:
    """Label and sentence of every line of a data file. Raises ValueError as `read_data` does."""
    try:
        text = decode_text(path.read_bytes().removeprefix(BOM))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    examples = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        label, separator, sentence = line.partition(SEPARATOR)
        if not separator:
            what = f"{shown(line)} is not of the form LABEL{SEPARATOR}SENTENCE"
            raise ValueError(f"{path} line {number}: {what}; get the data again with setup.sh")
        examples.append((label.strip(), sentence.strip()))
    return examples


# --- Python files ---


@dataclass(frozen=True)
class Source:
    """A Python file: the modules it imports, with their packages, or why it cannot be parsed."""

    imports: frozenset[str] = frozenset()
    fault: str | None = None


def follow_imports(read: Callable[[str], bytes | None]) -> dict[str, Source]:
    """The required sources and the modules beside them that they import, directly or not.

    `read` gives a file's content by its name, None if there is no such file.
    """
    sources: dict[str, Source] = {}
    waiting = list(SOURCE_FILES)
    while waiting:
        name = waiting.pop(0)
        data = None if name in sources else read(name)
        if data is not None:
            sources[name] = parse_source(data)
            waiting += sorted(path for m in sources[name].imports for path in paths_of(m))
    return sources


def paths_of(module: str) -> tuple[str, str]:
    """Where a module may stand, as a file or as a package: a.b → a/b.py, a/b/__init__.py."""
    path = module.replace(".", "/")
    return f"{path}.py", f"{path}/__init__.py"


def parse_source(data: bytes) -> Source:
    """Parse a Python file, which is never run."""
    if len(data) > MAX_SOURCE_BYTES:
        return Source(fault=f"has {len(data):,} bytes, allowed are {MAX_SOURCE_BYTES:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes are the author's business
            tree = ast.parse(decode_text(data).removeprefix("\ufeff"))
    except SyntaxError as error:
        return Source(fault=f"does not parse as Python: line {error.lineno}: {error.msg}")
    except (ValueError, RecursionError, MemoryError) as error:
        return Source(fault=f"does not parse as Python: {error or 'it is nested too deeply'}")
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    parts = [name.split(".") for name in names]
    return Source(frozenset(".".join(p[:end]) for p in parts for end in range(1, len(p) + 1)))


def _check_sources(submission: Submission, required: Sequence[str]) -> Iterator[Problem]:
    sources = follow_imports(submission.files.get)
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


# --- making a zip ---


def make_submission(
    folder: Path, student_id: str, sentences: Sentences, with_imports: bool = False
) -> list[Problem]:
    """Write the required files of `folder` to STUDENT_ID.zip, in one top folder of that name.

    The zip is checked first: if the problems returned hold an error, nothing was written and an
    older zip is as it was. Raises OSError for a file that cannot be read or written.
    """
    content = build_zip(collect_files(folder, with_imports), student_id)
    problems = check_submission(parse_submission(content), student_id, sentences)
    if not has_errors(problems):
        from utils import atomic_write  # torch comes with it, which a mere check need not have

        with atomic_write(f"{student_id}.zip", "wb") as file:
            file.write(content)
    return problems


def collect_files(folder: Path, with_imports: bool) -> dict[str, bytes]:
    """The required files that are there; `with_imports` adds the modules that they import."""

    def read(name: str) -> bytes | None:
        path = folder / name
        return path.read_bytes() if path.is_file() else None

    imported = follow_imports(read) if with_imports else {}
    contents = {name: read(name) for name in {*REQUIRED_FILES, *imported}}
    return {name: content for name, content in contents.items() if content is not None}


def build_zip(files: Mapping[str, bytes], top: str) -> bytes:
    """A zip of `files` in the folder `top`; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(f"{top}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # Unix on every platform, so that the mode below is read
            info.external_attr = (stat.S_IFREG | (0o755 if name.endswith(".sh") else 0o644)) << 16
            archive.writestr(info, files[name], zipfile.ZIP_DEFLATED, compresslevel=9)
    return buffer.getvalue()


def validate_id(student_id: str) -> str:
    """The id without outer white space. Raises ValueError if it cannot name a folder anywhere."""
    student_id = student_id.strip()
    if not (student_id.isprintable() and VALID_ID.fullmatch(student_id)):
        raise ValueError(
            f"ID {shown(student_id)} cannot name a folder everywhere: it must have 1 to 100 "
            'printable characters, none of / \\ : * ? " < > | and no dot at its end'
        )
    return student_id
