"""Plots out of doors: things lost and found, rescues, fears, storms, the way home.

How to read a plot is told in `tale_plots`.
"""

from __future__ import annotations

from tale_stage import DRY, FUN, GAMES, TREATS, Stage, plot


@plot(*DRY)
def lost_toy(s: Stage) -> None:
    a, p = s.hero, s.outdoors()
    t = s.toy("t", a)
    s.open()
    s.tell(
        "{a} had {t} and loved {t:it} very much.|{a:p} favorite toy was {t}.|"
        "{a} had {t} and took {t:it} everywhere.|the thing {a} loved best in all the world was {t}."
    )
    s.go(
        a,
        p,
        "{day}, {a} took {t:it} {p:to}.|{day}, {a} carried {t:it} {p:to} to play.|"
        "{day}, {a} went {p:to}, and of course {t} came along.",
    )
    s.put(
        a,
        t,
        "{a} put {t:it} down and ran off to {fun}.|after a while, {a} left {t:it} on the ground to "
        "{fun}.|{a} wanted to {fun}, so {a} put {t:it} down.",
        fun=s.pick(FUN),
    )
    s.tell(
        "when {a} came back, {t} was [gone|not there any more].|a little later, {a} turned around, "
        "and {t} was gone.|but when {a} looked for {t:it} again, {t} was gone."
    )
    s.feel(a, s.pick(("sad", "worried")), "{t} was nowhere to be seen")
    _search(s)
    s.pick((_found_alone, _found_by_friend, _found_by_dog))(s)
    s.close(
        "it is good to look after the things you love|it helps to keep looking",
        "{a} never left {t} alone again|{a} always kept {t} close",
    )


def _search(s: Stage) -> None:
    first, second, s.slots["spot"] = s.some(s.slots["p"].spots, 3)
    s.tell(
        "{a} looked {first}, but [there was nothing|{t} was not there].|"
        "first {a} looked {first}, but found only [some old leaves|a snail|a smooth stone].",
        first=first,
    )
    if s.chance(0.5):
        s.tell(
            "then {a} looked {second}, but [it was not there either|there was nothing].|"
            "{a} looked {second} too, but it was no use.",
            second=second,
        )


def _found_alone(s: Stage) -> None:
    a, t = s.hero, s.slots["t"]
    s.tell(
        "{a} was about to give up, but there was one more place to look.|"
        "{a} sat down and tried to remember every step.|{a} took a deep breath and thought hard."
    )
    s.tell("at last, {a} looked {spot}, and there was {t}!|and there, {spot}, was {t}!")
    if t.rolls:
        s.tell("it had rolled away [when nobody was looking|down the path].")
    elif s.sky == "windy" and t.noun in ("hat", "scarf"):
        s.tell("the wind had blown it there.")
    else:
        s.tell("{a} had left it there and had forgotten all about it.")
    s.take(
        a, t, "{a} picked {t:it} up and [held it tight|hugged it].|{a} quickly picked {t:it} up."
    )
    s.feel(a, "happy", "{t} was not lost any more")


def _found_by_friend(s: Stage) -> None:
    a, b, t = s.hero, s.friend(), s.slots["t"]
    s.meet(
        b,
        "just then, {a:p} friend {b:new} came along.|{b:new}, a good friend, came by and stopped.|"
        "{a:p} friend {b:new} saw that something was wrong.",
    )
    s.say(b, "What is the matter?|Why do you look so sad?|Did you lose something?", to=a)
    s.say(a, "I cannot find my {t:bare}.|My {t:bare} is gone!|I lost my {t:bare}.", to=b)
    s.say(b, "I will help you look.|Let us look together!|Let us start over there.")
    s.take(
        b,
        t,
        "{b} looked {spot} and found {t}.|it was {b} who looked {spot} and pulled out {t}.|"
        "not long after that, {b} found {t} {spot}.",
    )
    s.give(b, a, t, "{b} gave {t:it} back to {a:o}.|with a smile, {b} handed {t:it} to {a:o}.")
    s.feel(a, "happy", "{t} was back", "{a} felt {f} again.|{a} was so {f} that {a} hugged {b:o}.")
    s.say(a, "Thank you!|You are a good friend!|Thank you for your help!", to=b)


def _found_by_dog(s: Stage) -> None:
    a, t = s.hero, s.slots["t"]
    dog = s.extra("d", s.pick(("small dog", "puppy", "brown dog")), "it")
    s.world.take(dog, t)
    s.tell(
        "suddenly {d} came running with {t} in its mouth.|just then, {a} turned around, and there "
        "was {d} with {t} in its mouth.|then {d} ran by, and it was carrying {t}."
    )
    s.tell("it wanted to play.|it only wanted to play.")
    s.say(a, "Please give it back!|That is mine, little dog!|Come here, good dog!")
    trick = s.pick(("threw a stick", "held out a piece of bread", "sat down and waited quietly"))
    s.tell("{a} {trick}, and {d} let {t} go.", trick=trick)
    s.world.put(dog, t)
    s.take(a, t, "{a} took {t:it} and held it tight.|quickly, {a} picked {t:it} up.")
    s.feel(a, "happy", "{t} was safe")
    if s.chance(0.5):
        s.tell("{d} came along all the way home.|then the two of them played for hours.")


ANIMAL_TROUBLE = (  # noun, call, trouble, obstacle, tool, rescue
    (
        "kitten",
        "Meow",
        "sat high up in a tree and was too scared to come down",
        "the branch was too high",
        "ladder",
        "{a} climbed up the {u:bare} and carried {d} down",
    ),
    (
        "puppy",
        "Woof",
        "had fallen into a hole",
        "the hole was too deep",
        "rope",
        "{a} let the {u:bare} down, {d} bit it hard, and {we:n} pulled and pulled",
    ),
    (
        "small bird",
        "Cheep",
        "had one foot caught in an old net",
        "the net was too strong",
        "knife",
        "{a} held {d} still while {b} cut the net, bit by bit",
    ),
    (
        "lamb",
        "Baa",
        "had its head stuck in a fence",
        "the boards did not move",
        "long stick",
        "{b} pushed the boards apart with the stick, and {a} pulled {d} free",
    ),
    (
        "young goat",
        "Baa",
        "had its leg caught between two rocks",
        "the rocks were too heavy",
        "long stick",
        "{b} moved one rock with the stick, and {a} pulled {d} out",
    ),
)


@plot(*DRY)
def animal_rescue(s: Stage) -> None:
    a, b, p = s.hero, s.friend(), s.outdoors(only="park garden forest hill meadow farm")
    noun, call, trouble, obstacle, tool, rescue = s.pick(ANIMAL_TROUBLE)
    s.slots.update(trouble=trouble, obstacle=obstacle, call=call)
    s.open()
    s.go(a, p, "{day}, {a} went for a walk {p:in}.|{day}, {a} was on the way {p:to}.")
    s.tell(
        '"{call}! {call}!" something cried.|suddenly {a} heard a small sound. "{call}! {call}!"|'
        '"{call}," came a sound from not far away.'
    )
    s.extra("d", noun, "it")
    s.tell(
        "it was {d}. It {trouble}.|{a} followed the sound and found {d} that {trouble}.|"
        "there was {d} that {trouble}."
    )
    s.feel(a, s.pick(("sad", "worried")), "the poor little thing was in trouble")
    s.say(a, "Do not be afraid. I will help you.|I will get you out!|Poor thing, hold still!")
    s.tell("{a} tried and tried, but {obstacle}.|but {obstacle}, and {a} could not do it alone.")
    s.meet(
        b,
        "then {a:p} friend {b:new} came up the path.|"
        "luckily, {a:p} friend {b:new} was not far away "
        "and came running.",
    )
    _fetch_tool(s, tool)
    s.pair(a, b)
    s.tell(f"{rescue}.|slowly and carefully, {rescue}.")
    s.tell("at last, {d} was free!|and then {d} was free!")
    _thanks(s)


def _fetch_tool(s: Stage, tool: str) -> None:
    b = s.slots["b"]
    s.say(b, "We need {x:a}. I have one at home!|Wait here. I know what we need!", x=tool)
    s.leave(b, "{b} ran home as fast as the wind.|{b} ran off.")
    s.tell("while {a} waited, {a} talked to {d} in a soft voice.|{a} stayed and sang a quiet song.")
    adjective, _, noun = tool.rpartition(" ")
    s.thing("u", noun, adjective, holder=b)
    s.go(b, s.slots["p"], "soon {b} was back with {u}.|after a while, {b} came back with {u}.")


def _thanks(s: Stage) -> None:
    animal = s.slots["d"]
    s.tell(
        "{d} jumped around with joy.|{d} looked at them for a long time, as if to say thank you."
        "|{d} came close to {a:o} and closed its eyes."
        if animal.noun != "bird"
        else "{d} flew up into the sky and sang.|"
        "{d} sat on {a:np} head for a moment and then flew off."
    )
    s.feel(s.hero, s.pick(("happy", "proud")), "{d} was safe")
    if animal.noun in ("kitten", "puppy") and s.chance(0.6):
        s.tell("{d} had no home, so {a} took it along and gave it some milk.")
        s.close("even small friends need help", "{a:n} and {d} were always together")
    else:
        s.close(
            "two friends can do what one cannot|it is good to help those who are small",
            "{d} came to say hello when it saw {a:o}|{a} stopped and listened on every walk",
        )


FEARS = (  # place, preposition, what, why, first try, advice, small step, success
    (
        "playground",
        "on",
        "the tall slide",
        "it was higher than a house",
        "climbed halfway up, looked down, and climbed back",
        "Look at the sky and not at the ground.",
        "climbed one step, and then one more, and never looked down",
        "slid down with a loud laugh",
    ),
    (
        "pond",
        "by",
        "the deep water",
        "nobody could see the bottom",
        "put one foot in and jumped back",
        "Start where you can stand.",
        "stayed where it was not deep and learned to float",
        "swam all the way to the other side",
    ),
    (
        "farm",
        "on",
        "the big horse",
        "it was so much bigger than anybody else",
        "came close, but ran away when the horse moved",
        "Stand still and let it come to you.",
        "stood very still and held out a carrot",
        "felt the soft nose and laughed out loud",
    ),
    (
        "river",
        "by",
        "the old bridge",
        "it shook a little in the wind",
        "took one step and turned around",
        "Hold the rope and look at the other side.",
        "held the rope and took one small step after another",
        "reached the other side and waved",
    ),
    (
        "forest",
        "in",
        "the dark cave",
        "it was as black as night inside",
        "went in two steps and ran out again",
        "Take a lamp, and sing a song as you go.",
        "took a lamp, sang a song, and walked on slowly",
        "saw light on the other side",
    ),
)


@plot(*DRY)
def a_fear(s: Stage) -> None:
    a, b = s.hero, s.friend()
    place, preposition, what, why, first, advice, step, success = s.pick(FEARS)
    p = s.indoors("p", place, preposition)
    s.slots.update(what=what, why=why)
    s.open()
    s.feel(
        a,
        "scared",
        "{why}",
        "there was one thing that scared {a:o}: {what}.|{a} was afraid of {what}, because {why}.|"
        "{a} was brave about most things, but not about {what}.",
    )
    s.go(a, p, "{day}, {a} went {p:to}.|{day}, {a} had to go {p:to}.")
    s.meet(
        b,
        "{a:p} friend {b:new} was already there.|there {a} met {a:p} friend {b:new}.|"
        "{b:new}, a friend, came too.",
    )
    s.say(b, "Come on, it is fun!|Do you want to try?|Let us go together!", to=a)
    s.tell(f"{{a}} {first}.|at first, {{a}} {first}.")
    s.say(a, "I cannot do it.|I am too scared.", to=b)
    s.say(
        b,
        f"I was scared too, the first time. {advice}|Everybody is afraid of something. {advice}|"
        f"{advice}|I know a trick. {advice}",
        to=a,
    )
    s.tell(f"so {{a}} {step}.|this time, {{a}} {step}.")
    s.tell(f"and then {{a}} {success}!|before long, {{a}} {success}.")
    s.feel(a, "proud", "{what} was not so bad after all")
    if s.chance(0.5):
        s.say(a, "I did it!|Again, again!|That was not so hard!")
    s.close(
        "being brave means trying even when you are afraid|small steps can take you far",
        "{a} was not afraid of {what} any more|when a friend was scared, {a} knew what to say",
    )


SHELTERS = (  # as told of first, its noun, an animal that may be there
    ("an old barn", "barn", "young goat"),
    ("a small cave", "cave", "lamb"),
    ("an empty hut", "hut", "gray cat"),
    ("a mill", "mill", "small owl"),
)


@plot("cloudy", "windy", "sunny")
def storm(s: Stage) -> None:
    a, b, p = s.hero, s.friend(), s.outdoors(only="forest hill meadow river beach")
    s.open()
    s.meet(b, "{a:p} best friend was {b:new}.|{a} had a good friend, {b:new}.")
    we = s.pair(a, b)
    s.go(
        we,
        p,
        "{day}, {we} went {p:to} to {fun}.|{day}, {we} walked {p:to} together.|"
        "{day}, {we:n} packed some bread and went {p:to}.",
        fun=s.pick(FUN),
    )
    s.tell("they played {game} and forgot the time.|they had so much fun.", game=s.pick(GAMES))
    s.tell(
        "suddenly the sky turned dark, and the wind began to blow.|then big black clouds rolled "
        "in.|far away there was a deep sound."
    )
    s.tell(
        "rain came down, and thunder shook the air.|lightning flashed, and cold rain began to fall."
    )
    s.feel(b, "scared", "the thunder was very loud")
    s.say(a, "Give me your {b:hand} and run!|Stay with me!|We must find a dry place!", to=b)
    _take_shelter(s)
    _after_storm(s)


def _take_shelter(s: Stage) -> None:
    shelter, noun, beast = s.pick(SHELTERS)
    s.slots["hut"] = shelter
    s.go(
        s.slots["we"],
        s.indoors("q", noun),
        "they ran and ran until they saw {hut}.|"
        "{b:hand} in {b:hand}, they ran to {hut} and slipped inside.|"
        "through the rain, {a} saw {hut}, and they ran inside.",
    )
    if s.chance(0.6):
        s.extra("d", beast, "it")
        s.tell(
            "in the corner sat {d}, wet and cold.|"
            "they were not alone, for {d} was hiding there too."
        )
        s.tell("{b} dried it with a coat and forgot to be afraid.|{a} gave it a bit of bread.")
    else:
        s.tell(
            "they sat close together and told each other stories.|to feel brave, they sang a song."
        )


def _after_storm(s: Stage) -> None:
    s.tell(
        "at last, the rain stopped.|little by little, the storm moved away.|after an hour, the "
        "thunder was far away."
    )
    s.tell(
        "when they stepped outside, there was a rainbow over {p}.|the sun came out, and every leaf "
        "was shining.|outside, the air smelled fresh, and a bird began to sing."
    )
    s.feel(s.slots["b"], "happy", "the storm was over", "{b} was {f}, because %.")
    s.say(s.slots["b"], "I was not scared with you beside me.|You were so brave!", to=s.hero)
    s.go(s.slots["we"], s.home, "{we} walked home through the wet grass.|then {we} went home.")
    s.tell(
        "at home, there was {treat}.|soon they sat by the fire and had {treat}.",
        treat=s.pick(TREATS),
    )
    s.close(
        "every storm comes to an end|a storm is not so bad when you have a friend",
        "{we} looked at the sky before every walk|{b} was not afraid of thunder any more",
    )


@plot(*DRY)
def lost_way(s: Stage) -> None:
    a, e = s.hero, s.elder()
    p = s.outdoors(only="forest")
    s.open()
    s.say(e, "Do not leave the path.|Be home before dark!|Stay where you can see the house.", to=a)
    lure = s.pick(("yellow butterfly", "small frog", "green bird"))
    s.extra("d", lure, "it")
    s.tell("{day}, {a} saw {d} in the garden.|{day}, {d} came right up to the window.")
    s.world.move(s.slots["d"], p)
    s.go(
        a,
        p,
        "{a} followed {d}, deeper and deeper into the forest.|{a} wanted a closer look and "
        "ran after {d}, all the way into the forest.",
    )
    s.leave(s.slots["d"], "then {d} was gone.|at a big tree, {d} disappeared.")
    s.feel(a, "scared", "every tree looked the same")
    s.say(a, "Where am I?|Which way is home?|Hello, is anybody there?")
    s.tell("nobody answered.|there was only the wind in the trees.")
    if s.chance(0.5):
        s.tell("{a} cried a little, but then {a} dried {a:p} eyes and began to think.")
    else:
        s.tell("{a} sat down on a root and tried to be calm.")
    s.pick((_by_stream, _by_owl, _by_smoke))(s)
    _home_again(s)


def _home_again(s: Stage) -> None:
    a, e = s.hero, s.slots["e"]
    s.go(
        a, s.home, "at last, {a} saw the house and ran home.|and so {a} came home just before dark."
    )
    s.feel(
        e,
        "glad",
        "{a} was home",
        "{e} was so {f} to see {a:o}.|{e} was waiting at the door and was very {f}.",
    )
    s.feel(
        a,
        "glad",
        "{a} was home",
        "{a} was not scared any more.|now {a} felt safe.|{a} was {f}, too.",
    )
    s.say(e, "I was looking for you everywhere!|I am so glad you are back!", to=a)
    s.say(a, "I am sorry. I left the path.|I will stay on the path next time.", to=e)
    s.tell("then they had {treat} by the fire.|then there was {treat}.", treat=s.pick(TREATS))
    s.close("it helps to stay calm and think", "{a} stayed on the path")


def _by_stream(s: Stage) -> None:
    s.tell("{a} listened and heard water.|then {a} heard a soft sound, and it was the stream.")
    s.tell("the stream ran past the house, so {a} followed it down the hill.")


def _by_owl(s: Stage) -> None:
    owl = s.extra("o", s.pick(("old owl", "white owl")), "it")
    s.tell("up in a tree sat {o}.|{o} looked down from a branch.")
    if s.wild:
        s.say(
            owl, "I can see your house from here. Follow me!|I know the way. Come along!", to=s.hero
        )
    s.tell("{o} flew from tree to tree, and {a} walked behind.")


def _by_smoke(s: Stage) -> None:
    s.tell(
        "{a} climbed up a tall tree and looked around.|from the top of a big rock, {a} looked out."
    )
    s.tell("far away, smoke came out of a chimney, and {a} walked that way.")


FOUND = (  # noun, adjective, owner, gender, why it matters
    ("key", "silver", "old man", "he", "I could not open my door!"),
    ("purse", "brown", "old woman", "she", "All my money is in it!"),
    ("ring", "golden", "old woman", "she", "I have looked for it all day!"),
    ("basket", "big", "baker", "she", "My best bread is in it!"),
    ("watch", "old", "farmer", "he", "My mother gave it to me!"),
)


@plot(*DRY)
def something_found(s: Stage) -> None:
    a, p = s.hero, s.outdoors(only="park river beach hill meadow pond")
    noun, adjective, owner, gender, why = s.pick(FOUND)
    s.open()
    s.go(a, p, "{day}, {a} was walking {p:in}.|{day}, {a} went {p:to}.")
    t = s.thing("t", noun, adjective, place=p)
    spot = s.pick(p.spots)
    s.take(
        a,
        t,
        "{spot}, {a} found {t}.|{a} saw something {spot} and picked it up. It was {t:a}.",
        spot=spot,
    )
    b = s.friend()
    s.meet(b, "{a:p} friend {b:new} wanted to see it.|{a} showed it to {a:p} friend {b:new}.")
    if s.chance(0.6):
        s.say(b, "You can keep it!|It is yours now!|Lucky you!", to=a)
        s.tell("{a} really liked {t}.|for a moment, {a} wanted to keep it.")
        s.say(a, "No, somebody must be missing it.|It is not mine.", to=b)
    else:
        s.say(b, "Somebody must be missing it.|Whose is it?", to=a)
    s.pair(a, b)
    x, y = s.some(("the teacher", "a tall man", "a woman with a dog", "two girls"), 2)
    s.tell(
        "first {we} asked {x}, but the answer was no.|"
        "{we} asked {x} and {y}, but neither could help.",
        x=x,
        y=y,
    )
    _give_back(s, owner, gender, why)


def _give_back(s: Stage, owner: str, gender: str, why: str) -> None:
    a, t = s.hero, s.slots["t"]
    o = s.extra("o", owner, gender)
    s.tell(
        "then they saw {o}, who was looking for something on the ground.|"
        "at last, they met {o}, who "
        "looked very worried."
    )
    s.say(a, "Is this your {t:bare}?|Did you lose {t:a}?", to=o)
    s.give(
        a, o, t, "{a} held out {t}, and {o} took {t:it} with a happy cry.|{a} gave {t:it} to {o:o}."
    )
    s.say(o, f"Thank you! {why}|You found it! {why}", to=a)
    s.feel(a, "glad", "{t} was back with its owner")
    if s.chance(0.6):
        u = s.food("u", o)
        s.give(o, a, u, "as a thank you, {o} gave {a:o} {u}.")
        s.tell("{a} shared it with {b:o}.|it was big enough for two.")
    s.close("it is right to give back what is not yours", "{o} always waved to {a:o}")


PLOTS = (lost_toy, animal_rescue, a_fear, storm, lost_way, something_found)
