"""python checkpoint.py info and convert: what a user sees."""

import json
import re
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import checkpoint as checkpoint_commands
from config import PRESETS, LlamaConfig, expected_shapes
from llama import load_pretrained
from mini_llama.checkpoints import memory as memory_plan
from mini_llama.checkpoints import options
from mini_llama.checkpoints.conversion import TARGETS
from mini_llama.checkpoints.formats.huggingface import export_config, their_name
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.report import describe_checkpoint, describe_preset
from mini_llama.checkpoints.sizes import count_parameters
from tests.helpers import ROOT, random_llama, refusal_of, tiny_config

TRUE = {"norm": "rmsnorm", "attention": "causal"}


def rows(report: str) -> list[str]:
    return [" ".join(line.split()) for line in report.splitlines()]


def test_published_numbers_of_smollm2():
    """Of its configuration and parameter count on the hub; untied, the embedding counts twice."""
    report = rows(describe_preset("smollm2-135m"))
    assert "parameters 134,515,008, tied (162,826,560 if the output embedding were another)" in (
        report
    )
    assert "layers.0-29 30 x 3,540,096" in report
    assert "tok_embeddings 49152 x 576 float32 28,311,552" in report
    assert "compute_key 192 x 576 float32 110,592" in report
    assert "w2 576 x 1536 float32 884,736" in report
    assert "output 49152 x 576 float32 tied" in report
    assert "total 134,515,008" in report
    # The embedding and the norms stay float32, 113.4 MB of them, and the tied output is 28.6 MB.
    sizes = "0.54 GB float32, 0.27 GB bfloat16, 0.25 GB int8, 0.20 GB nf4"
    assert f"weights in memory {sizes}" in report


@pytest.mark.parametrize(
    ("name", "count"),
    [("llama2-7b", 6_738_415_616), ("llama2-13b", 13_015_864_320), ("llama2-70b", 68_976_648_192)],
)
def test_published_numbers_of_llama2(name: str, count: int):
    """Those of the files that Meta published."""
    assert count_parameters(LlamaConfig(**PRESETS[name])) == count
    assert f"total {count:,}" in rows(describe_preset(name))


def test_a_report_counts_what_the_file_holds(tmp_path):
    """Layers of other dtypes are lines of their own."""
    llama = random_llama(tiny_config(**TRUE, n_layers=4, tie_word_embeddings=False))
    tensors = {
        name: tensor.half() if name.startswith("layers.3.") else tensor
        for name, tensor in llama.state_dict().items()
    }
    save_checkpoint(tmp_path / "a.pt", llama.config, tensors)
    report = rows(describe_checkpoint(read_checkpoint(tmp_path / "a.pt")))
    layer = sum(p.numel() for p in llama.layers[0].parameters())
    total = sum(p.numel() for p in llama.parameters())
    assert f"layers.0-2 3 x {layer:,}" in report and f"layers.3 {layer:,}" in report
    assert f"total {total:,}" in report
    assert f"parameters {total:,}, untied ({total - 96 * 32:,} if the output embedding were " in (
        " ".join(report)
    )
    assert "arithmetic rmsnorm, causal attention (recorded in the checkpoint)" in report
    assert "format torch file" in report
    assert "w1 88 x 32 float16 2,816" in report


def test_where_the_arithmetic_comes_from(shared):
    report = describe_checkpoint(read_checkpoint(shared / "checkpoints" / "stories260K.bin"))
    assert "layernorm, bidirectional attention (default edition mmia)" in report
    assert "llama2.c .bin file, version 0" in report
    assert "total 260,032" in rows(report)  # the biases of the default's LayerNorm are not in it


@pytest.fixture
def seven_billion(tmp_path: Path) -> Path:
    """A folder of Llama 2 7B in two shards, whose data is a hole but for two bytes."""
    config = LlamaConfig(**PRESETS["llama2-7b"])
    (tmp_path / "config.json").write_text(json.dumps(export_config(config)))
    shapes = {their_name(name): shape for name, shape in expected_shapes(config)}
    names, places = list(shapes), {}
    for number, part in enumerate((names[:150], names[150:]), 1):
        file, header, end = f"model-{number:05}-of-00002.safetensors", {}, 0
        for name in part:
            start, end = end, end + 2 * torch.Size(shapes[name]).numel()
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        with open(tmp_path / file, "wb") as shard:
            shard.write(struct.pack("<Q", len(text)) + text)
            shard.truncate(8 + len(text) + end)
            shard.seek(8 + len(text) + header[part[-1]]["data_offsets"][0])
            shard.write(b"\x80\x3f")  # 1.0: the two embeddings differ
        places |= dict.fromkeys(part, file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    return tmp_path


def test_a_large_folder_answers_from_its_headers(seven_billion: Path):
    start = time.process_time()
    report = rows(describe_checkpoint(read_checkpoint(seven_billion)))
    assert time.process_time() - start < 1
    assert "total 6,738,415,616" in report and "on disk 13.48 GB" in report
    assert "layers.0-31 32 x 202,383,360" in report
    assert "format folder of Hugging Face's LlamaForCausalLM" in report


def test_a_large_folder_is_refused_from_its_headers(seven_billion: Path, monkeypatch):
    """In float32, that is: 27 GB that are not in the file, and the embedding once more."""
    monkeypatch.setattr(memory_plan, "available_bytes", lambda: 16_400_000_000)
    start = time.process_time()
    with pytest.raises(ValueError) as caught:
        load_pretrained(seven_billion, "llama2")
    assert time.process_time() - start < 1
    assert str(caught.value) == (
        f"{seven_billion} needs 27.48 GB of memory as float32, and 16.40 GB are free: it fits with "
        "--dtype bfloat16, --quantize int8, --quantize int8 --dtype bfloat16, --quantize nf4, "
        "--quantize nf4 --dtype bfloat16"
    )


# The command line


@pytest.fixture
def source(tmp_path: Path) -> Path:
    config = tiny_config(**TRUE)
    save_checkpoint(tmp_path / "a.pt", config, random_llama(config).state_dict())
    return tmp_path / "a.pt"


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "checkpoint.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_both_commands_as_a_script(source: Path):
    done = run("convert", source, source.with_name("b"), "--to", "huggingface")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines()[-1] == f"wrote {source.with_name('b')}"
    assert rows(run("info", source.with_name("b")).stdout)[-1].startswith("total ")


@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        (["info", "nowhere.pt"], 1, "checkpoint nowhere.pt does not exist"),
        (["convert", "nowhere.pt", "b", "--to", "llama2c"], 1, "nowhere.pt does not exist"),
        (["info"], 2, "required: PATH"),
        ([], 2, "required: {info,convert}"),
        (["convert", "a", "b"], 2, "required: --to"),
        (["convert", "a", "b", "--to", "onnx"], 2, "invalid choice: 'onnx'"),
        (["convert", "SRC", "b", "--to", "huggingface", "--max_shard_size", "9"], 2, "'9'"),
        (["convert", "SRC", "SRC", "--to", "assignment"], 2, "is the source as well"),
    ],
)
def test_errors_are_one_line(source, capsys, monkeypatch, arguments, status: int, part: str):
    monkeypatch.chdir(source.parent)
    monkeypatch.setattr(checkpoint_commands, "raise_on_sigterm", lambda: None)
    with pytest.raises(SystemExit) as caught:
        checkpoint_commands.main([str(source) if a == "SRC" else a for a in arguments])
    captured = capsys.readouterr()
    message = captured.err if status == 2 else caught.value.code
    assert (caught.value.code == 2) == (status == 2)
    assert message.startswith("checkpoint.py") and message.rstrip().count("\n") == 0
    assert part in message and not captured.out


def test_info_of_a_damaged_file_is_one_line(source, capsys):
    source.write_bytes(source.read_bytes()[:2000])
    with pytest.raises(SystemExit) as caught:
        checkpoint_commands.main(["info", str(source)])
    assert re.fullmatch(r"checkpoint\.py: error: .*a\.pt is truncated.*", caught.value.code)


def test_help_names_every_format(capsys):
    with pytest.raises(SystemExit):
        checkpoint_commands.main(["convert", "--help"])
    text = capsys.readouterr().out
    assert all(re.search(rf"^{name} ", text, re.MULTILINE) for name in TARGETS)


LOADED = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print("checkpoint" in sys.modules, file=sys.stderr)
"""


def test_the_command_is_not_loaded_a_second_time(source: Path):
    """By what it imports, under its own name: it is __main__."""
    path = str(ROOT / "checkpoint.py")
    arguments = ["convert", str(source), str(source.with_name("b.bin")), "--to", "llama2c"]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, path, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.startswith("wrote ") and done.stderr == "False\n"


@pytest.mark.parametrize("command", [[], ["info"], ["convert"]])
def test_help_comes_at_once(command: list[str]):
    """0.3 s of this process's time; what else the machine does is not counted."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run(*command, "--help").stdout.startswith("usage: checkpoint.py")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 0.3, f"{used:.2f} s"


def test_what_is_offered_is_what_is_written():
    assert options.TARGETS.keys() == TARGETS.keys()


@pytest.mark.parametrize("to", ["assignment", "llama2c", "llama2c-q80", "gguf"])
def test_a_file_is_replaced_only_with_overwrite(source, to: str, capsys):
    target = source.with_name("b")
    target.write_bytes(b"somebody's")
    words = ["convert", str(source), str(target), "--to", to]
    expected = f"checkpoint.py: error: {target} is there already: --overwrite replaces it; "
    assert refusal_of(checkpoint_commands.main, words) == (1, expected + "or give another name")
    assert target.read_bytes() == b"somebody's" and capsys.readouterr().out == ""
    checkpoint_commands.main([*words, "--overwrite"])
    assert target.stat().st_size > 1000


def test_a_folder_that_holds_something_is_never_replaced(source):
    target = source.with_name("b")
    target.mkdir()
    (target / "config.json").write_text("somebody's")
    words = ["convert", str(source), str(target), "--to", "huggingface"]
    for more in ([], ["--overwrite"]):
        status, error = refusal_of(checkpoint_commands.main, [*words, *more])
        assert status == 1 and str(target) in error
    assert (target / "config.json").read_text() == "somebody's"
    assert len(list(target.iterdir())) == 1
