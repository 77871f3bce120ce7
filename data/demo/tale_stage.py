"""The stage: events that change the world and tell the change in one sentence.

Every method here first asks the world (`tale_world`) whether the event can happen, then lets the
narrator (`tale_narrator`) say it. Plots (`tale_plots`) are nothing but calls of these methods, so a
plot cannot tell what did not happen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from tale_narrator import Mention, Narrator, alternatives
from tale_world import (
    ANIMALS,
    BOYS,
    FOODS,
    FRAGILE,
    GIRLS,
    OUTDOORS,
    TOYS,
    TRAITS,
    Character,
    Event,
    Pair,
    Place,
    T,
    Thing,
    World,
    pick,
    words,
)

SKIES = {
    "sunny": ("sunny", "bright", "warm"),
    "windy": ("windy", "cool"),
    "cloudy": ("cloudy", "gray"),
    "rainy": ("rainy", "wet"),
    "cold": ("cold", "cool"),
}
KIN = (("Mom", "she"), ("Dad", "he"), ("Grandma", "she"), ("Grandpa", "he"))
DRY = ("sunny", "sunny", "windy", "cloudy")
WARM = ("sunny", "sunny", "cloudy")
ANY = ("sunny", "windy", "cloudy", "rainy", "cold")
FUN = words(
    "chase a butterfly|look at a nest|watch a snail|pick some flowers|climb a tree|"
    "look at the clouds"
)
GAMES = words("hide and seek|tag|pirates|catch|a guessing game")
TOPICS = words("school|summer|birds|the stars|all kinds of things|their favorite songs")
TREATS = words("warm soup|hot milk with honey|fresh bread|warm apple pie")
HOMES = (
    "in a small house near the woods|in a little house on a quiet street|"
    "in a house with a green door|at the edge of a small town|in a cozy house|in a quiet village"
)
OPENINGS = (
    "once upon a time, there was {a:intro}.|"
    "once upon a time, there was {a:intro} who lived {home}.|"
    "once upon a time, {a:intro} lived {home}.|{a:intro} lived {home}.|"
    "there once was {a:intro} who loved to {hobby}.|{home}, there lived {a:intro}.|"
    "long ago, {a:intro} lived {home}.|this is the story of {a:intro}.|"
    "not so long ago, there lived {a:intro}.|do you know the story of {a:intro}?|"
    "far away, in a quiet village, there lived {a:intro}.|everybody in town knew {a:intro}.|"
    "let me tell you about {a:intro}.|there was once {a:intro}.|"
    "once there was {a:intro}, and what {a} liked best was to {hobby}."
)
HOBBIES = words(
    "sing|paint|read|dance|draw|tell jokes|play outside|count the stars|climb trees|run"
)
PASTIMES = words("sing|read|draw|play outside|listen to stories|look at the birds")
PORTRAITS = (
    "everybody liked {a:o}, because {a} was always ready to help.|{a} was small, but very {trait}.|"
    "{a} could {hobby} for hours.|{a} was {trait} and liked to {hobby}."
)
FEEL = (
    "{who} [felt|was] [very |so |]{f} because %.|because %, {who} felt {f}.|"
    "%, so {who} was [very |]{f}.|{who} was {f}, because %."
)
FEEL_SHOWN = "{who} {effect}, because %.|{who} was so {f} that {who} {effect}."
EFFECTS = {
    "happy": ("jumped for joy", "laughed out loud", "clapped {who:p} {who:hands}", "danced around"),
    "proud": ("stood very tall", "smiled and smiled", "ran to tell everybody"),
    "sad": ("began to cry", "sat down and cried", "could not smile"),
    "worried": ("did not know what to do", "began to cry"),
    "scared": ("began to shake", "could not move", "wanted to run away"),
    "angry": ("turned red", "began to shout"),
    "sorry": ("could not smile", "began to cry"),
}
TAGS = {  # by the last character of what is said; % stands for the words
    ".": '"%," {who} said.|"%," said {who:n}{how}.|{who} said, "%."|{who} said{how}, "%."',
    "?": '"%?" {who} asked.|"%?" asked {who:n}.|{who} asked, "%?"',
    "!": '"%!" {who} [said|cried].|"%!" said {who:n}{how}.|{who} [cried|called out], "%!"',
}
TAGS_TO = {
    ".": '"%," {who} told {to:o}.|"%," {who} said to {to:o}.|{who} said to {to:o}, "%."',
    "?": '{who} asked {to:o}, "%?"|"%?" {who} asked {to:o}.',
    "!": '"%!" {who} said to {to:o}.|"%!" {who} told {to:o}.',
}
MANNERS = {
    "happy": (" with a smile", " with a laugh", " happily"),
    "proud": (" with a smile",),
    "excited": (" with shining eyes", " happily"),
    "sad": (" in a small voice", " softly"),
    "sorry": (" in a small voice", " softly"),
    "lonely": (" in a small voice", " softly"),
    "worried": (" in a small voice", " softly"),
    "scared": (" in a small voice", " softly"),
    "angry": (" in a loud voice",),
}


class Plot(NamedTuple):
    """A plot and the skies under which it can happen."""

    name: str
    skies: tuple[str, ...]
    run: Callable[[Stage], None]


def plot(*skies: str) -> Callable[[Callable[[Stage], None]], Plot]:
    """Decorator: make a plot of a function that plays one on a stage."""
    return lambda run: Plot(run.__name__, skies, run)


class Scenery:
    """Makes the characters, places and things of one tale."""

    def __init__(self, rng: Random, skies: Sequence[str], record: bool = False) -> None:
        self.rng = rng
        self.events: list[Event] | None = [] if record else None
        self.mentions: list[Mention] | None = [] if record else None
        self.world = World(self.events)
        self.narrator = Narrator(rng, self.mentions)
        self.cast: list[Character] = []
        self.names: set[str] = set()
        self.wild = rng.random() < 0.35  # the heroes are animals instead of children
        self.sky = pick(rng, skies)
        self.part = pick(rng, ("morning", "morning", "afternoon"))
        self.home = Place("home", "at", outdoors=False, bare=True)
        self.hero = self._person(pick(rng, ("she", "he")))
        self.world.enter(self.hero, self.home)
        self.slots: dict[str, object] = {"a": self.hero, "home": self.pick(alternatives(HOMES))}
        self.slots["day"] = self._day()

    def pick(self, options: Sequence[T]) -> T:
        return pick(self.rng, options)

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different ones, in random order."""
        left = list(options)
        return [left.pop(int(self.rng.random() * len(left))) for _ in range(count)]

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def _day(self) -> str:
        sky, part = self.pick(SKIES[self.sky]), self.part
        ways = [
            f"one {sky} {part}",
            f"one {part}",
            f"on a {sky} {part}",
            "one day",
            f"one {sky} day",
        ]
        if part == "morning":
            ways.append(f"early one {sky} morning")
        return self.pick(ways)

    def _person(self, gender: str) -> Character:
        names = GIRLS if gender == "she" else BOYS
        name = self.pick(names)
        while name in self.names:
            name = self.pick(names)
        self.names.add(name)
        noun = {"she": "girl", "he": "boy"}[gender]
        if self.wild:
            taken = {one.noun for one in self.cast}
            noun = self.pick([animal for animal in ANIMALS if animal not in taken])
        who = Character(noun, gender, name, self.pick(TRAITS), animal=self.wild)
        self.cast.append(who)
        return who

    def friend(self, slot: str = "b") -> Character:
        """A friend, mostly of the other gender, so that pronouns stay clear; not yet on stage."""
        other = "he" if self.hero.gender == "she" else "she"
        gender = other if self.chance(0.75) or slot != "b" else self.hero.gender
        who = self.slots[slot] = self._person(gender)
        return who

    def elder(self, slot: str = "e") -> Character:
        name, gender = self.pick(KIN)
        who = Character(name.lower(), gender, name, kin_of=self.hero, animal=self.wild)
        self.world.enter(who, self.home)
        self.cast.append(who)
        self.slots[slot] = who
        return who

    def extra(self, slot: str, noun: str, gender: str, unique: bool = False) -> Character:
        """Somebody without a name, who enters where the hero is."""
        epithet, _, kind = noun.rpartition(" ")
        if self.wild:
            kind = {"man": "goat", "woman": "goose"}.get(kind, kind)
        who = Character(kind, gender, epithet=epithet, unique=unique)
        self.world.enter(who, self.hero.place)
        self.cast.append(who)
        self.slots[slot] = who
        return who

    def outdoors(self, slot: str = "p", only: str = "") -> Place:
        noun, preposition, spots = self.pick(
            [o for o in OUTDOORS if not only or o[0] in only.split()]
        )
        place = self.slots[slot] = Place(noun, preposition, True, tuple(spots.split("|")))
        return place

    def indoors(self, slot: str, noun: str, preposition: str = "in") -> Place:
        place = self.slots[slot] = Place(noun, preposition, outdoors=False)
        return place

    def thing(
        self,
        slot: str,
        noun: str,
        adjective: str = "",
        holder: Character | None = None,
        place: Place | None = None,
        **more: bool,
    ) -> Thing:
        made = self.slots[slot] = Thing(noun, adjective, **more)
        if holder is not None or place is not None:
            self.world.add(made, holder, place)
        return made

    def toy(self, slot: str, owner: Character | None, place: Place | None = None) -> Thing:
        noun, adjectives, rolls = self.pick(TOYS)
        made = self.thing(slot, noun, self.pick(adjectives), owner, place, rolls=rolls)
        made.owner = owner
        return made

    def food(self, slot: str, holder: Character) -> Thing:
        noun, adjectives = self.pick(FOODS)
        return self.thing(slot, noun, self.pick(adjectives), holder)

    def fragile(self, slot: str, place: Place) -> tuple[Thing, str]:
        noun, adjectives, mender = self.pick(FRAGILE)
        return self.thing(slot, noun, self.pick(adjectives), None, place), mender

    def pair(self, first: Character, second: Character, slot: str = "we") -> Pair:
        both = self.slots[slot] = Pair(first, second)
        return both


class Stage(Scenery):
    """One tale in the making: events that change the world and are told at once."""

    def tell(self, forms: str, **more: object) -> None:
        self.narrator.tell(forms, {**self.slots, **more} if more else self.slots)
        self.world.sentence = len(self.narrator.sentences)

    def open(self, hobby: str = "") -> None:
        hobby = hobby or self.pick(HOBBIES)
        self.tell(OPENINGS, hobby=hobby)
        if self.chance(0.4):
            trait = self.pick([trait for trait in TRAITS[2:] if trait != self.hero.epithet])
            self.tell(PORTRAITS, trait=trait, hobby=self.pick([h for h in PASTIMES if h != hobby]))

    def go(self, who: Character | Pair, place: Place, forms: str, **more: object) -> None:
        for one in (who.first, who.second) if type(who) is Pair else (who,):
            self.world.move(one, place)
        self.tell(forms, **more)

    def meet(self, who: Character, forms: str, **more: object) -> None:
        """Somebody comes to where the hero is."""
        self.world.enter(who, self.hero.place)
        self.tell(forms, **more)

    def leave(self, who: Character, forms: str, **more: object) -> None:
        """Somebody goes away, and is out of reach until he or she comes back."""
        self.world.move(who, Place("elsewhere", "in"))
        self.tell(forms, **more)

    def take(self, who: Character, thing: Thing, forms: str, **more: object) -> None:
        self.world.take(who, thing)
        self.tell(forms, **more)

    def put(self, who: Character, thing: Thing, forms: str, **more: object) -> None:
        self.world.put(who, thing)
        self.tell(forms, **more)

    def give(
        self, giver: Character, taker: Character, thing: Thing, forms: str, **more: object
    ) -> None:
        self.world.give(giver, taker, thing)
        self.tell(forms, **more)

    def alter(self, thing: Thing, state: str, cause: str, forms: str, **more: object) -> None:
        self.world.alter(thing, state, cause)
        self.tell(forms, **more)

    def use_up(self, thing: Thing, cause: str, forms: str, **more: object) -> None:
        self.world.use_up(thing, cause)
        self.tell(forms, **more)

    def feel(
        self, who: Character, feeling: str, cause: str, forms: str = FEEL, **more: object
    ) -> None:
        """A new feeling; `cause` is a clause, which the forms may tell in place of a `%`."""
        if who.feeling != feeling:
            self.world.feel(who, feeling, cause)
        effects = EFFECTS.get(feeling)
        if forms is FEEL and effects and self.chance(0.35):
            forms = FEEL_SHOWN.replace("{effect}", self.pick(effects))
        form = self.pick(alternatives(forms)).replace("%", cause)
        self.tell(form, who=who, f=feeling, **more)

    def say(self, who: Character, words: str, to: Character | None = None, **more: object) -> None:
        """Direct speech; the last character of `words` decides between said, asked and cried."""
        self.world.speak(who, to)
        said = self.pick(alternatives(words))
        tags = TAGS_TO if to is not None and self.chance(0.35) else TAGS
        tag = self.pick(alternatives(tags[said[-1]])).replace("%", said[:-1])
        manners = MANNERS.get(who.feeling)
        how = self.pick(manners) if manners and self.chance(0.4) else ""
        self.tell(tag, who=who, to=to, how=how, **more)

    def close(self, lesson: str = "", habit: str = "") -> None:
        """A last line: what was learned, what was different from then on, a good night, or none."""
        way = self.rng.random()
        if lesson and way < 0.4:
            forms = "{a} learned that %.|and so {a} learned that %.|that day, {a} learned that %."
            self.tell(self.pick(alternatives(forms)).replace("%", self.pick(alternatives(lesson))))
        elif habit and way < 0.75:
            forms = "from that day on, %.|after that, %.|from then on, %."
            self.tell(self.pick(alternatives(forms)).replace("%", self.pick(alternatives(habit))))
        elif way < 0.9:
            self.tell(
                "that night, {a} fell asleep with a smile.|it had been a [good|wonderful] day.|"
                "that evening, {a} was tired but happy.|{a} never forgot that day."
            )
        if self.chance(0.08):
            self.tell("the end.")
