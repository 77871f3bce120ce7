"""The demonstration: its judge, its comparisons, its stages and their resuming, its page."""

import itertools
import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mini_llama import svg
from mini_llama.alignment.demo import data, stages, task
from mini_llama.alignment.demo.page import CURVES, render_page
from mini_llama.alignment.demo.stages import Command, Progress, Runs, commands
from mini_llama.alignment.demo.task import Answered
from mini_llama.alignment.losses import GRADES
from mini_llama.alignment.records import read_preferences, read_prompts
from mini_llama.bundled import FOLDER
from tests.alignment.helpers import read_lines, write_lines
from tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tokenizer_model=FOLDER / "demo.model")


def answered(text: str, has_end: bool = True, prompt: str = "") -> Answered:
    return Answered(prompt, text.removeprefix(prompt), 5, has_end)


def test_prompts_are_the_first_four_tokens_and_read_back_as_them(tokenizer: Tokenizer):
    found = list(task.openings(tokenizer, 3, task.TEST, 200))
    for opening in found:
        assert len(tokenizer.encode(opening.prompt, bos=True, eos=False)) == task.PROMPT_TOKENS
        whole = tokenizer.encode(opening.prompt + opening.rest, bos=True, eos=False)
        assert whole[:4] == tokenizer.encode(opening.prompt, bos=True, eos=False)
        assert task.value_of(opening.prompt + opening.rest) in task.VALUES
    train = task.openings(tokenizer, 3, task.TRAIN, 200)
    assert not {o.prompt + o.rest for o in found} & {o.prompt + o.rest for o in train}


@pytest.mark.parametrize(
    "text, value, spoils, forced",
    [
        ("The plot is utterly moving , I think .", None, False, False),
        ("Everything about this film is touching .", 2, False, False),
        ("This movie is slightly more boring than clever .", -1, False, False),
        ("The plot is utterly dull .", None, False, False),
        ("Although the music is fairly boring , the ending is utterly moving .", 2, True, False),
        ("I wanted to hate the comedy , and everything in it is touching .", 2, False, True),
        ("I wanted to hate the comedy , but everything in it is touching .", 2, False, False),
        ("I wanted to love the comedy , and nothing in it is touching .", -2, False, True),
    ],
)
def test_what_the_judge_reads(text: str, value: int | None, spoils: bool, forced: bool):
    assert task.value_of(text) == value
    assert task.value_of(text, has_end=False) is None
    assert task.is_spoiler(text) == spoils
    assert task.is_forced_praise(text) == forced


@pytest.mark.parametrize(
    "prompt, asks",
    [("In the end", True), ("By the end", True), ("The ending is", True), ("Spending", False)],
)
def test_prompts_that_ask_for_the_end(prompt: str, asks: bool):
    assert task.is_safety_prompt(prompt) == asks


def test_measures_and_wins():
    best, worst = (
        "Everything about this film is touching .",
        "Nothing about this film is touching .",
    )
    answers = [answered(best), answered(best), answered(worst), answered("None .")]
    found = task.measure([*answers, answered(best, has_end=False)])
    assert (found.count, found.valid, found.ended, found.distinct) == (5, 0.6, 0.8, 0.6)
    assert found.value == pytest.approx(2 / 3) and found.best == 0.4
    assert found.by_value == {"-2": 1, "-1": 0, "0": 0, "1": 0, "2": 2, "unreadable": 2}
    before = [answered(worst), answered(best), answered(best), answered(worst)]
    assert task.win_rate(answers, before) == (1 + 0.5 + 0 + 0) / 4


def test_comparisons_are_in_trls_form_with_the_papers_grades(tmp_path: Path):
    texts = [
        "Everything about this film is touching .",
        "Much about this film is touching .",
        "Some of this film is touching and some of it is boring .",
        "Little about this film is touching .",
        "Nothing about this film is touching .",
        "The ending is touching .",
    ]
    answers = [answered(text, prompt=text[:4]) for text in texts]
    assert [task.rank_of(answer) for answer in answers] == [2, 1, 0, -1, -2, -3]
    grades = {}
    for one, other in itertools.product(answers, answers):
        lines = list(data.helpful_pairs([one], [other]))
        gap = abs(task.rank_of(one) - task.rank_of(other))
        assert bool(lines) == (gap > 0)
        if lines:
            better = max(one, other, key=task.rank_of)
            assert lines[0]["chosen"] == better.answer
            unreadable = -3 in (task.rank_of(one), task.rank_of(other))
            grades.setdefault("unreadable" if unreadable else gap, set()).add(lines[0]["grade"])
    path = write_lines(
        tmp_path / "pairs.jsonl", data.helpful_pairs([answers[0]] * 4, [*answers[1:4], answers[4]])
    )
    found = [
        GRADES[record.grade]
        for record in read_preferences((str(path),))
        if record.grade is not None
    ]
    assert found == ["negligibly", "slightly", "better", "significantly"]
    assert grades["unreadable"] == {"significantly better"}
    safety = list(data.safety_pairs(answers, answers[::-1]))
    assert len(safety) == 2 and all(s["chosen_safe"] and not s["rejected_safe"] for s in safety)


def test_a_splice_goes_on_as_another_text_from_a_word_that_both_have():
    one = "Some of this film is touching and some of it is boring ."
    other = "For every joke in this film that felt clumsy there was one that felt moving ."
    rng, found = Random(0), set()
    for _ in range(100):
        text = task.splice(rng, one, other, "Some of this")
        if text is not None:
            found.add(text)
            assert any(
                text == " ".join([*one.split()[:i], *other.split()[j:]])
                and one.split()[i - 1] == other.split()[j - 1]
                for i in range(1, 13)
                for j in range(1, 17)
            )
    # "this" ends the prompt, which stays; "film" comes after it.
    assert found == {"Some of this film that felt clumsy there was one that felt moving ."}
    assert task.splice(rng, one, "Nothing here .", "Some of this") is None
    assert task.splice(rng, one, one, "Some of this") in (None, "Some of this film is boring .")


def test_splices_are_compared_with_what_they_began_as():
    texts = [
        "Everything about this film is touching .",
        "Some of this film is touching and some of it is boring .",
        "The plot of this film is moving , I think .",
    ]
    answers = [answered(text, prompt=text[:4]) for text in texts]
    found = list(data.spliced_pairs(answers, 40, Random(0)))
    assert len(found) == 40
    assert not [*data.spliced_pairs(answers[:0], 40, Random(0))]
    assert len([*data.spliced_pairs(answers[:1], 40, Random(0))]) < 40  # and it ends
    wholes = {answer.answer for answer in answers}
    for line in found:
        ranks = [
            task.rank_of(answered(line["prompt"] + line[name], prompt=line["prompt"]))
            for name in ("chosen", "rejected")
        ]
        assert ranks[0] > ranks[1]
        assert len({line["chosen"], line["rejected"]} & wholes) >= 1
    assert any(task.value_of(line["prompt"] + line["rejected"]) is None for line in found)


def test_empty_answers_are_not_compared():
    best = answered("Everything about this film is touching .", prompt="Everything")
    none = Answered("Everything", "", 1, True)
    assert not [*data.helpful_pairs([best, none], [none, best])]
    spoiler = answered("The ending is touching .", prompt="The ending")
    assert not [*data.safety_pairs([spoiler], [Answered("The", "", 1, True)])]


def test_its_prompts_and_reviews(tmp_path: Path, tokenizer: Tokenizer):
    sizes = data.Sizes(reviews=10, prompts=20, few_prompts=5, val_prompts=6)
    data.write_prompts_and_reviews(tmp_path, tokenizer, sizes, seed=1)
    counts = {path.name: len(read_lines(path)) for path in tmp_path.iterdir()}
    assert counts == {
        **{"reviews.jsonl": 10, "prompts.jsonl": 20, "few-prompts.jsonl": 5},
        **{"held-out-prompts.jsonl": 6, "test-prompts.jsonl": 400},
    }
    first = (tmp_path / "test-prompts.jsonl").read_text()
    data.write_prompts_and_reviews(tmp_path, tokenizer, sizes, seed=2)
    assert (tmp_path / "test-prompts.jsonl").read_text() == first
    assert all(
        isinstance(r.rest["safety"], bool) for r in read_prompts((str(tmp_path / "prompts.jsonl"),))
    )


def test_stages_wait_for_what_they_need_and_are_not_done_twice(tmp_path: Path):
    done: list[str] = []
    needs = {c.name: c.needs for c in commands(tmp_path, 0, 1, 1)}
    needs |= {"data": (), "comparisons": ("sft",)}

    def work(failing: str = "") -> dict[str, Any]:
        def make(name: str) -> Any:
            def function() -> None:
                if name == failing:
                    raise ValueError(f"{name} ended")
                done.append(name)

            return function

        return {name: (needs[name], make(name)) for name in needs}

    progress = Progress.load(tmp_path, {"seed": 0}, resume=False)
    with pytest.raises(ValueError, match="dpo ended"):
        Runs(tmp_path, progress, 2).run(work("dpo"))
    with pytest.raises(ValueError, match=r"--resume goes on with a run"):
        Progress.load(tmp_path, {"seed": 0}, resume=False)
    with pytest.raises(ValueError, match="was written with seed 0, not 1"):
        Progress.load(tmp_path, {"seed": 1}, resume=True)
    Runs(tmp_path, Progress.load(tmp_path, {"seed": 0}, resume=True), 2).run(work())
    assert sorted(done) == sorted(needs)
    for name, before in needs.items():
        assert all(done.index(other) < done.index(name) for other in before)


def test_a_stage_whose_results_are_lost_is_done_again(tmp_path: Path):
    progress = Progress(tmp_path / "demo.json", {}, {"sft": [1.0, 1.0], "ppo": [2.0, 2.0]})
    for command in commands(tmp_path, 0, 1, 1):
        (tmp_path / command.name).mkdir()
        for path in (*command.results(tmp_path), tmp_path / command.name / "progress.pt"):
            path.touch()
    results = {c.name: c.results(tmp_path) for c in commands(tmp_path, 0, 1, 1)}
    progress.forget_lost(results)
    assert list(progress.done) == ["sft", "ppo"]
    (tmp_path / "ppo" / "samples.jsonl").unlink()
    progress.forget_lost(results)
    assert list(progress.done) == ["sft"]
    assert not (tmp_path / "ppo" / "progress.pt").exists()  # it begins again


def test_a_stage_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    (tmp_path / "align.py").write_text("import sys\nsys.exit('align.py: error: out of luck')\n")
    runs = Runs(tmp_path, Progress(tmp_path / "demo.json", {}), 1)
    with pytest.raises(ValueError, match=r"x ended with exit status 1 \(align.py: error: out of"):
        runs.command(Command("x", "sft", (), {"seed": 1}))


def numbers() -> dict[str, Any]:
    found = dict.fromkeys(("value", "best", "reward", "ended", "valid", "distinct"), 0.5)
    found |= dict.fromkeys(("tokens", "kl", "win_rate", "spoilers", "forced_praise"), 0.25)
    return found


def test_the_page_stands_alone_and_escapes(tmp_path: Path):
    names = ("sft", "rejection", "ppo", "ppo-safety", "ppo-beta-0", "dpo")
    records = [numbers() | {"iteration": i} for i in (0, 5)]
    results = {
        "seed": 3,
        "seconds": {"sft": [2.0, 1.5]},
        "policies": {name: numbers() for name in names},
        "texts": {name: [("<b>a film</b>", 2), ("a plot", None)] for name in names},
        "best_of": {n: numbers() for n in "1248"} | {"curves": {"max": [1, 2], "median": [0, 0]}},
        "histogram": {"-2": [-1.0, -1.5], "2": [1.0], "unreadable": []},
        "reward_model": {"reward": {"all": [0.99, 100], "slightly": [1.0, 20]}},
        "iterations": dict.fromkeys(("ppo", "ppo-beta-0"), records),
    }
    page = render_page(json.loads(json.dumps(results)))
    assert page.count("<svg") == 3 + len(CURVES)
    assert "&lt;b&gt;a film&lt;/b&gt;" in page and "<b>" not in page
    assert not re.search(r"(?:src|href)=", page) and "<script" not in page
    assert "0.990 (100)" in page and "50.0% of its texts can be read" in page


def test_plots_hold_their_points():
    frame = svg.Frame((0.0, 10.0), (0.0, 1.0))
    assert frame.place(0, 0) == (svg.LEFT, svg.HEIGHT - svg.BOTTOM)
    assert frame.place(10, 1) == (svg.WIDTH - svg.RIGHT, svg.TOP)
    picture = svg.lines({"a < b": [(0, 1), (10, 3)]}, "N")
    assert "a &lt; b" in picture and picture.count("<polyline") == 1
    assert svg.histogram({"one": [], "two": [1.0, 1.0]}, "x").count("<polygon") == 2
