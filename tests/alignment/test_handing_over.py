"""What others' loaders read, in the files of align.py and in those that the documents make.

The rules are those of OpenRLHF's sft_dataset.py, reward_dataset.py and prompts_dataset.py and of
verl's sft_dataset.py, multiturn_sft_dataset.py, rm_dataset.py and rl_dataset.py.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mini_llama.alignment.data import Encoder
from mini_llama.alignment.demo import data
from mini_llama.alignment.demo.task import Answered
from mini_llama.alignment.ghost_attention import Dialogue, messages_of, training_turns
from mini_llama.alignment.records import Place, read_demonstrations
from mini_llama.bundled import FOLDER
from mini_llama.places import ROOT
from mini_llama.training.model_folder import save_model_folder
from tests.alignment.helpers import (
    PROMPTS,
    read_lines,
    run,
    save_reward,
    speaking_model,
    write_lines,
)
from tests.helpers import random_llama, tiny_config
from tokenizer import Tokenizer

Row = dict[str, Any]
DOCUMENT = ROOT / "docs" / "post-training.md"
TEXTS = (
    "Everything about this film is touching .",
    "Some of this film is touching and some of it is boring .",
    "Nothing about this film is touching .",
)


def is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def are_messages(value: object, last: str) -> bool:
    """What a tokenizer's apply_chat_template takes."""
    return (
        isinstance(value, list)
        and all(
            is_text(m["content"]) and m["role"] in ("system", "user", "assistant") for m in value
        )
        and value[-1]["role"] == last
    )


def openrlhf_sft(row: Row) -> bool:
    """Strings to be joined, or lists of messages to be joined."""
    prompt, answer = row["prompt"], row["completion"]
    both = is_text(prompt) and is_text(answer)
    return both or (are_messages(prompt, "user") and are_messages(answer, "assistant"))


def openrlhf_last_answer(row: Row) -> bool:
    """With an input key alone the last message is the answer."""
    return are_messages(row["messages"], "assistant") and are_messages(row["messages"][:-1], "user")


def comparison(row: Row) -> bool:
    """OpenRLHF's with a prompt key, and verl's: three strings."""
    return all(is_text(row[name]) for name in ("prompt", "chosen", "rejected"))


def openrlhf_prompt(row: Row) -> bool:
    return is_text(row["prompt"]) or are_messages(row["prompt"], "user")


def verl_messages(row: Row) -> bool:
    return are_messages(row["messages"], "assistant")


def verl_rl(row: Row) -> bool:
    """The five fields of its guide to data; an index, if there is one, is a number."""
    kind = row["reward_model"]
    return (
        are_messages(row["prompt"], "user")
        and is_text(row["data_source"])
        and is_text(row["ability"])
        and kind["style"] in ("rule", "model")
        and isinstance(kind["ground_truth"], str)
        and isinstance(row["extra_info"]["index"], int)
    )


def type_of(value: Any) -> Any:
    """The type of a column in an Arrow table: structs may lack fields, lists are of one type."""
    if isinstance(value, dict):
        return "struct"
    if isinstance(value, list):
        return [type_of(item) for item in value[:1]]
    return type(value).__name__


def check(rows: Sequence[Row], *rules: Callable[[Row], bool]) -> None:
    """All rows are as each loader reads them, and every key has one type in all of them."""
    assert rows
    for rule in rules:
        assert all(map(rule, rows)), rule.__name__
    for key in {key for row in rows for key in row}:
        found = [type_of(row[key]) for row in rows if row.get(key) is not None]
        assert all(kind == found[0] for kind in found), key


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tokenizer_model=FOLDER / "demo.model")


def test_the_demonstrations_files(tmp_path: Path, tokenizer: Tokenizer):
    sizes = data.Sizes(reviews=5, prompts=5, few_prompts=3, val_prompts=3)
    data.write_prompts_and_reviews(tmp_path, tokenizer, sizes, seed=0)
    check(read_lines(tmp_path / data.REVIEWS), openrlhf_sft)
    for name in (data.PROMPTS, data.FEW_PROMPTS, data.VAL_PROMPTS, data.TEST_FILE):
        check(read_lines(tmp_path / name), openrlhf_prompt)
    answers = [Answered(text[:4], text[4:], 5, True) for text in TEXTS]
    pairs = [*data.helpful_pairs(answers, answers[::-1])]
    pairs += [*data.spliced_pairs(answers, 1, Random(0))]
    check(json.loads(json.dumps(pairs)), comparison)


def test_dialogues_of_ghost_attention():
    dialogue = Dialogue(Place("f", 1), "Be brief .", ("Hi", "And you ?"))
    rows = [
        {"messages": messages_of(training_turns(dialogue, answers))} for answers in (["a", "b"],)
    ]
    check(rows, openrlhf_last_answer, verl_messages)
    # As the document says: the last message is the completion, all before it the prompt.
    split = [{"prompt": r["messages"][:-1], "completion": r["messages"][-1:]} for r in rows]
    check(split, openrlhf_sft)


def test_what_a_run_leaves(tmp_path: Path, tiny_folder: Path):
    """best.jsonl of rejection sampling, samples.jsonl of PPO: prompts and answers."""
    flags = {"pretrained-model-path": speaking_model(tmp_path, tiny_folder), "val_fraction": 0.2}
    save_reward(tmp_path / "reward.pt")
    flags |= {"data": write_lines(tmp_path / "p.jsonl", ({"prompt": p} for p in PROMPTS))}
    flags |= {"reward_model": tmp_path / "reward.pt", "max_new_tokens": 6, "batch_size": 4}
    best, ppo = {"candidates": 2, "steps": 1, "samples": 0}, {"minibatch_size": 4, "iterations": 1}
    assert run("rejection", out=tmp_path / "best", **flags, **best) == 0
    assert run("ppo", out=tmp_path / "ppo", **flags, **ppo) == 0
    check(read_lines(tmp_path / "best" / "best.jsonl"), openrlhf_sft, openrlhf_prompt)
    check(read_lines(tmp_path / "ppo" / "samples.jsonl"), openrlhf_sft, openrlhf_prompt)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the document's last program makes."""
    program = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[
        -1
    ]
    rows = [{"prompt": text[:4], "completion": text[4:]} for text in TEXTS]
    write_lines(tmp_path / "reviews.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    return tmp_path


def test_the_documents_files(made: Path):
    check(read_lines(made / "openrlhf.jsonl"), openrlhf_sft)
    check(read_lines(made / "verl.jsonl"), verl_rl)


def test_openrlhf_has_our_tokens_with_the_documents_template(made: Path, tokenizer: Tokenizer):
    """It tokenizes prompt and answer as one text, without special tokens of the tokenizer's."""
    transformers = pytest.importorskip("transformers")
    config = tiny_config(vocab_size=tokenizer.n_words, attention="causal", norm="rmsnorm")
    save_model_folder(made / "model", config, random_llama(config).state_dict(), tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(made / "model")
    template = re.search(r"input_template '(.*?)'", DOCUMENT.read_text(encoding="utf-8"))
    assert template is not None
    encoder = Encoder(tokenizer, "plain", (tokenizer.eos_id,), 64)
    ours = read_demonstrations((str(made / "reviews.jsonl"),))
    for record, row in zip(ours, read_lines(made / "openrlhf.jsonl"), strict=True):
        text = (template[1].format(row["prompt"]) + row["completion"]).rstrip("\n")
        assert text.endswith(theirs.eos_token)
        found = theirs(text, add_special_tokens=False)["input_ids"]
        assert found == encoder.demonstration(record)[-1].ids
