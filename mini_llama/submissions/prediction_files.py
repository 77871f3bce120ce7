"""The prediction files that are handed in: what each must hold, and how one is read."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat, takewhile, zip_longest
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
MARKED = "starts with a byte order mark, which is ignored: save it as UTF-8 without one"
RECORD_START = re.compile(r"-?\d+(\.\d+)? \|\|\| ")  # whatever the label is
SHORTEST_PROMPT = 12  # of characters that all lines have in common
LONGEST_PROMPT = 4096
MOST_PLACES = 50  # of a sentence within the text of its line
MOST = 0.9  # of the lines
Record = tuple[str, str, str]  # label, separator, text: of str.partition
Prompt = tuple[str, str]  # what is before and after the sentence
Sentences = Mapping[str, Sequence[str]]  # of the data files, by data name ("sst-dev")


@dataclass(frozen=True)
class PredictionFile:
    """What is known of a prediction file; `suffix` follows the data's sentence on every line."""

    data_name: str
    labels: tuple[str, ...]
    suffix: str


PredictionFiles = Mapping[str, PredictionFile]  # by file name


def prediction_files(
    label_words: Mapping[str, Sequence[str]], options: Collection[str] = tuple(OUTPUT_ENDINGS)
) -> dict[str, PredictionFile]:
    """What is handed in of some options of run_llama.py, by the words of each data set's labels."""
    return {
        f"{dataset}-{split}-{method}-output.txt": PredictionFile(
            f"{dataset}-{split}",
            tuple(map(str, range(len(words)))),
            f" {prompt_suffix(words)}" if option == "prompt" else "",
        )
        for dataset, words in label_words.items()
        for split in SPLITS
        for option, method in OUTPUT_ENDINGS.items()
        if option in options
    }


PREDICTION_FILES = prediction_files(LABEL_WORDS)


class AnotherPromptError(ValueError):
    """A prompting file that was made with another prompt; it has `labels` all the same."""

    def __init__(self, labels: list[int], message: str) -> None:
        super().__init__(message)
        self.labels = labels


def harmless_oddities(content: bytes) -> Iterator[str]:
    """What an editor did to a prediction file, which is read in spite of it."""
    if content.startswith(BOM):
        yield MARKED
    blank = content[len(content.rstrip(b"\r\n")) :].count(b"\n") - 1
    if blank > 0 and content.strip():
        yield f"empty lines at its end, which are ignored: {blank}: remove them"


def read_predictions(file: PredictionFile, content: bytes, sentences: Sentences) -> list[int]:
    """The labels of a prediction file; `sentences` as for `check_submission`.

    Raises ValueError that names the first faulty line, AnotherPromptError where that is all.
    """
    text = decode_text(content.removeprefix(BOM))
    known = sentences.get(file.data_name)
    n_expected = N_LINES[file.data_name] if known is None else len(known)
    again = f"write it again with run_llama.py on {file.data_name}.txt"
    if not text.strip():
        raise ValueError(f"is empty: {again}")
    lines = _split_lines(text)
    records = [line.partition(SEPARATOR) for line in lines]
    fault = None
    if len(lines) != n_expected:
        fault = f"has {len(lines)} lines, {file.data_name}.txt has {n_expected}"
    else:
        fault = _first_fault(file, records, range(1, n_expected + 1), known)
    if fault is None:
        return [int(label) for label, _, _ in records]
    if file.suffix:
        fault = _with_another_prompt(file, lines, known, n_expected) or fault
    raise ValueError(f"{fault}: {again}")


def _split_lines(text: str) -> list[str]:
    text = text.rstrip("\r\n")
    return text.split("\n" if "\n" in text else "\r")


def _first_fault(
    file: PredictionFile,
    records: Sequence[Record],
    numbers: Sequence[int],
    known: Sequence[str] | None,
    prompt: Prompt | None = None,
) -> str | None:
    """The fault of the first faulty record, by the numbers of their lines."""
    prompt = prompt or ("", file.suffix)
    faults = {
        number: fault
        for number, record, sentence in zip(numbers, records, known or repeat(None), strict=False)
        if (fault := _line_fault(file, record, sentence, prompt))
    }
    if not faults:
        return None
    i = min(faults)
    more = f" (and {len(faults) - 1} more of {len(records)} lines)" if len(faults) > 1 else ""
    return f"line {i}{more}: {faults[i]}"


def _with_another_prompt(
    file: PredictionFile, lines: Sequence[str], known: Sequence[str] | None, n_expected: int
) -> str | None:
    """The first fault of a file with another prompt, which may have lines of its own, None if
    there is no such prompt. Raises AnotherPromptError for a file without a fault.
    """
    starts = [i for i, line in enumerate(lines) if RECORD_START.match(line)]
    if len(starts) != n_expected or starts[0] != 0:
        return None
    ends = [*starts[1:], len(lines)]
    texts = ["\n".join(lines[i:j]) for i, j in zip(starts, ends, strict=True)]
    records = [text.replace("\r\n", "\n").partition(SEPARATOR) for text in texts]
    prompt = find_prompt([text for _, _, text in records], known)
    own = file.suffix.rstrip()
    is_own = prompt is not None and (prompt == ("", own) or (known is None and own in prompt[1]))
    if prompt is None or is_own or not "".join(prompt).strip():
        return None
    numbers = [i + 1 for i in starts]
    if fault := _first_fault(file, records, numbers, known, prompt):
        return f"another prompt, {_described(prompt)}, and {fault}"
    what = f"is written with another prompt, {_described(prompt)}, not {shown(file.suffix)}"
    labels = [int(label) for label, _, _ in records]
    raise AnotherPromptError(labels, f"{what}: figures and references are of the courses' own")


def find_prompt(texts: Sequence[str], known: Sequence[str] | None) -> Prompt | None:
    """What stands before and after the sentence in nearly all texts, None for nothing common.

    Without the sentences it is what all texts have in common.
    """
    texts = [text.rstrip() for text in texts]
    if known is None:
        before = _common_start(texts)
        after = _common_start([text[len(before) :][::-1] for text in texts])[::-1]
        return (before, after) if len(before) + len(after) >= SHORTEST_PROMPT else None
    anchors = dict.fromkeys((0, len(texts) // 2, len(texts) - 1))
    around = (islice(_around(texts[i], known[i]), MOST_PLACES) for i in anchors)
    for before, after in dict.fromkeys(chain.from_iterable(around)):
        pairs = zip(texts, known, strict=True)
        n_like = sum(text == (before + sentence + after).rstrip() for text, sentence in pairs)
        if n_like >= MOST * len(texts):
            return before, after
    return None


def _common_start(texts: Sequence[str]) -> str:
    pairs = zip(min(texts), max(texts), strict=False)
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _around(text: str, sentence: str) -> Iterator[Prompt]:
    """What is before and after each place where the sentence is."""
    start = text.find(sentence) if sentence else -1
    while start >= 0 and len(text) - len(sentence) <= LONGEST_PROMPT:
        yield text[:start], text[start + len(sentence) :]
        start = text.find(sentence, start + 1)


def _described(prompt: Prompt) -> str:
    places = zip(prompt, ("before", "after"), strict=True)
    return " and ".join(f"{shown(text)} {place} the sentence" for text, place in places if text)


def _line_fault(
    file: PredictionFile, record: Record, sentence: str | None, prompt: Prompt
) -> str | None:
    """What is wrong with a line; white space at its end is not (Windows adds some, editors strip
    it).
    """
    label, separator, found = record
    if not separator:
        return f"{shown(label)} is not of the form PREDICTION{SEPARATOR}SENTENCE"
    if label not in file.labels:
        return f"label {shown(label)} is not one of {', '.join(file.labels)}"
    before, after = prompt
    found, expected = found.rstrip(), ((before if sentence else "") + (sentence or "") + after)
    expected = expected.rstrip()
    if sentence is None:  # only the prompt is known
        found = found[max(0, len(found) - len(expected)) :]
    if found == expected:
        return None
    start = next(i for i, (a, b) in enumerate(zip_longest(found, expected)) if a != b)
    start = max(0, start - 10)
    source = f"{file.data_name}.txt" + (" and the prompt" if "".join(prompt) else "")
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
