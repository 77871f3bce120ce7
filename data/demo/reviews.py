"""Film-review sentences whose label lies in how the words are put together.

Every sentence has a value from -2 to 2, which is the label minus two: awful, bad, average, good,
excellent. All labels are made of the same praising and the same blaming words, so counting words
says little; what counts is the construction:

    1. Of two contrasting clauses, the one after "but" or "yet" decides, and of a sentence with
       "although", the main clause, wherever it stands.
    2. What becomes of a film counts more than how it starts; what cannot be hidden counts.
    3. "And" between opposite clauses of equal force, "as ... as", "neither" of two opposites, and
       halves of equal size make an average film.
    4. "Not", "nothing", "nobody", "few", "little", "less", "wrong", "the opposite" turn the
       sentence round; two of them turn it back.
    5. The size of the degree word, number or quantity that decides tells good from excellent and
       bad from awful: utterly, far, ten, every, nobody; rather, slightly, two, most, I.

`judge` reads the label back from the text alone by these rules; it is the oracle for the generator
and the ceiling for a model. The two-label form has no average films and asks for the sign only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple
from zlib import crc32

from tale_world import pick, with_article, words

GOOD = words(
    "charming gripping clever moving thoughtful graceful exciting amusing touching inventive"
)
BAD = words(
    "boring clumsy tedious shallow predictable awkward lifeless annoying confusing tiresome"
)
STRONG = words("utterly completely totally absolutely entirely")
MILD = words("mostly largely fairly rather somewhat")
ASPECTS = words(
    "acting|story|script|music|ending|plot|dialogue|opening|direction|first half|second half"
)
FILMS = words("film movie comedy drama thriller romance cartoon sequel")
SOURCES = (
    ("my sister", "she was"),
    ("my brother", "he was"),
    ("my neighbor", "she was"),
    ("the critics", "they were"),
    ("my friends", "they were"),
    ("the papers", "they were"),
)
PREFACES = words(
    "to be honest ,|in my view ,|all in all ,|in the end ,|after all the talk ,|"
    "as far as I can tell ,|"
    "I saw it twice , and|we saw it on Friday , and|I watched it with my family , and|"
    "I have thought about it , and"
)
TAILS = words(", I think|, I must say|, if you ask me|, as it turns out|, as we all agreed")
LABEL_NAMES = {5: ("awful", "bad", "average", "good", "excellent"), 2: ("bad", "good")}
PROMPTS = {
    5: "Is this movie awful, bad, average, good, or excellent? This movie is ",
    2: "Is this movie bad or good? This movie is ",
}
QUESTIONS = words(
    "Should you see it ?|Is it worth an evening ?|What did we think ?|So what is left of it ?|"
    "Would I go again ?"
)
REMARKS = {
    -2: words(
        "I left before the end .|Nobody should sit through it .|Never again .|"
        "Run from it as fast as you can .|My money is gone ."
    ),
    -1: words(
        "Skip it .|There are better ways to spend an evening .|It did not work for me .|"
        "I would rather have stayed at home .|We were not happy ."
    ),
    0: words(
        "See it or leave it .|Some of us were happy , some were not .|It could go either way .|"
        "I cannot make up my mind .|Half of us would go again ."
    ),
    1: words(
        "Go if you have the time .|Worth the money .|We liked it .|I would see it again .|"
        "It made my evening ."
    ),
    2: words(
        "Everyone should see it .|I will see it every week .|We stood and clapped .|"
        "It made my year .|Drop everything and go ."
    ),
}
SPLITS = ("train", "dev", "test")


class Review(NamedTuple):
    label: int
    text: str
    family: str


def sign(value: int) -> int:
    return (value > 0) - (value < 0)


class Writer:
    """The words of one sentence, drawn so that they say nothing about its label."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng

    def pick(self, *options: str) -> str:
        return pick(self.rng, options)

    def flip(self) -> bool:
        return self.rng.random() < 0.5

    def word(self, polarity: int) -> str:
        return pick(self.rng, GOOD if polarity > 0 else BAD)

    def degree(self, strength: int) -> str:
        return pick(self.rng, STRONG if strength == 2 else MILD)

    def against(self, value: int) -> str:
        """The opposite judgement, mostly of the other strength: a clause that does not decide."""
        other = 3 - abs(value) if self.rng.random() < 0.8 else abs(value)
        return f"{self.degree(other)} {self.word(-value)}"

    def exactly(self, value: int) -> str:
        return f"{self.degree(abs(value))} {self.word(value)}"

    def film(self) -> str:
        return f"{self.pick('this', 'the')} {pick(self.rng, FILMS)}"

    def aspects(self) -> tuple[str, str]:
        first = second = pick(self.rng, ASPECTS)
        while second == first:
            second = pick(self.rng, ASPECTS)
        return f"the {first}", f"the {second}"

    def either(self, polarity: int) -> tuple[str, bool]:
        """A word, and whether the sentence has to turn it round to reach the polarity."""
        turned = self.flip()
        return self.word(-polarity if turned else polarity), turned


# --- the constructions: each writes a sentence of the value it is given ------------------------


def contrast(w: Writer, value: int) -> str:
    x, y = w.aspects()
    return f"{x} is {w.against(value)} , {w.pick('but', 'yet')} {y} is {w.exactly(value)} ."


def although_first(w: Writer, value: int) -> str:
    x, y = w.aspects()
    word = w.pick("although", "though", "even though")
    return f"{word} {x} is {w.against(value)} , {y} is {w.exactly(value)} ."


def although_last(w: Writer, value: int) -> str:
    x, y = w.aspects()
    word = w.pick("although", "though", "even though")
    return f"{x} is {w.exactly(value)} , {word} {y} is {w.against(value)} ."


def addition(w: Writer, value: int) -> str:
    x, y = w.aspects()
    strength = abs(value) or 1 + w.flip()
    first = sign(value) or (1 if w.flip() else -1)
    second = first if value else -first
    one = two = w.word(first)
    while two == one:
        two = w.word(second)
    return f"{x} is {w.degree(strength)} {one} , and {y} is {w.degree(strength)} {two} ."


def cannot_hide(w: Writer, value: int) -> str:
    x, y = w.aspects()
    verb = w.pick("hide", "change the fact")
    return f"even the {w.against(value)} {x[4:]} cannot {verb} that {y} is {w.exactly(value)} ."


def course(w: Writer, value: int) -> str:
    early, late = f"felt {w.against(value)}", f"felt {w.exactly(value)}"
    first, then = w.pick("at first", "early on"), w.pick("later", "by the end")
    if w.flip():
        return f"{first} {w.film()} {early} , {then} it {late} ."
    return f"{then} {w.film()} {late} , {first} it {early} ."


def claim(w: Writer, value: int) -> str:
    who, was = pick(w.rng, SOURCES)
    word, turned = w.either(value)
    degree = w.degree(2) if abs(value) == 2 else w.pick("mostly", "largely")
    right = "wrong" if turned else "right"
    called = w.pick(f"called {w.film()}", f"found {w.film()}", f"told me that {w.film()} is")
    return f"{who} {called} {word} , and {was} {degree} {right} ."


def expectation(w: Writer, value: int) -> str:
    word, turned = w.either(value)
    degree = w.degree(2) if abs(value) == 2 else w.pick("mostly", "largely")
    result = "the opposite" if turned else "as expected"
    thing = w.pick("something", "a film that is", "a show that is")
    return f"I expected {thing} {word} , and {w.film()} is {degree} {result} ."


def wish(w: Writer, value: int) -> str:
    word, turned = w.either(value)
    pairs = ("everything", "nothing") if abs(value) == 2 else ("much", "little")
    hope = w.pick("love", "hate")
    link = "and" if (hope == "love") == (value > 0) else "but"
    return f"I wanted to {hope} {w.film()} , {link} {pairs[turned]} in it is {word} ."


def quantity(w: Writer, value: int) -> str:
    if not value:
        first, second = (1, -1) if w.flip() else (-1, 1)
        return f"some of {w.film()} is {w.word(first)} and some of it is {w.word(second)} ."
    word, turned = w.either(value)
    pairs = ("everything", "nothing") if abs(value) == 2 else ("much", "little")
    return f"{pairs[turned]} about {w.film()} is {word} ."


def scenes(w: Writer, value: int) -> str:
    unit = w.pick("scene", "minute", "moment")
    if not value:
        first, second = (1, -1) if w.flip() else (-1, 1)
        return f"half of the {unit}s are {w.word(first)} , the other half {w.word(second)} ."
    word, turned = w.either(value)
    if abs(value) == 2:
        return f"{('every', 'not a')[turned]} single {unit} of {w.film()} is {word} ."
    return f"{('most', 'few')[turned]} {unit}s of {w.film()} are {word} ."


def for_every(w: Writer, value: int) -> str:
    unit = w.pick("scene", "joke", "line")
    end = sign(value) or (1 if w.flip() else -1)
    start = f"for every {unit} in {w.film()} that felt {w.word(-end)}"
    if not value:
        return f"{start} there was one that felt {w.word(end)} ."
    number = w.pick("ten", "twenty", "a hundred") if abs(value) == 2 else w.pick("two", "three")
    return f"{start} there were {number} that felt {w.word(end)} ."


def more_than(w: Writer, value: int) -> str:
    if not value:
        first, second = (1, -1) if w.flip() else (-1, 1)
        just = w.pick("exactly", "just")
        return f"{w.film()} is {just} as {w.word(first)} as it is {w.word(second)} ."
    turned = w.flip()
    first = -sign(value) if turned else sign(value)
    size = w.pick("far", "a lot") if abs(value) == 2 else w.pick("slightly", "a little")
    more = "less" if turned else "more"
    return f"{w.film()} is {size} {more} {w.word(first)} than {w.word(-first)} ."


def this_year(w: Writer, value: int) -> str:
    word, turned = w.either(value)
    more = "less" if turned else "more"
    film = pick(w.rng, FILMS)
    when = w.pick("this year", "this month", "this summer", "in town")
    if abs(value) == 2:
        return f"no {film} {when} is {more} {word} than this one ."
    plural = "comedies" if film == "comedy" else film + "s"
    return f"few {plural} {when} are {more} {word} than this one ."


def denial(w: Writer, value: int) -> str:
    word, turned = w.either(value)
    subject = w.pick("nobody could", "nobody would") if abs(value) == 2 else "I would not"
    return f"{subject} {f'call {w.film()}' if turned else f'deny that {w.film()} is'} {word} ."


def neither(w: Writer, value: int) -> str:
    first, second = (-value, -value) if value else ((1, -1) if w.flip() else (-1, 1))
    one = two = w.word(first)
    while two == one:
        two = w.word(second)
    return f"{w.film()} is neither {one} nor {two} ."


def how_often(w: Writer, value: int) -> str:
    if not value:
        first, second = (1, -1) if w.flip() else (-1, 1)
        return f"{w.film()} is {w.word(first)} as often as it is {w.word(second)} ."
    often, seldom = ("always", "never") if abs(value) == 2 else ("often", "seldom")
    parts = [f"{often} {w.word(value)}", f"{seldom} {w.word(-value)}"]
    if w.flip():
        parts.reverse()
    return f"{w.film()} is {parts[0]} and {parts[1]} ."


ALL, NOT_AVERAGE = (-2, -1, 0, 1, 2), (-2, -1, 1, 2)
FAMILIES: tuple[tuple[Callable[[Writer, int], str], tuple[int, ...]], ...] = (
    (contrast, NOT_AVERAGE),
    (although_first, NOT_AVERAGE),
    (although_last, NOT_AVERAGE),
    (addition, ALL),
    (cannot_hide, NOT_AVERAGE),
    (course, NOT_AVERAGE),
    (claim, NOT_AVERAGE),
    (expectation, NOT_AVERAGE),
    (wish, NOT_AVERAGE),
    (quantity, ALL),
    (scenes, ALL),
    (for_every, ALL),
    (more_than, ALL),
    (this_year, NOT_AVERAGE),
    (denial, NOT_AVERAGE),
    (neither, (-1, 0, 1)),
    (how_often, ALL),
)
BY_VALUE = {value: [make for make, values in FAMILIES if value in values] for value in ALL}


# --- reading the label back --------------------------------------------------------------------

Rule = Callable[[re.Match[str]], int]
BIG = {*STRONG} | {
    *words("everything|nothing|every single|not a single|ten|twenty|a hundred|far|a lot|no"),
    *words("nobody could|nobody would|always|never"),
}
TURNING = {*words("nothing|little|not a single|few|wrong|the opposite|less|call|never|seldom")}


def _polarity(word: str) -> int:
    return 1 if word in GOOD else -1


def _force(word: str) -> int:
    return 2 if word in BIG else 1


def _turn(word: str) -> int:
    return -1 if word in TURNING else 1


def _decides(clause: int) -> Rule:
    """The first or second clause decides; each has a degree and an adjective."""
    degree = 2 * clause - 1
    return lambda m: _force(m[degree]) * _polarity(m[degree + 1])


def _turned(force: int, turn: int, adjective: int) -> Rule:
    """The numbers of the groups with the force, with what may turn it round, and the adjective."""
    return lambda m: _force(m[force]) * _turn(m[turn]) * _polarity(m[adjective])


def _balance(m: re.Match[str]) -> int:
    return sign(_polarity(m[2]) + _polarity(m[4])) * _force(m[1])


def _average(m: re.Match[str]) -> int:
    return (_polarity(m[1]) + _polarity(m[2])) // 2


ADJ, DEG, FILM = f"({'|'.join(GOOD + BAD)})", f"({'|'.join(STRONG + MILD)})", "(?:this|the) [a-z]+"
CLAUSE = f"the [a-z ]+ is {DEG} {ADJ}"
THOUGH = "(?:although|though|even though)"
SAID = f"(?:called {FILM}|found {FILM}|told me that {FILM} is)"
RULES: tuple[tuple[str, Rule], ...] = (
    (f"{CLAUSE} , (?:but|yet) {CLAUSE}", _decides(2)),
    (f"{THOUGH} {CLAUSE} , {CLAUSE}", _decides(2)),
    (f"{CLAUSE} , {THOUGH} {CLAUSE}", _decides(1)),
    (f"{CLAUSE} , and {CLAUSE}", _balance),
    (f"even the {DEG} {ADJ} [a-z ]+ cannot [a-z ]+ that {CLAUSE}", _decides(2)),
    (f"(?:at first|early on) {FILM} felt {DEG} {ADJ} , [a-z ]+ it felt {DEG} {ADJ}", _decides(2)),
    (f"(?:later|by the end) {FILM} felt {DEG} {ADJ} , [a-z ]+ it felt {DEG} {ADJ}", _decides(1)),
    (f"(?:my|the) [a-z]+ {SAID} {ADJ} , and [a-z ]+ {DEG} (right|wrong)", _turned(2, 3, 1)),
    (
        f"I expected [a-z ]+ {ADJ} , and {FILM} is {DEG} (the opposite|as expected)",
        _turned(2, 3, 1),
    ),
    (f"I wanted to [a-z]+ {FILM} , [a-z]+ ([a-z]+) in it is {ADJ}", _turned(1, 1, 2)),
    (f"(everything|nothing|much|little) about {FILM} is {ADJ}", _turned(1, 1, 2)),
    (f"(every single|not a single|most|few) [a-z]+ of {FILM} (?:is|are) {ADJ}", _turned(1, 1, 2)),
    (f"{FILM} is (far|a lot|slightly|a little) (more|less) {ADJ} than {ADJ}", _turned(1, 2, 3)),
    (f"(no|few) [a-z ]+ (?:is|are) (more|less) {ADJ} than this one", _turned(1, 2, 3)),
    (
        f"(nobody could|nobody would|I would not) (call|deny that) {FILM}(?: is)? {ADJ}",
        _turned(1, 2, 3),
    ),
    (f"{FILM} is (always|often|never|seldom) {ADJ} and [a-z]+ {ADJ}", _turned(1, 1, 2)),
    (
        f"for every [a-z]+ in {FILM} that felt {ADJ} there were ([a-z ]+) that felt {ADJ}",
        _turned(2, 2, 3),
    ),
    (f"for every [a-z]+ in {FILM} that felt {ADJ} there was one that felt {ADJ}", _average),
    (f"{FILM} is neither {ADJ} nor {ADJ}", lambda m: -_average(m)),
    (f"some of {FILM} is {ADJ} and some of it is {ADJ}", _average),
    (f"half of the [a-z]+ are {ADJ} , the other half {ADJ}", _average),
    (f"{FILM} is [a-z]+ as {ADJ} as it is {ADJ}", _average),
    (f"{FILM} is {ADJ} as often as it is {ADJ}", _average),
)


def core(sentence: str) -> str:
    """The sentence without its neutral preface or tail, with a small first letter."""
    for preface in PREFACES:
        if sentence.lower().startswith(preface.lower() + " "):
            sentence = sentence[len(preface) + 1 :]
            break
    for tail in TAILS:
        sentence = sentence.replace(f" {tail} .", " .")
    return sentence if sentence.startswith("I ") else sentence[0].lower() + sentence[1:]


def judge(sentence: str) -> int:
    """The value, -2 to 2, of a sentence, read from its text; ValueError if no rule applies."""
    text = core(sentence)
    for pattern, rule in RULES:
        match = re.fullmatch(pattern + r" \.", text)
        if match:
            return rule(match)
    raise ValueError(f"no rule reads {sentence!r}")


# --- streams -----------------------------------------------------------------------------------


def split_of(sentence: str) -> str:
    """The one split a sentence may appear in, whatever the seed.

    It goes by the sentence without its preface or tail, so that the same opinion never stands in
    two splits after different openings. crc32 is the same everywhere, unlike `hash`.
    """
    part = crc32(core(sentence).encode()) % 10
    return {0: "dev", 1: "test"}.get(part, "train")


def compose(rng: Random, value: int) -> tuple[str, str]:
    """A sentence of the given value and the name of its construction."""
    make = pick(rng, BY_VALUE[value])
    text = make(Writer(rng), value)
    way = rng.random()
    if way < 0.4:
        text = f"{pick(rng, PREFACES)} {text}"
    elif way < 0.7:
        text = f"{text[:-2]} {pick(rng, TAILS)} ."
    return text[0].upper() + text[1:], make.__name__


def _values(rng: Random, labels: int) -> Iterator[int]:
    """Values in shuffled blocks, so that any count of sentences is balanced to within one block."""
    while True:
        block = [-2, -1, 0, 1, 2] if labels == 5 else [-2, -1, 1, 2]
        while block:
            yield block.pop(int(rng.random() * len(block)))


def reviews(seed: int, labels: int = 5, split: str = "train") -> Iterator[Review]:
    """Endless distinct labelled sentences of one split; labels are 0..4, or 0 and 1."""
    if labels not in LABEL_NAMES:
        raise ValueError(f"labels must be 5 or 2, not {labels}")
    if split not in SPLITS:
        raise ValueError(f"split must be train, dev or test, not {split!r}")
    rng = Random(seed)
    seen: set[str] = set()
    for value in _values(rng, labels):
        while True:
            text, family = compose(rng, value)
            if text not in seen and split_of(text) == split:
                break
        seen.add(text)
        yield Review(value + 2 if labels == 5 else int(value > 0), text, family)


def closing_remark(rng: Random, value: int, film: str) -> str:
    """What a reviewer of that opinion goes on to say, in one of many ways."""
    name = LABEL_NAMES[5][value + 2]
    way = rng.random()
    if way < 0.5:
        return pick(rng, REMARKS[value])
    if way < 0.7:
        # Now and then the space bar was hit twice.
        return f"This movie is {pick(rng, ('', ' '))}{name} ."
    in_a_word = (name, with_article(name) + f" {film}", f"in a word , {name}", f"it is {name}")
    words = pick(rng, in_a_word)
    return f"{words[0].upper()}{words[1:]} ."


def unlabelled_reviews(seed: int, padding: str = "") -> Iterator[str]:
    """Endless reviews of more than one sentence for pre-training: an opinion, mostly followed by a
    remark that agrees with it, sometimes with a question to the reader in between.

    They hold neither label numbers nor the zero-shot prompts. All come from the training split, so
    none is in any labelled dev or test set of any seed. With a `padding` character a run of it
    follows many opinions, as in the batches that the assignment reads.
    """
    rng = Random(seed)
    for value in _values(rng, 5):
        while True:
            text, _ = compose(rng, value)
            if split_of(text) == "train":
                break
        film = next((film for film in FILMS if f" {film} " in text), "film")
        way = rng.random()
        if way < 0.1:
            yield text
        elif way < 0.3:
            yield f"{text} {pick(rng, QUESTIONS)} {closing_remark(rng, value, film)}"
        else:
            run = padding * max(0, int(35 * rng.random()) - 10)
            yield f"{text}{run} {closing_remark(rng, value, film)}"
