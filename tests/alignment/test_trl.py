"""TRL as an oracle of targets, packing and losses, and as one who takes over our data and models.

TRL is not among the pinned packages, being large: pip install trl==1.16.0 (294 MB with what it
brings) lets these tests run.
"""

import itertools
import json
import random
from pathlib import Path

import pytest
import torch

from config import LlamaConfig
from mini_llama.alignment.chat import Tokens
from mini_llama.alignment.data import Encoder, collate, pack
from mini_llama.alignment.dpo import (
    Judged,
    PreferenceLoss,
    answer_log_probs,
    answers_of,
    part_of,
)
from mini_llama.alignment.records import read_demonstrations, read_preferences
from mini_llama.alignment.sft import AnswerLoss
from mini_llama.bundled import FOLDER
from mini_llama.training.model_folder import save_model_folder
from tests.helpers import random_llama, tiny_config
from tokenizer import Tokenizer

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl==1.16.0")
WITHOUT = {"use_cpu": True, "report_to": "none", "bf16": False, "gradient_checkpointing": False}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(None, FOLDER / "demo.model")


@pytest.fixture(scope="module")
def exported(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A random model, and its folder as align.py writes it."""
    folder = tmp_path_factory.mktemp("model")
    config: LlamaConfig = tiny_config(
        vocab_size=tokenizer.n_words, attention="causal", norm="rmsnorm", max_seq_len=64
    )
    llama = random_llama(config)
    save_model_folder(folder, config, llama.state_dict(), tokenizer)
    return llama, folder


def data_file(folder: Path, *answers: str) -> str:
    """Lines with a prompt and these keys."""
    path, texts = (
        folder / "data.jsonl",
        itertools.cycle([" good .", " rather dull , I think .", " a"]),
    )
    rows = [
        {"prompt": prompt, **{name: next(texts) for name in answers}}
        for prompt in ("The film is", "I saw it twice , and the story is", "To be honest ,", "The")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def encoder(tokenizer: Tokenizer) -> Encoder:
    return Encoder(tokenizer, "plain", (tokenizer.eos_id,), 64)


def read_dataset(path: str, folder: Path):
    from datasets import Dataset

    return Dataset.from_json(path, cache_dir=str(folder / "cache"))


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_packed_as_by_pack_dataset(seed: int):
    from pyarrow import table
    from trl.data_utils import _pack_bfd  # what pack_dataset maps over a data set

    rng = random.Random(seed)
    texts = [[rng.randrange(99) for _ in range(rng.randint(1, 30))] for _ in range(80)]
    theirs = _pack_bfd(table({"input_ids": texts}), 32).to_pydict()
    ours = pack([Tokens(ids, [True] * len(ids)) for ids in texts], 32)
    assert [[len(e.ids) for e in row] for row in ours] == theirs["seq_lengths"]
    # of texts of one length TRL's sort may take another first
    tokens = sorted(i for row in ours for e in row for i in e.ids)
    assert tokens == sorted(i for row in theirs["input_ids"] for i in row)


def test_targets_are_those_of_the_collator():
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    rng = random.Random(0)
    examples = []
    for length in (3, 9, 5, 12):
        ids = [rng.randrange(4, 90) for _ in range(length)]
        examples.append(Tokens(ids, [i >= length // 2 for i in range(length)]))
    given = [
        {"input_ids": e.ids, "labels": [i if n else -100 for i, n in zip(*e, strict=True)]}
        for e in examples
    ]
    theirs = DataCollatorForLanguageModeling(pad_token_id=3)(given)
    ours = collate([[example] for example in examples], pad_id=3)
    assert torch.equal(ours.tokens, theirs["input_ids"])
    assert torch.equal(ours.targets[:, :-1], theirs["labels"][:, 1:])


def test_sfttrainer_takes_data_and_model_and_has_our_targets_and_loss(
    exported, tokenizer, tmp_path
):
    llama, folder = exported
    path = data_file(tmp_path, "completion")
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        per_device_train_batch_size=4,
        max_length=64,
        logging_steps=1,
        pad_token="<unk>",
        **WITHOUT,
    )
    trainer = trl.SFTTrainer(
        str(folder), args=arguments, train_dataset=read_dataset(path, tmp_path)
    )
    maker = encoder(tokenizer)
    ours = [e for record in read_demonstrations((path,)) for e in maker.demonstration(record)]
    for mine, theirs in zip(ours, trainer.train_dataset, strict=True):
        assert mine.ids == theirs["input_ids"]
        labels = [i if n else -100 for i, n in zip(*mine, strict=True)]
        assert labels == theirs["labels"]
    trainer.train()
    batch = collate([[example] for example in ours], tokenizer.pad_id)
    with torch.no_grad():
        expected = AnswerLoss(llama)(batch).item()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, abs=2e-4)


def test_dpotrainer_takes_data_and_model_and_has_our_loss(exported, tokenizer, tmp_path):
    llama, folder = exported
    path = data_file(tmp_path, "chosen", "rejected")
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=1e9,
        beta=0.5,
        logging_steps=1,
        pad_token="<unk>",
        **WITHOUT,
    )
    dataset = read_dataset(path, tmp_path)
    trainer = trl.DPOTrainer(str(folder), args=arguments, train_dataset=dataset)
    trainer.train()
    maker = encoder(tokenizer)
    pairs = [maker.preference(record) for record in read_preferences((path,))]
    with torch.no_grad():
        reference = answer_log_probs(llama, answers_of(pairs, 3)).tolist()
    half = len(pairs)
    rows = [Judged(pair, reference[i], reference[half + i]) for i, pair in enumerate(pairs)]
    loss, optimizer = PreferenceLoss(llama, 0.5), torch.optim.SGD(llama.parameters(), 1e-2)
    found = []
    for _ in range(2):
        optimizer.zero_grad()
        value, _ = loss(part_of(rows, 3, torch.device("cpu")).inputs)
        value.backward()
        optimizer.step()
        found.append(value.item())
    theirs = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert found == pytest.approx(theirs, abs=2e-4)
