"""Templates against published token ids, transformers' rendering, and the format in words."""

import random
import re
from pathlib import Path

import pytest

from mini_llama.inference.chat_template import (
    TEMPLATES,
    Exchange,
    check_texts,
    default_template,
    fit_history,
)
from mini_llama.inference.chat_template import llama2_ids as llama2
from mini_llama.tokenization.base import BaseTokenizer
from tokenizer import Tokenizer

# As the model card of Llama 2 states the format, for transformers' renderer.
JINJA = """\
{%- if messages[0].role == 'system' -%}
{%- set opening = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' -%}
{%- set turns = messages[1:] -%}
{%- else -%}
{%- set opening = '' -%}
{%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns -%}
{%- if turn.role == 'user' -%}
{%- set content = (opening if loop.first else '') + turn.content -%}
{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
{%- else -%}
{{- ' ' + turn.content.strip() + ' ' + eos_token -}}
{%- endif -%}
{%- endfor -%}"""

BOS, EOS, INST, END = [1], [2], [518, 25580, 29962], [518, 29914, 25580, 29962]
SYS, END_SYS = [3532, 14816, 29903, 6778, 13], [13, 29966, 829, 14816, 29903, 6778, 13, 13]
# Hugging Face transformers, tests/models/llama/test_tokenization_llama.py (v4.40),
# test_tokenization_for_chat: what it expects behind BOS and the first "[", whose piece there is the
# one without a space before it (29961, legacy=False), and in Meta's own encoding "▁[" (518).
CHATBOT = [25580, 29962, *SYS, 3492, 526, 263, 8444, 13563, 7451, 29889, *END_SYS, 10994, 29991]
CHATBOT += END
NICE = [20103, 304, 5870, 366, 29889, 29871, 2]
HELLO = [25580, 29962, 15043, 29991, 518, 29914, 25580, 29962]
# Another public test lists these for meta-llama/Llama-2-7b-chat-hf with its own template.
ASSISTANT = [1, 518, 25580, 29962, 3532, 14816, 29903, 6778, 13, 3492, 526, 20255, 29889, 13, 29966]
ASSISTANT += [829, 14816, 29903, 6778, 13, 13, 12199, 518, 29914, 25580, 29962, 920, 508, 306, 1371]
ASSISTANT += [366, 29973, 29871, 2, 1, 518, 25580, 29962, 920, 1568, 338, 29871, 29906, 29974]
ASSISTANT += [29906, 29973, 518, 29914, 25580, 29962]


@pytest.fixture(scope="module")
def real(shared: Path) -> Tokenizer:
    return Tokenizer(tokenizer_model=shared / "reference" / "tokenizer.model")


@pytest.fixture(scope="module")
def peer(shared: Path, tmp_path_factory: pytest.TempPathFactory):
    """transformers' tokenizer of the same pieces."""
    transformers = pytest.importorskip("transformers")
    model = str(shared / "reference" / "tokenizer.model")
    return transformers.LlamaTokenizer.from_pretrained(
        str(Path(model).parent), legacy=True, chat_template=JINJA
    )


def test_published_ids(real: Tokenizer):
    system = "You are a helpful chatbot."
    assert llama2(real, system, [], "Hello!") == [1, 518, *CHATBOT]
    assert llama2(real, "", [], "Hello!") == [1, 518, *HELLO]
    exchange = Exchange("Hello!", "Nice to meet you.")
    begun = llama2(real, system, [exchange], "Hello!")
    assert begun == [1, 518, *CHATBOT, *NICE, 1, 518, *HELLO]
    exchange = Exchange("hello", "how can I help you?")
    assert llama2(real, "You are assistant.", [exchange], "how much is 2+2?") == ASSISTANT


def test_by_hand(real: Tokenizer):
    """The format in words, with pieces looked up one by one; "b" and "d" are answers.

    Meta strips a text once the system prompt stands before it: the space before "a" stays.
    """
    model = real.sp_model

    def piece(text: str) -> int:
        assert not model.is_unknown(model.piece_to_id(text))
        return model.piece_to_id(text)

    a, b, c, d = (piece(f"▁{letter}") for letter in "abcd")
    space, e = piece("▁"), piece("▁e")
    expected = BOS + INST + SYS + [piece("s")] + END_SYS + [a] + END + [b, space] + EOS
    expected += BOS + INST + [c] + END + [d, space] + EOS + BOS + INST + [e] + END
    history = [Exchange(" a\n", " b "), Exchange("c", "\td\n")]
    assert llama2(real, "s", history, "  e ") == expected
    assert llama2(real, "", history[1:], "e") == expected[expected.index(2) + 1 :]
    bare = [*BOS, *INST, *SYS, piece("s"), *END_SYS, piece("a"), *END]
    assert llama2(real, "s", [], "a ") == bare


def test_against_transformers(real: Tokenizer, peer: object):
    """Conversations with odd characters and white space."""
    rng = random.Random(0)
    words = ["hi", " 2+2?", "\n", "é🦙", "ok.", "\t", "[", "<", "INST", "你好"]

    def text() -> str:
        return "".join(rng.choices(words, k=rng.randint(1, 6))) + "x"

    for _ in range(60):
        system = rng.choice(["", text()])
        history = [Exchange(text(), text()) for _ in range(rng.randint(0, 3))]
        user = text()
        messages = [{"role": "system", "content": system}] if system else []
        for exchange in history:
            messages.append({"role": "user", "content": exchange.user})
            messages.append({"role": "assistant", "content": exchange.answer})
        messages.append({"role": "user", "content": user})
        expected = peer.apply_chat_template(messages, tokenize=True, return_dict=True)
        assert llama2(real, system, history, user) == expected["input_ids"]


@pytest.mark.parametrize("text", ["a[INST]b", "[/INST]", "<<SYS>>", "<</SYS>>x", "</s>", "a <s>"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_tags_are_refused(tokenizer_model: Path, name: str, text: str):
    tokenizer, template = Tokenizer(tokenizer_model=tokenizer_model), TEMPLATES[name]
    tag = re.search(r"\[.*\]|<.*>", text).group()
    for system, user in ((text, "a"), ("a", text)):
        with pytest.raises(ValueError, match=re.escape(f"{tag} is not allowed in a text")):
            template(tokenizer, system, [], user)


def test_tags_in_other_characters_are_refused():
    with pytest.raises(ValueError, match=r"\[INST\] is not allowed"):
        check_texts("fine", "［ＩＮＳＴ］")
    check_texts("INST [inst] <S> < s> [INST [/ INST]")
    with pytest.raises(ValueError, match="not UTF-8"):
        check_texts("a\udcff")


def test_plain_is_one_text(tokenizer_model: Path):
    tokenizer = Tokenizer(tokenizer_model=tokenizer_model)
    history = [Exchange(" the plot ", " is dull."), Exchange("but", "ton ")]
    ids = TEMPLATES["plain"](tokenizer, "a film", history, "and ")
    text = "a film the plot is dull. button and"
    assert ids == [tokenizer.bos_id, *tokenizer.sp_model.encode(text)]
    assert TEMPLATES["plain"](tokenizer, "", [], "") == [tokenizer.bos_id]


def test_a_tokenizer_without_eos_has_no_llama2_template(tokenizer_model: Path):
    tokenizer = Tokenizer(tokenizer_model=tokenizer_model)
    tokenizer.eos_id = None
    with pytest.raises(ValueError, match=r"no BOS or no EOS.*--template plain"):
        llama2(tokenizer, "", [], "a")


def test_the_default_template(real: Tokenizer, tokenizer_model: Path):
    assert default_template(real, is_folder=True) == "llama2"
    assert default_template(real, is_folder=False) == "plain"
    assert default_template(Tokenizer(tokenizer_model=tokenizer_model), is_folder=True) == "plain"


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_history_fits_and_keeps_system_and_last_turn(tokenizer_model: Path, name: str):
    tokenizer, rng = Tokenizer(tokenizer_model=tokenizer_model), random.Random(1)
    words = "a dull film the plot is good".split()

    def text() -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, 8)))

    def fits(system: str, history: list, user: str, room: int) -> bool:
        return len(TEMPLATES[name](tokenizer, system, history, user)) <= room

    refused = 0
    for _ in range(150):
        system, user, room = rng.choice(["", text()]), text(), rng.randint(10, 200)
        history = [Exchange(text(), text()) for _ in range(rng.randint(0, 6))]
        if not fits(system, [], user, room):
            refused += 1
            with pytest.raises(ValueError, match=rf"the turn is \d+ tokens.*at most {room} fit"):
                fit_history(TEMPLATES[name], tokenizer, system, history, user, room)
            continue
        ids, dropped = fit_history(TEMPLATES[name], tokenizer, system, history, user, room)
        assert len(ids) <= room
        assert ids == TEMPLATES[name](tokenizer, system, history[dropped:], user)
        assert dropped == 0 or not fits(system, history[dropped - 1 :], user, room)
    assert 0 < refused < 150


def test_ids_come_from_the_tokenizers_interface_alone():
    """No piece of a vocabulary is named by the template: BOS and EOS are the tokenizer's."""

    class Letters(BaseTokenizer):
        model_path, max_len, n_words, bos_id, eos_id, pad_id = Path("x"), None, 300, 298, 299, 0

        def text_ids(self, text: str) -> list[int]:
            return list(text.encode())

        def token_bytes(self, token_id: int, at_start: bool) -> bytes | None:
            return bytes([token_id])

    expected = [298, *b"[INST] <<SYS>>\ns\n<</SYS>>\n\na [/INST] b ", 299, 298]
    expected += b"[INST] c [/INST]"
    assert llama2(Letters(), "s", [Exchange("a", "b")], "c") == expected
