"""Reward models: what a score depends on, training, accuracy by grade, and what is refused."""

import math
from pathlib import Path

import pytest
import torch

from mini_llama.alignment import losses
from mini_llama.alignment.chat import Tokens
from mini_llama.alignment.data import Pair
from mini_llama.alignment.reward import (
    JudgedPair,
    RewardLoss,
    Rewards,
    accuracy_by_grade,
    load_reward_model,
    part_of,
    score_texts,
)
from mini_llama.task_heads import LlamaForSequenceClassification, load_task_head, save_task_head
from tests.alignment.helpers import read_lines, run, save_reward, tiny_start, write_lines
from tests.helpers import random_tokens, tiny_config
from tokenizer import Tokenizer

CPU = torch.device("cpu")


def text(length: int, seed: int) -> Tokens:
    ids = random_tokens(tiny_config(vocab_size=300), length, seed=seed).tolist()
    return Tokens(ids, [False, False] + [True] * (length - 2))


def judged(grade: int | None, seed: int, is_safe: tuple[bool, bool] | None = None) -> JudgedPair:
    return JudgedPair(Pair(text(5 + seed, seed), text(9, seed + 50), grade), is_safe)


def test_a_score_changes_neither_with_padding_nor_with_the_batch(tmp_path: Path):
    model = save_reward(tmp_path / "model.pt")
    texts = [text(length, length) for length in (3, 12, 7, 30)]
    alone = torch.cat([score_texts(model, [one], 0) for one in texts])
    for pad_id, size in ((0, 4), (7, 3)):
        torch.testing.assert_close(score_texts(model, texts, pad_id, size), alone)


def test_the_loss_is_that_of_the_scores_with_the_margins_of_the_grades(tmp_path: Path):
    model = save_reward(tmp_path / "model.pt")
    pairs = [judged(grade, seed) for seed, grade in enumerate((0, 1, 2, 3, None))]
    chosen, rejected = (
        score_texts(model, [getattr(p.pair, name) for p in pairs], 0)
        for name in ("chosen", "rejected")
    )
    loss, metrics = RewardLoss(model, "large")(part_of(pairs, 0, CPU).inputs)
    margins = torch.tensor([3.0, 2.0, 1.0, 0.0, 0.0])
    expected = torch.log1p(torch.exp(-(chosen - rejected - margins))).mean()
    torch.testing.assert_close(loss, expected)
    assert float(metrics["accuracy"]) == pytest.approx(float((chosen > rejected).float().mean()))
    safe = [judged(0, seed, (seed % 2 == 0, False)) for seed in range(4)]
    with_safety, _ = RewardLoss(model, "none", 2.0)(part_of(safe, 0, CPU).inputs)
    without, _ = RewardLoss(model, "none")(part_of(safe, 0, CPU).inputs)
    scores = score_texts(model, [p.pair.chosen for p in safe] + [p.pair.rejected for p in safe], 0)
    labels = torch.tensor([True, False, True, False] + [False] * 4)
    torch.testing.assert_close(with_safety - without, 2 * losses.safety_loss(scores, labels))


def test_accuracy_by_grade_counts_each_grade_by_itself(tmp_path: Path):
    model = save_reward(tmp_path / "model.pt")
    pairs = [judged(grade, seed) for seed, grade in enumerate((0, 0, 2, 2, 2, None))]
    found = accuracy_by_grade(model, pairs, 0)
    right = [
        bool(score_texts(model, [p.pair.chosen], 0) > score_texts(model, [p.pair.rejected], 0))
        for p in pairs
    ]
    assert found["all"] == (pytest.approx(sum(right) / 6), 6)
    assert found["significantly"] == (sum(right[:2]) / 2, 2)
    assert found["slightly"] == (pytest.approx(sum(right[2:5]) / 3), 3)
    assert "better" not in found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A run's folder: answers with "good" are better than those with "bad"."""
    folder = tmp_path_factory.mktemp("reward")
    lines = [
        {
            "prompt": f"the {noun} is",
            "chosen": f" good and {word} .",
            "rejected": f" bad and {word} .",
            "grade": "significantly better",
        }
        for noun in ("plot", "film", "story", "acting")
        for word in ("slow", "fun", "great", "dull")
    ]
    pairs = write_lines(folder / "pairs.jsonl", lines)
    done = run(
        "reward",
        **{"pretrained-model-path": tiny_folder / "model.pt", "data": pairs, "val_data": pairs},
        **{"out": folder / "out", "lr": 3e-3, "min_lr": 0, "batch_size": 8, "steps": 30},
        **{"eval_every": 15, "dtype": "float32"},
    )
    assert done == 0
    return folder / "out"


def test_training_tells_good_from_bad(trained: Path, tiny_folder: Path):
    records = read_lines(trained / "metrics.jsonl")
    assert records[-1]["val_accuracy"] == 1 and records[-1]["val_loss"] < 0.5


def test_file_and_folder_are_the_same_model_here_and_in_transformers(
    trained: Path, tiny_folder: Path
):
    transformers = pytest.importorskip("transformers")
    tokens = random_tokens(tiny_config(vocab_size=300), 3, 9)
    models = [load_task_head(trained / name) for name in ("model.pt", "model")]
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(trained / "model")
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert expected.shape == (3, 1)
        for model in models:
            torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-4)


def test_a_reward_model_of_another_kind_is_refused(tmp_path: Path, tokenizer_model: Path):
    start = tiny_start(Tokenizer(tokenizer_model=tokenizer_model))
    save_reward(tmp_path / "other.pt", vocab_size=301)
    with pytest.raises(ValueError, match="a vocabulary of 301 tokens and the policy one of 300"):
        load_reward_model(tmp_path / "other.pt", start, CPU)
    two = LlamaForSequenceClassification(start.llama, ["a", "b"])
    save_task_head(tmp_path / "two", two)
    with pytest.raises(ValueError, match="with other outputs than one number"):
        load_reward_model(tmp_path / "two", start, CPU)


def test_a_reward_that_is_not_a_number_is_refused(tmp_path: Path):
    model = save_reward(tmp_path / "model.pt")
    with torch.no_grad():
        model.score.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="the reward of an answer is nan: the reward model is"):
        Rewards(model, None, 0)([text(5, 1)], [False])


def test_with_a_safety_model_the_reward_is_the_combined_one(tmp_path: Path):
    helpfulness, safety = (save_reward(tmp_path / "m.pt", seed=seed) for seed in (1, 2))
    texts = [text(5 + i, i) for i in range(6)]
    marks = [i % 2 == 0 for i in range(6)]
    found = Rewards(helpfulness, safety, 0)(texts, marks)
    h, s = (score_texts(model, texts, 0) for model in (helpfulness, safety))
    expected = [s[i] if marks[i] or torch.sigmoid(s[i]) < 0.15 else h[i] for i in range(6)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_safety_labels_are_asked_for_by_line_and_unsafe_winners_dropped(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture
):
    line = {"prompt": "the film is", "chosen": " good .", "rejected": " bad ."}
    marked = line | {"chosen_safe": True, "rejected_safe": False}
    unsafe = line | {"chosen_safe": False, "rejected_safe": True}
    path = write_lines(tmp_path / "pairs.jsonl", [marked, marked, unsafe])
    flags = {"pretrained-model-path": tiny_folder / "model.pt", "val_fraction": 0, "steps": 1}
    flags |= {"batch_size": 2, "safety_weight": 1}
    assert run("reward", data=path, out=tmp_path / "a", **flags) == 0
    assert "1 pairs dropped: the chosen answer is unsafe" in capsys.readouterr().out
    path = write_lines(tmp_path / "pairs.jsonl", [marked, line])
    message = run("reward", data=path, out=tmp_path / "b", **flags)
    assert "pairs.jsonl line 2: no chosen_safe and rejected_safe" in str(message)
