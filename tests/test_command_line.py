"""Flags made of a dataclass: types, defaults, help, and what a command line gives of them."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from mini_llama.command_line import (
    argument,
    argument_of,
    check_option,
    flag_of,
    make_parser,
    parse_given,
)
from tests.helpers import ROOT


@dataclass(frozen=True)
class Settings:
    out: Path = argument(text="a folder")
    count: int | None = argument(None, "how many")
    share: float = argument(0.5, "how much", flag="the-share")
    names: tuple[str, ...] = argument(("a", "b"), "with commas")
    kinds: Sequence[str] = argument(
        ("x", "y"), "of two", choices=("x", "y"), nargs="+", shown="all"
    )
    text: str = argument("", "a text", metavar="TEXT")
    fast: bool = argument(False, "a switch")

    def __post_init__(self) -> None:
        check_option(self, "share", 0 <= self.share <= 1, "from 0 to 1")


@dataclass(frozen=True)
class Others:
    share: float = argument_of(Settings, "share", default=0.25)
    count: int | None = argument_of(Settings, "count", text="another text")


def parse(*argv: str) -> dict[str, object]:
    return parse_given(make_parser("it.py", "It.", Settings), argv)


def test_only_what_was_given_is_parsed_each_of_its_type():
    assert parse("--out", "x") == {"out": Path("x")}
    line = "--out x --count 3 --the-share 1 --names c,,d --kinds y x --text t --fast"
    given = parse(*line.split())
    expected = {"out": Path("x"), "count": 3, "share": 1.0, "names": ("c", "d"), "text": "t"}
    assert given == expected | {"kinds": ("y", "x"), "fast": True}
    assert [type(given[name]) for name in ("count", "share")] == [int, float]
    assert Settings(**given).kinds == ("y", "x")
    assert Settings(**parse("--out", "x")) == Settings(Path("x"))


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ("", "--out"),
        ("--out x --count 1.5", "argument --count: invalid int value: '1.5'"),
        ("--out x --kinds z", "invalid choice: 'z'"),
        ("--ou x", "--out"),
    ],
)
def test_what_does_not_parse_is_one_line(argv: str, part: str, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*argv.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert error.startswith("it.py: error: ") and part in error


@pytest.mark.parametrize("argv", ["--out x --the_share 1", "--the-share=1 --out=x"])
def test_dashes_and_underscores_in_flags_are_the_same(argv: str):
    assert parse(*argv.split())["share"] == 1.0


def test_dashes_and_underscores_in_values_stay():
    assert parse("--out", "a_b-c", "--text=--the_share")["text"] == "--the_share"
    parser = make_parser("it.py", "It.", Settings)
    parser.add_argument("rest", nargs="*")
    assert parser.parse_args(["--out", "x", "--", "--the_share"]).rest == ["--the_share"]


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--coutn 3", "--count"),
        ("--the-shar 3", "--the-share"),
        ("--share 3", "--the-share"),
        ("--Count=3", "--count"),
        ("--temperature 1", None),
        ("--x", None),
        ("counts", None),
    ],
)
def test_the_nearest_flag_is_suggested(flag: str, nearest: str | None, capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--out", "x", *flag.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"unrecognized arguments: {flag}" in error
    assert ("did you mean" in error) == (nearest is not None)
    assert nearest is None or error.endswith(f"did you mean {nearest}? (see --help)\n")


def test_help_shows_texts_and_defaults():
    shown = " ".join(make_parser("it.py", "It.", Settings).format_help().split())
    for part in (
        "usage: it.py [-h] --out OUT [--count COUNT] [--the-share SHARE]",
        "a folder --count COUNT how many --the-share SHARE how much (default: 0.5)",
        "with commas (default: a,b)",
        "--kinds {x,y} [{x,y} ...] of two (default: all)",
        "--text TEXT a text --fast a switch",
    ):
        assert part in shown
    others = make_parser("it.py", "It.", Others, show="<{}>".format).format_help()
    assert "how much (default: <0.25>)" in others and "another text" in others


def test_bounds_name_flag_and_value():
    with pytest.raises(ValueError, match=r"--share 2\.0 is not allowed: it must be from 0 to 1"):
        Settings(Path("x"), share=2.0)
    assert flag_of(Others, "share") == "--the-share"


@pytest.mark.parametrize("command", ["run_llama", "chat", "pretrain", "reproduce"])
def test_help_needs_no_torch(command: str):
    words = [sys.executable, "-X", "importtime", str(ROOT / f"{command}.py"), "--help"]
    helped = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert helped.returncode == 0 and f"usage: {command}.py" in helped.stdout
    assert "torch" not in {line.rpartition("|")[2].strip() for line in helped.stderr.splitlines()}
