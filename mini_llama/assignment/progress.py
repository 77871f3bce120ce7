"""How far a run is: one bar for all of it on a terminal, elsewhere a line every half minute."""

import contextlib
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

from tqdm import tqdm

from mini_llama.assignment.batches import Batch

SECONDS = 30.0  # between two lines
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
TRAINING = 3  # a pass forward and back costs about three forward


class Progress:
    """Counts a run's work in real tokens, each as many times as its `weight`, up to `total`.

    Where texts are tokenised as they come, `total` is an estimate, which `expect` makes better by
    how many of all `characters` are left. Everything goes to standard error; nothing is shown if it
    `is_hidden`. Inside `with`, the bar is removed at the end.
    """

    def __init__(self, total: int, is_hidden: bool = False, characters: int = 0) -> None:
        width = shutil.get_terminal_size().columns - 1  # Windows breaks a line that is full
        self.bar = tqdm(
            total=total,
            desc="start",
            bar_format=BAR,
            ncols=width,
            smoothing=0,
            disable=is_hidden or None,
            leave=False,
        )
        self.is_told = self.bar.disable and not is_hidden
        self.total, self.done = total, 0
        self.characters_left, self.characters_read, self.tokens_read = characters, 0, 0
        self.loss: float | None = None
        self.begun = self.told = time.monotonic()
        self.begin("")

    def begin(self, description: str) -> None:
        """Another part of the run, whose rate and loss are its own."""
        self.description, self.loss = description, None
        self.tokens, self.part_begun = 0, time.monotonic()
        self.bar.set_description_str(description, refresh=False)

    def over(self, batches: Iterable[Batch], description: str, weight: int = 1) -> Iterator[Batch]:
        """The batches, each counted after its work is done."""
        self.begin(description)
        for batch in batches:
            yield batch
            self.advance(int(batch.lengths.sum()), weight)

    def advance(self, tokens: int, weight: int = 1) -> None:
        now = time.monotonic()
        self.tokens += tokens
        self.done += tokens * weight
        loss = "" if self.loss is None else f"loss {self.loss:.3f}, "
        rate = f"{loss}{self.tokens / max(now - self.part_begun, 1e-9):.0f} tokens/s"
        self.bar.set_postfix_str(rate, refresh=False)
        self.bar.update(tokens * weight)
        if self.is_told and now - self.told >= SECONDS:
            self.told = now
            print(self._line(now - self.begun, rate), file=sys.stderr, flush=True)

    def _line(self, seconds: float, rate: str) -> str:
        left = seconds * (self.total - self.done) / max(self.done, 1)
        times = [tqdm.format_interval(max(time, 0)) for time in (seconds, left)]
        share = min(self.done / max(self.total, 1), 1)
        return f"{self.description}: {share:.0%} of all, {times[0]} gone, {times[1]} left, {rate}"

    def expect(self, tokens: int, characters: int) -> None:
        """The next part has so many tokens, of so many characters."""
        self.characters_read += characters
        self.tokens_read += tokens
        self.characters_left = max(0, self.characters_left - characters)
        rest = self.characters_left * self.tokens_read / max(1, self.characters_read)
        self.total = self.bar.total = self.tokens_read + int(rest)

    def leave_out(self, work: int) -> None:
        """That much of the total was done before."""
        self.total -= work
        self.bar.total = self.total

    def aside(self) -> AbstractContextManager[None]:
        """Inside this, lines can be printed: the bar makes room."""
        if self.bar.disable:
            return contextlib.nullcontext()
        return tqdm.external_write_mode()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.bar.close()
