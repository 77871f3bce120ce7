"""Records → token ids with their targets → rows, packed on request → batches.

Shapes: B rows, T tokens.
"""

import bisect
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from mini_llama.alignment.chat import (
    Render,
    Tokens,
    conversation_tokens,
    render_with,
    text_tokens,
)
from mini_llama.alignment.records import Demonstration, Place, Preference, Prompt
from mini_llama.inference.own_template import OwnTemplate
from mini_llama.layers.linear_loss import IGNORED
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.training.core import Part


@dataclass
class Counts:
    """What encoding has to report."""

    examples: int = 0
    cut: int = 0
    straddling: int = 0

    def lines(self, max_length: int) -> list[str]:
        said = []
        if self.cut:
            said.append(
                f"{self.cut} of {self.examples} answers are cut at {max_length} tokens, and their "
                "end is not learnt: raise --max_length, or shorten them"
            )
        if self.straddling:
            said.append(
                f"{self.straddling} of {self.examples} prompts end within a token, which is learnt "
                "as the answer's: end prompts without a space, and begin answers with it"
            )
        return said


@dataclass
class Encoder:
    """Makes examples of at most `max_length` tokens. `ends` are the tokens at which generation
    stops, EOS first; `template` that of conversations. `counts` grows with every call.
    """

    tokenizer: BaseTokenizer
    template: str | OwnTemplate
    ends: tuple[int, ...]
    max_length: int
    counts: Counts = field(default_factory=Counts)

    @property
    def render(self) -> Render:
        return render_with(self.template)

    def demonstration(self, record: Demonstration) -> list[Tokens]:
        """The examples of a record: one, but for conversations that the template rewrites.

        Raises ValueError, naming the line, for a prompt that fills max_length, and for what the
        template or the tokenizer refuses.
        """
        if isinstance(record.answer, str):
            found = [self._text(record.prompt, record.answer, record.place)]
        else:
            try:
                found = conversation_tokens(self.tokenizer, record.answer, self.render, self.ends)
            except ValueError as error:
                raise record.place.error(str(error), "change the line, or leave it out") from None
        return [self._cut(example, record.place) for example in found]

    def preference(self, record: Preference) -> "Pair":
        """Both answers with their prompt. Raises ValueError as `demonstration` does."""
        # Of a conversation that is rewritten, the last example has the whole of it before it.
        chosen, rejected = (
            self.demonstration(answer)[-1] for answer in (record.chosen, record.rejected)
        )
        return Pair(chosen, rejected, record.grade)

    def prompt(self, record: Prompt) -> list[int]:
        """Raises ValueError, naming the line, for a prompt that leaves no room for an answer."""
        try:
            if isinstance(record.text, str):
                ids = self.tokenizer.encode(record.text, bos=True, eos=False)
            else:
                ids = self.render(self.tokenizer, record.text, True)
        except ValueError as error:
            raise record.place.error(str(error), "change the line, or leave it out") from None
        self._check_room(len(ids), record.place)
        return ids

    def _text(self, prompt: str, answer: str, place: Place) -> Tokens:
        try:
            example, straddles = text_tokens(self.tokenizer, prompt, answer, self.ends[0])
        except ValueError as error:
            raise place.error(str(error), "change the line, or leave it out") from None
        self.counts.straddling += straddles
        return example

    def _cut(self, example: Tokens, place: Place) -> Tokens:
        self.counts.examples += 1
        self._check_room(example.learns.index(True), place)
        if len(example.ids) <= self.max_length:
            return example
        self.counts.cut += 1
        return Tokens(example.ids[: self.max_length], example.learns[: self.max_length])

    def _check_room(self, length: int, place: Place) -> None:
        if length >= self.max_length:
            wrong = f"the prompt is {length} tokens, and an example at most {self.max_length}"
            raise place.error(wrong, "shorten it, raise --max_length, or leave the line out")


class Pair(NamedTuple):
    """Two answers to a prompt, the better one first, each with the prompt before it; the grade is
    an index of losses.GRADES, or None.
    """

    chosen: Tokens
    rejected: Tokens
    grade: int | None


# A row: one example, or several that do not see each other.
Row = list[Tokens]


def pack(examples: Sequence[Tokens], max_length: int) -> list[Row]:
    """Rows of at most `max_length` tokens: best fit decreasing, as TRL's "bfd" (Ding et al. 2024,
    section 2). Raises ValueError for an example that is longer.
    """
    rows: list[Row] = []
    spaces: list[int] = []  # sorted: those of which there is a row
    by_space: dict[int, deque[Row]] = defaultdict(deque)
    for example in sorted(examples, key=lambda example: -len(example.ids)):
        length = len(example.ids)
        if length > max_length:
            raise ValueError(f"an example has {length} tokens, and a row at most {max_length}")
        place = bisect.bisect_left(spaces, length)
        if place == len(spaces):
            row: Row = []
            rows.append(row)
            space = max_length
        else:
            space = spaces[place]
            row = by_space[space].popleft()
            if not by_space[space]:
                del spaces[place]
        row.append(example)
        space -= length
        if space > 0:
            if not by_space[space]:
                bisect.insort(spaces, space)
            by_space[space].append(row)
    return rows


class Batch(NamedTuple):
    """Token ids (B, T), each with its target, the next token, or IGNORED (B, T); `documents`
    (B, T) numbers the texts of packed rows, and is None where every row is one text.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    documents: torch.Tensor | None

    @property
    def n_targets(self) -> int:
        return int((self.targets != IGNORED).sum())

    def to(self, device: torch.device) -> "Batch":
        documents = None if self.documents is None else self.documents.to(device)
        return Batch(self.tokens.to(device), self.targets.to(device), documents)


def collate(rows: Sequence[Row], pad_id: int) -> Batch:
    """Rows padded at the right. A text's first token and padding are nobody's target."""
    length = max(sum(len(example.ids) for example in row) for row in rows)
    tokens = torch.full((len(rows), length), pad_id)
    targets = torch.full((len(rows), length), IGNORED)
    documents = torch.full((len(rows), length), -1)
    for i, row in enumerate(rows):
        start = 0
        for number, example in enumerate(row):
            end = start + len(example.ids)
            ids, learns = torch.tensor(example.ids), torch.tensor(example.learns)
            tokens[i, start:end] = ids
            targets[i, start : end - 1] = torch.where(learns[1:], ids[1:], IGNORED)
            documents[i, start:end] = number
            start = end
    # On the right of a single text padding changes nothing: attention is causal.
    is_packed = any(len(row) > 1 for row in rows)
    return Batch(tokens, targets, documents if is_packed else None)


def parts_of(rows: Sequence[Row], pad_id: int, parts: int, device: torch.device) -> list[Part]:
    """Rows as the trainer takes them: in parts, each with its number of targets."""
    size = -(-len(rows) // parts)
    batches = [collate(rows[i : i + size], pad_id) for i in range(0, len(rows), size)]
    return [Part(batch.to(device), batch.n_targets) for batch in batches]


def evaluation_parts(
    rows: Sequence[Row], pad_id: int, size: int, device: torch.device
) -> Iterator[Part]:
    """All rows, those of like length together, in batches of `size`."""
    by_length = sorted(rows, key=lambda row: sum(len(example.ids) for example in row))
    for start in range(0, len(by_length), size):
        yield from parts_of(by_length[start : start + size], pad_id, 1, device)
