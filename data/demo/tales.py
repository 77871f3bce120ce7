"""Two endless generators of text: little stories that hang together, and graded film reviews.

`tales(seed)` streams stories; `reviews` and `unlabelled_reviews` are those of `reviews.py`.
The same seed gives the same bytes on every platform and Python version; nothing is read from disk
and nothing but the standard library is needed. Where things are:

    tale_world.py     characters, things, places, and what can happen to them
    tale_narrator.py  sentence forms, articles, and pronouns only where they are clear
    tale_stage.py     events: change the world, then tell the change
    tale_plots.py     the plots; they are in tale_plots_{home,friends,outside}.py
    reviews.py        review sentences, and the rules that give them their labels

From the command line: python tales.py {tales,reviews,unlabelled} --seed N --count N
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import NoReturn, TextIO

from reviews import SPLITS, reviews, unlabelled_reviews
from tale_narrator import Mention
from tale_plots import PLOTS
from tale_stage import Stage
from tale_world import Character, Event, Thing, pick

__all__ = ["Tale", "main", "recorded_tales", "reviews", "tales", "tell", "unlabelled_reviews"]


@dataclass(frozen=True, slots=True)
class Tale:
    """A story; what happened and who was mentioned how is there if it was told with `record`."""

    text: str
    plot: str
    sentences: tuple[str, ...]
    cast: tuple[Character, ...]
    things: tuple[Thing, ...]
    events: tuple[Event, ...] = ()
    mentions: tuple[Mention, ...] = ()


def tell(rng: Random, record: bool = False) -> Tale:
    """Tell one story."""
    plot = pick(rng, PLOTS)
    stage = Stage(rng, plot.skies, record)
    plot.run(stage)
    sentences = tuple(stage.narrator.sentences)
    return Tale(
        " ".join(sentences),
        plot.name,
        sentences,
        tuple(stage.cast),
        tuple(stage.world.things),
        tuple(stage.events or ()),
        tuple(stage.mentions or ()),
    )


def tales(seed: int) -> Iterator[str]:
    """Endless stories, each of about 80 to 250 words in one paragraph."""
    rng = Random(seed)
    while True:
        yield tell(rng).text


def recorded_tales(seed: int) -> Iterator[Tale]:
    """The same stories as `tales(seed)`, with what happened in them."""
    rng = Random(seed)
    while True:
        yield tell(rng, record=True)


# --- command line ------------------------------------------------------------------------------


KINDS = {
    "tales": "children's stories, one a line",
    "reviews": "labelled film reviews, LABEL ||| SENTENCE a line, no sentence twice",
    "unlabelled": "film reviews without labels, most with a verdict in words, to pre-train on",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line without the usage text: what is wrong, and what to ask for help."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tales.py",
        description="Write generated stories or film reviews, one a line.",
        epilog="example: python tales.py reviews --labels 5 --split dev --count 500 -o dev.txt",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{tales,reviews,unlabelled}")
    for name, text in KINDS.items():
        kind = kinds.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        kind.add_argument("--seed", type=_count, default=0, help="same seed, same bytes (0)")
        kind.add_argument("--count", type=_count, default=10, help="how many lines (10)")
        kind.add_argument("-o", "--output", type=Path, help="file to write (standard output)")
        if name == "reviews":
            kind.add_argument(
                "--labels",
                type=int,
                choices=(5, 2),
                default=5,
                help="5: awful, bad, average, good, excellent; 2: bad, good (5)",
            )
            kind.add_argument(
                "--split",
                choices=SPLITS,
                default="train",
                help="splits never share a sentence, whatever the seeds (train)",
            )
    return parser


def _lines(args: argparse.Namespace) -> Iterator[str]:
    if args.kind == "tales":
        return tales(args.seed)
    if args.kind == "unlabelled":
        return unlabelled_reviews(args.seed)
    return (
        f"{review.label} ||| {review.text}"
        for review in reviews(args.seed, args.labels, args.split)
    )


def _write(lines: Iterator[str], stream: TextIO) -> None:
    for line in lines:
        stream.write(line + "\n")
    stream.flush()


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    lines = islice(_lines(args), args.count)
    if args.output is None:
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        try:
            _write(lines, sys.stdout)
        except BrokenPipeError:
            # The reader has had enough, as in `| head`; keep the flush at exit from complaining.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    partial = args.output.with_name(args.output.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
            _write(lines, stream)
        partial.replace(args.output)
    except OSError as error:
        print(f"tales.py: cannot write {args.output}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
