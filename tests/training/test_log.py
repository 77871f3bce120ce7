"""What a training run leaves to look at, also after it was interrupted and resumed."""

import json
import sys
from pathlib import Path

import pytest

from mini_llama.training.log import TrainingLog, draw_losses, plot_losses, read_metrics


def write_run(folder: Path, steps: range, loss: float, resume_step: int = 0) -> None:
    log = TrainingLog(folder, True, resume_step)
    for step in steps:
        log.write(step, train_loss=loss)
    log.close()


def test_resuming_replaces_what_an_interrupted_run_wrote_after_its_last_save(tmp_path: Path):
    """In the metrics, and on TensorBoard's page, which `purge_step` tells."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_run(tmp_path, range(1, 6), 1.0)
    write_run(tmp_path, range(4, 8), 2.0, resume_step=3)
    expected = [(step, 1.0 if step <= 3 else 2.0) for step in range(1, 8)]
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(record["step"], record["train_loss"]) for record in records] == expected
    shown = accumulators.EventAccumulator(str(tmp_path)).Reload().Scalars("train_loss")
    assert [(scalar.step, scalar.value) for scalar in shown] == expected


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train_loss": 3.5}\n{"step": 2, "tra', encoding="utf-8")
    assert read_metrics(path) == [{"step": 1, "train_loss": 3.5}]
    log = TrainingLog(tmp_path, False, resume_step=1)
    log.write(2, train_loss=float("nan"))
    log.close()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == [{"step": 1, "train_loss": 3.5}, {"step": 2, "train_loss": None}]


@pytest.mark.parametrize("name", ["matplotlib", "matplotlib.pyplot"])
def test_without_matplotlib_the_line_says_how_to_get_it(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"the loss curve needs matplotlib.*pip install"):
        plot_losses([], tmp_path / "loss.png")
    draw_losses([], tmp_path / "loss.png")
    assert capsys.readouterr().err.startswith("no loss curve: the loss curve needs matplotlib")
    assert not list(tmp_path.iterdir())


def test_without_tensorboard_the_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"--tensorboard needs tensorboard.*pip install"):
        TrainingLog(tmp_path, True)
