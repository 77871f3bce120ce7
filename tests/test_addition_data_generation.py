"""The addition task's data: what is drawn, and the files that are written."""

import random
from pathlib import Path

import numpy as np
import pytest

import addition_data_generation
from addition_data_generation import generate_addition_data, generate_dataset
from mini_llama.addition import additions
from tests.helpers import refusal_of


def pairs(lines: list[str]) -> list[tuple[int, int]]:
    found = []
    for line in lines:
        question, c = line.split("=")
        a, b = map(int, question.split("+"))
        assert line == f"{a}+{b}={c}" and a + b == int(c)
        assert 1000 <= a <= 9999 and 1000 <= b <= 9999
        found.append((min(a, b), max(a, b)))
    return found


def test_additions_are_true_unique_and_of_four_digits():
    lines = generate_addition_data(20_000)
    found = pairs(lines)
    assert len(lines) == len(set(found)) == 20_000
    ordered = sum(int(line[:4]) <= int(line[5:9]) for line in lines)
    assert 9_600 < ordered < 10_400  # either order, as often: 5.6 standard deviations
    means = np.mean(np.array([line[:9].split("+") for line in lines], dtype=int), axis=0)
    assert abs(means - 5499.5).max() < 5 * 2598 / 20_000**0.5


def test_python_s_seed_decides():
    random.seed(3)
    first = generate_addition_data(50)
    assert generate_addition_data(50) != first
    random.seed(3)
    assert generate_addition_data(50) == first


@pytest.fixture
def four_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 to 1003: 10 pairs."""
    monkeypatch.setattr(additions, "N_NUMBERS", 4)
    monkeypatch.setattr(addition_data_generation, "N_PAIRS", 10)


@pytest.mark.usefixtures("four_numbers")
def test_all_pairs_can_be_drawn_and_no_more():
    """The handout's loop would never end."""
    assert len(set(pairs(generate_addition_data(10)))) == 10
    with pytest.raises(ValueError, match=r"^11 additions is not allowed: it must be from 0 to 10"):
        generate_addition_data(11)
    assert generate_addition_data(0) == []


@pytest.mark.usefixtures("four_numbers")
def test_excluded_pairs_are_not_drawn():
    excluded = ["1002+1000=2002", "1000+1002=2002", "1003+1003=2006", "5+5=10"]
    rest = pairs(generate_addition_data(8, excluded))
    assert len(set(rest)) == 8 and not {(1000, 1002), (1003, 1003)} & set(rest)
    with pytest.raises(ValueError, match="from 0 to 8"):
        generate_addition_data(9, excluded)


def test_a_dataset_of_the_handout_s_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    generate_dataset(7, "some.txt", save_dir=tmp_path / "new")
    path = tmp_path / "new" / "some.txt"
    assert len(pairs(path.read_text().splitlines())) == 7
    assert capsys.readouterr().out == f"7 data points saved to {path}\n"


def files(folder: Path) -> dict[str, list[str]]:
    return {
        name: (folder / f"addition_{name}.txt").read_text().splitlines()
        for name in ("train", "dev", "test")
    }


def test_the_command_writes_three_disjoint_files(tmp_path: Path):
    arguments = ["--train", "60", "--dev", "20", "--test", "30", "--save_dir"]
    addition_data_generation.main([*arguments, str(tmp_path / "a")])
    written = files(tmp_path / "a")
    assert {name: len(lines) for name, lines in written.items()} == dict(train=60, dev=20, test=30)
    assert len(set(pairs([*written["train"], *written["dev"], *written["test"]]))) == 110
    addition_data_generation.main([*arguments, str(tmp_path / "b")])
    assert files(tmp_path / "b") == written
    addition_data_generation.main([*arguments, str(tmp_path / "c"), "--seed", "1"])
    assert files(tmp_path / "c") != written


def test_a_test_file_stays_and_is_kept_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    course = generate_addition_data(500)
    path = tmp_path / "addition_test.txt"
    path.write_text("\n".join(course))
    addition_data_generation.main(["--train", "90", "--dev", "9", "--save_dir", str(tmp_path)])
    written = files(tmp_path)
    assert written["test"] == course
    assert not set(pairs(written["train"] + written["dev"])) & set(pairs(course))
    assert f"keeping {path}: its 500 pairs" in capsys.readouterr().out


def test_refusals_are_one_line(tmp_path: Path):
    words = ["--train", "0", "--save_dir", str(tmp_path)]
    expected = "addition_data_generation.py: error: --train 0 is not allowed: it must be "
    expected += "at least 1 and at most 1000000000"
    assert refusal_of(addition_data_generation.main, words) == (2, expected)
