"""Plots that begin at home: mending, baking, promises, gifts, seeds, noises.

How to read a plot is told in `tale_plots`.
"""

from __future__ import annotations

from tale_stage import ANY, DRY, GAMES, WARM, Stage, plot
from tale_world import Place, Thing

BREAKS = {
    "glue": (
        "broke",
        "broken",
        "{t} slipped out of {a:p} {a:hands} and broke in two.|{t} fell on the floor, and a piece "
        "came off.",
        "{a} held the pieces while {e} put on the glue.|{e} put on the glue, and {a} held the "
        "pieces together.",
    ),
    "tape": (
        "tore",
        "torn",
        "{t} got caught on a chair and tore.|{a} pulled a little too hard, and {t} tore.",
        "{e} held it still while {a} put on the tape.|{a} cut the tape, and {e} put it on.",
    ),
    "thread": (
        "ripped",
        "ripped",
        "{t} got caught on a chair and ripped.|{a} pulled a little too hard, and {t} ripped.",
        "{e} closed the hole with strong thread while {a} held it still.|"
        "{a} found the thread, and {e} "
        "closed the hole, bit by bit.",
    ),
}


@plot(*ANY)
def mending(s: Stage) -> None:
    a, e = s.hero, s.elder()
    t, mender = s.fragile("t", s.home)
    broke, broken, accident, repair = BREAKS[mender]
    s.slots.update(broke=broke, broken=broken, m=mender)
    s.open()
    s.tell(
        "{e} kept {t} on a high shelf and loved it.|{e} had {t} on a shelf and loved it "
        "very much.|on a shelf at home was {t} that belonged to {e}."
    )
    if s.chance(0.5):
        s.say(e, "Please be careful with my {t:bare}.|Please leave my {t:bare} on the shelf.", to=a)
    s.take(
        a,
        t,
        "{day}, {a} climbed on a chair and took {t} down to play.|{day}, when nobody was looking, "
        "{a} took {t} from the shelf.|{day}, {a} wanted a closer look and took {t} down.",
    )
    s.alter(t, "broken", "an accident", accident)
    s.feel(a, s.pick(("scared", "worried", "sorry")), "{t} was {broken}")
    _confess(s)
    _mend(s, repair)


def _confess(s: Stage) -> None:
    a, e, t = s.hero, s.slots["e"], s.slots["t"]
    if s.chance(0.5):
        s.put(
            a, t, "{a} hid {t:it} under the bed and said nothing.|quickly, {a} hid {t:it} in a box."
        )
        s.tell("but the secret felt [heavy|like a stone].|all day, {a} could not eat or play.")
        s.take(a, t, "in the evening, {a} took {t:it} out and went to {e:o}.")
    else:
        s.tell(
            "{a} took a deep breath and went to {e:o}.|"
            "hiding it would be wrong, so {a} went to {e:o}."
        )
    s.say(
        a,
        "I {broke} your {t:bare}, and I am sorry.|Your {t:bare} is {broken}. I am so sorry.",
        to=e,
    )
    s.say(
        e,
        "Thank you for telling me the truth. We can mend it.|It was brave to tell me. Let us mend "
        "it together.|I am not angry. Help me mend it!",
    )


def _mend(s: Stage, repair: str) -> None:
    a, t = s.hero, s.slots["t"]
    if s.chance(0.4):
        b = s.friend()
        s.tell("but there was no {m} in the house.")
        s.meet(b, "luckily, {a:p} friend {b:new} lived next door and brought some {m}.")
    s.alter(t, "mended", "they repaired it", repair)
    s.tell(
        "soon {t} was [almost as good as new|whole again].|you could still see where it was "
        "{broken}, but {e} said it was even more special now.|it took a long time, but it worked."
    )
    s.feel(a, "happy", "everything was all right again")
    s.give(a, s.slots["e"], t, "{a} gave {t:it} back to {e:o}.|then {a} handed {t:it} to {e:o}.")
    s.close(
        "telling the truth makes the heart light|a mistake can often be mended",
        "{a} asked before taking things|{a} was careful with old things",
    )


INGREDIENTS = {
    "sugar": "a bag of",
    "butter": "a piece of",
    "flour": "a bag of",
    "milk": "a cup of",
    "honey": "a pot of",
}


CHORES = (  # what the neighbor asks for, what is done
    ("First, help me find my glasses.", "looked everywhere and found the glasses under the bed"),
    ("First, help me carry in the wood.", "carried in the wood, piece by piece"),
    ("First, help me catch my hen.", "ran after the hen three times around the house"),
    ("First, sing me a song.", "sang the longest song of all"),
)


@plot(*ANY)
def baking(s: Stage) -> None:
    a, e = s.hero, s.elder()
    cake = s.pick(("honey cake", "apple pie", "carrot cake", "nut cake"))
    missing = s.pick(tuple(INGREDIENTS))
    s.slots.update(cake=cake, x=missing, jar=INGREDIENTS[missing])
    s.open(hobby=s.pick(("bake", "sing", "paint")))
    s.say(
        e,
        "Shall we bake {cake:a}?|Let us bake {cake:a} today!",
        to=a,
    )
    s.feel(
        a, "excited", "{cake:a} is the best thing in the world", "{a} was {f} and found a big bowl."
    )
    s.tell(
        "{e} took out the eggs and the big spoon, but there was no {x} left.|they had nearly "
        "everything they needed, but the {x} was gone.|but when {a} looked on the shelf, there was "
        "no {x}."
    )
    s.feel(a, "sad", "without {x} there could be no {cake}")
    s.say(e, "Run next door and ask for some {x}!|Could you ask next door?", to=a)
    house = s.indoors("q", "house next door")
    s.go(
        a, house, "{a} ran to the house next door and knocked.|so {a} went to the house next door."
    )
    old = s.extra("o", s.pick(("old man", "old woman", "farmer")), s.pick(("he", "she")))
    old.gender = {"man": "he", "woman": "she"}.get(old.noun, old.gender)
    s.tell("{o} opened the door.|after a while, {o} came to the door.")
    s.say(a, "Do you have some {x} for our {cake}?|Could I please have some {x}?", to=old)
    t = s.thing("t", missing, mass=True, holder=old)
    if s.chance(0.7):
        ask, done = s.pick(CHORES)
        s.say(old, f"Yes, I do. {ask}|Of course. {ask}")
        s.tell(f"so {{a}} {done}.|{{a}} {done}.")
    s.give(old, a, t, "then {o} gave {a:o} {t}.|with a smile, {o} gave {a:o} {jar} {x}.")
    s.say(a, "Thank you very much!|Thank you! You can have the first piece!", to=old)
    _bake(s)


def _bake(s: Stage) -> None:
    a, t = s.hero, s.slots["t"]
    s.go(a, s.home, "{a} hurried home with the {x}.|carefully, {a} carried the {x} home.")
    s.use_up(t, "mixed in", "{a} stirred while {e} put in the {x}.|into the bowl went the {x}.")
    s.tell(
        "then they put the {cake} into the hot oven and waited.|soon the {cake} was in the oven."
    )
    s.tell("the whole house smelled [sweet|wonderful].|a sweet smell filled every room.")
    if s.chance(0.3):
        s.tell("one side was a little too dark, but {e} just cut it off and laughed.")
    b = s.friend()
    s.meet(
        b,
        "the smell was so good that {a:p} friend {b:new} came to the window.|when the {cake} was "
        "ready, {a:p} friend {b:new} knocked at the door.",
    )
    s.say(b, "What smells so good?|Is that {cake:a}?")
    s.tell("they all sat down and ate until [nothing was left|only a few crumbs were left].")
    s.feel(a, "happy", "everybody liked the {cake}", "{a} was {f}, because %.|%, and {a} was {f}.")
    s.close(
        "good neighbors help each other|a good {cake} needs many helpers",
        "{a} brought a piece of every {cake} next door|they baked {cake:a} every week",
    )


PROMISES = (  # who asks, gender, what is promised, doing it, what would have happened
    ("old man", "he", "water the plants", "watered every plant", "the leaves were already dry"),
    ("old woman", "she", "feed the hens", "fed the hens", "the hens were very hungry"),
    ("old woman", "she", "feed the cat", "filled the bowl for the cat", "the cat was waiting"),
    ("farmer", "he", "close the gate", "closed the gate", "a cow was about to walk out"),
    (
        "baker",
        "he",
        "take the bread in before the rain",
        "took the bread in",
        "it was about to rain",
    ),
)


@plot(*DRY)
def promise(s: Stage) -> None:
    a, b, p = s.hero, s.friend(), s.outdoors(only="park river beach pond playground meadow")
    noun, gender, task, doing, state = s.pick(PROMISES)
    s.slots.update(task=task, state=state, doing=doing)
    s.open()
    asker = s.extra("o", noun, gender)
    s.tell(
        "{day}, {o} from next door came to visit.|"
        "{day}, there was a knock at the door, and outside "
        "stood {o}."
    )
    s.say(
        asker, "I have to go to town today. Could you {task}?|Would you {task} for me today?", to=a
    )
    s.say(a, "Yes, I promise.|I promise!|Of course I will!", to=asker)
    s.leave(asker, "{o} thanked {a:o} and left.|{o} smiled and went off.")
    s.meet(
        b,
        "a little later, {a:p} friend {b:new} came by.|then {a:p} friend {b:new} came running.",
    )
    s.say(b, "Come with me {p:to}!|Everybody is {p:in}. Come and play!", to=a)
    s.go(
        s.pair(a, b),
        p,
        "{a} loved to play, so {we:n} went {p:to}.|{we} ran {p:to}.|"
        "it sounded like fun, and off they went {p:to}.",
    )
    s.tell(
        "there they played {game} with the others.|they played {game} and laughed.",
        game=s.pick(GAMES),
    )
    s.tell("in the middle of the game, {a} stopped.|suddenly {a} remembered something.")
    _keep_promise(s)


def _keep_promise(s: Stage) -> None:
    a, b = s.hero, s.slots["b"]
    s.feel(a, "worried", "{a} had made a promise")
    s.say(a, "I promised to {task}. I have to go!|I forgot my promise!", to=b)
    helps = s.chance(0.5)
    if helps:
        s.say(b, "Then I will come with you.|I will help you!", to=a)
        s.go(s.slots["we"], s.home, "{we} ran back as fast as they could.")
    else:
        s.say(b, "You can do that later.|Stay a little longer!", to=a)
        s.tell(
            "{a} wanted to stay, but shook {a:p} head.|for a moment, {a} did not know what to do."
        )
        s.go(a, s.home, "then {a} ran back all alone.|{a} got up and ran all the way back.")
    s.tell("it was just in time, for {state}.|{state}, but it was not too late.")
    s.tell("at once, {a} {doing}.|{a} {doing} and felt much better.")
    asker = s.slots["o"]
    s.go(asker, s.home, "in the evening, {o} came back.|when {o} came home, everything was fine.")
    s.say(asker, "I knew I could trust you.|You kept your promise!|You are a good helper!", to=a)
    gift = s.food("t", asker)
    s.give(asker, a, gift, "{o} gave {a:o} {t}.|and out of a bag {o} took {t} for {a:o}.")
    if helps:
        s.tell("of course, {a} gave half of it to {b:o}.")
    s.feel(a, "proud", "{a} had kept the promise")
    s.close("a promise must be kept", "everybody knew that {a} could be trusted")


GIFTS = (  # parts, where they are found, the gift
    ("shells", "beach", "necklace"),
    ("flowers", "meadow", "crown"),
    ("feathers", "farm", "hat"),
    ("leaves", "forest", "picture"),
    ("smooth stones", "river", "little castle"),
)


@plot(*DRY)
def gift(s: Stage) -> None:
    a, b = s.hero, s.friend()
    s.elder()
    parts, where, made = s.pick(GIFTS)
    s.slots.update(parts=parts, made=made)
    p = s.outdoors(only=where)
    s.open()
    s.tell(
        "soon it would be the birthday of {e:n}, and {a} wanted to find a gift.|the birthday of "
        "{e:n} was near.|it was almost the birthday of {e:n}, and {a} wanted to give something."
    )
    s.feel(
        a,
        "sad",
        "there was no money in {a:p} box",
        "but {a} had no money at all and felt {f}.|{a} was {f}, because %.",
    )
    s.meet(b, "{a:p} friend {b:new} had an idea.|{a} asked {a:p} friend {b:new} what to do.")
    s.say(
        b, "You can make something!|The best gifts are made by hand!|Let us make something!", to=a
    )
    s.feel(
        a,
        "excited",
        "that was a good idea",
        "that was a good idea, and {a} was {f}.|{a} liked that.",
    )
    s.pair(a, b)
    t = _make_gift(s, p, made)
    _hide_gift(s, t)
    _give_gift(s, t)


def _make_gift(s: Stage, p: Place, made: str) -> Thing:
    we = s.slots["we"]
    s.go(
        we,
        p,
        "{day}, {we} went {p:to} and looked for {parts}.|"
        "{day}, {we:n} took a basket {p:to} to look for {parts}.",
    )
    s.tell(
        "they found {parts} [of every kind|big and small].|it took a long time, but "
        "in the end they had enough {parts}."
    )
    s.go(
        we, s.home, "they carried everything home and hid in the shed.|back home, they set to work."
    )
    t = s.thing("t", made, holder=s.hero)
    s.tell(
        "{a} made {t} from the {parts}, and {b} helped.|all afternoon they worked, and little by "
        "little the {parts} turned into {t}."
    )
    return t


def _hide_gift(s: Stage, t: Thing) -> None:
    a, e, b = s.hero, s.slots["e"], s.slots["b"]
    if s.chance(0.6):
        s.tell("suddenly there were steps at the door.|then they heard {e} at the door.")
        s.say(e, "What are you two doing?|What is so quiet in here?")
        s.put(
            a,
            t,
            "quickly, {a} hid {t:it} under a blanket.|{a} hid {t:it} behind a box just in time.",
        )
        s.say(b, "Nothing at all!|We are just playing!", to=e)
        s.take(
            a,
            t,
            "the next day was the birthday, and {a} took {t} out again.|"
            "on the big day, {a} went to get {t}.",
        )
    else:
        s.tell("they wrapped {t:it} in paper and waited for the big day.")


def _give_gift(s: Stage, t: Thing) -> None:
    a, e = s.hero, s.slots["e"]
    s.say(a, "Happy birthday!|This is for you!|I made this for you!", to=e)
    s.give(
        a,
        e,
        t,
        "{a} gave {t:it} to {e:o}.|with both {a:hands}, {a} held {t:it} out, and {e} took {t:it}.",
    )
    s.feel(
        e,
        "happy",
        "nobody had ever made such a gift",
        "{e} was so {f} that nobody spoke for a moment.|"
        "{e} was {f}, because nothing in a shop is as "
        "pretty as that.",
    )
    s.say(
        e, "This is the best gift of all!|I will keep it forever.|Did you make this yourself?", to=a
    )
    s.feel(a, "proud", "{e} liked {t} very much")
    s.close(
        "a gift made with love needs no money|the best gifts come from the heart",
        "{t} had a place by the window",
    )


SEEDS = (  # seed, what grows, adjective, at the end
    ("pumpkin seed", "pumpkin", "round", "soup"),
    ("sunflower seed", "sunflower", "golden", ""),
    ("bean", "bean plant", "tall", "soup"),
    ("apple seed", "apple tree", "young", ""),
)


@plot(*WARM)
def seed(s: Stage) -> None:
    a, e = s.hero, s.elder()
    noun, grown, adjective, meal = s.pick(SEEDS)
    s.slots.update(grown=grown, meal=meal)
    s.open()
    t = s.thing("t", noun, s.pick(("small", "tiny", "little")), holder=e)
    s.give(
        e,
        a,
        t,
        "{day}, {e} gave {a:o} {t}.|{day}, {a} got {t} from {e:o}.|"
        "one spring day, {e} gave {a:o} {t}.",
    )
    s.say(a, "What is it?|What can I do with it?|It is so small!", to=e)
    s.say(e, "Plant it, water it, and wait.|Put it in the ground and be patient.", to=a)
    p = s.outdoors(only="garden")
    s.go(a, p, "{a} went into the garden and dug a hole.|in the garden, {a} dug a little hole.")
    s.use_up(t, "planted", "{a} laid {t:it} inside and covered it with earth.")
    s.tell(
        "every day, {a} gave it water.|each morning, {a} came with a can of water.|{a} watered it "
        "and watched."
    )
    s.tell("but nothing happened.|day after day, there was only brown earth.")
    s.feel(a, s.pick(("sad", "worried")), "nothing came up")
    if s.chance(0.6):
        s.go(e, p, "{e} came to look.|{e} came out and sat down beside {a:o}.")
        s.say(e, "Good things take time.|It is growing where you cannot see it.", to=a)
    _grow(s, adjective)


def _grow(s: Stage, adjective: str) -> None:
    a = s.hero
    s.tell(
        "then, one morning, a tiny green leaf came up.|"
        "after a week of rain and sun, something green "
        "came out."
    )
    s.feel(a, "happy", "something was growing at last")
    trouble, cure = s.pick(
        (
            ("a hungry snail wanted to eat it", "carried the snail to the other end of the garden"),
            (
                "then it got very hot, and the leaves turned brown",
                "made a roof of sticks and cloth",
            ),
            ("a strong wind bent it to the ground", "tied it to a stick"),
            (
                "birds came and pulled at the leaves",
                "built a funny man of sticks to keep the birds away",
            ),
        )
    )
    _protect(s, trouble, cure)
    s.tell(
        "all summer long it grew and grew.|it grew a little every day.|it grew taller than {a:o}."
        if adjective != "round"
        else "all summer long it grew and grew.|it grew a little every day."
    )
    s.thing("u", s.slots["grown"], adjective, place=s.slots["p"])
    s.tell("in the end, there was {u} in the garden.|and when fall came, there stood {u}.")
    if s.slots["meal"]:
        s.tell("it gave enough for a big {meal}, and everybody got some.")
    s.feel(a, "proud", "it had all begun with one small seed")
    s.close(
        "good things take time|waiting is hard, but it is worth it",
        "{a} planted something every spring",
    )


def _protect(s: Stage, trouble: str, cure: str) -> None:
    a, b = s.hero, s.friend()
    s.tell(f"{trouble}.")
    if s.chance(0.5):
        s.meet(b, "{a:p} friend {b:new} came to help.|{a:p} friend {b:new} saw it, too.")
        s.pair(a, b)
        s.tell(f"together, {{we:n}} {cure}.|so {{we:n}} {cure}.")
    else:
        s.tell(f"but {{a}} {cure}.|so {{a}} {cure}.")


NOISES = (  # sound, what it was, what was done
    ("tap, tap, tap", "a branch that hit the window in the wind", "tied it back with a string"),
    ("scratch, scratch", "a cat that wanted to come in", "opened the door and let it in"),
    ("bump, bump", "a loose door on the shed", "closed it with a hook"),
    ("drip, drip", "rain that came through a hole in the roof", "put a bowl under it"),
    ("squeak, squeak", "a mouse with a nut that was too big for its hole", "broke the nut in two"),
)


@plot("windy", "rainy", "cloudy")
def noise(s: Stage) -> None:
    a = s.hero
    sound, was, done = s.pick(
        [
            n
            for n in NOISES
            if ("rain" not in n[1] or s.sky == "rainy") and not ("mouse" in n[1] and s.wild)
        ]
    )
    s.slots.update(sound=sound, was=was, done=done)
    s.open()
    s.tell(
        "one {x} night, {a} woke up.|late one night, {a} could not sleep.",
        x={"windy": "windy", "rainy": "rainy"}.get(s.sky, "dark"),
    )
    s.tell("there was a strange sound: {sound}.|something went {sound}.")
    s.feel(a, "scared", "it was dark and nobody else was awake")
    s.say(a, "Who is there?|Is it a monster?|What was that?")
    s.tell("there was no answer, only the sound again: {sound}.|the answer was {sound}.")
    if s.chance(0.5):
        s.tell(
            "{a} pulled the blanket up to {a:p} nose.|{a} hid under the blanket and counted to ten."
        )
    _look_for_noise(s)


def _look_for_noise(s: Stage) -> None:
    a = s.hero
    helper = s.chance(0.6)
    if helper:
        e = s.elder()
        s.tell("then {a} ran to wake up {e:o}.|on quiet feet, {a} went to {e:o}.")
        s.say(a, "There is something in the house!|I heard a monster!", to=e)
        s.say(e, "Let us go and see.|Take my {a:hand}, and we will look.", to=a)
    else:
        s.tell("but {a} wanted to know what it was.|then {a} got out of bed, step by step.")
    t = s.thing("t", "lamp", s.pick(("small", "old")), place=s.home)
    s.take(a, t, "{a} took {t} and followed the sound.|with {t}, {a} went to look.")
    s.tell("it was only {was}!|and what was it? It was {was}.")
    s.feel(a, "glad", "there was no monster", "{a} laughed, because %.|{a} was {f} that %.")
    s.tell("{a} {done}.|quickly, {a} {done}.")
    if helper:
        s.say(s.slots["e"], "You were very brave.|Now we can all sleep.", to=a)
    s.tell("then {a} went back to bed.|soon {a} was asleep again.|after that, the house was quiet.")
    lesson = "most things are less scary when you look at them"
    if s.chance(0.7):
        s.tell(
            f"{{a}} had learned that {lesson}.|from then on, {{a}} was not so afraid of the dark."
        )


PLOTS = (mending, baking, promise, gift, seed, noise)
