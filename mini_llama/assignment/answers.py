"""How predictions are written: the assignment's lines, a table, or JSON lines."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from mini_llama.assignment.reviews import SEPARATOR


@dataclass(frozen=True)
class Answer:
    """One text, its predicted label, its own if it has one, and the labels' log-probabilities."""

    sentence: str
    prediction: int
    label: int | None
    log_probs: Sequence[float]


class Writer:
    """Writes answers to an open file, in the form `kind` of options.FORMATS.

    `written` is what lines have for each label, `words` what the other forms have; with
    `probabilities` these have the probability of every label too.
    """

    def __init__(
        self,
        file: IO[str],
        kind: str,
        written: Sequence[str],
        words: Sequence[str],
        probabilities: bool,
    ) -> None:
        self.file, self.written, self.words = file, written, words
        self.probabilities, self.is_begun = probabilities, False
        forms: dict[str, Callable[[Answer], None]] = {
            "lines": self._line,
            "tsv": self._row,
            "jsonl": self._object,
        }
        self.write = forms[kind]

    def _line(self, answer: Answer) -> None:
        self.file.write(f"{self.written[answer.prediction]}{SEPARATOR}{answer.sentence}\n")

    def _row(self, answer: Answer) -> None:
        item = self._item(answer)
        shares = item.pop("probabilities", {})
        item |= {f"P({word})": f"{share:.6f}" for word, share in shares.items()}
        table = csv.writer(self.file, delimiter="\t", lineterminator="\n")
        if not self.is_begun:
            table.writerow(item)
            self.is_begun = True
        table.writerow(item.values())

    def _object(self, answer: Answer) -> None:
        self.file.write(json.dumps(self._item(answer), ensure_ascii=False) + "\n")

    def _item(self, answer: Answer) -> dict[str, Any]:
        item: dict[str, Any] = {"text": answer.sentence, "prediction": self._word(answer)}
        if answer.label is not None:
            item["label"] = self.words[answer.label]
        if self.probabilities:
            shares = [round(math.exp(value), 6) for value in answer.log_probs]
            item["probabilities"] = dict(zip(self.words, shares, strict=True))
        return item

    def _word(self, answer: Answer) -> str:
        return self.words[answer.prediction]
