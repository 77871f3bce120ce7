"""The prediction files that are handed in: what each must hold, and how one is read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat, zip_longest
from pathlib import Path

from mini_llama.assignment.figures import SPLITS
from mini_llama.assignment.options import OUTPUT_ENDINGS
from mini_llama.assignment.reviews import BOM, SEPARATOR, prompt_suffix, split_line
from mini_llama.submissions.untrusted_text import decode_text, shown

LABEL_WORDS: Mapping[str, Sequence[str]] = {
    "sst": ("awful", "bad", "average", "good", "excellent"),
    "cfimdb": ("bad", "good"),
}
N_LINES = {"sst-dev": 1101, "sst-test": 2210, "cfimdb-dev": 245, "cfimdb-test": 488}
Sentences = Mapping[str, Sequence[str]]  # of the data files, by data name ("sst-dev")


@dataclass(frozen=True)
class PredictionFile:
    """What is known of a prediction file; `suffix` follows the data's sentence on every line."""

    data_name: str
    labels: tuple[str, ...]
    suffix: str


PredictionFiles = Mapping[str, PredictionFile]  # by file name


def prediction_files(label_words: Mapping[str, Sequence[str]]) -> dict[str, PredictionFile]:
    """What is handed in for each data set, by the words of its labels."""
    return {
        f"{dataset}-{split}-{method}-output.txt": PredictionFile(
            f"{dataset}-{split}",
            tuple(map(str, range(len(words)))),
            f" {prompt_suffix(words)}" if option == "prompt" else "",
        )
        for dataset, words in label_words.items()
        for split in SPLITS
        for option, method in OUTPUT_ENDINGS.items()
    }


PREDICTION_FILES = prediction_files(LABEL_WORDS)


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
    parts = [line.partition(SEPARATOR) for line in lines]
    pairs = zip(parts, known or repeat(None), strict=False)
    faults = {i: fault for i, pair in enumerate(pairs, 1) if (fault := _line_fault(file, *pair))}
    if faults:
        i = min(faults)
        more = f" (and {len(faults) - 1} more of {len(lines)} lines)" if len(faults) > 1 else ""
        raise ValueError(f"line {i}{more}: {faults[i]}: {again}")
    return [int(label) for label, _, _ in parts]


def _line_fault(
    file: PredictionFile, parts: tuple[str, str, str], sentence: str | None
) -> str | None:
    """What is wrong with a line, in the `parts` of str.partition; white space at its end is not
    (Windows adds some, editors strip it).
    """
    label, separator, found = parts
    if not separator:
        return f"{shown(label)} is not of the form PREDICTION{SEPARATOR}SENTENCE"
    if label not in file.labels:
        return f"label {shown(label)} is not one of {', '.join(file.labels)}"
    found, expected = found.rstrip(), ((sentence or "") + file.suffix).rstrip()
    if sentence is None:  # only the prompt is known
        found = found[max(0, len(found) - len(expected)) :]
    if found == expected:
        return None
    start = next(i for i, (a, b) in enumerate(zip_longest(found, expected)) if a != b)
    start = max(0, start - 10)
    source = f"{file.data_name}.txt" + (" and the prompt" if file.suffix else "")
    what = f"found {shown(found[start:])}, expected {shown(expected[start:])}"
    return f"sentence differs from {source}: {what}"


def read_data(folder: str | Path) -> Sentences:
    """The sentences of the data files that are in `folder`.

    Raises ValueError for one that is not `LABEL ||| SENTENCE` in UTF-8.
    """
    paths = {name: Path(folder) / f"{name}.txt" for name in N_LINES}
    found = {name: read_data_file(path) for name, path in paths.items() if path.is_file()}
    return {name: [sentence for _, sentence in examples] for name, examples in found.items()}


def read_data_file(path: Path) -> list[tuple[str, str]]:
    """Label and sentence of every line of a data file. Raises ValueError as `read_data` does."""
    try:
        text = decode_text(path.read_bytes().removeprefix(BOM))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    examples = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        parts = split_line(line)
        if parts is None:
            what = f"{shown(line)} is not of the form LABEL{SEPARATOR}SENTENCE"
            raise ValueError(f"{path} line {number}: {what}; get the data again with setup.sh")
        examples.append(parts)
    return examples
