"""JSONL in TRL's formats: read, checked and refused by line, before any model is loaded.

A line is a JSON object. Demonstrations are {"prompt", "completion"}, {"messages"} or {"text"};
preferences {"prompt", "chosen", "rejected"}, the prompt also implicit; prompts {"prompt"}. A text
is a string, or a list of messages {"role", "content"}. Other keys are kept and not read.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mini_llama.text_files import BOM, check_file, check_start

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
ROLES = (SYSTEM, USER, ASSISTANT)
MAX_LINE = 1 << 24  # bytes: bounds the memory of a file that is not JSON lines
LONGEST_NUMBER = 1000  # digits; Python refuses to read far longer ones
# How much better the chosen answer is (section 3.2.1), as indices of losses.GRADES. A number says
# the same: the larger, the better.
GRADES = {"significantly better": 0, "better": 1, "slightly better": 2, "negligibly better": 3}
GRADES |= {"significantly": 0, "slightly": 2, "negligibly": 3, "unsure": 3}
GRADES |= {"negligibly better/unsure": 3, "negligibly better / unsure": 3}
BEST_GRADE = 4
DEMONSTRATION = '{"prompt": …, "completion": …} or {"messages": […]}'
PREFERENCE = '{"prompt": …, "chosen": …, "rejected": …}'
PROMPT = '{"prompt": …}'
# Forms of other projects, by their keys.
FOREIGN = {
    "conversations": "ShareGPT's form: rename conversations to messages, from to role (human is "
    "user, gpt is assistant) and value to content",
    "instruction": "Alpaca's form: join instruction and input to prompt, and rename output to "
    "completion",
    "tokens": "token ids: give texts",
}


class Turn(NamedTuple):
    """A message. Of an assistant's, `learns` says whether the loss is on it."""

    role: str
    text: str
    learns: bool = True


Text = str | tuple[Turn, ...]


@dataclass(frozen=True)
class Place:
    """Where a record stands."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path} line {self.line}"

    def error(self, what: str, remedy: str) -> ValueError:
        return ValueError(f"{self}: {what}; {remedy}")


@dataclass(frozen=True)
class Demonstration:
    """A prompt and its answer: strings, or the turns of a conversation and no prompt."""

    place: Place
    prompt: str
    answer: Text
    rest: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preference:
    """Two answers, the better one first, to the same prompt, and how much better it is: an index of
    losses.GRADES, or None where the line does not say.
    """

    place: Place
    chosen: Demonstration
    rejected: Demonstration
    grade: int | None = None
    rest: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """What is to be answered: a string, or turns that end with a user's."""

    place: Place
    text: Text
    rest: Mapping[str, Any] = field(default_factory=dict)


Record = TypeVar("Record")


def read_demonstrations(paths: tuple[str, ...]) -> list[Demonstration]:
    """Raises OSError, and ValueError, naming file and line, for the first that is wrong."""
    return _read(paths, _demonstration)


def read_preferences(paths: tuple[str, ...]) -> list[Preference]:
    """Raises OSError, and ValueError, naming file and line, for the first that is wrong."""
    return _read(paths, _preference)


def read_prompts(paths: tuple[str, ...]) -> list[Prompt]:
    """Raises OSError, and ValueError, naming file and line, for the first that is wrong."""
    return _read(paths, _prompt)


def _read(paths: tuple[str, ...], make: Callable[[Place, dict[str, Any]], Record]) -> list[Record]:
    records: list[Record] = []
    for path in paths:
        before = len(records)
        records += [make(place, content) for place, content in read_objects(path)]
        if len(records) == before:
            raise ValueError(f"{path} has no line of data; give JSON lines")
    return records


def read_objects(path: str | Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The JSON objects of a file, one a line, and their places; empty lines are skipped.

    Raises OSError; ValueError for a line that is no JSON object, repeats a key, is not UTF-8, or
    has more than MAX_LINE bytes.
    """
    check_file(path)
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a file of JSON lines")
    with open(path, "rb") as file:
        number = 0
        while data := file.readline(MAX_LINE + 1):
            if number == 0:
                check_start(data, path)
                data = data.removeprefix(BOM)
            if len(data) > MAX_LINE:
                limit = f"more than {MAX_LINE >> 20} MiB without a line end"
                raise Place(str(path), number + 1).error(limit, "write one JSON object a line")
            # JSON has no bare "\r" within a string, so it ends a line here as well.
            for line in data.removesuffix(b"\n").removesuffix(b"\r").split(b"\r"):
                number += 1
                if line.strip():
                    place = Place(str(path), number)
                    yield place, _parse(place, line)


def _parse(place: Place, data: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise place.error(f"key {twice!r} is there twice", "keep one of them")
        return content

    def integer(digits: str) -> int:
        if len(digits) > LONGEST_NUMBER:
            raise place.error(f"a number of {len(digits)} digits", "write it as a string")
        return int(digits)

    try:
        text = data.decode("utf-8")
        content = json.loads(text, object_pairs_hook=no_duplicates, parse_int=integer)
    except UnicodeDecodeError as error:
        wrong = f"not UTF-8 (byte 0x{data[error.start]:02x})"
        raise place.error(wrong, "save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        wrong = f"not JSON ({error.msg}, column {error.colno})"
        raise place.error(wrong, "write one JSON object a line") from None
    except RecursionError:
        raise place.error("nested too deeply", "write one JSON object a line") from None
    if not isinstance(content, dict):
        kind = _kind(content)
        raise place.error(f"{kind}, not a JSON object", "write one JSON object a line")
    return content


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    names |= {dict: "an object", int: "a number", float: "a number"}
    return names[type(value)]


def _demonstration(place: Place, content: dict[str, Any]) -> Demonstration:
    _check_keys(place, content, (("messages",), ("prompt", "completion"), ("text",)), DEMONSTRATION)
    rest = _without(content, "messages", "prompt", "completion", "text")
    if content.get("messages") is not None:
        turns = _turns(place, "messages", content["messages"])
        return Demonstration(place, "", _answered(place, "messages", turns), rest)
    if content.get("completion") is None:
        return Demonstration(place, "", _string(place, "text", content["text"]), rest)
    prompt, completion = content["prompt"], content["completion"]
    return _joined(place, ("prompt", prompt), ("completion", completion), rest)


def _preference(place: Place, content: dict[str, Any]) -> Preference:
    _check_keys(place, content, (("chosen", "rejected"),), PREFERENCE)
    prompt = content.get("prompt")
    answers = {name: content[name] for name in ("chosen", "rejected")}
    has_lists = all(isinstance(answer, list) for answer in answers.values())
    if prompt is None or (isinstance(prompt, str) and has_lists):  # the lists repeat a string
        prompt, answers = _implicit_prompt(place, answers)
    chosen, rejected = (
        _joined(place, ("prompt", prompt), (name, answer), {}) for name, answer in answers.items()
    )
    if chosen.answer == rejected.answer:
        raise place.error("chosen and rejected are the same", "leave the line out")
    rest = _without(content, "prompt", "chosen", "rejected", "grade")
    return Preference(place, chosen, rejected, _grade(place, content.get("grade")), rest)


def _prompt(place: Place, content: dict[str, Any]) -> Prompt:
    _check_keys(place, content, (("prompt",), ("messages",)), PROMPT)
    name = "prompt" if content.get("prompt") is not None else "messages"
    rest = _without(content, name)
    if isinstance(content[name], str):
        return Prompt(place, _string(place, name, content[name], may_be_empty=True), rest)
    turns = _turns(place, name, content[name])
    _check_asks(place, name, turns)
    return Prompt(place, turns, rest)


def _check_keys(
    place: Place, content: dict[str, Any], forms: tuple[tuple[str, ...], ...], wanted: str
) -> None:
    """Raise ValueError unless the line has the keys of exactly one form."""
    given = [form for form in forms if all(content.get(name) is not None for name in form)]
    if len(given) > 1:
        names = " as well as ".join(" and ".join(form) for form in given)
        raise place.error(f"it has {names}", "keep one of them")
    if given:
        return
    foreign = next((FOREIGN[name] for name in FOREIGN if name in content), None)
    if foreign:
        raise place.error("not one of TRL's forms", f"it looks like {foreign}")
    nulls = [name for form in forms for name in form if name in content and content[name] is None]
    if nulls:
        raise place.error(f"{nulls[0]} is null", "give it a value, or leave the line out")
    found = ", ".join(map(repr, list(content)[:5])) or "nothing"
    raise place.error(f"it has {found}", f"a line must be {wanted}")


def _without(content: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in names}


def _string(place: Place, name: str, value: Any, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise place.error(f"{name} is {_kind(value)}, not a string", "write it as a JSON string")
    try:
        value.encode()
    except UnicodeEncodeError:
        wrong = f"{name} has half of a surrogate pair"
        raise place.error(wrong, "write the file with an encoder that pairs them") from None
    if not (value or may_be_empty):
        raise place.error(f"{name} is empty", "nothing is to be learnt from it: leave the line out")
    return value


def _joined(
    place: Place, prompt: tuple[str, Any], answer: tuple[str, Any], rest: Mapping[str, Any]
) -> Demonstration:
    """A (key, value) of a prompt and one of an answer, both strings or both messages."""
    names = prompt[0], answer[0]
    if isinstance(prompt[1], str) and isinstance(answer[1], str):
        text = _string(place, *prompt, may_be_empty=True)
        return Demonstration(place, text, _string(place, *answer), rest)
    if isinstance(prompt[1], str) or isinstance(answer[1], str):
        kinds = f"{names[0]} is {_kind(prompt[1])} and {names[1]} {_kind(answer[1])}"
        raise place.error(kinds, "give two strings, or two lists of messages")
    before = tuple(turn._replace(learns=False) for turn in _turns(place, *prompt))
    turns = (*before, *_turns(place, *answer))
    _check_asks(place, names[0], before)
    return Demonstration(place, "", _answered(place, names[1], turns, len(before)), rest)


def _check_asks(place: Place, name: str, turns: tuple[Turn, ...]) -> None:
    _check_order(place, name, turns)
    if turns[-1].role != USER:
        wrong = f"the last message of {name} is the {turns[-1].role}'s"
        raise place.error(wrong, "let a prompt end with the user's")


def _turns(place: Place, name: str, value: Any) -> tuple[Turn, ...]:
    """Messages, with their forms checked one by one."""
    if not isinstance(value, list):
        raise place.error(f"{name} is {_kind(value)}, not a list", "give a list of messages")
    if not value:
        raise place.error(f"{name} is empty", "give a message at least, or leave the line out")
    return tuple(_turn(place, f"{name}[{i}]", message) for i, message in enumerate(value))


def _turn(place: Place, name: str, message: Any) -> Turn:
    if not isinstance(message, dict):
        wrong = f"{name} is {_kind(message)}, not an object"
        raise place.error(wrong, 'write a message as {"role": …, "content": …}')
    if missing := [key for key in ("role", "content") if key not in message]:
        remedy = 'write a message as {"role": …, "content": …}'
        if {"from", "value"} <= message.keys():
            remedy = f"it looks like {FOREIGN['conversations']}"
        raise place.error(f"{name} has no {missing[0]}", remedy)
    role, content = message["role"], message["content"]
    if message.get("tool_calls") or role == "tool":
        raise place.error(f"{name} calls a tool, or is its answer", "tools are not supported")
    if role not in ROLES:
        raise place.error(f"{name} has the role {role!r}", f"it must be one of {', '.join(ROLES)}")
    if isinstance(content, list):
        content = _joined_parts(place, f"{name}.content", content)
    text = _string(place, f"{name}.content", content, may_be_empty=role != ASSISTANT)
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise place.error(f"{name}.weight is {weight!r}", "it must be 0 (no loss) or 1")
    return Turn(role, text, weight == 1)


def _joined_parts(place: Place, name: str, parts: list[Any]) -> str:
    """The text of a content in parts, [{"type": "text", "text": …}, …]."""
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    if len(texts) != len(parts) or not all(isinstance(text, str) for text in texts):
        raise place.error(f"{name} has parts that are no text", "only texts can be learnt")
    return "".join(text for text in texts if isinstance(text, str))


def _check_order(place: Place, name: str, turns: tuple[Turn, ...]) -> None:
    """A system prompt at the beginning, if any, then user and assistant by turns."""
    rest = turns[1:] if turns[0].role == SYSTEM else turns
    for i, turn in enumerate(rest):
        expected = ASSISTANT if i % 2 else USER
        if turn.role != expected:
            number = i + len(turns) - len(rest)
            wrong = f"{name}[{number}] is the {turn.role}'s, where the {expected}'s comes"
            remedy = "after a system prompt, if any, user and assistant take turns"
            raise place.error(wrong, remedy)
    if not rest:
        raise place.error(f"{name} has a system prompt alone", "add the user's message")


def _answered(
    place: Place, name: str, turns: tuple[Turn, ...], before: int = 0
) -> tuple[Turn, ...]:
    """The turns, if they end with an answer, and one carries a loss."""
    _check_order(place, name, turns)
    if turns[-1].role != ASSISTANT:
        wrong = f"the last message of {name} is the {turns[-1].role}'s"
        raise place.error(wrong, "let it end with the assistant's")
    if not any(turn.learns for turn in turns[before:] if turn.role == ASSISTANT):
        raise place.error(f"{name} has no answer with weight 1", "leave the line out")
    return turns


def _implicit_prompt(
    place: Place, answers: dict[str, Any]
) -> tuple[str | list[Any], dict[str, Any]]:
    """What both answers begin with, and their rests, as in TRL's extract_prompt: of messages the
    equal ones, of strings up to the last space.
    """
    chosen, rejected = answers.values()
    if type(chosen) is not type(rejected) or not isinstance(chosen, str | list):
        kinds = f"chosen is {_kind(chosen)} and rejected {_kind(rejected)}"
        raise place.error(kinds, "give two strings, or two lists of messages")
    pairs = zip(chosen, rejected, strict=False)
    equal = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)))
    if isinstance(chosen, str) and equal and chosen[equal - 1] == " ":
        equal -= 1
    prompt = chosen[:equal]
    if not prompt:
        raise place.error("no prompt, and the answers begin differently", f"give {PREFERENCE}")
    return prompt, {name: answer[equal:] for name, answer in answers.items()}


def _grade(place: Place, value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is int and 1 <= value <= BEST_GRADE:
        return BEST_GRADE - value
    grade = GRADES.get(value.strip().lower()) if isinstance(value, str) else None
    if grade is None:
        names = ", ".join(list(GRADES)[:4])
        remedy = f"it must be one of {names}, unsure, or 4 to 1 in that order"
        raise place.error(f"the grade is {value!r}", remedy)
    return grade
