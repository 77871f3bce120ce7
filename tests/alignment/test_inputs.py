"""What a stage is given and is not there: one line with flag, path, what it is and what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

from mini_llama.alignment.inputs import INPUTS
from mini_llama.alignment.stages import STAGES
from mini_llama.places import ROOT
from tests.alignment.helpers import run, write_lines

# Options of a stage that name no input, or one whose absence has an error of its own.
OTHERS = {"out", "template", "tokenizer", "norm", "attention", "schedule", "dtype", "margins"}
CASES = [
    (stage, name)
    for stage, found in STAGES.items()
    for name in INPUTS
    if name in found.options.__dataclass_fields__
]


@pytest.mark.parametrize("stage, name", CASES)
def test_a_missing_input_is_named_with_its_flag_and_a_remedy(stage: str, name: str, tmp_path: Path):
    data = write_lines(tmp_path / "data.jsonl", [{"prompt": "a", "completion": " b"}])
    flags: dict[str, object] = {"data": data}
    if stage in ("rejection", "ppo"):
        flags["reward_model"] = data
    flag = name.replace("_", "-") if name == "pretrained_model_path" else name
    gone = tmp_path / "gone" / "file"
    message = str(run(stage, out=tmp_path / "out", **flags | {flag: gone}))
    what, remedy = INPUTS[name]
    expected = f"--{flag} {gone} does not exist: give {what}; {remedy}"
    assert message == f"align.py: error: {expected}"
    assert not (tmp_path / "out").exists()


def test_every_text_option_of_a_stage_is_an_input_or_known_not_to_be():
    for stage in STAGES.values():
        for field in stage.options.__dataclass_fields__.values():
            if str(field.type) in ("str", "str | None", "tuple[str, ...]"):
                assert field.name in {*INPUTS, *OTHERS, "lora_targets"}, field.name


def test_the_second_of_several_files_is_named(tmp_path: Path):
    data = write_lines(tmp_path / "data.jsonl", [{"prompt": "a", "completion": " b"}])
    message = str(run("sft", data=[data, tmp_path / "gone"], out=tmp_path / "out"))
    assert f"--data {tmp_path / 'gone'} does not exist" in message


def test_an_out_below_a_file_is_refused(tmp_path: Path):
    data = write_lines(tmp_path / "data.jsonl", [{"prompt": "a", "completion": " b"}])
    message = str(run("sft", data=data, out=data / "out"))
    assert f"--out {data / 'out'} cannot be made: {data} is a file" in message


def test_it_is_said_before_torch_is_imported(tmp_path: Path):
    words = [sys.executable, "-X", "importtime", ROOT / "align.py", "sft", "--data", "gone.jsonl"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1 and "--data gone.jsonl does not exist" in done.stderr
    assert not any(line.endswith("| torch") for line in done.stderr.splitlines())
