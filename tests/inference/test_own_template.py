"""A model's own chat template: token ids against transformers, control tokens in texts."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mini_llama.inference.chat_template import Exchange
from mini_llama.inference.own_template import OwnTemplate
from mini_llama.inference.template_process import TemplateRefusalError
from mini_llama.tokenization.huggingface import HuggingFaceTokenizer
from tests.inference.template_styles import CONTROL, ORDINARY, STYLES
from tests.tokenization.test_huggingface import MADE, NAMES
from tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
from tokenizers import AddedToken, normalizers, pre_tokenizers  # noqa: E402

WORDS = [
    "hi",
    " the cat",
    "2+2?",
    "\n",
    "é🦙",
    " ok.",
    "\t",
    "[",
    "<",
    ">x",
    "|",
    "你好",
    "I'm ",
    "x",
]


def metaspace() -> "tokenizers.Tokenizer":
    """As newer conversions of Llama 2: a space is put before the first text alone."""
    made = MADE["llama2"]()
    made.normalizer = None
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return made


def stripping() -> "tokenizers.Tokenizer":
    """Control tokens that take the white space around them along, and compatibility characters."""
    made = MADE["byte-level"]()
    made.normalizer = normalizers.NFKC()
    made.add_special_tokens([AddedToken(name, lstrip=True, rstrip=True) for name in CONTROL])
    return made


KINDS = {**MADE, "metaspace": metaspace, "stripping": stripping}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """Our tokenizer and transformers' of one tokenizer.json, of every kind."""
    return {kind: make_pair(kind, tmp_path_factory.mktemp("pair")) for kind in KINDS}


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, pairs: dict[str, tuple]) -> tuple:
    return pairs[request.param]


def make_pair(kind: str, folder: Path) -> tuple:
    made = KINDS[kind]()
    made.add_special_tokens([AddedToken(name, normalized=False) for name in CONTROL])
    made.add_tokens([AddedToken(name, normalized=False) for name in ORDINARY])
    made.save(str(folder / "tokenizer.json"))
    names = NAMES["llama2" if kind in ("llama2", "metaspace") else "byte-level"]
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    peer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token=name_of(names["bos_token"]),
        eos_token=name_of(names["eos_token"]),
    )
    return HuggingFaceTokenizer(folder / "tokenizer.json"), peer


def name_of(token: object) -> str:
    return token["content"] if isinstance(token, dict) else token


def text(rng: random.Random) -> str:
    return "".join(rng.choices(WORDS, k=rng.randint(1, 6)))


def conversation(rng: random.Random, say: Callable[[random.Random], str] = text) -> tuple:
    history = [Exchange(say(rng), say(rng)) for _ in range(rng.randint(0, 3))]
    return rng.choice(["", say(rng)]), history, say(rng)


def messages_of(system: str, history: list[Exchange], user: str) -> list[dict]:
    messages = [{"role": "system", "content": system}] if system else []
    for exchange in history:
        messages.append({"role": "user", "content": exchange.user})
        messages.append({"role": "assistant", "content": exchange.answer})
    return [*messages, {"role": "user", "content": user}]


def expected_ids(peer: object, source: str, talk: tuple, **options: object) -> list[int]:
    found = peer.apply_chat_template(
        messages_of(*talk), chat_template=source, add_generation_prompt=True, **options
    )
    return list(found["input_ids"])


@pytest.mark.parametrize("style", STYLES)
def test_ids_are_those_of_transformers(pair: tuple, style: str):
    (tokenizer, peer), source = pair, STYLES[style]
    template, rng = OwnTemplate(source, style), random.Random(style)
    refused = 0
    for _ in range(60):
        talk = conversation(rng)
        if style == "no system" and talk[0]:
            refused += 1
            with pytest.raises(
                TemplateRefusalError, match=r"^the chat .*: There is no system role$"
            ):
                template(tokenizer, *talk)
            talk = ("", *talk[1:])
        assert template(tokenizer, *talk) == expected_ids(peer, source, talk)
    assert refused > 10 or style != "no system"


@pytest.mark.parametrize("style", STYLES)
def test_control_tokens_in_texts_stay_text(pair: tuple, style: str):
    """As many control tokens as without them, and the text comes back; answers may have tokens that
    are not special."""
    (tokenizer, peer), source = pair, STYLES[style]
    template, rng = OwnTemplate(source, style), random.Random(style)
    names = [*CONTROL, *tokenizer.named_tokens]
    control = {token.id for token in tokenizer.named_tokens.values() if token.is_control}
    for _ in range(30):
        _, history, user = conversation(rng, lambda r: text(r) + r.choice(names) + text(r))
        clean = [Exchange("a", "b") for _ in history]
        ids = template(tokenizer, "", history, user)
        kept = [i for i in ids if i in control]
        assert kept == [i for i in template(tokenizer, "", clean, "a") if i in control]
        shown = peer.apply_chat_template(
            messages_of("", history, user),
            chat_template=source,
            add_generation_prompt=True,
            tokenize=False,
        )
        for name, token in tokenizer.named_tokens.items():
            if token.is_control:
                assert shown.count(name) >= kept.count(token.id)
        assert len(ids) > len(kept)


PLACE = re.compile("QQ([0-9]+)QQ")


@pytest.mark.parametrize("style", sorted({*STYLES} - {"looking"}))
@pytest.mark.parametrize("kind", ["byte-level", "llama2"])
def test_control_tokens_in_texts_have_the_ids_of_text(pairs: dict, kind: str, style: str):
    """The text between two control tokens of transformers' rendering is encoded by itself, with
    split_special_tokens; what stood for a name in it is first put back.
    """
    (tokenizer, peer), rng = pairs[kind], random.Random(style)
    template, names = OwnTemplate(STYLES[style], style), sorted(tokenizer.named_tokens)
    cut = re.compile("|".join(map(re.escape, names)))
    controls = sorted({*names} - {*ORDINARY})

    def named(_: str) -> str:
        return PLACE.sub(lambda found: controls[int(found.group(1))], _)

    def say(rng: random.Random) -> str:
        return f"{text(rng)}QQ{rng.randrange(len(controls))}QQ{text(rng)}"

    for _ in range(20):
        _, history, user = conversation(rng, say)
        shown = peer.apply_chat_template(
            messages_of("", history, user),
            chat_template=STYLES[style],
            add_generation_prompt=True,
            tokenize=False,
        )
        wanted, at = [], 0
        for start, end in [*(found.span() for found in cut.finditer(shown)), (len(shown), None)]:
            piece = named(shown[at:start])
            if piece:
                wanted += peer.encode(piece, add_special_tokens=False, split_special_tokens=True)
            wanted += [] if end is None else [peer.convert_tokens_to_ids(shown[start:end])]
            at = end
        real = [Exchange(named(e.user), named(e.answer)) for e in history]
        assert template(tokenizer, "", real, named(user)) == wanted


def test_meta_s_reference_encoding(shared: Path):
    """Llama 2's template with a SentencePiece model: the ids of Meta's own, by transformers, whose
    merges of several spaces are others.
    """
    model = shared / "reference" / "tokenizer.model"
    peer = transformers.LlamaTokenizer.from_pretrained(str(model.parent), legacy=True)
    tokenizer, rng = Tokenizer(tokenizer_model=model), random.Random(0)
    template = OwnTemplate(STYLES["llama2"], "x")
    for _ in range(60):
        talk = conversation(
            rng, lambda r: "".join(r.choices(["hi", "2+2?", "\n", "é🦙", "["], k=4))
        )
        assert template(tokenizer, *talk) == expected_ids(peer, STYLES["llama2"], talk)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages[0].content | replace('end', '') | upper }}", None),
        ("{{ '<' + messages[0].content.split('<')[-1] }}", None),
        ("{% if '<|im_end|>' in messages[0].content %}yes{% endif %}", "the name of a control"),
        ("{{ messages[0].content | reverse }}", None),
        ("{{ messages[0].content | tojson }}", None),
        ("{{ messages[0].content[:-4] + 'nd|>' }}", None),
        ("{{ '<|' + messages[0].content[2:8] + '|>' }}", None),
    ],
)
def test_templates_that_change_texts(pairs: dict, source: str, message: str | None):
    """Whatever they do, no control token comes of a text."""
    tokenizer, _ = pairs["byte-level"]
    template = OwnTemplate(source, "x")
    for said in ("<|im_end|>", "a <|im_end|> b"):
        if message:
            with pytest.raises(ValueError, match=message) as error:
                template(tokenizer, "", [], said)
            assert "\n" not in str(error.value)
        else:
            ids = template(tokenizer, "", [], said)
            assert ids and not tokenizer.control_ids.intersection(ids)
    assert template(tokenizer, "", [], "im_end") is not None


def test_an_answer_keeps_the_tokens_that_are_not_special(pairs: dict):
    """What a model wrote as one token stays one; a user's text that spells it is text."""
    tokenizer, peer = pairs["byte-level"]
    source = STYLES["chatml"] + "{# <think> #}"
    think = tokenizer.named_tokens["<think>"]
    assert not think.is_control
    talk = ("", [Exchange("a", "<think>b")], "c")
    ids = OwnTemplate(source, "x")(tokenizer, *talk)
    assert ids == expected_ids(peer, source, talk) and think.id in ids
    assert think.id not in OwnTemplate(source, "x")(tokenizer, "", [], "<think>c")
    assert think.id in OwnTemplate(STYLES["chatml"], "x")(tokenizer, "", [], "<think>c")


def test_tags_that_are_text_are_refused(pairs: dict):
    """A model cannot tell them from the template's."""
    tokenizer, _ = pairs["llama2"]
    template = OwnTemplate(STYLES["llama2"], "x")
    with pytest.raises(ValueError, match=r"^\[INST\] is not allowed"):
        template(tokenizer, "", [], "a [INST] b")
    assert template(tokenizer, "", [], "a </s> b").count(tokenizer.eos_id) == 0
    with pytest.raises(ValueError, match="not UTF-8"):
        template(tokenizer, "", [], "\udcff")
