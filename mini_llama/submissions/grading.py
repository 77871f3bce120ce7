"""Grade one submission: its outputs against gold labels, reference figures and reference outputs.

It reads what was handed in, writes nothing, and runs nothing of it unless it is given a plan to
(student_code.py). It needs no torch. It does not know how marks follow from what it finds.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from config import EDITIONS
from mini_llama import bundled
from mini_llama.assignment.figures import REFERENCE, is_placeholder, verdict
from mini_llama.assignment.options import OUTPUT_ENDINGS
from mini_llama.places import DATA
from mini_llama.submissions.archive import (
    Problem,
    Submission,
    decode_text,
    has_errors,
    listed,
    one_line,
    read_folder,
    read_submission,
    shorten,
    shown,
)
from mini_llama.submissions.rules import (
    GENERATED_FILES,
    N_LABELS,
    N_LINES,
    PROMPT_TEXTS,
    PredictionFiles,
    Sentences,
    check_submission,
    prediction_files,
    read_examples,
    read_predictions,
)
from mini_llama.submissions.student_code import Check, RunPlan, run_checks

# Published runs of one commit differ in 0 to 2 of 1,101 lines after prompting, and in 83 to 391
# after training: prompting can be compared line by line, and equal trained outputs are rare.
DRIFT = 0.01
INDEPENDENT_RUNS = "independent runs differ in 83 to 391 of 1,101 lines"
N_DEMO_LABELS = {"demo": 5}
GREEDY_TEXT = GENERATED_FILES[0]
MAX_PROBLEMS = 50  # of one submission; a zip can have a thousand


@dataclass(frozen=True)
class Reference:
    """One edition's own outputs: labels by prompting file, and the text at temperature 0."""

    labels: Mapping[str, Sequence[int]]
    text: str | None


@dataclass(frozen=True)
class Standard:
    """What all submissions are graded by; `gold` has the labels of the data files that are there,
    `references` are by edition, and generated texts start with one of `prompts`.
    """

    edition: str
    files: PredictionFiles
    sentences: Sentences
    gold: Mapping[str, Sequence[int]]
    references: Mapping[str, Reference]
    prompts: tuple[str, ...] = PROMPT_TEXTS


@dataclass(frozen=True)
class Output:
    """One prediction file. `verdict`: "within", "below", "above", "no figure" (to compare with),
    "placeholder" (labels, never scored), "no gold" (labels here), "missing" or "faulty".

    `figure` is the mean that the band is around; `digest` tells equal predictions.
    """

    file: str
    verdict: str
    accuracy: float | None = None
    macro_f1: float | None = None
    figure: float | None = None
    one_class: bool = False
    digest: str | None = None


@dataclass(frozen=True)
class Agreement:
    """A file against the reference outputs. `verdict`: "equal", "drift", or "differs".

    `share`: of lines that are equal to edition `against`'s, or of words up to the first other one.
    """

    file: str
    verdict: str
    share: float
    against: str
    looks_like: tuple[str, ...]
    message: str


@dataclass(frozen=True)
class Grade:
    """What there is to say of one submission; if `refusal` says why not, nothing else is."""

    name: str
    size: int = 0
    refusal: str | None = None
    problems: tuple[Problem, ...] = ()
    outputs: tuple[Output, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    checks: tuple[Check, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        if self.refusal is not None:
            return "refused"
        return "errors" if has_errors(self.problems) else "ok"


# --- what submissions are measured by ---


def read_standard(edition: str, data: Path | None, reference: Path | None) -> Standard:
    """Gold data of the folder `data`, by default the project's, and reference outputs.

    Where no folder was named and no real data is there, the bundled data stands in. Raises OSError
    or ValueError for files that cannot be graded by.
    """
    folder = data or DATA
    n_labels, prompts = N_LABELS, PROMPT_TEXTS
    if not any((folder / f"{name}.txt").is_file() for name in N_LINES):
        if data is not None:
            raise ValueError(f"{data} holds none of {', '.join(f'{n}.txt' for n in N_LINES)}")
        bundled.announce("data")
        folder, n_labels, prompts = bundled.FOLDER, N_DEMO_LABELS, (bundled.PROMPT_TEXT,)
    files = prediction_files(n_labels)
    sentences, gold = {}, {}
    for name in dict.fromkeys(file.data_name for file in files.values()):
        path = folder / f"{name}.txt"
        if path.is_file():
            examples = read_examples(path)
            sentences[name] = [sentence for _, sentence in examples]
            gold[name] = _gold_labels(path, examples, n_labels[name.split("-")[0]])
    standard = Standard(edition, files, sentences, gold, {}, prompts)
    references = _read_references(reference, standard) if reference else {}
    return replace(standard, references=references)


def _gold_labels(path: Path, examples: Sequence[tuple[str, str]], n_labels: int) -> list[int]:
    known = {str(label): label for label in range(n_labels)}
    for number, (label, _) in enumerate(examples, 1):
        if label not in known:
            what = f"label {shown(label)} is not one of {', '.join(known)}"
            raise ValueError(f"{path} line {number}: {what}; get the data again with setup.sh")
    return [known[label] for label, _ in examples]


def _read_references(folder: Path, standard: Standard) -> dict[str, Reference]:
    """By edition, from folders of their names, or from `folder` itself for the one in force."""
    if not folder.is_dir():
        raise ValueError(f"--reference {folder} is not a folder: name one of reference outputs")
    folders = {edition: folder / edition for edition in EDITIONS if (folder / edition).is_dir()}
    folders = folders or {standard.edition: folder}
    return {edition: _read_reference(path, standard) for edition, path in folders.items()}


def _read_reference(folder: Path, standard: Standard) -> Reference:
    labels, text = {}, None
    prompting = {name: file for name, file in standard.files.items() if file.suffix}
    for name in (*prompting, GREEDY_TEXT):
        path = folder / name
        if not path.is_file():
            continue
        content = path.read_bytes()
        try:
            if name == GREEDY_TEXT:
                text = _normal_text(content)
            else:
                labels[name] = read_predictions(prompting[name], content, standard.sentences)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if not labels and text is None:
        what = f"holds neither {GREEDY_TEXT} nor a prompting output"
        raise ValueError(f"--reference {folder} {what}: write them with run_llama.py")
    return Reference(labels, text)


def _normal_text(content: bytes) -> str:
    return decode_text(content).replace("\r\n", "\n").rstrip("\n")


# --- one submission ---


def grade_submission(
    path: Path, name: str, standard: Standard, plan: RunPlan | None = None
) -> Grade:
    """Grade a zip or a folder; with `plan` its code is run as well. Never raises."""
    try:
        submission = _read(path)
        size = path.stat().st_size if path.is_file() else sum(map(len, submission.files.values()))
        if refusal := _refusal(submission):
            return Grade(name, size, refusal)
        grade = grade_files(submission, name, size, standard)
        return replace(grade, checks=run_checks(submission, plan)) if plan else grade
    except Exception as error:  # whatever one submission brings about, the class goes on
        what = f"{type(error).__name__}: {error}"
        return Grade(name, refusal=one_line(shorten(f"cannot be graded: {what}", 300)))


def _read(path: Path) -> Submission:
    """A folder that holds nothing but another folder is taken for that one, as zips are."""
    if not path.is_dir():
        return read_submission(path)
    inner = [entry for entry in path.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
    if len(inner) == 1 and inner[0].is_dir() and not inner[0].is_symlink():
        path = inner[0]
    return read_folder(path)


def _refusal(submission: Submission) -> str | None:
    faults = [problem for problem in submission.problems if problem.is_fatal]
    if not faults and not submission.names:
        return "holds no files"
    if not faults:
        return None
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return one_line(f"{shorten(faults[0].where)}: {faults[0].message}{more}")


def grade_files(submission: Submission, name: str, size: int, standard: Standard) -> Grade:
    """The part of `grade_submission` that is about what a submission holds."""
    problems = check_submission(
        submission, submission.top, standard.sentences, standard.files, standard.prompts
    )
    if len(problems) > MAX_PROBLEMS:
        more = f"{len(problems) - MAX_PROBLEMS} more problems are left out"
        problems = [*problems[:MAX_PROBLEMS], Problem("warning", "zip", more)]
    labels = read_labels(submission, standard)
    outputs = tuple(
        grade_output(file, file in submission.names, labels.get(file), standard)
        for file in standard.files
    )
    text = read_text(submission)
    agreements = tuple(compare_all(labels, text, standard))
    remarks = tuple(_check_prompt(text, standard))
    return Grade(name, size, None, tuple(problems), outputs, agreements, (), remarks)


def read_labels(submission: Submission, standard: Standard) -> dict[str, list[int]]:
    """The labels of every prediction file without a fault; check_submission names the faults."""
    labels = {}
    for name, file in standard.files.items():
        try:
            labels[name] = read_predictions(file, submission.files[name], standard.sentences)
        except (KeyError, ValueError):
            continue
    return labels


def read_text(submission: Submission) -> str:
    """The text at temperature 0, empty if it is missing or faulty."""
    try:
        return _normal_text(submission.files.get(GREEDY_TEXT, b""))
    except ValueError:
        return ""


def grade_output(
    file: str, is_there: bool, labels: Sequence[int] | None, standard: Standard
) -> Output:
    """`labels` are None for a file that is missing or faulty."""
    if labels is None:
        return Output(file, "faulty" if is_there else "missing")
    known = standard.files[file]
    digest = hashlib.sha256(bytes(labels)).hexdigest()
    output = Output(file, "no gold", one_class=len(set(labels)) == 1, digest=digest)
    gold = standard.gold.get(known.data_name)
    if gold is None:
        return output
    if is_placeholder(gold):
        return replace(output, verdict="placeholder")
    from sklearn.metrics import f1_score  # a second of import time, needed only here

    accuracy = sum(a == b for a, b in zip(labels, gold, strict=True)) / len(gold)
    macro_f1 = float(f1_score(gold, labels, average="macro", zero_division=0))
    method = file.removeprefix(f"{known.data_name}-").removesuffix("-output.txt")
    figure = find_figure(standard.edition, known.data_name, method)
    outcome = "no figure"
    if figure is not None:
        outcome = verdict(accuracy, figure, known.data_name.rpartition("-")[0])
    return replace(output, verdict=outcome, accuracy=accuracy, macro_f1=macro_f1, figure=figure)


def find_figure(edition: str, data_name: str, method: str) -> float | None:
    """The courses' mean accuracy, by the parts of a prediction file's name."""
    dataset, _, split = data_name.rpartition("-")
    option = next((name for name, ending in OUTPUT_ENDINGS.items() if ending == method), method)
    return REFERENCE.get((edition, option, dataset, split), (None, None))[0]


def _check_prompt(text: str, standard: Standard) -> list[str]:
    if text.startswith(EDITIONS[standard.edition].prompt_text):
        return []
    others = [name for name, e in EDITIONS.items() if text.startswith(e.prompt_text)]
    if not others:
        return []
    return [f"{GREEDY_TEXT} starts with the prompt of {', '.join(others)}, not {standard.edition}"]


# --- against reference outputs ---


def compare_all(
    labels: Mapping[str, Sequence[int]], text: str, standard: Standard
) -> Iterator[Agreement]:
    """What can be compared with any reference."""
    references = standard.references.items()
    for file, found in labels.items():
        known = {edition: r.labels[file] for edition, r in references if file in r.labels}
        if known:
            yield compare_labels(file, found, known, standard.edition)
    texts = {edition: r.text for edition, r in references if r.text is not None}
    if text and texts:
        yield compare_text(text, texts, standard.edition, standard.prompts)


def compare_labels(
    file: str, labels: Sequence[int], references: Mapping[str, Sequence[int]], edition: str
) -> Agreement:
    """A prompting file line by line, with the reference of `edition`, or with the nearest if there
    is none of it.
    """
    different = {
        name: [i for i, (a, b) in enumerate(zip(labels, reference, strict=True), 1) if a != b]
        for name, reference in references.items()
    }
    n = len(labels)
    fewest = min(map(len, different.values()))
    nearest = [name for name, lines in different.items() if len(lines) == fewest]
    against = edition if edition in different else nearest[0]
    lines = different[against]
    share = 1 - len(lines) / n
    first = f"first in line {', '.join(map(str, lines[:5]))}"
    differ = f"{len(lines)} of {n} lines differ from {against} ({len(lines) / n:.1%}, {first})"
    if not lines:
        what = f"all {n} lines are those of {against}"
        return Agreement(file, "equal", share, against, tuple(nearest), what)
    if len(lines) <= DRIFT * n:
        what = f"{differ}: float drift"
        return Agreement(file, "drift", share, against, tuple(nearest), what)
    alike = tuple(nearest) if fewest <= DRIFT * n else ()
    names = ", ".join(nearest)
    like = f"it looks like {names} ({fewest} differ)" if alike else "like none of the references"
    if not alike and len(references) > 1:
        like += f" (nearest is {names}, {fewest} differ)"
    what = f"{differ}: another arithmetic; {like}"
    return Agreement(file, "differs", share, against, alike, what)


def compare_text(
    text: str, references: Mapping[str, str], edition: str, prompts: tuple[str, ...] = PROMPT_TEXTS
) -> Agreement:
    """The text at temperature 0. One near-tie that falls otherwise changes all that follows, so
    that a share of equal words, unlike one of lines, proves no other arithmetic.
    """
    shares = {
        name: _common_words(text, reference, prompts) for name, reference in references.items()
    }
    equal = tuple(name for name, reference in references.items() if reference == text)
    nearest = max(shares, key=lambda name: shares[name][0])
    against = edition if edition in shares else (*equal, nearest)[0]
    common, n = shares[against]
    share = common / n if n else math.nan
    if against in equal:
        what = f"is the text of {against}"
        return Agreement(GREEDY_TEXT, "equal", 1.0, against, equal, what)
    what = f"the first {common} of {n} words behind the prompt are those of {against}"
    if equal:
        what += f"; it is the text of {', '.join(equal)}"
    elif nearest != against and shares[nearest][0] > common:
        what += f"; nearest is {nearest}, with {shares[nearest][0]}"
    return Agreement(GREEDY_TEXT, "differs", share, against, equal, what)


def _common_words(text: str, reference: str, prompts: tuple[str, ...]) -> tuple[int, int]:
    """How many words behind the prompt are the reference's, up to the first other one, and how
    many the reference has; none if the prompts are two.
    """
    prompt = next((start for start in prompts if reference.startswith(start)), "")
    words = reference.removeprefix(prompt).split()
    found = text.removeprefix(prompt).split() if text.startswith(prompt) else []
    common = takewhile(lambda pair: pair[0] == pair[1], zip(words, found, strict=False))
    return len(list(common)), len(words)


# --- a class ---


def mark_equal_outputs(grades: Sequence[Grade]) -> list[Grade]:
    """The grades, with a remark on trained outputs that two submissions have in common, unless all
    their lines are of one class.
    """
    owners = defaultdict(list)
    for grade in grades:
        for output in grade.outputs:
            if output.digest and not output.one_class and "-prompting-" not in output.file:
                owners[output.file, output.digest].append(grade.name)
    shared = defaultdict(lambda: defaultdict(list))
    for (file, _), names in owners.items():
        for name in names:
            if others := tuple(other for other in names if other != name):
                shared[name][others].append(file)
    return [
        replace(grade, remarks=(*grade.remarks, *_equal_remarks(shared[grade.name])))
        for grade in grades
    ]


def _equal_remarks(shared: Mapping[tuple[str, ...], Sequence[str]]) -> list[str]:
    return [
        f"the same trained predictions as {listed(others)} in {_files(files)}: {INDEPENDENT_RUNS}, "
        "but the same seed on like machines gives equal ones"
        for others, files in shared.items()
    ]


def _files(files: Sequence[str]) -> str:
    names = ", ".join(file.removesuffix("-output.txt") for file in files)
    return f"{len(files)} file{'s' * (len(files) > 1)} ({names})"
