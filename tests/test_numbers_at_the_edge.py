"""Every number that a command takes, at the edge: a right run, or one line with the bound."""

import dataclasses
import inspect
import math
import subprocess
import sys
import typing

import pytest

from addition_data_generation import DataOptions
from mini_llama.addition.options import TestOptions, TrainOptions
from mini_llama.alignment.stages import STAGES
from mini_llama.assignment.options import Options
from mini_llama.chatting import ChatOptions
from mini_llama.command_line import flag_of, make_parser, parse_given
from mini_llama.pretraining.options import PretrainOptions
from mini_llama.reproduction.runs import Settings
from tests.helpers import ROOT

OPTIONS = (Options, ChatOptions, PretrainOptions, TrainOptions, TestOptions, DataOptions, Settings)
STAGED = tuple(stage.options for stage in STAGES.values())
EDGES = ("0", "1e-50", "1e50", "nan", "inf", "-inf", str(2**63), "-1", "5e-324")


def kinds_of(hint: object) -> set[object]:
    return set(typing.get_args(hint)) or {hint}


def own_fields(options: type) -> list[dataclasses.Field]:
    """The fields that the class itself declares: those that it inherits are another's."""
    names = inspect.get_annotations(options)
    return [field for field in dataclasses.fields(options) if field.name in names]


DECLARING = {base for options in STAGED for base in options.__mro__ if base is not object}
NUMBERS = [
    (options, field)
    for options in (*OPTIONS, *sorted(DECLARING, key=lambda options: options.__name__))
    for field in own_fields(options)
    if kinds_of(typing.get_type_hints(options)[field.name]) & {int, float}
]
NAMES = [f"{options.__name__}.{field.name}" for options, field in NUMBERS]


@pytest.mark.parametrize(("options", "field"), NUMBERS, ids=NAMES)
def test_every_number_has_a_range(options: type, field: dataclasses.Field):
    """A new option without one fails here."""
    within = field.metadata.get("within")
    assert within is not None, "make it with command_line.number"
    assert math.nan not in within and -1 not in within
    if int in kinds_of(typing.get_type_hints(options)[field.name]):
        assert 2**63 not in within


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize(("options", "field"), NUMBERS, ids=NAMES)
def test_edges_are_refused_or_in_range(options: type, field: dataclasses.Field, edge: str, capsys):
    flag = flag_of(options, field.name)
    required = {Settings: ["--out", "x"], TestOptions: ["--checkpoint", "x"]}.get(options, [])
    required = required or [
        word
        for field in dataclasses.fields(options)
        if field.default is dataclasses.MISSING
        for word in (flag_of(options, field.name), "x")
    ]
    parser = make_parser("it.py", "It.", options)
    try:
        given = parse_given(parser, [*required, f"{flag}={edge}"])
    except SystemExit:
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and flag in error and edge in error
        return
    try:
        value = getattr(options(**given), field.name)
    except ValueError as error:
        message = str(error)
        assert "\n" not in message and "is not allowed: it must be" in message
        return
    assert value in field.metadata["within"] and not math.isnan(value)


def test_all_edges_of_a_training_step_are_right_or_one_line(tmp_path):
    """The numbers that are in range at an edge: a run with them ends by itself."""
    code = (
        "import sys, pretrain\n"
        "from mini_llama.training import log\n"
        "log.plot_losses = lambda *given, **labels: None\n"
        "for words in sys.argv[1:]:\n"
        "    try: pretrain.main(words.split())\n"
        "    except SystemExit as end: print('END', words.split()[-2:], end.code)\n"
    )
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"one two three four {i} five six" for i in range(60)))
    common = f"--input {text} --preset 260k --dim 16 --n_layers 1 --n_heads 2 --n_kv_heads 1 "
    common += "--vocab_size 290 --context 8 --steps 2 --batch_size 2 --eval_every 1 --warmup 0 "
    edges = [
        *("--lr 0", "--lr 1e-50", "--lr 1e30", "--min_lr 1e-50", "--weight_decay 1000"),
        *("--weight_decay 1e-50", "--max_grad_norm inf", "--max_grad_norm 1e-9"),
        *("--val_fraction 1e-9", "--eval_batches 1000000000", "--warmup 1000000000"),
        *("--sample_tokens 0", "--dropout 1e-50", "--decay_steps 1"),
    ]
    runs = [f"{common} --out {tmp_path / str(i)} {edge}" for i, edge in enumerate(edges)]
    done = subprocess.run(
        [sys.executable, "-c", code, *runs], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ends = [line for line in done.stdout.splitlines() if line.startswith("END")]
    assert len(ends) == len(edges)
    failed = [line for line in ends if not line.endswith(" 0")]
    assert all("lower --lr" in line for line in failed) and len(failed) <= 1, failed
