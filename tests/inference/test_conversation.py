"""Conversation: answers by full recomputation, what the cache spares, history, refusals."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from config import RopeScaling
from llama import Llama
from mini_llama.inference.chat_template import TEMPLATES, Exchange
from mini_llama.inference.conversation import Conversation
from mini_llama.inference.decoders import PlainDecoder
from mini_llama.inference.sampling import Sampler
from mini_llama.tokenization.base import BaseTokenizer
from tests.helpers import WORDS, random_llama, tiny_config
from tokenizer import Tokenizer

GREEDY = Sampler(temperature=0.0)
FACTORS = {"short_factor": (1.0,) * 4, "long_factor": (1.0, 2.0, 4.0, 8.0)}
SCALED = [RopeScaling("dynamic", 4.0, 40), RopeScaling("longrope", 4.0, 40, **FACTORS)]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_model: Path) -> Tokenizer:
    return Tokenizer(tokenizer_model=tokenizer_model)


def model(**changes: object) -> Llama:
    """Random weights, and an output that never chooses BOS, EOS or <unk>."""
    config = dict(vocab_size=300, max_seq_len=160, attention="causal", tie_word_embeddings=False)
    return random_llama(tiny_config(**config | changes), seed=3)


class CountingModel:
    """A model that notes how many tokens each call runs."""

    def __init__(self, llama: Llama) -> None:
        self.llama, self.config = llama, llama.config
        self.dtype, self.device = llama.dtype, llama.device
        self.lengths: list[int] = []

    def __call__(self, tokens: torch.Tensor, **arguments: object) -> tuple:
        self.lengths.append(tokens.shape[1])
        return self.llama(tokens, **arguments)


def recomputed(llama: Llama, tokenizer: BaseTokenizer, ids: list[int], count: int) -> list[int]:
    """Greedy ids after a prompt, up to and with BOS or EOS; the whole is run again for each."""
    tokens, new = torch.tensor([ids]), []
    while len(new) < count and (not new or new[-1] not in (tokenizer.bos_id, tokenizer.eos_id)):
        with torch.no_grad():
            logits, _ = llama(tokens, targets=tokens)
        new.append(int(logits[0, -1].argmax()))
        tokens = torch.cat((tokens, torch.tensor([new[-1:]])), dim=1)
    return new


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("is_fast", [False, True])
def test_answers_equal_recomputation(
    tokenizer: Tokenizer, template: str, attention: str, is_fast: bool
) -> None:
    llama, rng = model(attention=attention), random.Random(0)
    decoder = None if is_fast else PlainDecoder(llama)
    talk = Conversation(llama, tokenizer, template, GREEDY, 12, decoder)
    forgotten = 0
    for turn in range(9):
        user = " ".join(rng.choices(WORDS, k=3))
        if turn == 4:
            talk.set_system("a slow film")
        if turn == 6:
            talk.exchanges.pop()
        ids, dropped = talk.prompt(user)
        forgotten += dropped
        assert len(ids) + 12 <= llama.config.max_seq_len
        assert ids == TEMPLATES[template](tokenizer, talk.system, talk.exchanges, user)
        pieces = list(talk.answer(ids))
        expected = recomputed(llama, tokenizer, ids, 12)
        assert talk.seen == ids + expected
        if template == "llama2":
            assert "".join(pieces) == tokenizer.decode(expected)
        talk.exchanges.append(Exchange(user, "".join(pieces)))
    assert forgotten > 0 or template == "plain"


def test_a_cache_that_is_reused_gives_the_logits_of_one_that_is_not(tokenizer: Tokenizer):
    llama, logits = model(), []

    def sampler(values: torch.Tensor) -> torch.Tensor:
        logits.append(values.clone())
        return values.argmax(-1, keepdim=True)

    talk = Conversation(llama, tokenizer, "llama2", sampler, 4)
    for user in ("a dull film", "the plot", "the plot is good"):
        ids, _ = talk.prompt(user)
        logits.clear()
        text = "".join(talk.answer(ids))
        with torch.no_grad():
            expected, _ = llama(torch.tensor([ids]))
        torch.testing.assert_close(logits[0], expected[:, -1], atol=1e-4, rtol=1e-4)
        talk.exchanges.append(Exchange(user, text))


def test_only_what_is_new_is_read(tokenizer: Tokenizer):
    counting = CountingModel(model())
    talk = Conversation(counting, tokenizer, "llama2", GREEDY, 1, PlainDecoder(counting))
    first, _ = talk.prompt("a dull film")
    list(talk.answer(first))
    talk.exchanges.append(Exchange("a dull film", "good"))
    second, _ = talk.prompt("but fun")
    assert second[: len(first)] == first
    list(talk.answer(second))
    list(talk.answer(second))  # the last token is always read, for its logits
    assert counting.lengths == [len(first), len(second) - len(first), 1]


@pytest.mark.parametrize("scaling", SCALED, ids=lambda scaling: scaling.rope_type)
def test_keys_that_depend_on_the_length_are_not_reused(tokenizer: Tokenizer, scaling: RopeScaling):
    counting = CountingModel(model(rope_scaling=scaling))
    talk = Conversation(counting, tokenizer, "plain", GREEDY, 1, PlainDecoder(counting))
    ids, _ = talk.prompt("a dull film")
    list(talk.answer(ids))
    list(talk.answer(ids))
    assert counting.lengths == [len(ids), len(ids)]


@pytest.mark.parametrize("stop_after", [0, 1, 5])
def test_an_answer_broken_off_leaves_the_next_one_as_it_is(tokenizer: Tokenizer, stop_after: int):
    llama = model()
    talk = Conversation(llama, tokenizer, "plain", GREEDY, 12)
    ids, _ = talk.prompt("a dull film the plot")
    pieces = talk.answer(ids)
    for _ in range(stop_after):
        next(pieces)
    pieces.close()
    again, _ = talk.prompt("a dull film and the acting")
    list(talk.answer(again))
    assert talk.seen == again + recomputed(llama, tokenizer, again, 12)


def test_an_error_in_the_model_leaves_a_cache_that_is_right(tokenizer: Tokenizer):
    class Interrupted(CountingModel):
        def __call__(self, tokens: torch.Tensor, **arguments: object) -> tuple:
            result = super().__call__(tokens, **arguments)
            if len(self.lengths) in (1, 4):
                raise KeyboardInterrupt
            return result

    llama = model()
    interrupted = Interrupted(llama)
    talk = Conversation(interrupted, tokenizer, "plain", GREEDY, 12, PlainDecoder(interrupted))
    for user in ("a dull film", "a dull film the plot"):
        ids, _ = talk.prompt(user)
        with pytest.raises(KeyboardInterrupt):
            list(talk.answer(ids))
    ids, _ = talk.prompt("a dull story")
    list(talk.answer(ids))
    assert talk.seen == ids + recomputed(llama, tokenizer, ids, 12)


def scripted(ids: list[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A sampler that takes these ids, whatever the logits."""
    rest = iter(ids)
    return lambda logits: torch.tensor([[next(rest)]])


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_continued_text_keeps_its_first_space(tokenizer: Tokenizer, template: str):
    """plain: what is shown stands behind the turn as in one text; llama2: it is a text."""
    ids = [*tokenizer.sp_model.encode("good but slow"), tokenizer.eos_id]
    talk = Conversation(model(), tokenizer, template, scripted(ids), 60)
    text = "".join(talk.answer(talk.prompt("the plot is")[0]))
    assert text == (" good but slow" if template == "plain" else "good but slow")


@pytest.mark.parametrize("stop", ["bos_id", "eos_id"])
def test_an_answer_ends_at_eos_or_bos(tokenizer: Tokenizer, stop: str):
    sampler = scripted([65, 70, getattr(tokenizer, stop), 65])
    talk = Conversation(model(), tokenizer, "plain", sampler, 12)
    prompt, _ = talk.prompt("a")
    expected = tokenizer.token_bytes(65, False) + tokenizer.token_bytes(70, False)
    assert "".join(talk.answer(prompt)).encode() == expected


def test_refusals(tokenizer: Tokenizer):
    with pytest.raises(ValueError, match=r"--max_new_tokens 160 .* context is 160 .* at most 159"):
        Conversation(model(), tokenizer, "plain", GREEDY, 160)
    talk = Conversation(model(), tokenizer, "llama2", GREEDY, 100)
    talk.set_system("a film")
    talk.exchanges.append(Exchange("is it", "good"))
    for text, message in [
        ("the plot " * 90, r"the turn is \d+ tokens with the system prompt, and at most 60 fit"),
        ("a [INST]", r"\[INST\] is not allowed"),
        ("a\udc80", "not UTF-8"),
    ]:
        with pytest.raises(ValueError, match=message):
            talk.prompt(text)
        with pytest.raises(ValueError):
            talk.set_system(text)
    assert (talk.system, talk.exchanges) == ("a film", [Exchange("is it", "good")])
    for answer, message in [(" \n", "the answer is empty"), ("x <</SYS>>", "<</SYS>> is not")]:
        with pytest.raises(ValueError, match=message):
            talk.keep("a", answer)
    talk.keep("a", "b")
    assert talk.exchanges[1:] == [Exchange("a", "b")]
