"""JSON lines as people have them: read, or refused with file, line, what is wrong and a remedy."""

import json
import re
from pathlib import Path

import pytest

from mini_llama.alignment import records
from mini_llama.alignment.records import (
    Turn,
    read_demonstrations,
    read_preferences,
    read_prompts,
)

USER, BOT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
OTHER = {"role": "assistant", "content": "no"}
SYSTEM = {"role": "system", "content": "be kind"}
GOOD = '{"prompt": "a", "completion": " b"}'


def write(folder: Path, *lines: object) -> tuple[str]:
    path = folder / "data.jsonl"
    texts = [line if isinstance(line, bytes) else as_text(line).encode() for line in lines]
    path.write_bytes(b"\n".join(texts))
    return (str(path),)


def as_text(line: object) -> str:
    return line if isinstance(line, str) else json.dumps(line)


def test_all_forms_of_demonstrations(tmp_path):
    found = read_demonstrations(
        write(
            tmp_path,
            {"prompt": "a", "completion": " b", "id": 7},
            {"text": "all of it"},
            "",
            {"messages": [SYSTEM, USER, BOT, USER, OTHER | {"weight": 0}]},
            {"prompt": [USER, OTHER, USER], "completion": [BOT]},
            {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]},
            {"messages": None, "prompt": "", "completion": "c"},
        )
    )
    assert [record.place.line for record in found] == [1, 2, 4, 5, 6, 7]
    assert [(r.prompt, r.answer) for r in (*found[:2], found[5])] == [
        ("a", " b"),
        ("", "all of it"),
        ("", "c"),
    ]
    assert found[0].rest == {"id": 7}
    assert [turn.role for turn in found[2].answer] == "system user assistant user assistant".split()
    assert [t.learns for t in found[2].answer if t.role == "assistant"] == [True, False]
    assert [t.learns for t in found[3].answer if t.role == "assistant"] == [False, True]
    assert found[4].answer[1] == Turn("assistant", "x")


def test_lines_as_editors_and_other_systems_write_them(tmp_path):
    """A byte order mark, CRLF, U+2028 and a form feed within a text, an unfinished last line."""
    lines = (
        "\ufeff" + GOOD + "\r\n" + '{"prompt": "a\u2028b\x0c", "completion": "c"}\r\n\r\n' + GOOD
    )
    path = tmp_path / "data.jsonl"
    path.write_text(lines.replace("\x0c", "\\f"), encoding="utf-8", newline="")
    found = read_demonstrations((str(path),))
    assert [record.place.line for record in found] == [1, 2, 4]
    assert found[1].prompt == "a\u2028b\x0c"
    path.write_bytes(f"{GOOD}\r\r{GOOD}\r{GOOD}".encode())  # as old Macs ended lines
    assert [record.place.line for record in read_demonstrations((str(path),))] == [1, 3, 4]


def test_preferences_with_and_without_a_prompt_and_grades(tmp_path):
    found = read_preferences(
        write(
            tmp_path,
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            {"prompt": [USER], "chosen": [BOT], "rejected": [OTHER], "grade": "Slightly better"},
            {"prompt": "hi", "chosen": [USER, BOT], "rejected": [USER, OTHER], "grade": 4},
            {"chosen": "the sky is blue", "rejected": "the sky is green", "grade": "unsure"},
            {"chosen": "the sky is", "rejected": "the sky was", "grade": 1},
        )
    )
    assert [record.grade for record in found] == [None, 2, 0, 3, 3]
    assert found[2].chosen.answer == found[1].chosen.answer
    assert (found[3].chosen.prompt, found[3].chosen.answer) == ("the sky is", " blue")
    assert (found[4].chosen.prompt, found[4].rejected.answer) == ("the sky", " was")


def test_prompts(tmp_path):
    found = read_prompts(write(tmp_path, {"prompt": "a"}, {"prompt": [SYSTEM, USER]}))
    assert found[0].text == "a" and [turn.role for turn in found[1].text] == ["system", "user"]


@pytest.mark.parametrize(
    ("line", "what", "remedy"),
    [
        ("{", r"not JSON \(Expecting property name", "one JSON object a line"),
        ('{"prompt": "a" "completion": "b"}', "not JSON .* column 16", "one JSON object a line"),
        ("[" + GOOD + "]", "a list, not a JSON object", "one JSON object a line"),
        ("3", "a number, not", "one JSON object a line"),
        ("[" * 100_000, "nested too deeply|not JSON", "one JSON object a line"),
        (
            '{"prompt": "a", "prompt": "b", "completion": "c"}',
            "'prompt' is there twice",
            "keep one",
        ),
        (
            b'{"prompt": "\xff", "completion": "b"}',
            "not UTF-8 .byte 0xff",
            "save the file as UTF-8",
        ),
        ('{"prompt": "\\ud800", "completion": "b"}', "half of a surrogate pair", "encoder"),
        ({"prompt": "a"}, "it has 'prompt'", "a line must be"),
        ({}, "it has nothing", "a line must be"),
        ({"prompt": "a", "completion": ""}, "completion is empty", "leave the line out"),
        ({"prompt": "a", "completion": None}, "completion is null", "give it a value"),
        ({"prompt": "a", "completion": 3}, "completion a number", "two strings"),
        ({"prompt": "a", "completion": [BOT]}, "prompt is a string and completion a list", "two"),
        ({"messages": "a"}, "messages is a string, not a list", "list of messages"),
        ({"messages": []}, "messages is empty", "a message at least"),
        ({"messages": ["a"]}, r"messages\[0\] is a string, not an object", '"role"'),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] has no content", '"role"'),
        ({"messages": [USER]}, "the last message of messages is the user's", "the assistant's"),
        ({"messages": [SYSTEM]}, "a system prompt alone", "the user's message"),
        ({"messages": [BOT]}, r"messages\[0\] is the assistant's", "take turns"),
        ({"messages": [USER, USER, BOT]}, r"messages\[1\] is the user's", "take turns"),
        ({"messages": [USER, SYSTEM, BOT]}, r"messages\[1\] is the system's", "take turns"),
        ({"messages": [USER, BOT | {"content": ""}]}, r"messages\[1\].content is empty", "leave"),
        ({"messages": [USER, BOT | {"content": None}]}, "content is null", "JSON string"),
        ({"messages": [USER, BOT | {"role": "bot"}]}, "has the role 'bot'", "system, user, assist"),
        ({"messages": [USER, BOT | {"weight": 2}]}, "weight is 2", "0 .no loss. or 1"),
        ({"messages": [USER, BOT | {"weight": 0}]}, "no answer with weight 1", "leave the line"),
        ({"messages": [USER, BOT | {"tool_calls": [1]}]}, "calls a tool", "not supported"),
        ({"messages": [USER, {"role": "tool", "content": "3"}]}, "tool", "not supported"),
        ({"messages": [USER, BOT | {"content": [{"type": "image"}]}]}, "no text", "only texts"),
        (
            {"messages": [USER, BOT], "prompt": "a", "completion": "b"},
            "messages as well as prompt and",
            "keep one",
        ),
        ({"prompt": [BOT], "completion": [BOT]}, r"prompt\[0\] is the assistant's", "take turns"),
        ({"prompt": [USER, BOT], "completion": [BOT]}, "last message of prompt", "the user's"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "not one of TRL's", "ShareGPT"),
        ({"messages": [{"from": "human", "value": "a"}]}, "has no role", "ShareGPT"),
        ({"instruction": "a", "input": "", "output": "b"}, "not one of TRL's", "Alpaca"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_number(line, what, remedy, tmp_path):
    paths = write(tmp_path, GOOD, line, GOOD)
    with pytest.raises(ValueError, match=what) as error:
        read_demonstrations(paths)
    message = str(error.value)
    assert message.startswith(f"{paths[0]} line 2: ") and "\n" not in message
    assert re.search(remedy, message)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ({"prompt": "a", "chosen": "b"}, "it has 'prompt', 'chosen'"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "rejected is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "grade": 5}, "the grade is 5"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "grade": True}, "the grade is True"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "grade": "bad"}, "the grade is 'bad'"),
        ({"chosen": "yes", "rejected": "no"}, "the answers begin differently"),
        ({"chosen": "yes", "rejected": [BOT]}, "chosen is a string and rejected a list"),
        ({"chosen": 1, "rejected": 2}, "chosen is a number"),
        ({"chosen": [USER, BOT], "rejected": [USER]}, "rejected is empty"),
    ],
)
def test_wrong_preferences_are_one_line_with_its_number(line, what, tmp_path):
    paths = write(tmp_path, line)
    with pytest.raises(ValueError, match=re.escape(what)) as error:
        read_preferences(paths)
    assert str(error.value).startswith(f"{paths[0]} line 1: ") and "; " in str(error.value)


def test_whole_files_that_are_no_data(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="has no line of data"):
        read_demonstrations(write(tmp_path, "", " "))
    with pytest.raises(ValueError, match="UTF-16 by its byte order mark"):
        read_demonstrations(write(tmp_path, GOOD.encode("utf-16")))
    with pytest.raises(FileNotFoundError):
        read_demonstrations((str(tmp_path / "nothere.jsonl"),))
    with pytest.raises(OSError, match="is a folder; give a file"):
        read_demonstrations((str(tmp_path),))
    monkeypatch.setattr(records, "MAX_LINE", 100)
    long = {"prompt": "a" * 200, "completion": "b"}
    with pytest.raises(ValueError, match=r"line 2: more than 0 MiB without a line end"):
        read_demonstrations(write(tmp_path, GOOD, long))
