"""What a resumed run must share with the one that was interrupted."""

import hashlib
from pathlib import Path

import pytest

from mini_llama.resume import check_same_run, digest

KEYS = {"settings", "step"}


def test_the_same_settings_are_taken():
    saved = {"settings": {"seed": 1, "lr": 0.5, "old": 3}, "step": 7}
    check_same_run(Path("run.pt"), saved, KEYS, {"seed": 1, "lr": 0.5})


@pytest.mark.parametrize("settings", [{"seed": 2}, {"seed": 1, "epochs": 3}])
def test_the_first_other_setting_is_named(settings: dict):
    with pytest.raises(ValueError, match=r"--resume: run\.pt was written with .* not \d; use the"):
        check_same_run(Path("run.pt"), {"settings": {"seed": 1}, "step": 7}, KEYS, settings)


@pytest.mark.parametrize(
    "saved",
    [
        None,
        [],
        {},
        {"settings": {}},
        {"settings": [], "step": 1},
        {"settings": {}, "step": 1, "model": 2},
    ],
)
def test_what_is_not_the_state_of_a_run_is_refused(saved: object):
    with pytest.raises(ValueError, match="not the state of an interrupted run; start again"):
        check_same_run(Path("run.pt"), saved, KEYS, {})


def test_digests(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"one")
    sums = [hashlib.sha256(b"one").hexdigest(), hashlib.sha256(b"tiktoken:gpt2").hexdigest()]
    assert [digest(tmp_path / "a"), digest("tiktoken:gpt2")] == sums
    before = digest(tmp_path)
    assert before == hashlib.sha256(f"a {sums[0]}".encode()).hexdigest()
    (tmp_path / "b").write_bytes(b"two")
    assert digest(tmp_path) != before
