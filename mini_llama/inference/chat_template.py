"""A conversation as a prompt: texts → token ids, with as much history as fits the context.

Two templates: "llama2", that of Llama 2's chat models (Touvron et al. 2023, in the form of Meta's
reference implementation), and "plain", for models that only continue text. own_template.py has
those that come with a model.
"""

import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mini_llama.tokenization.base import BaseTokenizer, check_utf8

TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<s>", "</s>")
LLAMA2_PIECES = 32_000
LLAMA2_BOS, LLAMA2_EOS = 1, 2


class Exchange(NamedTuple):
    """What the user said and what the model answered."""

    user: str
    answer: str


Template = Callable[[BaseTokenizer, str, Sequence[Exchange], str], list[int]]


def llama2_ids(
    tokenizer: BaseTokenizer, system: str, exchanges: Sequence[Exchange], user: str
) -> list[int]:
    """Token ids of a conversation whose last turn, `user`, is to be answered.

    Every exchange is BOS, `[INST] user [/INST] answer ` and EOS, encoded by itself; the last turn
    is BOS and `[INST] user [/INST]`. A system prompt stands in the first user's text. White space
    around texts is removed; around the first user's, as in Meta's code, after the system prompt is
    added to it. Raises ValueError for a tokenizer without BOS or EOS, and as check_texts does.
    """
    bos_id, eos_id = tokenizer.bos_id, tokenizer.eos_id
    if bos_id is None or eos_id is None:
        raise ValueError(
            f"tokenizer {tokenizer.model_path} has no BOS or no EOS, which the template llama2 "
            "needs; choose --template plain"
        )
    check_texts(system, user, *(text for exchange in exchanges for text in exchange))
    opening = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
    users = [*(exchange.user for exchange in exchanges), user]
    instructions = [f"[INST] {(opening + users[0]).strip()} [/INST]"]
    instructions += [f"[INST] {text.strip()} [/INST]" for text in users[1:]]
    ids = []
    for instruction, exchange in zip(instructions[:-1], exchanges, strict=True):
        text = f"{instruction} {exchange.answer.strip()} "
        ids += [bos_id, *tokenizer.encode(text, bos=False, eos=False), eos_id]
    # Not bos=True: some tokenizers add no BOS even then.
    return [*ids, bos_id, *tokenizer.encode(instructions[-1], bos=False, eos=False)]


def plain_ids(
    tokenizer: BaseTokenizer, system: str, exchanges: Sequence[Exchange], user: str
) -> list[int]:
    """Token ids of the whole conversation as one text, whose continuation is the answer.

    An answer directly follows the text that it continued, the next turn follows after a space.
    Raises ValueError as check_texts does.
    """
    check_texts(system, user)
    said = [f"{exchange.user.strip()}{exchange.answer.rstrip()}" for exchange in exchanges]
    parts = [system.strip(), *said, user.strip()]
    return tokenizer.encode(" ".join(filter(None, parts)), bos=True, eos=False)


TEMPLATES: dict[str, Template] = {"llama2": llama2_ids, "plain": plain_ids}


def default_template(tokenizer: BaseTokenizer, is_folder: bool) -> str:
    """The default template of a model: llama2 if it is a folder, as Meta's and Hugging Face's are,
    and has as many pieces as Llama 2 and the same BOS and EOS; else plain.
    """
    shape = (tokenizer.n_words, tokenizer.bos_id, tokenizer.eos_id)
    is_llama2 = is_folder and shape == (LLAMA2_PIECES, LLAMA2_BOS, LLAMA2_EOS)
    return "llama2" if is_llama2 else "plain"


def check_texts(*texts: str, tags: Sequence[str] = TAGS) -> None:
    """Raise ValueError for a text that is not UTF-8, or contains a tag, which would forge a turn.

    These tags are ordinary text to the tokenizer, so a model cannot tell them from the template's.
    Tags are also found in NFKC form, since tokenizers may normalise the text.
    """
    for text in texts:
        check_utf8(text)
        found = next((tag for tag in tags if tag in unicodedata.normalize("NFKC", text)), None)
        if found:
            raise ValueError(f"{found} is not allowed in a text: it is part of the chat's template")


def fit_history(
    template: Template,
    tokenizer: BaseTokenizer,
    system: str,
    exchanges: Sequence[Exchange],
    user: str,
    room: int,
) -> tuple[list[int], int]:
    """Token ids, at most `room`, with as many of the latest exchanges as fit, and how many of the
    oldest are left out. They always contain the system prompt and the last turn.

    Raises ValueError if those two alone do not fit, and as the template does.
    """
    for dropped in range(len(exchanges) + 1):
        ids = template(tokenizer, system, exchanges[dropped:], user)
        if len(ids) <= room:
            return ids, dropped
    beside = " with the system prompt" if system else ""
    raise ValueError(
        f"the turn is {len(ids)} tokens{beside}, and at most {room} fit the context beside the "
        "answer: shorten it, or lower --max_new_tokens"
    )
