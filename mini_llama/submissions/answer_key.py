"""The answer key that submissions are graded by: gold labels and reference outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from config import EDITIONS
from mini_llama import bundled
from mini_llama.addition.additions import read_additions
from mini_llama.assignment.reference_outputs import (
    ReferenceOutputs,
    real_data_set,
    reference_outputs,
    token_counts,
)
from mini_llama.assignment.reviews import read_label_names
from mini_llama.places import DATA
from mini_llama.submissions.prediction_files import (
    LABEL_WORDS,
    N_LINES,
    read_data_file,
    read_predictions,
)
from mini_llama.submissions.requirements import ADDITION_MODELS
from mini_llama.submissions.rules import GREEDY_TEXT, PROMPT_TEXTS, Expected, expect
from mini_llama.submissions.untrusted_text import decode_text, quoted
from mini_llama.text_files import BOM

ADDITION_TEST = "addition_test.txt"


@dataclass(frozen=True)
class AnswerKey:
    """What all submissions are compared with. `gold` holds the labels of the existing data files,
    by data name; `references` are by edition, and their labels by file. `tokens` are the token
    counts of the courses' data sets, by data name.
    """

    edition: str
    expected: Expected
    gold: Mapping[str, Sequence[int]]
    references: Mapping[str, ReferenceOutputs] = field(default_factory=dict)
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def has_addition(self) -> bool:
        """Whether the edition has the addition task."""
        return ADDITION_MODELS in self.expected.requirements.folders


def read_answer_key(edition: str, data: Path | None, reference: Path | None) -> AnswerKey:
    """Read the gold data of the folder `data` (by default the project's) and the reference outputs:
    the built-in ones if the data is the courses', overridden by those of the folder `reference`.

    If no folder is given and there is no real data, the bundled data is used. Raises OSError or
    ValueError for unusable files.
    """
    folder = data or DATA
    label_words, prompts = LABEL_WORDS, PROMPT_TEXTS
    if not any((folder / f"{name}.txt").is_file() for name in N_LINES):
        if data is not None:
            raise ValueError(f"{data} holds none of {', '.join(f'{n}.txt' for n in N_LINES)}")
        bundled.announce("data")
        folder, prompts = bundled.FOLDER, (bundled.PROMPT_TEXT,)
        label_words = {"demo": read_label_names(bundled.PATHS["label_names"])}
    expected = expect(edition, {}, label_words, prompts)
    sentences, gold = {}, {}
    for name, known in {
        file.data_name: file.labels for file in expected.predictions.values()
    }.items():
        path = folder / f"{name}.txt"
        if path.is_file():
            examples = read_data_file(path)
            sentences[name] = [sentence for _, sentence in examples]
            gold[name] = _gold_labels(path, examples, known)
    expected = replace(expected, sentences=sentences)
    path = folder / ADDITION_TEST
    if ADDITION_MODELS in expected.requirements.folders and path.is_file():
        expected = replace(expected, additions=read_additions(path))
    real = _real_files(expected)
    references = _built_in(edition, real)
    for name, own in (read_references(reference, edition, expected) if reference else {}).items():
        references[name] = _over(own, references.get(name, ReferenceOutputs({}, None)))
    names = [expected.predictions[file].data_name for file in real]
    tokens = {name: token_counts()[name] for name in names}
    return AnswerKey(edition, expected, gold, references, tokens)


def _real_files(expected: Expected) -> list[str]:
    """The prompting outputs if the data is the courses', else an empty list. A missing data file
    counts as the courses' if another one is present.
    """
    prompting = {name: file for name, file in expected.predictions.items() if file.suffix}
    for file in prompting.values():
        sentences = expected.sentences.get(file.data_name)
        questions = [f"{text}{file.suffix}" for text in sentences or ()]
        if sentences is not None and real_data_set(questions) != file.data_name:
            return []
    return list(prompting) if expected.sentences else []


def _built_in(edition: str, files: Sequence[str]) -> dict[str, ReferenceOutputs]:
    """The built-in references for these prompting outputs; none if the edition has none itself."""
    known = reference_outputs()
    if not files or edition not in known:
        return {}
    names = {file: file.removesuffix("-prompting-output.txt") for file in files}
    return {
        edition: replace(
            reference,
            labels={file: reference.labels[name] for file, name in names.items()},
            runs={file: reference.runs[name] for file, name in names.items()},
        )
        for edition, reference in known.items()
    }


def _over(own: ReferenceOutputs, known: ReferenceOutputs) -> ReferenceOutputs:
    """The user's own outputs, completed by the known ones."""
    runs = {file: n for file, n in known.runs.items() if file not in own.labels}
    text, n = (known.text, known.text_runs) if own.text is None else (own.text, 0)
    return ReferenceOutputs({**known.labels, **own.labels}, text, runs, n)


def _gold_labels(
    path: Path, examples: Sequence[tuple[str, str]], known: Sequence[str]
) -> list[int]:
    for number, (label, _) in enumerate(examples, 1):
        if label not in known:
            message = f"label {quoted(label)} is not one of {', '.join(known)}"
            raise ValueError(f"{path} line {number}: {message}; get the data again with setup.sh")
    return [int(label) for label, _ in examples]


def read_references(folder: Path, edition: str, expected: Expected) -> dict[str, ReferenceOutputs]:
    """Reference outputs by edition, from subfolders named after editions, or else from `folder`
    itself, as those of `edition`.

    Raises OSError or ValueError for unusable files.
    """
    if not folder.is_dir():
        raise ValueError(
            f"--reference {folder} is not a folder: give a folder of reference outputs"
        )
    folders = {name: folder / name for name in EDITIONS if (folder / name).is_dir()}
    folders = folders or {edition: folder}
    return {name: _read_reference(path, expected) for name, path in folders.items()}


def _read_reference(folder: Path, expected: Expected) -> ReferenceOutputs:
    labels: dict[str, list[int]] = {}
    text = None
    prompting = {name: file for name, file in expected.predictions.items() if file.suffix}
    for name in (*prompting, GREEDY_TEXT):
        path = folder / name
        if not path.is_file():
            continue
        content = path.read_bytes()
        try:
            if name == GREEDY_TEXT:
                text = normal_text(content)
            else:
                labels[name] = read_predictions(prompting[name], content, expected.sentences)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if not labels and text is None:
        message = f"holds neither {GREEDY_TEXT} nor a prompting output"
        raise ValueError(f"--reference {folder} {message}: write them with run_llama.py")
    return ReferenceOutputs(labels, text)


def normal_text(content: bytes) -> str:
    """A generated text with its line endings normalized. Raises ValueError if it is not UTF-8."""
    return decode_text(content.removeprefix(BOM)).replace("\r\n", "\n").rstrip("\n")
