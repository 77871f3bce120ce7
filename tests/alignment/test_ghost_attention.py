"""Ghost Attention: what is asked, what is trained, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mini_llama.alignment.chat import Tokens
from mini_llama.alignment.demo import gatt
from mini_llama.alignment.ghost_attention import (
    Dialogue,
    messages_of,
    sampled_answers,
    training_turns,
)
from mini_llama.alignment.records import Place, Turn
from mini_llama.alignment.rl_options import GattOptions
from mini_llama.bundled import CHECKPOINT
from mini_llama.training.core import TrainerCore
from tests.alignment.helpers import read_lines, run, write_lines

PLACE = Place("dialogues.jsonl", 1)
LONG = Dialogue(PLACE, "Act as Napoleon .", ("Hi", "And you ?", "Bye"), "Figure: Napoleon .")
SHORT = Dialogue(PLACE, "Be brief .", ("Hi",))


def test_every_question_is_asked_with_the_instruction_and_the_answers_so_far():
    asked = []

    def ask(conversations: list[list[Turn]]) -> list[str]:
        asked.append([[turn.text for turn in turns] for turns in conversations])
        return [f"answer {len(asked)}.{i}" for i in range(len(conversations))]

    answers = sampled_answers([LONG, SHORT], ask)
    assert answers == [["answer 1.0", "answer 2.0", "answer 3.0"], ["answer 1.1"]]
    assert asked[0] == [["Act as Napoleon . Hi"], ["Be brief . Hi"]]
    assert asked[2] == [
        [
            *("Act as Napoleon . Hi", "answer 1.0", "Act as Napoleon . And you ?", "answer 2.0"),
            "Act as Napoleon . Bye",
        ]
    ]


def test_training_has_the_instruction_once_and_loss_on_the_last_answer_alone():
    turns = training_turns(LONG, ["a", "b", "c"])
    assert [turn.text for turn in turns] == [
        *("Figure: Napoleon . Hi", "a", "And you ?", "b", "Bye", "c")
    ]
    assert [turn.learns for turn in turns] == [False] * 5 + [True]
    assert messages_of(turns)[3] == {"role": "assistant", "content": "b", "weight": 0}
    assert messages_of(turns)[5] == {"role": "assistant", "content": "c"}
    assert training_turns(SHORT, ["a"])[0].text == "Be brief . Hi"


def test_a_run(tiny_folder: Path, tmp_path: Path):
    line = {"instruction": "be good .", "questions": ["a film", "the plot", "and you"]}
    path = write_lines(tmp_path / "dialogues.jsonl", [line] * 3)
    flags = {"data": path, "max_new_tokens": 4, "steps": 1, "batch_size": 2, "val_fraction": 0}
    model = {"pretrained-model-path": tiny_folder / "model.pt", "norm": "rmsnorm", "samples": 0}
    assert run("gatt", out=tmp_path / "out", **flags, **model) == 0
    messages = read_lines(tmp_path / "out" / "gatt.jsonl")[0]["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"] * 3
    assert messages[0]["content"] == "be good . a film" and messages[2]["content"] == "the plot"
    assert [m.get("weight") for m in messages] == [0, 0, 0, 0, 0, None]


@pytest.mark.parametrize(
    "line", [{"questions": ["a"]}, {"instruction": "a", "questions": []}, {"instruction": 1}]
)
def test_another_form_is_refused_by_line(line: dict, tmp_path: Path, tiny_folder: Path):
    path = write_lines(tmp_path / "dialogues.jsonl", [line])
    message = run("gatt", data=path, out=tmp_path / "out", val_fraction=0)
    assert "dialogues.jsonl line 1: it has not the form of a dialogue" in str(message)
    assert "--data is needed" in str(run("gatt", out=tmp_path / "out"))


def test_an_interrupted_demonstration_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = GattOptions(demo=True, out=str(tmp_path), max_length=64)
    rows = [Tokens([1, *range(9, 15), 2], [False] * 4 + [True] * 4)] * 40
    monkeypatch.setattr(gatt, "SAVE_EVERY", 1)
    whole = gatt.train(options, tmp_path / "whole", CHECKPOINT, 3, lambda _: rows)
    update, taken = TrainerCore.update, []

    def interrupted(*arguments: Any) -> Any:
        if len(taken) == 2:
            raise SystemExit(9)
        taken.append(arguments)
        return update(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(TrainerCore, "update", interrupted)
        with pytest.raises(SystemExit):
            gatt.train(options, tmp_path / "cut", CHECKPOINT, 3, lambda _: rows)
    options = dataclasses.replace(options, resume=True)
    cut = gatt.train(options, tmp_path / "cut", CHECKPOINT, 3, lambda _: rows)
    assert all(map(torch.equal, cut.llama.parameters(), whole.llama.parameters()))
    assert len(taken) == 2 and len(read_lines(tmp_path / "cut" / "metrics.jsonl")) == 3
