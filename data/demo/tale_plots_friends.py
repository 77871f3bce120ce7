"""Plots between friends: sharing, quarrels, races, newcomers, learning, building.

How to read a plot is told in `tale_plots`.
"""

from __future__ import annotations

from tale_stage import ANY, DRY, GAMES, TOPICS, WARM, Stage, plot


@plot(*DRY)
def sharing(s: Stage) -> None:
    a, b, p = s.hero, s.friend(), s.outdoors()
    t = s.food("t", a)
    s.open()
    s.go(
        a,
        p,
        "{day}, {a} put {t} in a small bag and went {p:to}.|{day}, {a} walked {p:to} with {t} for "
        "lunch.|{day}, {a} went {p:to} and took {t} along.",
    )
    s.meet(
        b,
        "there {a} met {a:p} friend {b:new}.|{a:p} friend {b:new} was there too, sitting on [a "
        "bench|a stone|the grass].|soon {a:p} friend {b:new} came along and sat down.",
    )
    s.feel(
        b,
        s.pick(("sad", "hungry")),
        s.pick(
            (
                "a bird had taken {b:p} lunch",
                "{b:p} lunch was still at home",
                "{b:p} lunch had fallen into the mud",
                "there was nothing in {b:p} bag to eat",
            )
        ),
    )
    if s.chance(0.5):
        s.tell(
            "{a} was hungry too and did not want to share at first.|{a} looked at {t} and thought "
            "about it for a while.|there was only one {t:bare}, so {a} held it tight."
        )
        s.tell(
            "but how can a {t:bare} taste good while a friend is hungry?|"
            "but then {a} looked at {b:o} again.|but eating alone would be no fun."
            if t.noun[0] not in "ao"
            else "but then {a} looked at {b:o} again.|but eating alone would be no fun."
        )
    _split(s)


def _split(s: Stage) -> None:
    a, b, t = s.hero, s.slots["b"], s.slots["t"]
    s.say(
        a,
        "We can share my {t:bare}.|Do you want half of my {t:bare}?|Half of it is for you!|"
        "I will share my {t:bare} with you!",
        to=b,
    )
    s.alter(
        t,
        "shared",
        "both were hungry",
        "{a} broke {t:it} in two and gave {b:o} the bigger half.|"
        "carefully, {a} cut {t:it} into two "
        "pieces and gave one to {b:o}.",
    )
    s.pair(a, b)
    s.use_up(
        t,
        "they ate it",
        "{we} sat side by side and ate it all.|{we} ate and talked about {topic}.|"
        "while they ate, {we:n} talked about {topic}.",
        topic=s.pick(TOPICS),
    )
    s.feel(b, "happy", "{a} had been very kind")
    _after_lunch(s)


def _after_lunch(s: Stage) -> None:
    a, b = s.hero, s.slots["b"]
    if s.chance(0.6):
        u = s.toy("u", b)
        s.tell(
            "then {b} took {u} out of {b:p} bag.|{b} had something to share too, and it was {u}."
        )
        s.say(b, "Now it is my turn to share.|You can play with my {u:bare}!", to=a)
        s.give(
            b,
            a,
            u,
            "{b} gave {u:it} to {a:o}, and they took turns.|{b} let {a:o} play with it first.",
        )
    else:
        s.tell("after lunch, {we} played {game} until it was time to go home.", game=s.pick(GAMES))
    s.close(
        "food tastes better when you share it|it feels good to share",
        "{a} always packed a little more for lunch|{we} shared everything",
    )


@plot(*ANY)
def apology(s: Stage) -> None:
    a, b = s.hero, s.friend()
    t = s.toy("t", a)
    where = s.pick(("under the bed", "behind the chair", "behind some books", "in a big box"))
    s.slots["where"] = where
    s.open()
    s.meet(b, "{day}, {a:p} friend {b:new} came over to play.|{day}, {b:new} came to visit {a:o}.")
    s.pair(a, b)
    s.tell("{we} played {game}, and then with {t}.|first {we} played {game}.", game=s.pick(GAMES))
    s.put(
        a,
        t,
        "when lunch was ready, {a} put {t:it} away and did not think about it.|when it was time to "
        "eat, {a} quickly put {t:it} away.",
    )
    s.tell("after lunch, {a} looked for {t}, but it was gone.|later {a} could not find {t}.")
    s.feel(a, "angry", "{t} was gone")
    s.say(a, "You took my {t:bare}!|Give me back my {t:bare}!", to=b)
    s.say(b, "I did not take it!|It was not me.|That is not true!", to=a)
    s.say(a, "I do not believe you!|Then where is it?", to=b)
    s.feel(
        b, "sad", "{a} did not believe {b:o}", "{b} was {f}, because %.|%, and {b} became very {f}."
    )
    s.leave(b, "{b} put on {b:p} shoes and went home.|without a word, {b} left.")
    s.take(
        a,
        t,
        "that evening, {a} looked {where} and found {t}.|an hour later, {a} found {t} {where}.|"
        "before bed, {a} looked {where}, and there it was.",
    )
    s.feel(a, "sorry", "{b} had told the truth")
    if s.chance(0.5):
        s.elder()
        s.tell("{a} told {e:o} everything.")
        s.say(s.slots["e"], "Then you know what to do.|A kind word can mend a lot.", to=a)
    _make_up(s)


def _make_up(s: Stage) -> None:
    a, b, t = s.hero, s.slots["b"], s.slots["t"]
    s.go(
        a,
        b.place,
        "the next day, {a} went to {b:np} house and knocked.|the next morning, {a} ran to see "
        "{b:o}.",
    )
    s.say(
        a,
        "I am sorry. You told the truth.|I was wrong, and I am sorry.|"
        "I found it. Please forgive me!",
        to=b,
    )
    if s.chance(0.5):
        s.tell("for a moment, {b} said nothing.|{b} looked at the floor.")
        s.say(b, "That hurt me.|I was very sad.", to=a)
        s.say(a, "I will never do that again.|I know, and I feel bad about it.", to=b)
    s.say(b, "It is all right.|I forgive you!|Everybody makes mistakes.", to=a)
    s.feel(
        b,
        "happy",
        "they were friends again",
        "{b} was {f}, because %.|%, and {b} was {f}.",
    )
    if s.chance(0.5):
        s.give(
            a, b, t, "{a} let {b:o} play with {t} all day.|{a} gave {t} to {b:o} for a whole week."
        )
    else:
        s.tell("{we} [hugged|shook hands] and played {game}.", game=s.pick(GAMES))
    s.close(
        "it is good to think before you get angry|saying sorry can mend many things",
        "{a} always looked twice|{we} trusted each other",
    )


@plot(*DRY)
def race(s: Stage) -> None:
    a, b, p = s.hero, s.friend(), s.outdoors(only="park meadow beach hill farm playground")
    s.open()
    s.feel(
        a,
        "excited",
        "there was going to be a race",
        "{day}, there was a race {p:in}, and {a} was {f}.|{day}, {a} was {f}, because there was a "
        "race {p:in}.",
    )
    s.go(a, p, "{a} got there early.|{a} put on {a:p} best shoes and went {p:to}.")
    s.meet(
        b,
        "{b:new} wanted to run as well.|{b:new} was the fastest of them all.|"
        "next to {a:o} stood {b:new}, who was very fast.",
    )
    s.say(b, "I will win, because nobody is as fast as I am.|I am sure to win!|Watch me win!")
    s.say(a, "We will see.|I will do my best.|Good luck!", to=b)
    s.tell('"Ready, set, go!" called {o}.', o=s.extra("o", s.pick(("teacher", "old man")), "he"))
    s.tell(
        "{b} was in front at once, and {a} ran behind.|{b} flew ahead like the wind.|"
        "{b} ran so fast that {a} could hardly follow."
    )
    s.pick((_race_helping, _race_resting, _race_trying))(s)


def _race_helping(s: Stage) -> None:
    a, b = s.hero, s.slots["b"]
    s.feel(
        b,
        "sad",
        "{b} was hurt",
        "but then {b} fell over a root and could not get up.|near the end, {b} slipped and hurt a "
        "knee.",
    )
    s.tell(
        "{a} could win now, but {a} stopped.|{a} saw the finish line, but turned back.|"
        "the finish line was near, and still {a} stopped."
    )
    s.feel(a, "sorry", "{b} was hurt", "{a} was sorry for {b:o}.|{a} could not leave {b:o} there.")
    s.say(a, "Take my {b:hand}.|You can hold on to me!|We will walk there together.", to=b)
    s.pair(a, b)
    s.tell(
        "{we} went over the line last, {b:hand} in {b:hand}.|"
        "slowly, {we} went over the line together."
    )
    s.tell("everybody clapped and clapped.|everybody clapped and called their names.")
    s.feel(b, "glad", "{a} had come back", "{b} looked at {a:o} and was {f}.|{b} was {f} that %.")
    s.say(b, "I wanted to win, but a friend is better.|Thank you. I was too proud.", to=a)
    s.close("a good friend is better than a silver cup", "{we} always ran side by side")


def _race_resting(s: Stage) -> None:
    a, b = s.hero, s.slots["b"]
    s.tell(
        "halfway there, {b} looked back, laughed, and sat down under a tree.|"
        "{b} was so far ahead that "
        "{b} stopped to eat an apple."
    )
    s.tell("but {a} did not stop.|{a} kept running, step by step.")
    s.tell("when {b} got up at last, {a} was already over the line!|{a} ran past and won the race!")
    s.feel(b, "sorry", "{b} had been so proud", "{b} felt [silly|small], because %.")
    s.thing("t", "cup", s.pick(("golden", "silver")), holder=s.slots["o"])
    s.give(s.slots["o"], a, s.slots["t"], "{o} gave {a:o} {t}.")
    s.say(a, "Let us run together next time.|You are still the fastest of us!", to=b)
    s.close("it is better to keep going than to be proud", "{b} never laughed at a slow friend")


def _race_trying(s: Stage) -> None:
    a, b = s.hero, s.slots["b"]
    s.tell("{a} ran as well as {a} could and did not give up.|{a} thought only of the next step.")
    s.tell("in the end, {b} won, and {a} came second.|{b} was first, but {a} was right behind.")
    s.feel(a, "proud", "{a} had never run so fast", "{a} was not sad. {a} was {f}, because %.")
    s.say(b, "That was a good race!|You almost had me!", to=a)
    s.say(a, "You were great!|Next time I will catch you!", to=b)
    s.close("doing your best is enough", "{a} ran a little every morning")


@plot(*DRY)
def new_friend(s: Stage) -> None:
    a, p = s.hero, s.outdoors(only="park playground beach meadow pond")
    b, c = s.friend(), s.friend("c")
    hobby = s.pick(("draw", "sing", "paint", "dance", "climb trees", "tell jokes"))
    s.slots["hobby2"] = hobby
    s.open(hobby)
    s.go(a, p, "{day}, {a} was playing {game} {p:in}.|{day}, {a} went {p:to}.", game=s.pick(GAMES))
    s.meet(c, "{a:p} friend {c:new} was there too.|{c:new}, a friend, was with {a:o}.")
    s.meet(
        b,
        "a little away from them sat {b:intro}, who was new there.|"
        "at the edge stood {b:intro}, who had just moved there.",
    )
    s.feel(b, "lonely", "{b} knew nobody there")
    s.say(c, "Who is that?|Nobody knows who that is.|That one never talks.", to=a)
    s.tell(
        "{a} remembered what it was like to be new.|{a} thought for a moment and then walked over."
    )
    s.say(
        a, "Hello! Do you want to play with us?|Hi! What is your name?|Come and play with us!", to=b
    )
    if s.chance(0.5):
        s.tell("{b} looked at the ground and said nothing.|{b} turned red and did not answer.")
        s.tell("so {a} sat down too and waited quietly.|{a} did not go away, but just smiled.")
    s.say(b, "I do not know how to play your game.|I am new here.|I just moved here.", to=a)
    s.say(a, "What do you like to do?|I can show you!|That does not matter!", to=b)
    s.tell("{b} liked to {hobby2}, just like {a:o}.|it turned out that {b} loved to {hobby2}, too.")
    s.tell("soon all three were laughing.|before long, the three of them played together.")
    s.feel(b, "happy", "it was good to have friends")
    if s.chance(0.5):
        s.say(c, "You are fun! Will you come again?|Come back tomorrow!", to=b)
        s.say(b, "Yes, I would love to!|I will be here!", to=c)
    s.close(
        "a kind word can open a door|every friend was new once",
        "the three of them met every day|nobody had to sit alone",
    )


SKILLS = (  # skill, place, what goes wrong, a helper's advice, success
    (
        "ride a bike",
        "park",
        "fell into the grass",
        "Look ahead and keep going.",
        "rode around the park",
    ),
    ("swim", "pond", "went under", "Stay calm and do not stop.", "swam like a fish"),
    ("skip rope", "playground", "stepped on the rope", "Count as you jump.", "jumped ten times"),
    (
        "fly a kite",
        "hill",
        "pulled, and the kite fell down",
        "Run against the wind.",
        "made it dance",
    ),
    ("catch a ball", "meadow", "missed it", "Keep your eyes on the ball.", "caught it every time"),
)


@plot("windy", "sunny")
def practice(s: Stage) -> None:
    a, b = s.hero, s.friend()
    skill, where, wrong, advice, success = s.pick(SKILLS)
    s.slots.update(skill=skill, wrong=wrong, success=success)
    p = s.outdoors(only=where)
    s.open()
    s.tell(
        "more than anything, {a} wanted to {skill}.|"
        "there was one thing {a} wanted to learn: how to "
        "{skill}.|everybody else could {skill}, but {a} could not."
    )
    s.go(a, p, "{day}, {a} went {p:to} to try.|{day}, {a} ran {p:to} and began.")
    s.tell("the first time, {a} {wrong}.|{a} tried, but {wrong}.")
    s.tell("the second time was no better.|{a} tried again, and it was even worse.")
    s.feel(a, s.pick(("sad", "angry")), "it was too hard")
    s.say(a, "I will never learn it!|It is too hard for me.|I give up!")
    s.meet(b, "{a:p} friend {b:new} heard that.|just then, {a:p} friend {b:new} came by.")
    s.say(
        b,
        f"It took me a whole summer. {advice}|Do not give up! {advice}|Try once more. {advice}",
        to=a,
    )
    if s.chance(0.5):
        s.tell("{b} showed {a:o} how it is done.|{b} stayed and helped.")
    s.tell(
        "{a} thought about it and tried again.|so {a} tried once more, and it went a little better."
    )
    s.tell("{a} practiced the next day, and the day after.|every day, {a} came back to practice.")
    s.tell("then, one day, {a} {success}!|after two weeks, {a} {success}.")
    s.feel(a, "proud", "all the practice had helped")
    s.say(b, "I knew you could do it!|Look at you!", to=a)
    if s.chance(0.4):
        s.tell("now {a} wanted to teach somebody else.")
    s.close(
        "practice makes hard things easy|you only fail when you stop trying",
        "when something was hard, {a} tried again",
    )


BUILDS = (  # what, place, of what, how it fails, better plan, ending
    (
        "raft",
        "river",
        "old boards",
        "it sank",
        "used more boards and rope",
        "floated down the river",
    ),
    (
        "tree house",
        "forest",
        "boards",
        "the floor broke",
        "used strong boards",
        "ate lunch up in the leaves",
    ),
    (
        "sand castle",
        "beach",
        "sand",
        "a wave took it away",
        "built it away from the water",
        "put flowers on top",
    ),
    (
        "bridge",
        "river",
        "sticks",
        "it fell into the water",
        "used long sticks and rope",
        "walked to the other side",
    ),
    (
        "tent",
        "meadow",
        "a blanket and sticks",
        "it fell on their heads",
        "tied it to a tree",
        "stayed there until the stars came out",
    ),
)


@plot(*WARM)
def building(s: Stage) -> None:
    a, b = s.hero, s.friend()
    what, where, of, fails, better, ending = s.pick(BUILDS)
    s.slots.update(what=what, of=of, fails=fails, better=better, ending=ending)
    p = s.outdoors(only=where)
    s.open()
    s.meet(b, "{a} had a friend named {b:new}.|next door lived {a:p} best friend, {b:new}.")
    s.go(
        s.pair(a, b),
        p,
        "{day}, {we} were {p:in} and wanted something to do.|{day}, {we} met {p:in}.",
    )
    s.say(a, "Let us build {what:a}!|I have an idea. We can build {what:a}!", to=b)
    s.say(b, "Yes, that will be fun!|But how?|We can use {of}!", to=a)
    s.tell(
        "they used {of} and worked all morning."
        if s.part == "morning"
        else "they used {of} and worked for hours."
    )
    s.tell("it looked good, but then {fails}.|they were almost done when {fails}.")
    s.feel(b, s.pick(("sad", "angry")), "all that work was for nothing")
    if s.chance(0.5):
        s.say(b, "This was a silly idea.|I want to go home.", to=a)
        s.say(a, "Now we know what does not work.|Let us try one more time!", to=b)
    else:
        s.tell("{a} did not say a word for a while.|{a} just sat there and thought.")
    if s.chance(0.4):
        e = s.extra("o", s.pick(("old man", "farmer")), "he")
        s.tell("{o} had watched them.|{o} stopped to look.")
        s.say(e, "What went wrong?|You can always try twice.|Think about it, and try again.", to=a)
    s.tell(
        "they thought about it, and this time they {better}.|"
        "together they made a new plan and {better}."
    )
    _finish(s)


def _finish(s: Stage) -> None:
    s.tell("it worked!|and this time, everything went well.|what a difference that made!")
    s.tell("{we} {ending}.|happily, {we} {ending}.")
    s.feel(s.slots["b"], "happy", "they had not given up")
    s.close(
        "a good plan often needs a second try|two heads are better than one",
        "{we} built something every summer",
    )


PLOTS = (sharing, apology, race, new_friend, practice, building)
