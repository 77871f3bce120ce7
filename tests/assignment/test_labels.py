"""Labels as words and as indices, with and without a list of the words."""

import re

import pytest

from mini_llama.assignment.labels import Labels, are_indices, named_labels, own_labels
from mini_llama.assignment.reviews import Record

FIVE = ["awful", "bad", "average", "good", "excellent"]


def classes(labels: Labels, found: str) -> list[int]:
    records = [Record(label, "text", f"d line {i}") for i, label in enumerate(found.split(), 1)]
    return [example.label for example in labels.examples(records)]


@pytest.mark.parametrize(
    ("names", "found", "expected", "written"),
    [
        (FIVE, "4 0 2", [4, 0, 2], ["0", "1", "2", "3", "4"]),
        (FIVE, "good awful", [3, 0], FIVE),
        (FIVE, "Good AWFUL 2", [3, 0, 2], FIVE),
        (["bad", "Bad"], "Bad bad", [1, 0], ["bad", "Bad"]),
        (["1", "2", "3"], "1 3 2", [0, 2, 1], ["1", "2", "3"]),
        (["1", "2", "3"], "0 2 1", [0, 2, 1], ["0", "1", "2"]),
        (["0", "1"], "0 1", [0, 1], ["0", "1"]),
    ],
)
def test_a_label_is_a_word_or_its_index(names: list, found: str, expected: list, written: list):
    labels = named_labels(names, set(found.split()), "names.json")
    assert classes(labels, found) == expected
    assert (labels.names, labels.written) == (names, written)


@pytest.mark.parametrize(
    ("defining", "found", "expected", "names"),
    [
        ("1 0 2", "2 0", [2, 0], None),
        ("positive negative", "negative positive", [0, 1], ["negative", "positive"]),
        ("positive negative", "Positive", [1], ["negative", "positive"]),
        ("10 9 1", "9 10", [1, 2], ["1", "9", "10"]),
        ("0 4", "4", [1], ["0", "4"]),
        ("-1 0 1", "1 -1", [2, 0], ["-1", "0", "1"]),
        ("0.0 1.0", "1.0", [1], ["0.0", "1.0"]),
        ("bad 3", "3 bad", [0, 1], ["3", "bad"]),
    ],
)
def test_without_a_list_the_labels_make_it_up(defining: str, found: str, expected: list, names):
    labels = own_labels(set(defining.split()), {*defining.split(), *found.split()})
    assert classes(labels, found) == expected
    assert labels.names == names
    assert labels.written == (names or ["0", "1", "2"]) and labels.are_words == bool(names)


@pytest.mark.parametrize(
    ("labels", "found", "message"),
    [
        (named_labels(FIVE, {"5"}, "n"), "5", "d line 1: label 5 is out of range: there are 5 lab"),
        (
            named_labels(FIVE, {"4", "fine"}, "n"),
            "4 fine",
            "d line 2: label 'fine' is neither awful, ",
        ),
        (named_labels(FIVE, {"-1"}, "n"), "-1", "nor an integer of at least 0"),
        (named_labels(["1", "2"], {"1", "3"}, "n"), "1 3", "d line 2: label 3 is out of range"),
        (named_labels(["1", "2"], {"0", "2"}, "n"), "0 2", "label 2 is out of range"),
        (
            own_labels({"0", "1"}, {"0", "2"}),
            "0 2",
            "d line 2: label 2 is out of range: there are 2",
        ),
        (own_labels({"0", "1"}, {"x"}), "x", "label 'x' is not an integer of at least 0"),
        (own_labels({"a", "b"}, {"c"}), "c", "label 'c' is neither a, b nor an integer"),
    ],
)
def test_a_label_that_is_none_names_its_line(labels: Labels, found: str, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        classes(labels, found)


def test_labels_that_could_be_two_things_are_refused():
    with pytest.raises(ValueError, match=r"label 1 .* word of n\.json and the index of another"):
        named_labels(["1", "2", "3"], {"1", "2"}, "n.json")
    with pytest.raises(ValueError, match="'Good' and 'good' differ by case alone"):
        own_labels({"good", "Good", "bad"}, set())
    with pytest.raises(ValueError, match="every label is 'good'"):
        own_labels({"good"}, set())


def test_what_counts_as_indices():
    assert are_indices({"0", "2", "1"}) and are_indices({"0"})
    for labels in ({"1", "2"}, {"0", "2"}, {"0", "a"}, {"0", "-1"}, {"0", "1.0"}, {"0", "٣"}):
        assert not are_indices(labels)
