"""Ghost Attention (Llama 2, section 3.3): an instruction of the first turn is obeyed in all turns.

The model is asked with the instruction before every message of the user, and its answers are kept.
It is trained on the same dialogue with the instruction before the first message alone, and only on
the last answer: so it learns to do without what it was reminded of.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_llama.alignment import sft
from mini_llama.alignment.answers import Sampling, completion_of, merged, sample_answers
from mini_llama.alignment.data import Encoder, Row
from mini_llama.alignment.records import (
    ASSISTANT,
    USER,
    Place,
    Turn,
    read_demonstrations,
    read_objects,
)
from mini_llama.alignment.rl_options import GattOptions
from mini_llama.alignment.rollouts import seed_of
from mini_llama.alignment.start import Start
from mini_llama.alignment.supervised import Job, run_stage
from mini_llama.training.loop import report
from mini_llama.training.processes import Process
from utils import atomic_write

DIALOGUES, HELD_OUT = "gatt.jsonl", "gatt-held-out.jsonl"
FORM = '{"instruction": …, "questions": [the user\'s messages]}'


@dataclass(frozen=True)
class Dialogue:
    """What a user asks for once, and then says, turn by turn. `short` is the instruction as it
    stands in the training data; the paper shortens half of them ("Figure: Napoleon").
    """

    place: Place
    instruction: str
    questions: tuple[str, ...]
    short: str | None = None


# Conversations, each ending with a user's message → answers.
Ask = Callable[[list[list[Turn]]], list[str]]


def read_dialogues(paths: tuple[str, ...]) -> list[Dialogue]:
    """Raises OSError, and ValueError, naming file and line, for the first that is wrong."""
    return [_dialogue(place, content) for path in paths for place, content in read_objects(path)]


def _dialogue(place: Place, content: dict[str, Any]) -> Dialogue:
    instruction, questions = content.get("instruction"), content.get("questions")
    short = content.get("short")
    are_texts = isinstance(questions, list) and questions and all(map(_is_text, questions))
    if not (_is_text(instruction) and are_texts and (short is None or _is_text(short))):
        raise place.error("it has not the form of a dialogue", f"a line must be {FORM}")
    assert isinstance(instruction, str) and isinstance(questions, list)
    return Dialogue(place, instruction, tuple(questions), short)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def sampled_answers(dialogues: Sequence[Dialogue], ask: Ask) -> list[list[str]]:
    """The answers to all questions of each dialogue, turn by turn, with the instruction before
    every message of the user.
    """
    answers: list[list[str]] = [[] for _ in dialogues]
    for turn in range(max(len(dialogue.questions) for dialogue in dialogues)):
        open_ones = [i for i, dialogue in enumerate(dialogues) if turn < len(dialogue.questions)]
        asked = []
        for i in open_ones:
            dialogue = dialogues[i]
            users = [f"{dialogue.instruction} {q}" for q in dialogue.questions[: turn + 1]]
            asked.append(conversation(users, answers[i]))
        for i, answer in zip(open_ones, ask(asked), strict=True):
            answers[i].append(answer)
    return answers


def conversation(users: Sequence[str], answers: Sequence[str]) -> list[Turn]:
    """Messages of both, by turns; one more of the user where an answer is still to come."""
    turns = []
    for i, user in enumerate(users):
        turns.append(Turn(USER, user))
        if i < len(answers):
            turns.append(Turn(ASSISTANT, answers[i]))
    return turns


def training_turns(dialogue: Dialogue, answers: Sequence[str]) -> list[Turn]:
    """The instruction before the first message alone; loss on the last answer alone."""
    first, *rest = dialogue.questions
    instruction = dialogue.short or dialogue.instruction
    turns = conversation([f"{instruction} {first}", *rest], answers)
    return [turn._replace(learns=False) for turn in turns[:-1]] + [turns[-1]]


def asker(start: Start, encoder: Encoder, sampling: Sampling, seed: int) -> Ask:
    """Asks the model, with its own template. Raises ValueError as the template does."""
    llama = merged(start.llama)
    llama.eval()
    calls = itertools.count()

    def ask(conversations: list[list[Turn]]) -> list[str]:
        prompts = [encoder.render(start.tokenizer, turns, True) for turns in conversations]
        texts = sample_answers(llama, prompts, sampling, seed_of(seed, next(calls)))
        return [completion_of(text, start.tokenizer.decode) for text in texts]

    return ask


def run(options: GattOptions) -> int:
    """Sample and fine-tune; the exit status. Raises OSError or ValueError, one line each."""
    if not options.data:
        raise ValueError("--data is needed: JSON lines of dialogues; or give --demo")
    return run_stage(options, read_dialogues, make_job)


def make_job(
    options: GattOptions,
    process: Process,
    start: Start,
    records: tuple[list[Dialogue], list[Dialogue]],
) -> Job[Row]:
    """Fine-tuning on dialogues that are sampled now, by every process alike."""
    encoder = start.encoder(options.max_length)
    sampling = Sampling(options.max_new_tokens, start.ends, options.temperature, options.rows)
    ask = asker(start, encoder, sampling, options.seed)
    paths = [Path(options.out) / name for name in (DIALOGUES, HELD_OUT)]
    for path, dialogues in zip(paths, records, strict=True):
        answers = sampled_answers(dialogues, ask) if dialogues else []
        lines = [
            json.dumps({"messages": messages_of(training_turns(dialogue, found))}) + "\n"
            for dialogue, found in zip(dialogues, answers, strict=True)
            if all(answer.strip() for answer in found)
        ]
        if process.is_main:
            with atomic_write(path) as file:
                file.writelines(lines)
        report(process, f"{len(lines):,} of {len(dialogues):,} dialogues in {path}")
    train, val = (read_demonstrations((str(p),)) if p.stat().st_size else [] for p in paths)
    if not train:
        raise ValueError("every sampled dialogue has an empty answer: give another model")
    return sft.make_job(options, process, start, (train, val))


def messages_of(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """As JSON lines have them, with a weight where no loss is."""
    return [
        {"role": turn.role, "content": turn.text} | ({} if turn.learns else {"weight": 0})
        for turn in turns
    ]
