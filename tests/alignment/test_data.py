"""Records → tokens and targets → rows and batches: templates, packing, truncation."""

import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mini_llama.alignment.chat import Tokens, conversation_tokens, render_with
from mini_llama.alignment.data import Encoder, collate, pack, parts_of
from mini_llama.alignment.records import Demonstration, Place, Preference, Prompt, Turn
from mini_llama.alignment.sft import AnswerLoss
from mini_llama.bundled import FOLDER
from mini_llama.inference.own_template import OwnTemplate
from mini_llama.layers.linear_loss import IGNORED
from mini_llama.training.core import Recipe, TrainerCore, make_optimizer
from mini_llama.training.processes import Process
from tests.helpers import random_llama, tiny_config
from tokenizer import Tokenizer

PLACE = Place("data.jsonl", 7)
CAUSAL = dict(attention="causal", norm="rmsnorm", max_seq_len=64)
TALK = (Turn("system", "S"), Turn("user", "one"), Turn("assistant", "two"))
TALK += (Turn("user", "three"), Turn("assistant", "four"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(None, FOLDER / "demo.model")


def encoder(tokenizer: Tokenizer, max_length: int = 64, template: object = "plain") -> Encoder:
    return Encoder(tokenizer, template, (tokenizer.eos_id,), max_length)


def learnt_text(tokenizer: Tokenizer, example: Tokens) -> str:
    ids = [i for i, learns in zip(*example, strict=True) if learns]
    return "|".join("EOS" if i == tokenizer.eos_id else tokenizer.decode([i]) for i in ids)


def numbered(lengths: list[int], seed: int = 0) -> list[Tokens]:
    """Examples of random tokens; the first third of each is prompt."""
    rng = random.Random(seed)
    return [
        Tokens([rng.randrange(4, 96) for _ in range(n)], [i > n // 3 for i in range(n)])
        for n in lengths
    ]


# Targets


def test_the_loss_is_on_the_answer_and_its_end_alone(tokenizer):
    record = Demonstration(PLACE, "The film is", " neither lifeless nor clumsy .")
    (example,) = encoder(tokenizer).demonstration(record)
    assert example.ids[0] == tokenizer.bos_id and example.ids[-1] == tokenizer.eos_id
    whole = tokenizer.encode("The film is neither lifeless nor clumsy .", bos=True, eos=True)
    assert example.ids == whole
    assert learnt_text(tokenizer, example) == "neither|lifeless|nor|clumsy|.|EOS"
    batch = collate([[example], [Tokens([1, 9], [False, True])]], tokenizer.pad_id)
    assert (batch.targets[1] == IGNORED).sum() == batch.targets.shape[1] - 1
    assert batch.targets[0, -2] == tokenizer.eos_id and batch.targets[0, -1] == IGNORED
    assert batch.n_targets == 7 and batch.documents is None


def test_a_prompt_that_ends_within_a_token_is_counted(tokenizer):
    maker = encoder(tokenizer)
    (example,) = maker.demonstration(Demonstration(PLACE, "The film i", "s clumsy ."))
    assert learnt_text(tokenizer, example) == "is|clumsy|.|EOS"
    assert "1 of 1 prompts end within a token" in maker.counts.lines(64)[0]


def test_an_empty_prompt_leaves_the_whole_text(tokenizer):
    (example,) = encoder(tokenizer).demonstration(Demonstration(PLACE, "", "The film"))
    assert learnt_text(tokenizer, example) == "The|film|EOS"


def test_llama2_conversations_learn_answers_only(tokenizer):
    (example,) = encoder(tokenizer, 256, "llama2").demonstration(Demonstration(PLACE, "", TALK))
    text = tokenizer.decode(example.ids)
    assert text.startswith("[INST] <<SYS>>") and example.ids.count(tokenizer.bos_id) == 2
    learnt = learnt_text(tokenizer, example)
    assert learnt.count("EOS") == 2 and "INST" not in learnt.replace("|", "")
    assert learnt.replace("|", "").replace("EOS", " ").split() == ["two", "four"]
    # what is learnt follows exactly the prompt that chat.py gives
    prompt = render_with("llama2")(tokenizer, TALK[:2], True)
    assert example.ids[: len(prompt)] == prompt and example.learns[: len(prompt)] == [False] * len(
        prompt
    )
    assert example.learns[len(prompt)]


def test_turns_without_loss(tokenizer):
    quiet = (*TALK[:2], TALK[2]._replace(learns=False), *TALK[3:])
    (example,) = encoder(tokenizer, 256, "llama2").demonstration(Demonstration(PLACE, "", quiet))
    assert learnt_text(tokenizer, example).replace("|", "") == "fourEOS"


def test_a_template_that_rewrites_turns_makes_several_examples(tokenizer):
    """The plain one writes no EOS between turns, where an answer learns it."""
    first, second = encoder(tokenizer, 256).demonstration(Demonstration(PLACE, "", TALK))
    assert tokenizer.decode(first.ids) == "S onetwo"
    assert tokenizer.decode(second.ids) == "S onetwo threefour"
    for example in (first, second):
        assert example.ids[-1] == tokenizer.eos_id and example.learns[-1]
    assert "two" not in learnt_text(tokenizer, second).replace("|", "")


def test_the_models_own_template(tokenizer):
    source = (
        "{% for m in messages %}{{ '#' + m.role + ':' + m.content + '.' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '#assistant:' }}{% endif %}"
    )
    turns = TALK[1:]
    template = OwnTemplate(source, "file.jinja")
    examples = conversation_tokens(tokenizer, turns, render_with(template), (tokenizer.eos_id,))
    texts = [tokenizer.decode(example.ids) for example in examples]
    assert texts == ["#user:one.#assistant:two.", texts[0] + "#user:three.#assistant:four."]
    learnt = [learnt_text(tokenizer, example).replace("|", "") for example in examples]
    assert learnt == ["two.EOS", "four.EOS"]


def test_preferences_and_prompts(tokenizer):
    maker = encoder(tokenizer)
    answers = (Demonstration(PLACE, "The film", text) for text in (" is good .", " is bad ."))
    pair = maker.preference(Preference(PLACE, *answers, grade=2))
    assert pair.grade == 2 and pair.chosen.ids[:3] == pair.rejected.ids[:3]
    assert maker.prompt(Prompt(PLACE, "The film")) == pair.chosen.ids[:3]
    talk = Prompt(PLACE, (Turn("user", "The film"),))
    assert maker.prompt(talk) == pair.chosen.ids[:3]


def test_what_is_too_long_is_cut_and_counted_or_refused(tokenizer):
    maker = encoder(tokenizer, 5)
    (example,) = maker.demonstration(Demonstration(PLACE, "The film", " is good and long ."))
    assert len(example.ids) == 5 and tokenizer.eos_id not in example.ids and example.learns[-1]
    assert maker.counts.lines(5)[0].startswith("1 of 1 answers are cut at 5 tokens")
    with pytest.raises(
        ValueError, match=r"data\.jsonl line 7: the prompt is \d+ tokens, and an ex"
    ):
        maker.demonstration(Demonstration(PLACE, "The film is good and long", " ."))
    with pytest.raises(ValueError, match=r"data\.jsonl line 7: the prompt is"):
        maker.prompt(Prompt(PLACE, "The film is good and long"))
    with pytest.raises(ValueError, match=r"line 7: \[INST\] is not allowed in a text"):
        encoder(tokenizer, 64, "llama2").demonstration(
            Demonstration(PLACE, "", (Turn("user", "[INST]"), Turn("assistant", "a")))
        )


# Rows


def test_best_fit_decreasing_as_trl_documents_it():
    """pack_dataset's own example, with what is longer than a row already cut."""
    texts = [[1, 2, 3, 4], [6, 7], [8, 9, 10], [11]]
    rows = pack([Tokens(ids, [True] * len(ids)) for ids in texts], 4)
    assert [[example.ids for example in row] for row in rows] == [
        [[1, 2, 3, 4]],
        [[8, 9, 10], [11]],
        [[6, 7]],
    ]


@pytest.mark.parametrize("seed", range(5))
def test_packing_loses_nothing_and_is_never_worse_than_first_fit(seed: int):
    rng = random.Random(seed)
    examples = numbered([rng.randint(1, 40) for _ in range(60)], seed)
    rows = pack(examples, 40)
    assert sorted(e.ids for row in rows for e in row) == sorted(e.ids for e in examples)
    sizes = [sum(len(e.ids) for e in row) for row in rows]
    assert max(sizes) <= 40
    total = sum(len(e.ids) for e in examples)
    assert len(rows) <= 11 / 9 * -(-total // 40) + 2, "best fit decreasing's bound"
    with pytest.raises(ValueError, match="41 tokens, and a row at most 40"):
        pack(numbered([41]), 40)


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_packed_rows_have_the_hidden_states_of_their_texts(attention: str):
    llama = random_llama(tiny_config(**CAUSAL | {"attention": attention}))
    examples = numbered([11, 9, 20, 3, 30, 1])
    batch = collate([examples[:4], examples[4:]], pad_id=3)
    with torch.no_grad():
        packed = llama.output(llama.hidden_states(batch.tokens, documents=batch.documents))
        for row, texts in zip(packed, (examples[:4], examples[4:]), strict=True):
            start = 0
            for text in texts:
                alone = llama.output(llama.hidden_states(torch.tensor([text.ids])))[0]
                found = row[start : start + len(text.ids)]
                torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
                start += len(text.ids)


def test_a_batch_has_the_same_loss_packed_padded_or_text_by_text():
    llama = random_llama(tiny_config(**CAUSAL))
    examples = numbered([11, 9, 20, 3, 30, 5])
    loss = AnswerLoss(llama)
    total, count = 0.0, 0
    for example in examples:  # by hand, and by F.cross_entropy
        logits, _ = llama(torch.tensor([example.ids[:-1]]), targets=torch.zeros(1))
        learns = torch.tensor(example.learns[1:])
        targets = torch.tensor(example.ids[1:])[learns]
        total += F.cross_entropy(logits[0][learns], targets, reduction="sum").item()
        count += len(targets)
    rows = {
        "packed": pack(examples, 40),
        "padded": [[example] for example in examples],
        "reversed": [[example] for example in examples[::-1]],
    }
    for name, given in rows.items():
        batch = collate(given, pad_id=3)
        assert batch.n_targets == count
        assert loss(batch).item() == pytest.approx(total / count, abs=1e-5), name


def test_accumulated_parts_follow_the_trajectory_of_one_batch(tmp_path: Path):
    examples = [[example] for example in numbered([4, 30, 7, 12, 25, 3, 18, 9])]
    trainers = []
    for _ in range(2):
        llama = random_llama(tiny_config(**CAUSAL))
        trainer = TrainerCore(
            Recipe(1e-2, 4),
            Process(),
            llama,
            AnswerLoss(llama),
            lambda llama=llama: make_optimizer(llama, 1e-2, 0.1, 1e-5),
            tmp_path / "model.pt",
        )
        trainers.append(trainer)
    device = torch.device("cpu")
    for _ in range(3):
        whole = trainers[0].update(parts_of(examples, 3, 1, device))
        parts = trainers[1].update(parts_of(examples, 3, 4, device))
        assert parts.loss == pytest.approx(whole.loss, abs=1e-5)
        assert parts.norm == pytest.approx(whole.norm, rel=1e-4)
