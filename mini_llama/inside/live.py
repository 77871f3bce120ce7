"""What the live page may ask, and its answer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mini_llama.inside import page
from mini_llama.inside.look import look, text_of, title_of
from mini_llama.inside.server import Server
from mini_llama.inside.sides import Side

# What may be asked, and of which types.
ASKED: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "pad_to": (int,),
    "mask_padding": (bool,),
    "max_new_tokens": (int,),
    "temperature": (int, float),
}


def make_server(sides: Sequence[Side], data: Mapping[str, Any], extra: Mapping[str, Any]) -> Server:
    """The server of a page that shows `data` to begin with, and `extra` always. Raises OSError."""

    def answer(question: Mapping[str, Any]) -> Mapping[str, Any]:
        values = asked_values(question)
        changed = [
            dataclasses.replace(side, options=dataclasses.replace(side.options, **values))
            for side in sides
        ]
        return with_form({**look(changed), **extra}, changed[0])

    text = page.render(title_of(data), with_form(data, sides[0]), is_live=True)
    policy = page.policy_of_ours(is_live=True)
    return Server(sides[0].options.port, text, policy, answer)


def asked_values(question: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ValueError for what is not of its type."""
    values = {name: question[name] for name in ASKED if name in question}
    for name, value in values.items():
        if type(value) not in ASKED[name]:
            raise ValueError(f"{name} is not allowed to be a {type(value).__name__}")
    return values


def with_form(data: Mapping[str, Any], side: Side) -> dict[str, Any]:
    """The data of a page that can ask for more."""
    form = {name: getattr(side.options, name) for name in ASKED}
    return {**data, "live": form | {"text": text_of(side.options)}}
