"""Conversations as training examples: the model's chat template, and which tokens are answers.

What an answer is trained to follow is exactly the prompt that chat.py would give for it. Where a
template writes earlier turns in another way than it wrote them as prompts (without EOS, or without
their thoughts), a conversation becomes several examples.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mini_llama.alignment.records import ASSISTANT, SYSTEM, Turn
from mini_llama.inference.chat_template import Exchange, llama2_ids, plain_ids
from mini_llama.inference.own_template import Message, OwnTemplate
from mini_llama.tokenization.base import BaseTokenizer

# Token ids of a conversation; True if an answer follows.
Render = Callable[[BaseTokenizer, Sequence[Turn], bool], list[int]]


class Tokens(NamedTuple):
    """Token ids of an example, and which of them carry loss: those of answers, and their ends."""

    ids: list[int]
    learns: list[bool]


def render_with(template: str | OwnTemplate) -> Render:
    """How conversations are written: "llama2", "plain", or the model's own template."""
    if isinstance(template, OwnTemplate):
        return lambda tokenizer, turns, asks: template.conversation_ids(
            tokenizer, [Message(turn.role, turn.text) for turn in turns], asks
        )
    return {"llama2": render_llama2, "plain": render_plain}[template]


def split_turns(turns: Sequence[Turn]) -> tuple[str, list[Exchange], str | None]:
    """System prompt, exchanges, and the last turn that is still to be answered, if any."""
    system = turns[0].text if turns[0].role == SYSTEM else ""
    texts = [turn.text for turn in turns if turn.role != SYSTEM]
    last = texts.pop() if len(texts) % 2 else None
    return system, [Exchange(*texts[i : i + 2]) for i in range(0, len(texts), 2)], last


def render_llama2(tokenizer: BaseTokenizer, turns: Sequence[Turn], asks: bool) -> list[int]:
    """Llama 2's own: an exchange ends with EOS. Raises ValueError as llama2_ids does."""
    system, exchanges, last = split_turns(turns)
    ids = llama2_ids(tokenizer, system, exchanges, last or "")
    return ids if asks else ids[: -len(llama2_ids(tokenizer, "", [], ""))]


def render_plain(tokenizer: BaseTokenizer, turns: Sequence[Turn], asks: bool) -> list[int]:
    """One text, whose continuation is the answer."""
    system, exchanges, last = split_turns(turns)
    return plain_ids(tokenizer, system, exchanges, last or "")


def end_of_answer(tokenizer: BaseTokenizer, answer: Sequence[int], ends: Sequence[int]) -> int:
    """How many of an answer's tokens are to be learnt: up to the first that ends it, and no more
    of what the template writes between two turns. All, where none ends it.
    """
    at = next((n for n, token in enumerate(answer) if token in ends), None)
    return len(answer) if at is None else at + 1


def conversation_tokens(
    tokenizer: BaseTokenizer, turns: Sequence[Turn], render: Render, ends: Sequence[int]
) -> list[Tokens]:
    """The examples of a conversation that ends with an answer; loss on answers that learn.

    `ends` are the tokens at which generation stops, EOS first; an answer after which the template
    writes none of them is followed by EOS. Raises ValueError as the template does.
    """
    examples: list[Tokens] = []
    ids: list[int] = []
    learns: list[bool] = []
    for i, turn in enumerate(turns):
        if turn.role != ASSISTANT:
            continue
        prompt = render(tokenizer, turns[:i], True)
        if prompt[: len(ids)] != ids:
            examples.append(Tokens(ids, learns))
            ids, learns = [], []
        whole = render(tokenizer, turns[: i + 1], False)
        start = common_prefix(prompt, whole)
        answer = whole[start:]
        if not any(token in ends for token in answer):
            answer = [*answer, ends[0]]
        learnt = end_of_answer(tokenizer, answer, ends) if turn.learns else 0
        prompt = whole[:start]
        learns = learns + [False] * (len(prompt) - len(ids))
        learns += [True] * learnt + [False] * (len(answer) - learnt)
        ids = [*prompt, *answer]
    examples.append(Tokens(ids, learns))
    return [example for example in examples if any(example.learns[1:])]


def text_tokens(
    tokenizer: BaseTokenizer, prompt: str, answer: str, end: int
) -> tuple[Tokens, bool]:
    """A prompt, its continuation and EOS; and whether the prompt ends within a token, which then
    belongs to the answer.

    Both are encoded as one text, as at the end of generation: some tokenizers put a space before
    every text.
    """
    before = tokenizer.encode(prompt, bos=True, eos=False)
    whole = tokenizer.encode(prompt + answer, bos=True, eos=False)
    # A token of the prompt at least stays: the first token has nothing that predicts it.
    start = max(1, common_prefix(before, whole))
    learns = [False] * start + [True] * (len(whole) + 1 - start)
    return Tokens([*whole, end], learns), start < len(before)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(first, second, strict=False)
    shorter = min(len(first), len(second))
    return next((n for n, (a, b) in enumerate(pairs) if a != b), shorter)
