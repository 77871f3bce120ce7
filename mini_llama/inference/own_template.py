"""A chat template in Jinja that came with a model: a conversation → token ids.

The rendered text is tokenized as transformers tokenizes it: names of control tokens in it are those
tokens. But only where the template wrote them: in what a user said they are ordinary text.

To tell the two apart, the template is also rendered with texts in which characters stand masked by
private ones, one for one. What the masked text has of names is the template's own, provided that
it is the real text once it is unmasked; a template that looks into its messages can write another.
So masks are tried from the widest to the narrowest: every character but white space, which leaves
strip and slices as they are; then the signs that are part of names; then one character of every
name. Where none fits, the turn is refused.
"""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mini_llama.inference.chat_template import TAGS, Exchange, check_texts
from mini_llama.inference.template_process import TemplateProcess, TemplateRefusalError
from mini_llama.tokenization.base import BaseTokenizer

USER, ANSWER, SYSTEM = "user", "assistant", "system"
PRIVATE = range(0xF0000, 0xFFFFE)  # plane 15, left to whoever wants it
ROLES = ("bos", "eos", "pad")
NEVER = re.compile(r"(?!)")
WIDE = 2  # as many masks hide every sign of a name

# Whether to mask a character, at a place in a protected name of some length, or in no name (0).
Choice = Callable[[str, int, int], bool]


class Message(NamedTuple):
    """A turn, an answer, or the system prompt."""

    role: str
    text: str


class OwnTemplate:
    """The template `source`, from the file `origin`; called, it is a chat_template.Template.

    Raises ValueError for a template that is far too long, or without jinja2.
    """

    def __init__(self, source: str, origin: str | Path) -> None:
        self.source, self.origin = source, origin
        self.process = TemplateProcess(source, origin)

    def __call__(
        self, tokenizer: BaseTokenizer, system: str, exchanges: Sequence[Exchange], user: str
    ) -> list[int]:
        """Token ids of a conversation whose last turn, `user`, is to be answered.

        Raises ValueError as TemplateProcess.render does, for a text that is not UTF-8 or has a tag
        that is ordinary text in this template, and where a control token in a text cannot be told
        from the template's.
        """
        messages = [Message(SYSTEM, system)] if system else []
        for exchange in exchanges:
            messages += [Message(USER, exchange.user), Message(ANSWER, exchange.answer)]
        messages.append(Message(USER, user))
        return self.conversation_ids(tokenizer, messages, asks=True)

    def check_texts(self, tokenizer: BaseTokenizer, *texts: str) -> None:
        """Raise ValueError as chat_template.check_texts does, of the tags that this template has
        and that are no tokens of their own, so that a model cannot tell them from a text's.
        """
        known = tokenizer.named_tokens
        check_texts(*texts, tags=[tag for tag in TAGS if tag in self.source and tag not in known])

    def check(self, tokenizer: BaseTokenizer) -> tuple[int, ...]:
        """Try the template on an exchange; the named token that it writes after an answer, if any.

        Raises ValueError for a template that cannot be rendered. One that refuses the exchange in
        its own words may still take others.
        """
        user, answer = (chr(code) for code in PRIVATE[:2])
        messages = [Message(USER, user), Message(ANSWER, answer)]
        with contextlib.suppress(TemplateRefusalError):
            self._render(tokenizer, messages[:1])
        with contextlib.suppress(ValueError):  # no prompt ends so
            text = self._render(tokenizer, messages, asks=False)
            _, found, rest = text.rpartition(answer)
            end = Names(tokenizer, self.source).any.match(rest.lstrip()) if found else None
            if end:
                return (tokenizer.named_tokens[end.group()].id,)
        return ()

    def conversation_ids(
        self, tokenizer: BaseTokenizer, messages: Sequence[Message], asks: bool
    ) -> list[int]:
        """Token ids of any conversation; `asks` if what follows is an answer. Raises ValueError as
        a call does.
        """
        self.check_texts(tokenizer, *(message.text for message in messages))
        return tokenizer.prompt_ids(self.parts(tokenizer, messages, asks))

    def parts(
        self, tokenizer: BaseTokenizer, messages: Sequence[Message], asks: bool = True
    ) -> list[str | int]:
        """The rendered conversation: texts, and the ids of the template's named tokens."""
        names = Names(tokenizer, self.source)
        text = self._render(tokenizer, messages, asks)
        if not names.spelled_in(messages):
            return names.split(text)
        widest: list[str | int] | None = None
        for n, is_masked in enumerate(names.levels):
            masks = Masks(messages)
            try:
                masked = [Message(m.role, names.mask(m, masks, is_masked)) for m in messages]
                found = names.split(self._render(tokenizer, masked, asks))
            except ValueError:
                continue
            parts = [masks.remove(part) if isinstance(part, str) else part for part in found]
            widest = widest or parts
            # A narrow mask leaves parts of names, which the template might complete.
            if names.join(parts) == text and (n < WIDE or _ids(parts) == _ids(widest)):
                return parts
        raise ValueError(
            "the text has the name of a control token, or a part of one, and this model's chat "
            "template does not leave it as it stands: take it out of the text"
        )

    def _render(
        self, tokenizer: BaseTokenizer, messages: Sequence[Message], asks: bool = True
    ) -> str:
        names = {token.id: name for name, token in tokenizer.named_tokens.items()}
        ids = {role: getattr(tokenizer, f"{role}_id") for role in ROLES}
        variables = {f"{role}_token": names[i] for role, i in ids.items() if i in names}
        return self.process.render(
            {
                **variables,
                "messages": [{"role": m.role, "content": m.text} for m in messages],
                "add_generation_prompt": asks,
                "tools": None,
                "documents": None,
            }
        )


class Masks:
    """Characters of texts and the private ones that stand for them, none of which is in a text."""

    def __init__(self, messages: Sequence[Message]) -> None:
        used = set().union(*(message.text for message in messages))
        self.free = (chr(code) for code in PRIVATE if chr(code) not in used)
        self.masks: dict[str, str] = {}

    def of(self, character: str) -> str:
        """Raises ValueError when there are no more masks."""
        if character not in self.masks:
            mask = next(self.free, None)
            if mask is None:
                raise ValueError(f"more than {len(PRIVATE)} different characters")
            self.masks[character] = mask
        return self.masks[character]

    def remove(self, text: str) -> str:
        """The text without masks."""
        return text.translate({ord(mask): real for real, mask in self.masks.items()})


class Names:
    """The named tokens of a tokenizer, of which those of `protected` stay text in a text of a role.

    Those are the control tokens, and in what a user says others that the template writes as well;
    an answer has them only if the model wrote that token.
    """

    def __init__(self, tokenizer: BaseTokenizer, source: str) -> None:
        self.tokens = tokenizer.named_tokens
        self.any = _pattern(self.tokens)
        control = {name for name, token in self.tokens.items() if token.is_control}
        written = {name for name in self.tokens if name in source and not name.isspace()}
        self.protected = {USER: control | written, SYSTEM: control | written, ANSWER: control}
        letters = set().union(*control, *written)
        signs = {c for c in letters if not c.isalnum() and not c.isspace()}
        self.levels: tuple[Choice, ...] = (
            lambda c, n, length: not c.isspace(),
            lambda c, n, length: c in signs or (n == 0 and length > 0),
            lambda c, n, length: length > 0 and n == length // 2,
            lambda c, n, length: length > 0 and n == 0,
        )

    def spelled_in(self, messages: Sequence[Message]) -> bool:
        """Whether a text has a protected name, or a sign that is part of one."""
        return any(self.mask(m, Masks(messages), self.levels[1]) != m.text for m in messages)

    def split(self, text: str) -> list[str | int]:
        """Texts, and the ids of the names between them; the leftmost and longest name counts."""
        parts: list[str | int] = []
        at = 0
        for found in self.any.finditer(text):
            parts += [text[at : found.start()], self.tokens[found.group()].id]
            at = found.end()
        return [part for part in (*parts, text[at:]) if part != ""]

    def join(self, parts: Sequence[str | int]) -> str:
        """The text that was split."""
        names = {token.id: name for name, token in self.tokens.items()}
        return "".join(part if isinstance(part, str) else names[part] for part in parts)

    def mask(self, message: Message, masks: Masks, is_masked: Choice) -> str:
        """The text with the chosen characters masked, but for names that are not protected."""
        protected, text = self.protected[message.role], message.text
        done: list[str] = []

        def add(piece: str, length: int) -> None:
            done.extend(masks.of(c) if is_masked(c, n, length) else c for n, c in enumerate(piece))

        at = 0
        for found in self.any.finditer(text):
            name = found.group()
            add(text[at : found.start()], 0)
            if name in protected:
                add(name, len(name))
            else:
                done.append(name)
            at = found.end()
        add(text[at:], 0)
        return "".join(done)


def _pattern(names: Mapping[str, object]) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if names else NEVER


def _ids(parts: Sequence[str | int]) -> list[int]:
    return [part for part in parts if isinstance(part, int)]
