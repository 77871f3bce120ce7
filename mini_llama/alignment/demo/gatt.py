"""Ghost Attention on the bundled model: is what the first turn asks for obeyed in the sixth?

A user says what a film is to be ("This movie is bad .") and asks questions; an answer is a review,
and obeys if its value is the one asked for. The model first learns such dialogues, in which every
turn has its own instruction or none, so that of an earlier one it need not know.
"""

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch

from llama import load_pretrained
from mini_llama.alignment import ghost_attention
from mini_llama.alignment.answers import Sampling, completion_of, sample_answers
from mini_llama.alignment.chat import Tokens
from mini_llama.alignment.demo.task import TRAIN, VALUES, review_of, value_of
from mini_llama.alignment.ghost_attention import (
    Ask,
    Dialogue,
    conversation,
    sampled_answers,
    training_turns,
)
from mini_llama.alignment.records import ASSISTANT, Place, Turn
from mini_llama.alignment.rl_options import GattOptions
from mini_llama.alignment.rollouts import seed_of
from mini_llama.alignment.sft import AnswerLoss, length, part_of
from mini_llama.alignment.start import MODEL, Start, load_start, run_settings, save_model
from mini_llama.alignment.supervised import Job, run_job
from mini_llama.bundled import CHECKPOINT
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.training.processes import Process
from utils import atomic_write

QUESTIONS = ("Should you see it ?", "What did we think ?", "Would I go again ?")
NAMES = {-2: "awful", -1: "bad", 0: "average", 1: "good", 2: "excellent"}
WITH_INSTRUCTION = 0.75  # of the turns of the dialogues that the model first learns
TURNS = 6
SAVE_EVERY = 100  # steps
RESULTS = "results.json"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Optimizer steps, rows of each, dialogues to sample and to measure with."""

    steps: int = 800
    gatt_steps: int = 180
    batch: int = 32
    dialogues: int = 1000
    measured: int = 200


def run(options: GattOptions) -> int:
    """The demonstration, or with --data the stage itself; the exit status."""
    return show(options, Sizes()) if options.demo else ghost_attention.run(options)


def show(options: GattOptions, sizes: Sizes) -> int:
    """Both models and results.json, in --out; the exit status. With --resume training goes on
    from what is saved, and all else is done again, with the same random numbers.
    """
    folder = Path(options.out)
    if (folder / RESULTS).exists() and not options.overwrite:
        raise ValueError(f"{folder} has {RESULTS} already: --overwrite replaces it")
    folder.mkdir(parents=True, exist_ok=True)
    rng, results = Random(options.seed), {}
    base = train(options, folder / "base", CHECKPOINT, sizes.steps, partial(plain_rows, rng, sizes))
    results["before"] = obedience(base, rng, sizes, options.seed)
    report_line("before", results["before"])
    kept = partial(gatt_rows, base, rng, sizes, options.seed)
    after = train(options, folder / "gatt", folder / "base" / MODEL, sizes.gatt_steps, kept)
    results["after"] = obedience(after, Random(options.seed), sizes, options.seed)
    report_line("after", results["after"])
    with atomic_write(folder / RESULTS) as file:
        json.dump(results, file, indent=2)
    return 0


def report_line(name: str, shares: Sequence[float]) -> None:
    print(
        f"{name}: obeys in turns 1 to {TURNS}: {' '.join(f'{x:.2f}' for x in shares)}", flush=True
    )


def train(options: GattOptions, folder: Path, model: Path, steps: int, make_rows: Any) -> Start:
    """Fine-tune a model on rows of one dialogue each; the trained one, with its tokenizer."""
    process = Process()
    changes: dict[str, Any] = {"pretrained_model_path": str(model), "out": str(folder)}
    changes |= {"tokenizer": str(CHECKPOINT.with_suffix(".model")), "lr": 1e-3, "steps": steps}
    changes |= {"overwrite": not options.resume, "batch_size": 32, "eval_every": SAVE_EVERY}
    options = dataclasses.replace(options, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    start = load_start(options, process.device)
    rows = [[example] for example in make_rows(start.tokenizer)]
    status = run_job(
        Job(
            options,
            process,
            network=start.llama,
            loss=AnswerLoss(start.llama),
            train=rows,
            val=[],
            collate=partial(part_of, pad_id=start.tokenizer.pad_id, device=process.device),
            length=length,
            save=partial(save_model, start=start, options=options),
            settings=run_settings(options, start.llama.config, set()),
            title="Ghost Attention",
            loss_name="cross-entropy of answers, nats a token",
        )
    )
    if status:  # a signal stopped it
        raise SystemExit(status)
    return dataclasses.replace(start, llama=load_pretrained(folder / MODEL))


def encode(tokenizer: BaseTokenizer, turns: Sequence[Turn]) -> Tokens:
    """BOS, message, answer and EOS for each exchange."""
    assert tokenizer.bos_id is not None and tokenizer.eos_id is not None
    ids: list[int] = []
    learns: list[bool] = []
    for turn in turns:
        own = tokenizer.encode(turn.text, bos=False, eos=False)
        is_answer = turn.role == ASSISTANT
        own = [*own, tokenizer.eos_id] if is_answer else [tokenizer.bos_id, *own]
        ids += own
        learns += [is_answer and turn.learns] * len(own)
    return Tokens(ids, learns)


def instruction(value: int) -> str:
    return f"This movie is {NAMES[value]} ."


def plain_rows(rng: Random, sizes: Sizes, tokenizer: BaseTokenizer) -> list[Tokens]:
    """Dialogues of up to 3 turns, each turn with its own instruction or with none."""
    rows = []
    for _ in range(sizes.steps * sizes.batch):
        users, answers = [], []
        for _ in range(rng.randint(1, 3)):
            value, question = rng.choice(VALUES), rng.choice(QUESTIONS)
            is_said = rng.random() < WITH_INSTRUCTION
            users.append(f"{instruction(value)} {question}" if is_said else question)
            answers.append(review_of(rng, value, TRAIN))
        rows.append(encode(tokenizer, conversation(users, answers)))
    return rows


def dialogues_of(rng: Random, count: int, least: int) -> list[Dialogue]:
    """Dialogues of `least` to 6 questions, with an instruction each."""
    place = Place("the demonstration", 0)
    return [
        Dialogue(
            place,
            instruction(rng.choice(VALUES)),
            tuple(rng.choice(QUESTIONS) for _ in range(rng.randint(least, TURNS))),
        )
        for _ in range(count)
    ]


def asker(start: Start, seed: int) -> Ask:
    sampling = Sampling(40, start.ends)

    def ask(conversations: list[list[Turn]]) -> list[str]:
        prompts = [encode(start.tokenizer, turns).ids for turns in conversations]
        turn = len(conversations[0])
        texts = sample_answers(start.llama, prompts, sampling, seed_of(seed, turn))
        return [completion_of(text, start.tokenizer.decode).strip() for text in texts]

    return ask


def obeys(dialogue: Dialogue, answer: str) -> bool:
    value = value_of(answer)
    return value is not None and instruction(value) == dialogue.instruction


def gatt_rows(
    start: Start, rng: Random, sizes: Sizes, seed: int, tokenizer: BaseTokenizer
) -> list[Tokens]:
    """Sampled dialogues whose answers all obey, with the instruction in the first turn alone."""
    dialogues = dialogues_of(rng, sizes.dialogues, 2)
    answers = sampled_answers(dialogues, asker(start, seed))
    kept = [
        encode(tokenizer, training_turns(dialogue, found))
        for dialogue, found in zip(dialogues, answers, strict=True)
        if all(obeys(dialogue, answer) for answer in found)
    ]
    print(f"{len(kept)} of {len(dialogues)} dialogues obey in every turn", flush=True)
    if not kept:
        raise ValueError("no sampled dialogue obeys in every turn: train the first model longer")
    return kept


@torch.no_grad()
def obedience(start: Start, rng: Random, sizes: Sizes, seed: int) -> list[float]:
    """The share of answers that obey, by turn, when only the first turn has the instruction."""
    dialogues = dialogues_of(rng, sizes.measured, TURNS)
    ask, answers = asker(start, seed_of(seed, 1)), [list[str]() for _ in dialogues]
    shares = []
    for turn in range(TURNS):
        asked = []
        for dialogue, said in zip(dialogues, answers, strict=True):
            first, *rest = dialogue.questions[: turn + 1]
            asked.append(conversation([f"{dialogue.instruction} {first}", *rest], said))
        found = ask(asked)
        for said, answer in zip(answers, found, strict=True):
            said.append(answer)
        obeyed = [obeys(d, answer) for d, answer in zip(dialogues, found, strict=True)]
        shares.append(sum(obeyed) / len(obeyed))
    return shares
