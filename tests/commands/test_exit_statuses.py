"""Exit statuses of all commands: 2 for a wrong command line, 1 for all else that fails, each with
one line on standard error.
"""

import dataclasses
import importlib
import math
import sys
from pathlib import Path

import pytest

from addition_data_generation import DataOptions
from mini_llama.addition.options import TestOptions, TrainOptions
from mini_llama.alignment.stages import STAGES
from mini_llama.assignment.options import Options
from mini_llama.bounds import SEEDS_END
from mini_llama.chatting import ChatOptions
from mini_llama.command_line import flag_of
from mini_llama.inside.options import SeeOptions
from mini_llama.pretraining.options import PretrainOptions
from mini_llama.reproduction.runs import Settings
from tests.helpers import ROOT
from tests.test_style import CHECKS, COMMANDS

EVERY = ("run_llama", "tokenizer", "addition_data_generation", *COMMANDS, *CHECKS)
OPTIONS = {
    "run_llama": Options,
    "chat": ChatOptions,
    "pretrain": PretrainOptions,
    "addition_run train": TrainOptions,
    "addition_run test": TestOptions,
    "addition_data_generation": DataOptions,
    "reproduce": Settings,
    "see": SeeOptions,
}
OPTIONS |= {f"align {name}": stage.options for name, stage in STAGES.items()}


def required(options: type) -> str:
    """The options that a command does not run without, with some value each."""
    names = (f.name for f in dataclasses.fields(options) if f.default is dataclasses.MISSING)
    return " ".join(f"{flag_of(options, name)} some" for name in names)


# Checks that students copy into their own folders: they import nothing of the package.
STANDALONE = ("rope_test", "optimizer_test")


def status_of(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of a command line, run in this process."""
    command, *words = line.split(" ")
    monkeypatch.setattr(sys, "argv", [f"{command}.py", *words])
    try:
        returned = importlib.import_module(command).main()
    except SystemExit as left:
        if isinstance(left.code, str):  # Python prints it, and exits with 1
            print(left.code, file=sys.stderr)
            return 1
        return left.code or 0
    return returned or 0


def assert_one_line(error: str, *parts: str) -> None:
    assert error.count("\n") == 1 and error.endswith("\n"), error
    assert all(part in error for part in parts), error


def ranged() -> list[tuple[str, str, float]]:
    """Every number of every command that has a range, just outside of it at both ends."""
    found = []
    for command, options in OPTIONS.items():
        for field in dataclasses.fields(options):
            within = field.metadata.get("within")
            if within is None:
                continue
            step = 1 if field.type in ("int", "int | None", int, int | None) else 1e-3
            low = within.low if within.is_open else within.low - step
            high = within.high if within.is_half_open else within.high * 2 + 1
            for value in (low, high):
                shown = int(value) if step == 1 and math.isfinite(value) else value
                if value not in within:
                    found.append((command, flag_of(options, field.name), shown))
    return found


@pytest.mark.parametrize(("command", "flag", "value"), ranged())
def test_a_number_out_of_range_is_usage(command, flag, value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [command, required(OPTIONS[command]), f"{flag}={value}"]
    assert status_of(" ".join(filter(None, words)), monkeypatch) == 2
    assert_one_line(capsys.readouterr().err, f"{flag} ", "is not allowed: it must be ")
    assert not list(tmp_path.iterdir())


def test_the_numbers_are_many():
    assert len(ranged()) > 100 and any(value == SEEDS_END * 2 + 1 for _, _, value in ranged())


@pytest.mark.parametrize("command", EVERY)
def test_an_unknown_option_is_usage(command, monkeypatch, capsys):
    assert status_of(f"{command} --no-such-option", monkeypatch) == 2
    error = capsys.readouterr().err
    if command in STANDALONE:  # argparse's own message
        error = error.splitlines(keepends=True)[-1]
    assert_one_line(error, f"{command}.py")


USAGE = """
run_llama --option prompt --dev_out wrong.txt
run_llama --option lora --quantize int8
run_llama --option prompt --plan
run_llama --prompts a.txt --prompt_text b
run_llama --option finetune --adapters a.pt
run_llama --option finetune --train none
run_llama --compile --quantize nf4
run_llama --epochs many
run_llama --edition fall1999
run_llama --generated_sentence_low_temp_out same --generated_sentence_high_temp_out same
run_llama --pretrained-model-path DEMO --edition mmia --compile
chat --template none-such
chat --pretrained-model-path DEMO --max_new_tokens 100000
pretrain --input a.txt --vocab_size 300 --tokenizer a.model
pretrain --out new
pretrain --out new --input a.txt --min_lr 2 --lr 1
pretrain --out new --input a.txt --batch_size 3 --accumulation 2
pretrain --out new --input a.txt --resume --overwrite
pretrain --out new --input a.txt --plan --dim 30 --n_heads 4
reproduce
reproduce --out new --data data --data_dir data
checkpoint
checkpoint convert DEMO new.gguf --to gguf --type q5_k
checkpoint convert DEMO new.pt --to assignment --type f16
checkpoint convert DEMO new --to huggingface --max_shard_size none
checkpoint convert DEMO new --to peft
checkpoint convert DEMO DEMO --to assignment --overwrite
tokenizer export
tokenizer export same.model same.model
addition_run
addition_run test
addition_run train --dim 15
addition_run train --resume --overwrite
addition_data_generation --train 900000000
grade
grade . --jobs 0
grade . --seconds 0
grade . --memory nan
grade . --csv same --json same
grade new.zip --csv new.zip
diagnose
diagnose . --jobs 0
diagnose . --seconds nan
diagnose . --json same --html same
prepare_submit
prepare_submit . a/b
prepare_submit .
download --only none-such
download --timeout 0
download --timeout soon
sanity_check --checkpoint
rope_test --reference
optimizer_test --reference
"""

OTHER = """
run_llama --pretrained-model-path no.pt
run_llama --option prompt --dev no.txt
run_llama --option finetune --train no-train.txt --dev no-dev.txt
run_llama --prompts no.txt
run_llama --pretrained-model-path DEMO --generated_sentence_low_temp_out no/such/folder
chat --pretrained-model-path no.pt
pretrain --out new --input no.txt
pretrain --out no/such/folder --input no.txt --init no.pt
reproduce --out exists
checkpoint info no.pt
checkpoint convert no.pt new.pt --to assignment
checkpoint convert DEMO exists --to assignment
tokenizer export no.model new.bin
tokenizer export no.model exists
addition_run test --checkpoint no.pth
addition_run train --save_dir exists
addition_data_generation --save_dir exists
grade no.zip
grade exists --csv no/such/folder.csv
grade exists --csv exists2
grade folder --data exists
diagnose no-folder
diagnose exists
prepare_submit no.zip
prepare_submit folder someone
sanity_check --checkpoint no.pt
sanity_check --checkpoint DEMO --reference exists
rope_test --reference no.data
rope_test --reference exists
optimizer_test --reference no.npy
optimizer_test --reference exists
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exists").write_text("not what is wanted\n")
    (tmp_path / "exists2").write_text("not what is wanted\n")
    (tmp_path / "folder").mkdir()
    return tmp_path


def lines_of(table: str) -> list[str]:
    return [line for line in table.splitlines() if line]


@pytest.mark.parametrize("line", lines_of(USAGE))
def test_a_wrong_command_line_has_status_2(line, folder, monkeypatch, capsys):
    before = sorted(folder.rglob("*"))
    demo = str(ROOT / "data" / "demo" / "demo.pt")
    assert status_of(line.replace("DEMO", demo), monkeypatch) == 2
    error = [text for text in capsys.readouterr().err.splitlines() if "error: " in text]
    assert len(error) == 1 and error[0].startswith(f"{line.split()[0]}.py")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("line", lines_of(OTHER))
def test_what_else_fails_has_status_1(line, folder, monkeypatch, capsys):
    demo = str(ROOT / "data" / "demo" / "demo.pt")
    assert status_of(line.replace("DEMO", demo), monkeypatch) == 1
    captured = capsys.readouterr()
    assert captured.err.strip() or line.startswith("prepare_submit folder")
    assert "Traceback" not in captured.err
