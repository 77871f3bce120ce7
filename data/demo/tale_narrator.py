"""The narrator: picks a sentence form, fills it in, and knows when "she" would be misunderstood.

Forms are small templates. `a|b` are alternatives, `[a|b|]` is an alternative inside a form, and
`{slot:way}` refers to something in one of these ways:

    character   {x} name or she   {x:o} her   {x:p} her or Lily's   {x:n} the name   {x:np} Lily's
                {x:self} herself   {x:intro} a little girl named Lily   {x:new} Lily, or Pip the fox
                {x:hand} hand or paw   {x:hands} hands or paws
    thing       {x} a red ball, then the ball   {x:it} it, where clear   {x:bare} ball
                {x:full} red ball   {x:was} was or were   {x:a} always with a or an
    place       {x} the park   {x:in} in the park   {x:to} to the park
    pair        {x} they, where clear   {x:o} them   {x:p} their   {x:n} Lily and Tom
    text        {x} as it is   {x:a} with a or an before it

Every form is one sentence written with a small first letter. A pronoun is used only for somebody
mentioned in this sentence or the one before, with nobody of the same pronoun beside them.
"""

from __future__ import annotations

import re
from functools import cache
from random import Random
from typing import NamedTuple

from tale_world import Character, IncoherentError, Pair, Place, Thing, pick, with_article

Entity = Character | Thing | Pair | Place
PRONOUNS = {
    "she": {"": "she", "o": "her", "p": "her", "self": "herself"},
    "he": {"": "he", "o": "him", "p": "his", "self": "himself"},
    "it": {"": "it", "o": "it", "p": "its", "self": "itself"},
    "they": {"": "they", "o": "them", "p": "their", "self": "themselves"},
}
PRONOUN_RUN = 3  # after so many sentences without the name, say it again
SLOT = re.compile(r"\{(\w+)(?::(\w+))?\}|\[([^\]]*)\]")


class Slot(NamedTuple):
    name: str
    way: str
    capital: bool  # the slot begins a sentence inside a form, as in `"Look! {x} is here."`


class Choice(NamedTuple):
    options: tuple[tuple, ...]


class Mention(NamedTuple):
    """How an entity was told of; "name", "pronoun", "new", "known", "together"."""

    sentence: int
    entity: Entity
    way: str


@cache
def alternatives(text: str) -> tuple[str, ...]:
    """Split at the bars that are not inside square brackets."""
    return tuple(re.split(r"\|(?![^\[]*\])", text))


@cache
def compile_form(form: str) -> tuple:
    parts: list = []
    end = 0
    for match in SLOT.finditer(form):
        if match.start() > end:
            parts.append(form[end : match.start()])
        end = match.end()
        name, way, inner = match.groups()
        if inner is not None:
            parts.append(Choice(tuple(compile_form(option) for option in inner.split("|"))))
        else:
            begins = re.search(r'(?:[.!?] |(?:^|, |[.!?] )")$', form[: match.start()]) is not None
            parts.append(Slot(name, way or "", begins))
    if end < len(form):
        parts.append(form[end:])
    return tuple(parts)


class Narrator:
    """Turns forms into sentences; keeps what the reader has heard of and may call by a pronoun."""

    def __init__(self, rng: Random, mentions: list[Mention] | None = None) -> None:
        self.rng = rng
        self.mentions = mentions
        self.sentences: list[str] = []
        self.known: set[Entity] = set()
        self.before: set[Entity] = set()  # mentioned in the last sentence
        self.now: set[Entity] = set()  # mentioned in this one, so far
        self.runs: dict[Entity, int] = {}

    def tell(self, forms: str, slots: dict[str, object]) -> None:
        """Say one of the forms."""
        self.before, self.now = self.now, set()
        out: list[str] = []
        self._render(compile_form(pick(self.rng, alternatives(forms))), slots, out)
        text = "".join(out)
        first = 1 if text[0] == '"' else 0
        self.sentences.append(text[:first] + text[first].upper() + text[first + 1 :])

    def _render(self, form: tuple, slots: dict[str, object], out: list[str]) -> None:
        for part in form:
            if type(part) is str:
                out.append(part)
            elif type(part) is Slot:
                text = self._fill(slots[part.name], part.way)
                out.append(text[0].upper() + text[1:] if part.capital else text)
            else:
                self._render(pick(self.rng, part.options), slots, out)

    def _fill(self, value: object, way: str) -> str:
        if type(value) is str:
            return with_article(value) if way == "a" else value
        if type(value) is Character:
            return self._character(value, way)
        if type(value) is Thing:
            return self._thing(value, way)
        if type(value) is Pair:
            return self._pair(value, way)
        return self._place(value, way)

    def _mention(self, entity: Entity, way: str) -> None:
        self.now.add(entity)
        self.known.add(entity)
        if self.mentions is not None:
            self.mentions.append(Mention(len(self.sentences), entity, way))

    def _clear(self, entity: Entity) -> bool:
        """Would a reader take the pronoun for this entity and for no other?"""
        gender = entity.gender
        if entity in self.now:
            near = self.now
        elif entity in self.before:
            near = self.before | self.now
        else:
            return False
        for other in near:
            if other is not entity and type(other) is not Place and other.gender == gender:
                return False
        return True

    def _character(self, who: Character, way: str) -> str:
        if way in ("hand", "hands"):
            return way.replace("hand", "paw") if who.animal else way
        if way == "new":
            self._mention(who, "new")
            return f"{who.name} the {who.noun}" if who.animal else who.name
        if way == "intro":
            self._mention(who, "new")
            return f"{with_article(f'{who.epithet} {who.noun}'.strip())} named {who.name}"
        pronouns = PRONOUNS[who.gender]
        if way == "self":
            return pronouns["self"]
        if way not in ("n", "np") and self._clear(who) and self._may_repeat(who, way):
            self._mention(who, "pronoun")
            return pronouns[way]
        name = self._name(who)
        self.runs[who] = 0
        return name + "'s" if way in ("p", "np") else name

    def _may_repeat(self, who: Character, way: str) -> bool:
        if who in self.now:
            return True
        run = self.runs.get(who, 0)
        if way == "" and run and (run >= PRONOUN_RUN or self.rng.random() < 0.25):
            return False
        self.runs[who] = run + 1
        return True

    def _name(self, who: Character) -> str:
        fresh = who not in self.known
        if who.kin_of is not None and fresh:
            owner = self._character(who.kin_of, "p")
            self._mention(who, "new")
            return f"{owner} {who.noun}"
        if who.name:
            if fresh and who.kin_of is None:
                raise IncoherentError(f"{who.name} was never introduced")
            self._mention(who, "name")
            return who.name
        self._mention(who, "new" if fresh else "known")
        if fresh and not who.unique:
            return with_article(f"{who.epithet} {who.noun}".strip())
        return f"the {who.noun}"

    def _thing(self, thing: Thing, way: str) -> str:
        if way == "was":
            return "were" if thing.plural else "was"
        full = f"{thing.adjective} {thing.noun}" if thing.adjective else thing.noun
        if way in ("bare", "full"):
            self._mention(thing, "known" if thing in self.known else "new")
            return full if way == "full" else thing.noun
        if way in ("it", "its") and self._clear(thing):
            self._mention(thing, "pronoun")
            return PRONOUNS[thing.gender]["o" if way == "it" else "p"]
        fresh = thing not in self.known or way == "a"
        self._mention(thing, "new" if fresh else "known")
        suffix = "'s" if way == "its" else ""
        if not fresh:
            return f"the {full if self.rng.random() < 0.25 else thing.noun}{suffix}"
        return (f"some {full}" if thing.plural or thing.mass else with_article(full)) + suffix

    def _pair(self, pair: Pair, way: str) -> str:
        both = (pair.first, pair.second)
        for who in both:
            if who not in self.known:
                raise IncoherentError(f"{who.name} was never introduced")
        near = self.before | self.now
        alone = all(one in near for one in both) and not any(
            other not in both and (type(other) is Character or getattr(other, "plural", False))
            for other in near
        )
        short = alone and way != "n"
        for who in both:
            self._mention(who, "together" if short else "name")
            self.runs[who] = 1 if short else 0
        if short:
            return PRONOUNS["they"][way]
        names = " and ".join(who.name or f"the {who.noun}" for who in both)
        return names + "'s" if way == "p" else names

    def _place(self, place: Place, way: str) -> str:
        self._mention(place, "known")
        if way == "in":
            return place.inside()
        if place.bare:
            return place.noun
        return f"to the {place.noun}" if way == "to" else f"the {place.noun}"
