"""Rejection sampling: the best answers, those of earlier iterations, and figure 7's curves."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llama import load_pretrained
from mini_llama.alignment.chat import Tokens
from mini_llama.alignment.records import Place, Prompt
from mini_llama.alignment.rejection_sampling import Candidates, best_lines, curves
from mini_llama.alignment.rollouts import Question
from tests.alignment.helpers import (
    PROMPTS,
    read_lines,
    run,
    save_reward,
    speaking_model,
    tiny_start,
    write_lines,
)
from tokenizer import Tokenizer


def test_the_maximum_never_falls_and_the_median_stays():
    scores = torch.randn(16, 400, generator=torch.Generator().manual_seed(0))
    found = curves(scores)
    assert len(found["max"]) == len(found["median"]) == 16
    assert found["max"] == sorted(found["max"])
    assert found["max"][0] == pytest.approx(float(scores[0].mean()), abs=1e-6)
    assert found["max"][-1] == pytest.approx(float(scores.amax(0).mean()), abs=1e-6)
    assert max(map(abs, found["median"])) < 0.1 < found["max"][1]


def example(tokenizer: Tokenizer, prompt: str, answer: str) -> Tokens:
    whole = tokenizer.encode(f"{prompt} {answer}", bos=True, eos=True)
    count = len(tokenizer.encode(prompt, bos=True, eos=False))
    return Tokens(whole, [i >= count for i in range(len(whole))])


def test_the_best_answer_that_ends_is_taken_and_earlier_ones_compete(tokenizer_model: Path):
    tokenizer = Tokenizer(tokenizer_model=tokenizer_model)
    start = tiny_start(tokenizer)
    prompts = ("the film is", "the plot is", "a story is", "the acting is")
    questions = [Question([1], p == "a story is", Prompt(Place("f", 1), p)) for p in prompts]
    texts = [[example(tokenizer, p, answer) for p in prompts] for answer in ("bad", "good", "fun")]
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0], [2.0, 5.0, 2.0, 2.0]])
    has_end = torch.tensor([[True] * 4, [True, True, True, False], [True, False, True, False]])
    has_end[0, 3] = False
    earlier = {
        '"the film is"': {"prompt": "the film is", "completion": " great", "reward": 4.0},
        '"the plot is"': {"prompt": "the plot is", "completion": " slow", "reward": 2.5},
        '"not asked"': {"prompt": "not asked", "completion": " dull", "reward": 0.0},
    }
    found = best_lines(questions, Candidates(texts, scores, has_end), start, earlier)
    assert found == [
        {"prompt": "the film is", "completion": " great", "reward": 4.0},
        {"prompt": "the plot is", "completion": " good", "reward": 3.0},
        {"prompt": "a story is", "completion": " good", "reward": 3.0, "safety": True},
        {"prompt": "not asked", "completion": " dull", "reward": 0.0},
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("rejection")
    save_reward(folder / "reward.pt")
    prompts = write_lines(folder / "prompts.jsonl", ({"prompt": p} for p in PROMPTS * 2))
    return {
        **{
            "pretrained-model-path": speaking_model(folder, tiny_folder),
            "data": prompts,
            "samples": 0,
        },
        **{"reward_model": folder / "reward.pt", "max_new_tokens": 12, "val_fraction": 0},
        **{"lr": 1e-3, "steps": 2, "batch_size": 4, "candidates": 3, "samples": 0},
    }


def test_a_run_its_files_and_resuming_without_sampling_again(
    files: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "first"
    assert run("rejection", out=out, **files) == 0
    best = read_lines(out / "best.jsonl")
    assert {line["prompt"] for line in best} <= set(PROMPTS) and len(best) >= 4
    load_pretrained(out / "model.pt")
    capsys.readouterr()
    assert run("rejection", out=out, resume=True, **files) == 0
    assert "best answers are in" in capsys.readouterr().out
    assert read_lines(out / "best.jsonl") == best
    message = run("rejection", out=out, resume=True, **files | {"candidates": 4})
    assert "was written with candidates 3, not 4" in str(message)
    more = files | {"previous": out / "best.jsonl", "seed": 5}
    assert run("rejection", out=tmp_path / "second", **more) == 0
    before = {line["prompt"]: line["reward"] for line in reversed(best)}
    after = {line["prompt"]: line["reward"] for line in read_lines(tmp_path / "second/best.jsonl")}
    assert before.keys() <= after.keys()


def test_answers_that_never_end_are_refused(files: dict[str, Any], tmp_path: Path):
    message = run("rejection", out=tmp_path / "out", **files | {"max_new_tokens": 1})
    assert "none of the sampled answers ends within --max_new_tokens 1" in str(message)
