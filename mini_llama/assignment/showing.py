"""What option generate shows: a text as it comes on a terminal, elsewhere how far it is."""

import contextlib
import sys
import time
from collections.abc import Collection, Iterator, Sequence

import torch

from mini_llama.assignment.progress import Progress
from mini_llama.command_line import visible
from mini_llama.inference.generation import Sample
from mini_llama.tokenization.base import BaseTokenizer, StreamDecoder

RULE = "---------------"


class Show:
    """The texts of one temperature, of at most `most` tokens together. On a terminal each is shown
    as it comes, unless several `samples` of a prompt come at once; else they follow at the end.
    """

    def __init__(
        self, tokenizer: BaseTokenizer, temperature: float, samples: int, most: int
    ) -> None:
        self.tokenizer, self.temperature, self.samples = tokenizer, temperature, samples
        self.most, self.tokens, self.seconds = most, 0, 0.0
        self.is_live = samples == 1 and sys.stdout.isatty()

    def __enter__(self) -> "Show":
        if self.is_live:
            self._announce()
        self.progress = Progress(self.most, is_hidden=self.is_live)
        self.progress.begin(f"temperature {self.temperature}")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.progress.close()
        if kind is None:
            rate = f"{self.tokens} tokens, {self.tokens / max(self.seconds, 1e-9):.1f} tokens/s"
            print(rate, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def text(
        self, prompt: Sequence[int], sample: Sample, ends: Collection[int]
    ) -> Iterator[Sample]:
        """`sample`, which shows what it draws after the prompt, but for `ends`, or counts it."""
        begun, text = time.perf_counter(), StreamDecoder(self.tokenizer)
        if self.is_live:
            self._write("".join(map(text.feed, prompt)))

        def draw(logits: torch.Tensor) -> torch.Tensor:
            token = sample(logits)
            if self.is_live and int(token) not in ends:
                self._write(text.feed(int(token)))
            self.progress.advance(self.samples)
            return token

        yield draw
        self.seconds += time.perf_counter() - begun
        if self.is_live:
            self._write(f"{text.finish()}\n{RULE}\n")

    def count(self, tokens: int) -> None:
        """So many tokens are new."""
        self.tokens += tokens

    def whole(self, texts: Sequence[str]) -> None:
        """Print the texts, unless they were shown."""
        if self.is_live:
            return
        self._announce()
        for text in texts:
            print(visible(text, kept="\n\t"))
            print(RULE)

    def _announce(self) -> None:
        print(f"Temperature is {self.temperature}")

    def _write(self, piece: str) -> None:
        print(visible(piece, kept="\n\t"), end="", flush=True)
