"""The little world in which the tales happen: who is where, who holds what, who feels what.

A plot may only change this world through the methods of `World`, and each of them refuses what
cannot be: taking a thing that lies somewhere else, giving away what one does not hold, speaking to
somebody who has left, a feeling without a cause. So a plot with a hole raises `IncoherentError`
instead of telling nonsense. This module writes no English except the nouns its entities carry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple, TypeVar

T = TypeVar("T")


def pick(rng: Random, options: Sequence[T]) -> T:
    """One of the options.

    Only `Random.random` is promised to give the same numbers in every Python version, so nothing
    here uses `choice`, `sample` or `shuffle`.
    """
    return options[int(rng.random() * len(options))]


def with_article(phrase: str) -> str:
    """The phrase with "a" or "an"; no word used here begins with a sound that breaks the rule."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def words(text: str) -> tuple[str, ...]:
    """The words of a text, or the phrases if bars stand between them."""
    return tuple(text.split("|") if "|" in text else text.split())


class IncoherentError(Exception):
    """A plot asked for something that cannot happen in the world as it is."""


@dataclass(eq=False, slots=True)
class Place:
    """A fixed place; `spots` are the hiding places in it."""

    noun: str
    preposition: str
    outdoors: bool = True
    spots: tuple[str, ...] = ()
    bare: bool = False  # "home" takes no article

    def inside(self) -> str:
        return "at home" if self.bare else f"{self.preposition} the {self.noun}"


@dataclass(eq=False, slots=True)
class Character:
    """Somebody. Without a name they are told of by noun: "an old man", then "the old man"."""

    noun: str
    gender: str  # "she", "he" or "it"
    name: str = ""
    epithet: str = ""  # "little", "brave": used in the introduction only
    kin_of: Character | None = None  # "her mom" at first, then the name "Mom"
    animal: bool = False
    unique: bool = False  # "the baker": there is only one, so "the" from the start
    place: Place | None = None
    feeling: str = "calm"
    cause: str = ""


@dataclass(eq=False, slots=True)
class Thing:
    """An object; it lies in a place or is held by somebody, who carries it along."""

    noun: str
    adjective: str = ""
    plural: bool = False
    mass: bool = False
    rolls: bool = False
    owner: Character | None = None
    holder: Character | None = None
    place: Place | None = None
    state: str = "whole"

    @property
    def gender(self) -> str:
        return "they" if self.plural else "it"

    def where(self) -> Place | None:
        return self.holder.place if self.holder else self.place


@dataclass(eq=False, slots=True)
class Pair:
    """Two characters told of together: "they", "Lily and Tom", "the two friends"."""

    first: Character
    second: Character
    gender: str = "they"


class Event(NamedTuple):
    """One change of the world and the number of the sentence that tells it."""

    kind: str
    who: Character | None
    thing: Thing | None
    other: Character | None
    place: Place | None
    detail: str
    sentence: int


@dataclass(slots=True)
class World:
    """Applies changes, refuses impossible ones and, with `log` a list, writes each one down."""

    log: list[Event] | None = None
    sentence: int = 0  # kept up to date by the stage
    things: list[Thing] = field(default_factory=list)

    def _note(
        self,
        kind: str,
        who: Character | None = None,
        thing: Thing | None = None,
        other: Character | None = None,
        detail: str = "",
    ) -> None:
        if self.log is not None:
            place = who.place if who else (thing.where() if thing else None)
            self.log.append(Event(kind, who, thing, other, place, detail, self.sentence))

    def enter(self, who: Character, place: Place) -> None:
        """Somebody is in the story for the first time, or comes from nowhere in particular."""
        if who.place is not None:
            raise IncoherentError(f"{who.noun} is already in the story")
        who.place = place
        self._note("enter", who)

    def move(self, who: Character, place: Place) -> None:
        if who.place is None or who.place is place:
            raise IncoherentError(f"{who.noun} cannot go to {place.noun} from there")
        who.place = place
        self._note("move", who)

    def add(self, thing: Thing, holder: Character | None, place: Place | None) -> None:
        if (holder is None) == (place is None):
            raise IncoherentError(f"{thing.noun} is either held or lies somewhere")
        thing.holder, thing.place = holder, place
        self.things.append(thing)
        self._note("add", holder, thing, None, place.noun if place else "")

    def take(self, who: Character, thing: Thing) -> None:
        if thing.holder is not None or thing.place is not who.place or who.place is None:
            raise IncoherentError(f"{who.noun} cannot take {thing.noun}")
        thing.holder, thing.place = who, None
        self._note("take", who, thing)

    def put(self, who: Character, thing: Thing) -> None:
        if thing.holder is not who:
            raise IncoherentError(f"{who.noun} does not hold {thing.noun}")
        thing.holder, thing.place = None, who.place
        self._note("put", who, thing)

    def give(self, giver: Character, taker: Character, thing: Thing) -> None:
        if thing.holder is not giver or giver.place is not taker.place or giver is taker:
            raise IncoherentError(f"{giver.noun} cannot give {thing.noun} to {taker.noun}")
        thing.holder = taker
        self._note("give", giver, thing, taker)

    def alter(self, thing: Thing, state: str, cause: str) -> None:
        if thing.state == state or not cause:
            raise IncoherentError(f"{thing.noun} cannot become {state}")
        thing.state = state
        self._note("alter", thing.holder, thing, None, f"{state}: {cause}")

    def use_up(self, thing: Thing, cause: str) -> None:
        """The thing is eaten, planted or built in: nobody can hold it any more."""
        self.alter(thing, "gone", cause)
        thing.holder = thing.place = None

    def feel(self, who: Character, feeling: str, cause: str) -> None:
        if not cause or who.feeling == feeling:
            raise IncoherentError(f"{who.noun} has no reason to become {feeling}")
        who.feeling, who.cause = feeling, cause
        self._note("feel", who, None, None, f"{feeling}: {cause}")

    def speak(self, who: Character, to: Character | None) -> None:
        if who.place is None or (to is not None and to.place is not who.place):
            raise IncoherentError(f"{who.noun} cannot speak to somebody who is elsewhere")
        self._note("speak", who, None, to)


GIRLS = words("Lily Mia Anna Rosa Nora Ella Ruby Clara Zoe Ivy Maya Hazel Lena Tilda")
BOYS = words("Tom Ben Max Leo Sam Finn Noah Oscar Jack Milo Theo Paul Hugo Omar")
ANIMALS = words("rabbit fox bear mouse squirrel hedgehog badger")
TRAITS = words("little young kind cheerful curious quiet clever gentle")
COLORS = words("red blue green yellow orange white brown")
TOYS = (  # noun, adjectives, does it roll
    ("ball", COLORS, True),
    ("toy car", COLORS, True),
    ("teddy bear", ["brown", "soft", "old"], False),
    ("doll", ["old", "small", "new"], False),
    ("drum", (*COLORS, "old"), True),
    ("robot", ["small", "silver", "new"], False),
    ("wooden horse", ["small", "new", "old"], False),
    ("scarf", (*COLORS, "warm"), False),
    ("hat", (*COLORS, "new", "old"), False),
)
FRAGILE = (  # noun, adjectives, what mends it
    ("boat", ["wooden", "red", "blue", "old"], "glue"),
    ("horse", ["wooden"], "glue"),
    ("cup", ["blue", "white", "old"], "glue"),
    ("bowl", ["blue", "green", "old"], "glue"),
    ("kite", COLORS, "tape"),
    ("picture book", ["old", "big", "new"], "tape"),
    ("teddy bear", ["old", "brown", "soft"], "thread"),
    ("blanket", ("soft", "old", *COLORS), "thread"),
)
FOODS = (  # noun, adjectives; one piece of each
    ("apple", ["red", "big", "green"]),
    ("cookie", ["big", "sweet", "round"]),
    ("sandwich", ["big", "cheese"]),
    ("orange", ["big", "sweet"]),
    ("pear", ["yellow", "sweet", "green"]),
    ("pancake", ["warm", "big"]),
    ("honey cake", ["sweet", "small"]),
)
OUTDOORS = (
    ("park", "in", "under a bench|behind a big tree|in the tall grass|near the gate|by the path"),
    ("garden", "in", "under a bush|behind the shed|between the flowers|near the gate"),
    ("beach", "on", "behind a rock|under an old boat|in the warm sand|near the water"),
    ("river", "by", "under the bridge|behind a rock|in the tall grass|near the water"),
    ("forest", "in", "under a bush|behind an old tree|beside a rock|in the dry leaves"),
    ("hill", "on", "behind a rock|in the tall grass|under a tree|near the path"),
    ("meadow", "in", "in the tall grass|beside a rock|between the flowers|near the fence"),
    ("farm", "on", "behind the barn|under a bench|in the tall grass|near the fence"),
    ("pond", "by", "under a bench|behind a rock|in the tall grass|near the water"),
    ("playground", "on", "under the slide|behind a bench|near the fence|in the sand"),
)
