"""The prediction files of a submission: what each must hold, and how to read one."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat, takewhile, zip_longest
from pathlib import Path

from mini_llama.assignment.figures import SPLITS
from mini_llama.assignment.options import OUTPUT_ENDINGS
from mini_llama.assignment.reviews import SEPARATOR, prompt_suffix, split_line
from mini_llama.submissions.untrusted_text import decode_text, quoted
from mini_llama.text_files import BOM, read_lines

LABEL_WORDS: Mapping[str, Sequence[str]] = {
    "sst": ("awful", "bad", "average", "good", "excellent"),
    "cfimdb": ("bad", "good"),
}
N_LINES = {"sst-dev": 1101, "sst-test": 2210, "cfimdb-dev": 245, "cfimdb-test": 488}
BOM_WARNING = "starts with a byte order mark, which is ignored: save it as UTF-8 without one"
RECORD_START = re.compile(r"-?\d+(\.\d+)? \|\|\| ")  # with any label
SHORTEST_PROMPT = 12  # characters that all lines share
LONGEST_PROMPT = 4096
MAX_OCCURRENCES = 50  # of a sentence in the text of its line
MIN_MATCHING = 0.9  # share of the lines
Record = tuple[str, str, str]  # label, separator, text, from str.partition
Prompt = tuple[str, str]  # the text before and after the sentence
Sentences = Mapping[str, Sequence[str]]  # of the data files, by data name ("sst-dev")


@dataclass(frozen=True)
class PredictionFile:
    """The format of a prediction file; `suffix` follows the sentence on every line."""

    data_name: str
    labels: tuple[str, ...]
    suffix: str


PredictionFiles = Mapping[str, PredictionFile]  # by file name


def prediction_files(
    label_words: Mapping[str, Sequence[str]], options: Collection[str] = tuple(OUTPUT_ENDINGS)
) -> dict[str, PredictionFile]:
    """The prediction files of the given options of run_llama.py; `label_words` are by data set."""
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


class DifferentPromptError(ValueError):
    """A prompting output was made with a different prompt; its `labels` are still usable."""

    def __init__(self, labels: list[int], message: str) -> None:
        super().__init__(message)
        self.labels = labels


class OtherLinesError(ValueError):
    """The lines are those of a data file, but not of the file's own, or in another order.

    They are those of `data_name`, and `labels` are in its order, None if they are invalid or
    ambiguous.
    """

    def __init__(self, data_name: str, labels: list[int] | None, message: str) -> None:
        super().__init__(message)
        self.data_name, self.labels = data_name, labels


def editor_artifacts(content: bytes) -> Iterator[str]:
    """Changes that an editor made to a prediction file and that are ignored."""
    if content.startswith(BOM):
        yield BOM_WARNING
    blank = content[len(content.rstrip(b"\r\n")) :].count(b"\n") - 1
    if blank > 0 and content.strip():
        yield f"ends with empty lines ({blank}), which are ignored: remove them"


def read_predictions(file: PredictionFile, content: bytes, sentences: Sentences) -> list[int]:
    """The labels of a prediction file; `sentences` as for `check_submission`.

    Raises ValueError that names the first faulty line, and DifferentPromptError if a different
    prompt is the only fault.
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
        fault = _check_different_prompt(file, lines, known, n_expected) or fault
    _check_other_lines(file, records, sentences, fault, again)
    raise ValueError(f"{fault}: {again}")


def _check_other_lines(
    file: PredictionFile,
    records: Sequence[Record],
    sentences: Sentences,
    fault: str,
    again: str,
) -> None:
    """Raise OtherLinesError if the lines are those of a data file."""
    labels = [label for label, _, _ in records]
    texts = _without_prompt(file, [text for _, _, text in records])
    found = Counter(texts)
    for name in (file.data_name, *(other for other in sentences if other != file.data_name)):
        known = [sentence.rstrip() for sentence in sentences.get(name, ())]
        if not texts or len(known) != len(texts) or Counter(known) != found:
            continue
        is_own = name == file.data_name
        order = "" if texts == known else " in another order"
        ordered = _labels_by_sentence(file.labels if is_own else None, labels, texts, known)
        message = f"{fault}; its lines are those of {name}{order}"
        if is_own and ordered:
            message += ", so it is scored by sentence"
        elif is_own:
            message += ", but equal sentences have different labels, so it is not scored"
        raise OtherLinesError(name, ordered, f"{message}: {again}")


def _without_prompt(file: PredictionFile, texts: Sequence[str]) -> list[str]:
    """The sentences of the lines, without the prompt of any data set if all lines end in it."""
    texts = [text.rstrip() for text in texts]
    if file.suffix:
        suffixes = (file.suffix, *(f" {prompt_suffix(words)}" for words in LABEL_WORDS.values()))
        for suffix in (suffix.rstrip() for suffix in suffixes):
            if all(text.endswith(suffix) for text in texts):
                return [text.removesuffix(suffix).rstrip() for text in texts]
        return []
    return texts


def _labels_by_sentence(
    allowed: Collection[str] | None,
    labels: Sequence[str],
    texts: Sequence[str],
    known: Sequence[str],
) -> list[int] | None:
    """The labels in the order of the known sentences, None if that is not unique."""
    by_sentence: dict[str, str] = {}
    for label, text in zip(labels, texts, strict=True):
        is_label = label in allowed if allowed else label.isascii() and label.isdigit()
        if not is_label or by_sentence.setdefault(text, label) != label:
            return None if texts != known or not is_label else [int(label) for label in labels]
    return [int(by_sentence[text]) for text in known]


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
    """Describe the first faulty record, with its line number, and count the others."""
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


def _check_different_prompt(
    file: PredictionFile, lines: Sequence[str], known: Sequence[str] | None, n_expected: int
) -> str | None:
    """The first fault of a file with a different prompt, which may span lines; None if no such
    prompt is found. Raises DifferentPromptError for a file without any other fault.
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
        return f"a different prompt, {_describe_prompt(prompt)}, and {fault}"
    message = f"uses a different prompt: {_describe_prompt(prompt)}, not {quoted(file.suffix)}"
    labels = [int(label) for label, _, _ in records]
    raise DifferentPromptError(labels, f"{message}: figures and references do not apply to it")


def find_prompt(texts: Sequence[str], known: Sequence[str] | None) -> Prompt | None:
    """The text before and after the sentence in nearly all texts, None if there is no such text.

    Without the sentences, it is the start and end that all texts share.
    """
    texts = [text.rstrip() for text in texts]
    if known is None:
        before = _common_start(texts)
        after = _common_start([text[len(before) :][::-1] for text in texts])[::-1]
        return (before, after) if len(before) + len(after) >= SHORTEST_PROMPT else None
    anchors = dict.fromkeys((0, len(texts) // 2, len(texts) - 1))
    around = (islice(_candidate_prompts(texts[i], known[i]), MAX_OCCURRENCES) for i in anchors)
    for before, after in dict.fromkeys(chain.from_iterable(around)):
        pairs = zip(texts, known, strict=True)
        n_like = sum(text == (before + sentence + after).rstrip() for text, sentence in pairs)
        if n_like >= MIN_MATCHING * len(texts):
            return before, after
    return None


def _common_start(texts: Sequence[str]) -> str:
    pairs = zip(min(texts), max(texts), strict=False)
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _candidate_prompts(text: str, sentence: str) -> Iterator[Prompt]:
    """The text before and after each occurrence of the sentence."""
    start = text.find(sentence) if sentence else -1
    while start >= 0 and len(text) - len(sentence) <= LONGEST_PROMPT:
        yield text[:start], text[start + len(sentence) :]
        start = text.find(sentence, start + 1)


def _describe_prompt(prompt: Prompt) -> str:
    places = zip(prompt, ("before", "after"), strict=True)
    return " and ".join(f"{quoted(text)} {place} the sentence" for text, place in places if text)


def _line_fault(
    file: PredictionFile, record: Record, sentence: str | None, prompt: Prompt
) -> str | None:
    """Describe what is wrong with a line. Trailing white space is ignored: Windows adds some, and
    editors strip it.
    """
    label, separator, found = record
    if not separator:
        return f"{quoted(label)} is not of the form PREDICTION{SEPARATOR}SENTENCE"
    if label not in file.labels:
        return f"label {quoted(label)} is not one of {', '.join(file.labels)}"
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
    message = f"found {quoted(found[start:])}, expected {quoted(expected[start:])}"
    return f"sentence differs from {source}: {message}"


def read_data(folder: str | Path) -> Sentences:
    """The sentences of the data files that are in `folder`.

    Raises ValueError for one that is not `LABEL ||| SENTENCE` in UTF-8.
    """
    paths = {name: Path(folder) / f"{name}.txt" for name in N_LINES}
    found = {name: read_data_file(path) for name, path in paths.items() if path.is_file()}
    return {name: [sentence for _, sentence in examples] for name, examples in found.items()}


def read_data_file(path: Path) -> list[tuple[str, str]]:
    """The label and sentence of each line of a data file. Raises ValueError as `read_data` does."""
    examples = []
    for number, line in enumerate(read_lines(path), 1):
        parts = split_line(line)
        if parts is None:
            message = f"{quoted(line)} is not of the form LABEL{SEPARATOR}SENTENCE"
            raise ValueError(f"{path} line {number}: {message}; get the data again with setup.sh")
        examples.append(parts)
    return examples
