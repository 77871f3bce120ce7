"""From labels as data files have them to classes 0, 1, …: by index, or by the label's word."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mini_llama.assignment.reviews import Example, Record, is_index

SHOWN = 10  # words in a message


@dataclass(frozen=True)
class Labels:
    """The classes of a run. `names` are their words, None where the labels are indices alone;
    `written` is what a prediction file has for each class: words where the data have words.
    `classes` has every label of the data that is one of them.
    """

    names: list[str] | None
    written: list[str]
    classes: Mapping[str, int]

    @property
    def are_words(self) -> bool:
        return self.written == self.names

    def examples(self, records: Iterable[Record]) -> list[Example]:
        """The records with their classes. Raises ValueError, with the line's number, for a label
        that is none of them.
        """
        return [Example(record.text, self._class(record)) for record in records]

    def _class(self, record: Record) -> int:
        label, n = record.label, len(self.written)
        if label in self.classes:
            return self.classes[label]
        if is_index(label):
            raise ValueError(
                f"{record.place}: label {label} is out of range: there are {n} labels, "
                f"{self._range()}; check --label-names and the data"
            )
        known = f"neither {self._words()} nor " if self.names else "not "
        what = f"{known}an integer of at least 0"
        raise ValueError(f"{record.place}: label {label[:20]!r} is {what}")

    def _range(self) -> str:
        return self._words() if self.are_words else f"0 to {len(self.written) - 1}"

    def _words(self) -> str:
        names = self.names or []
        more = f", … ({len(names)} words)" if len(names) > SHOWN else ""
        return ", ".join(names[:SHOWN]) + more


def label_set(records: Iterable[Record]) -> set[str]:
    return {record.label for record in records}


def are_indices(labels: set[str]) -> bool:
    """Whether the labels are the integers 0 to n - 1."""
    numbers = {int(label) for label in labels if is_index(label)}
    return all(map(is_index, labels)) and numbers == set(range(len(numbers)))


def named_labels(names: Sequence[str], labels: set[str], names_file: str) -> Labels:
    """The classes of a list of words: a label is a word, whatever its case, or its index.

    Where words are numbers, all labels must be words, or all indices. Raises ValueError for labels
    that could be both.
    """
    words, indices = list(names), [str(i) for i in range(len(names))]
    by_word = _positions(labels, words)
    by_index = {label: int(label) for label in labels if is_index(label)}
    by_index = {label: i for label, i in by_index.items() if i < len(words)}
    if not any(map(is_index, words)):
        return Labels(words, words if by_word else indices, by_index | by_word)
    if by_word.keys() == by_index.keys() == labels and by_word != by_index:
        example = next(label for label in sorted(labels) if by_word[label] != by_index[label])
        raise ValueError(
            f"label {example} of the data is a word of {names_file} and the index of another one: "
            "give other words, or leave out --label-names"
        )
    if len(by_word) > len(by_index):
        return Labels(words, words, by_word)
    return Labels(words, indices, by_index)


def own_labels(defining: set[str], labels: set[str]) -> Labels:
    """The classes of data without a list of words, which the labels `defining` make up: they are
    indices from 0, or else words, in order. Raises ValueError for fewer than two.
    """
    if are_indices(defining):
        indices = [str(i) for i in range(len({int(label) for label in defining}))]
        found = {label: int(label) for label in labels if is_index(label)}
        classes = {label: i for label, i in found.items() if i < len(indices)}
        return Labels(None, indices, classes)
    words = sorted(defining, key=_by_number)
    if len(words) < 2:
        raise ValueError(f"every label is {words[0]!r}: there must be at least two different ones")
    for word in words:
        if same := [other for other in words if other != word and _is_alike(other, word)]:
            what = f"labels {word!r} and {same[0]!r} differ by case alone"
            raise ValueError(f"{what}: write them alike, or give --label-names")
    return Labels(words, words, _positions(labels, words))


def _by_number(label: str) -> tuple[bool, float, str]:
    """Numbers in their order, then words in theirs."""
    try:
        return False, float(label), label
    except ValueError:
        return True, 0.0, label


def _positions(labels: Iterable[str], words: Sequence[str]) -> dict[str, int]:
    """The index of each label that is a word: as it is written, or else whatever its case."""
    found = {}
    for label in labels:
        alike = [i for i, word in enumerate(words) if _is_alike(word, label)]
        if label in words:
            found[label] = words.index(label)
        elif len(alike) == 1:
            found[label] = alike[0]
    return found


def _is_alike(word: str, other: str) -> bool:
    return word.casefold() == other.casefold()
