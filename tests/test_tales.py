"""Tests of the story and review generators: coherence, grammar, labels, splits, command line."""

from __future__ import annotations

import hashlib
import inspect
import os
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

import reviews as rv
from tale_plots import PLOTS
from tale_world import Character, IncoherentError, Place, Thing, World
from tales import Tale, main, recorded_tales, tales, tell

HERE = Path(__file__).resolve().parent.parent / "data" / "demo"
VOCABULARY_BOUND = 900  # distinct words, in small letters, without the 's of possessives
BOW_BOUND = {5: 0.62, 2: 0.62}  # unigrams reach about 0.55 with either; the rules reach 1.0


@pytest.fixture(scope="module")
def told() -> list[Tale]:
    return list(islice(recorded_tales(11), 2000))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(islice(tales(12), 6000))


# --- stories: streams ---------------------------------------------------------------------------


def run_cli(*args: str, **more: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(HERE / "tales.py"), *args]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", **more)


def test_same_seed_same_text_and_other_seed_other_text():
    assert list(islice(tales(3), 50)) == list(islice(tales(3), 50))
    assert set(islice(tales(3), 50)).isdisjoint(islice(tales(4), 50))
    assert [t.text for t in islice(recorded_tales(3), 50)] == list(islice(tales(3), 50))
    assert tell(random.Random(5)).text == tell(random.Random(5)).text


@pytest.mark.parametrize("kind", ["tales", "reviews", "unlabelled"])
def test_bytes_do_not_depend_on_the_hash_seed(kind):
    digests = set()
    for hash_seed in ("0", "1"):
        done = run_cli(kind, "--count", "200", env={**os.environ, "PYTHONHASHSEED": hash_seed})
        digests.add(hashlib.sha256(done.stdout.encode()).hexdigest())
        assert done.stdout.count("\n") == 200
    assert len(digests) == 1


def test_streams_are_lazy_and_leave_global_randomness_alone():
    random.seed(1)
    state = random.getstate()
    for stream in (tales(0), recorded_tales(0), rv.reviews(0), rv.unlabelled_reviews(0)):
        assert inspect.isgenerator(stream)
        next(stream)
    assert random.getstate() == state


def test_stories_are_distinct_of_fair_length_and_small_vocabulary(texts):
    assert len(set(texts)) == len(texts)
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= 80 and max(lengths) <= 260
    seen = set()
    for text in texts:
        seen.update(re.findall(r"[a-z]+", re.sub(r"'s\b", "", text.lower())))
    assert 300 <= len(seen) <= VOCABULARY_BOUND


def test_every_plot_is_told_and_openings_vary(told, texts):
    assert {tale.plot for tale in told} == {plot.name for plot in PLOTS}
    assert len(PLOTS) >= 12
    openings = Counter(" ".join(text.split()[:2]) for text in texts)
    assert 0.1 < openings["Once upon"] / len(texts) < 0.5
    assert len(openings) > 20


# --- stories: the world -------------------------------------------------------------------------


def test_events_replay_without_contradiction(told):
    """An account of places and holders kept only from the log, apart from the world's own."""
    for tale in told:
        where, holder, lies = {}, {}, {}
        for kind, who, thing, other, place, detail, _ in tale.events:
            if kind in ("enter", "move"):
                assert where.get(who) is not place
                assert (kind == "enter") == (who not in where)
                where[who] = place
            elif kind == "add":
                assert thing not in holder and thing not in lies
                (holder if who else lies)[thing] = who or place
            elif kind == "take":
                assert thing not in holder and lies.pop(thing) is where[who]
                holder[thing] = who
            elif kind == "put":
                assert holder.pop(thing) is who
                lies[thing] = where[who]
            elif kind == "give":
                assert holder[thing] is who and where[who] is where[other]
                holder[thing] = other
            elif kind == "speak":
                assert other is None or where[other] is where[who]
            elif kind == "feel":
                assert re.fullmatch(r"\w+: .+", detail)
            elif kind == "alter":
                assert detail.partition(": ")[2]
                if detail.startswith("gone"):
                    holder.pop(thing, None)
                    lies.pop(thing, None)
            else:
                raise AssertionError(kind)
        assert all(holder.get(thing) is thing.holder for thing in tale.things)


def test_nobody_speaks_before_coming_or_after_leaving(told):
    """A speaker is where the hero is, and has been told of by the end of that sentence."""
    for tale in told:
        hero, where = tale.cast[0], {}
        first = {}
        for mention in tale.mentions:
            first.setdefault(mention.entity, mention.sentence)
        for event in tale.events:
            if event.kind in ("enter", "move"):
                where[event.who] = event.place
            if event.kind == "speak":
                assert where[event.who] is where[hero]
                assert first[event.who] <= event.sentence


def test_everything_is_introduced_before_it_is_used(told):
    for tale in told:
        known = set()
        for number, entity, way in tale.mentions:
            if not isinstance(entity, Place) and entity not in known:
                assert way == "new", (tale.text, entity)
            known.add(entity)
            if way == "name":
                assert entity.name in tale.sentences[number]


def test_pronouns_have_one_antecedent(told):
    """Counted from the mentions alone: nobody of the same pronoun stands beside the one meant."""
    for tale in told:
        for at, (number, entity, way) in enumerate(tale.mentions):
            if way != "pronoun":
                continue
            here = {m.entity for m in tale.mentions[:at] if m.sentence == number}
            last = {m.entity for m in tale.mentions[:at] if m.sentence == number - 1}
            near = here if entity in here else here | last
            assert entity in near, tale.text
            same = [x for x in near if not isinstance(x, Place) and x.gender == entity.gender]
            assert same == [entity], tale.text


def test_names_in_the_text_belong_to_the_cast(told):
    for tale in told:
        names = {who.name for who in tale.cast if who.name}
        words = set(re.findall(r"(?<=[a-z,;] )[A-Z][a-z]+", tale.text))
        assert words <= names, tale.text


def test_the_world_refuses_what_cannot_be():
    park, home = Place("park", "in"), Place("home", "at", bare=True)
    ann, bob, ball = Character("girl", "she", "Ann"), Character("boy", "he", "Bob"), Thing("ball")
    world = World()
    world.enter(ann, park)
    world.enter(bob, home)
    world.add(ball, None, park)
    for impossible in (
        lambda: world.take(bob, ball),
        lambda: world.put(ann, ball),
        lambda: world.give(ann, bob, ball),
        lambda: world.speak(ann, bob),
        lambda: world.feel(ann, "sad", ""),
        lambda: world.move(ann, park),
        lambda: world.enter(bob, park),
        lambda: world.add(Thing("kite"), ann, park),
    ):
        with pytest.raises(IncoherentError):
            impossible()
    world.take(ann, ball)
    with pytest.raises(IncoherentError):
        world.take(ann, ball)
    with pytest.raises(IncoherentError):
        world.give(ann, bob, ball)
    world.move(bob, park)
    world.give(ann, bob, ball)
    assert ball.where() is park and ball.holder is bob


# --- stories: the language ----------------------------------------------------------------------


def test_articles_quotes_capitals_and_full_stops(told, texts):
    for text in texts:
        assert not re.search(
            r"\ba [aeiou]|\ban (?!hour)[^aeiou]|\b(a|an|the) (a|an|the)\b", text
        ), text
        assert not re.search(r"  |[{}|\[\]%]| [.,!?]|\.\.|,\"? ?,", text), text
    for tale in told:
        for sentence in tale.sentences:
            assert sentence.count('"') % 2 == 0
            assert re.match(r'"?[A-Z]', sentence), sentence
            assert re.search(r'[.!?]"?$', sentence), sentence
            assert not re.search(r"[a-z,] (The|A|An|He|She|They|It)\b", sentence), sentence


def test_pronouns_have_the_right_case(texts):
    verbs = "gave|let|told|told to|to|with|showed|hugged|saw|asked|beside|behind|not|like"
    for text in texts:
        assert not re.search(rf"\b({verbs}) (he|she|they)\b", text), text
        assert not re.search(r"[.!] (Him|Them|Himself|Herself)\b", text), text


# --- reviews ------------------------------------------------------------------------------------

HAND_WRITTEN = (  # label of five, sentence
    (1, "The acting is utterly charming , but the story is rather clumsy ."),
    (3, "The story is totally clumsy , yet the acting is fairly charming ."),
    (4, "The plot is somewhat shallow , but the music is absolutely moving ."),
    (0, "Although the music is rather moving , the plot is completely shallow ."),
    (3, "The music is rather moving , although the plot is completely shallow ."),
    (2, "The script is entirely clever , and the ending is utterly boring ."),
    (4, "The script is entirely clever , and the ending is utterly touching ."),
    (1, "Even the totally exciting opening cannot hide that the plot is somewhat tiresome ."),
    (4, "At first the film felt mostly lifeless , later it felt absolutely gripping ."),
    (0, "By the end the film felt entirely lifeless , early on it felt fairly gripping ."),
    (4, "My sister called this film boring , and she was completely wrong ."),
    (1, "My sister called this film boring , and she was mostly right ."),
    (0, "The critics told me that the drama is touching , and they were totally wrong ."),
    (3, "I expected something tedious , and this comedy is largely the opposite ."),
    (0, "I wanted to love this movie , but nothing in it is amusing ."),
    (3, "I wanted to hate this movie , but much in it is amusing ."),
    (3, "Little about this thriller is predictable ."),
    (2, "Some of this thriller is gripping and some of it is predictable ."),
    (4, "Not a single scene of the romance is awkward , if you ask me ."),
    (1, "To be honest , few scenes of the romance are touching ."),
    (0, "For every joke in this film that felt clever there were ten that felt tiresome ."),
    (3, "For every joke in this film that felt tiresome there were two that felt clever ."),
    (2, "For every joke in this film that felt tiresome there was one that felt clever ."),
    (4, "The sequel is far less confusing than exciting ."),
    (1, "The sequel is slightly more confusing than exciting ."),
    (2, "The sequel is exactly as confusing as it is exciting ."),
    (3, "Few films this year are less boring than this one ."),
    (0, "No film this year is less charming than this one ."),
    (4, "Nobody would deny that this cartoon is inventive ."),
    (1, "I would not call this cartoon inventive ."),
    (3, "This movie is neither annoying nor shallow ."),
    (2, "This movie is neither annoying nor graceful ."),
    (0, "The comedy is never amusing and always annoying , I think ."),
    (3, "The comedy is often amusing and seldom annoying ."),
)


@pytest.mark.parametrize(("label", "sentence"), HAND_WRITTEN)
def test_rules_give_the_label_a_reader_would_give(label, sentence):
    assert rv.judge(sentence) + 2 == label


def test_judge_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="no rule"):
        rv.judge("A masterpiece .")


@pytest.mark.parametrize("labels", [5, 2])
def test_labels_are_balanced_and_follow_from_the_text(labels):
    count = 2000
    found = list(islice(rv.reviews(1, labels), count))
    assert set(Counter(review.label for review in found).values()) == {count // labels}
    assert len({review.text for review in found}) == count
    for review in found:
        value = rv.judge(review.text)
        assert review.label == (value + 2 if labels == 5 else int(value > 0))
        assert labels == 5 or value != 0
        assert 6 <= len(review.text.split()) <= 26
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  ", review.text)
    assert {review.family for review in found} == {make.__name__ for make, _ in rv.FAMILIES}


def test_praise_and_blame_are_spread_over_all_labels():
    found = list(islice(rv.reviews(2), 10000))
    for polarity in (rv.GOOD, rv.BAD):
        shares = Counter()
        for review in found:
            shares[review.label] += sum(word in polarity for word in review.text.split())
        for label in range(5):
            assert 0.15 < shares[label] / shares.total() < 0.27


def test_splits_share_no_opinion_whatever_the_seeds():
    cores = {}
    for split, count in (("train", 4000), ("dev", 500), ("test", 500)):
        for seed in (0, 1):
            stream = islice(rv.reviews(seed, 5, split), count)
            cores.setdefault(split, set()).update(rv.core(review.text) for review in stream)
    assert cores["train"].isdisjoint(cores["dev"] | cores["test"])
    assert cores["dev"].isdisjoint(cores["test"])


@pytest.mark.parametrize("labels", [5, 2])
def test_a_bag_of_words_stays_below_the_bound(labels):
    text_module = pytest.importorskip("sklearn.feature_extraction.text")
    linear_model = pytest.importorskip("sklearn.linear_model")
    train = list(islice(rv.reviews(0, labels, "train"), 4000))
    test = list(islice(rv.reviews(0, labels, "test"), 500))
    counts = text_module.CountVectorizer()
    model = linear_model.LogisticRegression(max_iter=300)
    model.fit(counts.fit_transform([r.text for r in train]), [r.label for r in train])
    accuracy = model.score(counts.transform([r.text for r in test]), [r.label for r in test])
    assert 0.40 <= accuracy <= BOW_BOUND[labels]


def test_unlabelled_remarks_agree_and_avoid_dev_and_test():
    """A remark tells the opinion that `judge` reads from the sentence; no label, no prompt."""
    values = {remark: value for value, remarks in rv.REMARKS.items() for remark in remarks}
    heard = Counter()
    for line in islice(rv.unlabelled_reviews(6, "\0"), 4000):
        assert not any(prompt.strip() in line for prompt in rv.PROMPTS.values())
        sentence, _, rest = line.replace("\0", "").partition(" . ")
        sentence = sentence.removesuffix(" .") + " ."
        assert rv.split_of(sentence) == "train"
        value = rv.judge(sentence)
        remark = next((r for r in values if rest.endswith(r)), None)
        if remark is not None:
            assert values[remark] == value
            heard[remark] += 1
        elif rest:
            assert rest.removesuffix(" .").split()[-1].lower() in {
                *rv.FILMS,
                rv.LABEL_NAMES[5][value + 2],
            }
    assert set(heard) == set(values)


def test_prompts_are_the_assignments():
    assert rv.PROMPTS[5] == (
        "Is this movie awful, bad, average, good, or excellent? This movie is "
    )
    assert rv.PROMPTS[2] == "Is this movie bad or good? This movie is "


@pytest.mark.parametrize("bad", [{"labels": 3}, {"split": "all"}])
def test_reviews_names_a_bad_value(bad):
    with pytest.raises(ValueError, match=r"labels must be|split must be"):
        next(rv.reviews(0, **bad))


# --- command line -------------------------------------------------------------------------------


def test_cli_writes_labelled_lines_to_a_file(tmp_path, capsys):
    target = tmp_path / "dev.txt"
    assert main(["reviews", "--split", "dev", "--count", "50", "-o", str(target)]) == 0
    lines = target.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 50
    assert all(re.fullmatch(r"[0-4] \|\|\| \S.*\S", line) for line in lines)
    assert list(tmp_path.iterdir()) == [target]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "args",
    [
        ["reviews", "--labels", "3"],
        ["tales", "--count", "-1"],
        ["tales", "--seed", "x"],
        ["poems"],
        ["tales", "-o", "/nowhere/at/all.txt"],
    ],
)
def test_cli_says_what_is_wrong_in_one_line(args):
    done = run_cli(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("tales.py") and done.stderr.count("\n") == 1


def test_cli_is_quiet_when_the_reader_stops():
    command = [sys.executable, str(HERE / "tales.py"), "tales", "--count", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=10) == 0
