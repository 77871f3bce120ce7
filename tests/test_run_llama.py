"""The command line: the assignment's options and defaults, and one line for everything a user can
get wrong, before anything is written.
"""

import ast
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import run_llama
from mini_llama import bundled
from mini_llama.assignment import option_parser
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from tests.helpers import ROOT, random_llama, tiny_config

SCRIPT = ROOT / "run_llama.py"

# The assignment's table, and what the contract says of optional values.
CONTRACT_DEFAULTS = {
    "--option": "generate",
    "--train": "data/cfimdb-train.txt",
    "--dev": "data/cfimdb-dev.txt",
    "--test": "data/cfimdb-test.txt",
    "--label-names": "data/cfimdb-label-mapping.json",
    "--pretrained-model-path": "stories42M.pt",
    "--max_sentence_len": None,
    "--seed": 1337,
    "--epochs": 5,
    "--batch_size": 8,
    "--lr": 2e-5,
    "--hidden_dropout_prob": 0.3,
    "--use_gpu": False,
    "--generated_sentence_low_temp_out": "generated-sentence-temp-0.txt",
    "--generated_sentence_high_temp_out": "generated-sentence-temp-1.txt",
    "--dev_out": "cfimdb-dev-prompting-output.txt",
    "--test_out": "cfimdb-test-prompting-output.txt",
    "--lora_rank": 4,
    "--lora_alpha": 1.0,
}

DATA = "--train data/{0}-train.txt --dev data/{0}-dev.txt --test data/{0}-test.txt "
DATA += "--label-names data/{0}-label-mapping.json "
PROMPT = "--option prompt --batch_size 10 " + DATA
PROMPT += "--dev_out {0}-dev-prompting-output.txt --test_out {0}-test-prompting-output.txt"
FINETUNE = "--option finetune --epochs 5 --lr 2e-5 --batch_size {1} " + DATA
FINETUNE += "--dev_out {0}-dev-finetuning-output.txt --test_out {0}-test-finetuning-output.txt"
LORA = "--option lora --epochs 5 --lr 2e-5 --batch_size {1} " + DATA
LORA += "--dev_out {0}-dev-lora-output.txt --test_out {0}-test-lora-output.txt "
LORA += "--lora_rank 4 --lora_alpha 1.0"
GRADED_COMMANDS = [
    "--option generate",
    *(
        command.format(dataset, batch_size)
        for dataset, batch_size in (("sst", 80), ("cfimdb", 10))
        for command in (PROMPT, FINETUNE, LORA)
    ),
]

TINY = (
    "--train data/tiny-train.txt --dev data/tiny-dev.txt --test data/tiny-test.txt "
    "--label-names data/labels.json --pretrained-model-path model.pt --epochs 1"
)
OUTPUTS = "--dev_out my-dev-{0}-output.txt --test_out my-test-{0}-output.txt"
COMMANDS = {
    "generate": "--option generate --pretrained-model-path model.pt --max_new_tokens 4",
    "prompt": f"--option prompt {TINY} {OUTPUTS.format('prompting')}",
    "finetune": f"--option finetune {TINY} {OUTPUTS.format('finetuning')}",
    "lora": f"--option lora {TINY} {OUTPUTS.format('lora')}",
}


@pytest.fixture(autouse=True)
def no_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are of the assignment's own defaults; test_bundled.py is of the stand-in."""
    monkeypatch.setattr(bundled, "CHECKPOINT", tmp_path / "no bundled model.pt")


@pytest.fixture(autouse=True)
def _leave_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MINI_LLAMA_TRACEBACK", raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    torch.set_flush_denormal(False)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of tiny_folder that is the current folder."""
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file with its bytes, every folder with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def refusal(command: str, capfd: pytest.CaptureFixture[str], *more: str) -> str:
    """Run a command that must fail; the one line that standard error gets, nothing being written.

    File descriptors are captured, so that a line that a C++ library writes counts as well.
    """
    before = contents(Path.cwd())
    with pytest.raises(SystemExit) as stop:
        run_llama.main([*shlex.split(command), *more])
    printed, error = capfd.readouterr()
    code = stop.value.code
    if isinstance(code, str):  # the interpreter prints it and exits with 1
        code, error = 1, f"{error}{code}\n"
    assert code not in (0, None)
    assert re.fullmatch(r"[^\n]+: error: [^\n]+\n", error), f"not one line: {error!r}"
    assert "Traceback" not in printed + error
    assert contents(Path.cwd()) == before
    return error


def assert_names(message: str, *parts: str) -> None:
    absent = [part for part in parts if part not in message]
    assert not absent, f"{absent} not in {message!r}"


# The options


def printed_args(printed: str) -> dict[str, object]:
    line = next(line for line in printed.splitlines() if line.startswith("args: "))
    return ast.literal_eval(line.removeprefix("args: "))


def test_every_option_of_the_assignment_has_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):  # there is no checkpoint here; the options are printed first
        run_llama.main([])
    args = printed_args(capfd.readouterr().out)
    defaults = {flag: args[flag.removeprefix("--").replace("-", "_")] for flag in CONTRACT_DEFAULTS}
    assert defaults == CONTRACT_DEFAULTS
    assert {flag: type(value) for flag, value in defaults.items()} == {
        flag: type(value) for flag, value in CONTRACT_DEFAULTS.items()
    }


@pytest.mark.parametrize("flag", CONTRACT_DEFAULTS)
def test_every_option_of_the_assignment_takes_a_value(flag: str) -> None:
    values = {"--option": "lora", "--use_gpu": None, "--max_sentence_len": "12"}
    numbers = {int: "12", float: "0.125", str: "some/name.txt"}
    value = values.get(flag, numbers.get(type(CONTRACT_DEFAULTS[flag])))
    args = vars(option_parser.make_parser().parse_args([flag] if value is None else [flag, value]))
    given = args[flag.removeprefix("--").replace("-", "_")]
    assert given is True if value is None else str(given) == value


@pytest.mark.parametrize("gpu", ["", " --use_gpu"])
@pytest.mark.parametrize("command", GRADED_COMMANDS)
def test_the_graded_commands_pass_every_check_of_their_options(
    command: str,
    gpu: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # What stops them is the first thing that is missing from an empty folder.
    assert_names(refusal(command + gpu, capfd), "stories42M.pt", "setup.sh")


# Values out of bounds and names that are not known: (option, arguments, parts of the message)

BAD_VALUES = [
    ("generate", "--option teach", ["--option", "'teach'", "generate", "prompt", "lora"]),
    ("generate", "--edition fall1999", ["--edition", "'fall1999'", "mmia", "llama2"]),
    ("generate", "--norm batchnorm", ["--norm", "'batchnorm'", "layernorm", "rmsnorm"]),
    ("generate", "--attention local", ["--attention", "'local'", "causal", "bidirectional"]),
    ("generate", "--epoch 3", ["--epoch", "--help"]),  # an abbreviation is not the option
    ("generate", "--speed 3", ["--speed", "--help"]),
    ("generate", "stories42M.pt", ["stories42M.pt", "--help"]),
    ("generate", "--seed", ["--seed", "one argument"]),
    ("generate", "--seed one", ["--seed", "'one'", "int"]),
    ("generate", "--seed -1", ["--seed -1", "at least 0"]),
    ("generate", f"--seed {2**63}", [f"--seed {2**63}", "2^63 - 1"]),
    ("generate", "--temperature -1", ["temperature -1.0", "at least 0"]),
    ("generate", "--temperature nan", ["temperature nan", "at least 0"]),
    ("generate", "--temperature inf", ["temperature inf", "at least 0"]),
    ("generate", "--epsilon 2", ["--epsilon 2.0", "at least 0 and at most 1"]),
    ("generate", "--epsilon -0.1", ["--epsilon -0.1", "at least 0 and at most 1"]),
    ("generate", "--epsilon nan", ["--epsilon nan", "at least 0 and at most 1"]),
    ("generate", "--top_p 0", ["top_p 0.0", "above 0 and at most 1"]),
    ("generate", "--top_p 1.5", ["top_p 1.5", "above 0 and at most 1"]),
    ("generate", "--top_p nan", ["top_p nan", "above 0 and at most 1"]),
    ("generate", "--max_new_tokens 0", ["--max_new_tokens 0", "at least 1"]),
    ("generate", "--num_samples 0", ["--num_samples 0", "at least 1"]),
    ("generate", "--max_sentence_len 0", ["--max_sentence_len 0", "at least 1"]),
    ("prompt", "--batch_size 0", ["--batch_size 0", "at least 1"]),
    ("prompt", "--batch_size -8", ["--batch_size -8", "at least 1"]),
    ("finetune", "--epochs 0", ["--epochs 0", "at least 1"]),
    ("finetune", "--epochs 1.5", ["--epochs", "'1.5'", "int"]),
    ("finetune", "--batch_size 0", ["--batch_size 0", "at least 1"]),
    ("finetune", "--lr -1", ["--lr -1.0", "at least 0"]),
    ("finetune", "--lr nan", ["--lr nan", "at least 0"]),
    ("finetune", "--lr inf", ["--lr inf", "at least 0"]),
    ("finetune", "--hidden_dropout_prob 1", ["--hidden_dropout_prob 1.0", "below 1"]),
    ("finetune", "--hidden_dropout_prob -0.1", ["--hidden_dropout_prob -0.1", "at least 0"]),
    ("finetune", "--hidden_dropout_prob nan", ["--hidden_dropout_prob nan", "below 1"]),
    ("lora", "--lora_rank 0", ["--lora_rank 0", "at least 1"]),
    ("lora", "--lora_alpha 0", ["--lora_alpha 0.0", "above 0"]),
    ("lora", "--lora_alpha nan", ["--lora_alpha nan", "above 0"]),
    ("lora", "--lora_targets query", ["query", "compute_query", "compute_value"]),
    ("lora", "--lora_targets compute_query,w9", ["w9", "compute_query", "w1"]),
    ("lora", "--lora_targets ,", ["nothing", "compute_query"]),
    ("lora", "--lora_targets tok_embeddings", ["tok_embeddings", "compute_query"]),
]


@pytest.mark.parametrize(("option", "arguments", "parts"), BAD_VALUES)
def test_a_value_out_of_bounds_is_one_line(
    option: str,
    arguments: str,
    parts: list[str],
    folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert_names(refusal(f"{COMMANDS[option]} {arguments}", capfd), *parts)


def test_a_text_that_is_not_utf_8_is_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = os.fsdecode(b"caf\xe9")  # as a terminal in another encoding passes it
    assert_names(refusal(COMMANDS["generate"], capfd, "--prompt_text", text), "UTF-8")


# Output files

ENDINGS = {"prompt": "prompting", "finetune": "finetuning", "lora": "lora"}


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("option", ENDINGS)
def test_the_name_of_an_output_must_end_as_the_assignment_says(
    option: str, split: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ending = f"{split}-{ENDINGS[option]}-output.txt"
    other = "test" if split == "dev" else "dev"
    wrong = ["predictions.txt", ending + ".bak", f"sst-{other}-{ENDINGS[option]}-output.txt"]
    wrong += [f"sst-{split}-{name}-output.txt" for key, name in ENDINGS.items() if key != option]
    for name in wrong:
        message = refusal(f"{COMMANDS[option]} --{split}_out {name}", capfd)
        assert_names(message, f"--{split}_out {name}", f"ends in {ending}")


def test_one_file_cannot_hold_the_predictions_of_both_splits(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    both = "--dev_out dev-lora-output.txt --test_out dev-lora-output.txt"
    assert_names(refusal(f"{COMMANDS['lora']} {both}", capfd), "--test_out dev-lora-output.txt")


LOW, HIGH = "generated-sentence-temp-0.txt", "generated-sentence-temp-1.txt"
SAME_FILE = [
    f"--generated_sentence_low_temp_out {HIGH}",
    f"--generated_sentence_high_temp_out {LOW}",
    f"--generated_sentence_high_temp_out ./{LOW}",
    f"--generated_sentence_high_temp_out data/../{LOW}",
]


@pytest.mark.parametrize("arguments", SAME_FILE)
def test_one_file_cannot_hold_both_generated_texts(
    arguments: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    message = refusal(f"{COMMANDS['generate']} {arguments}", capfd)
    assert_names(message, "generated-sentence-temp-", "two names")


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("generate", "--generated_sentence_low_temp_out model.pt"),
        ("generate", "--generated_sentence_high_temp_out model.model"),
        ("finetune", "--checkpoint_out model.pt"),
        ("lora", "--checkpoint_out data/tiny-train.txt"),
    ],
)
def test_an_output_never_replaces_an_input(
    option: str, arguments: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert_names(refusal(f"{COMMANDS[option]} {arguments}", capfd), arguments.split()[1])


WRITES = [
    ("generate", "--generated_sentence_low_temp_out", "text.txt"),
    ("generate", "--generated_sentence_high_temp_out", "text.txt"),
    ("prompt", "--dev_out", "dev-prompting-output.txt"),
    ("prompt", "--test_out", "test-prompting-output.txt"),
    ("finetune", "--dev_out", "dev-finetuning-output.txt"),
    ("finetune", "--test_out", "test-finetuning-output.txt"),
    ("finetune", "--checkpoint_out", "best.pt"),
    ("lora", "--test_out", "test-lora-output.txt"),
    ("lora", "--checkpoint_out", "best.pt"),
]


@pytest.mark.parametrize(("option", "flag", "name"), WRITES)
def test_the_folder_of_an_output_must_be_there(
    option: str, flag: str, name: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    message = refusal(f"{COMMANDS[option]} {flag} results/{name}", capfd)
    assert_names(message, f"results/{name}", "folder results", "create it")
    message = refusal(f"{COMMANDS[option]} {flag} model.pt/{name}", capfd)
    assert_names(message, f"model.pt/{name}", "folder model.pt")
    (folder / name).mkdir()
    message = refusal(f"{COMMANDS[option]} {flag} {name}", capfd)
    assert_names(message, name, "is a directory", "file name")


# Data files


@pytest.mark.parametrize("split", ["train", "dev", "test"])
@pytest.mark.parametrize("option", ENDINGS)
def test_a_missing_data_file_is_one_line(
    option: str, split: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    message = refusal(f"{COMMANDS[option]} --{split} data/none.txt", capfd)
    assert_names(message, "data/none.txt", "does not exist", "setup.sh")
    message = refusal(f"{COMMANDS[option]} --{split} data", capfd)
    assert_names(message, "data is a directory", "give a file")


BAD_DATA = {
    "empty": (b"", ["bad.txt", "empty", "LABEL ||| SENTENCE"]),
    "no separator": (b"0 ||| dull\n1 great\n", ["bad.txt line 2", "' ||| '", "LABEL"]),
    "separator cut": (b"0 ||| dull\n1 |||great\n", ["bad.txt line 2", "' ||| '"]),
    "blank line": (b"0 ||| dull\n\n1 ||| great\n", ["bad.txt line 2", "' ||| '"]),
    "a word as label": (b"fine ||| fun\n", ["bad.txt line 1", "'fine'", "bad, good", "integer"]),
    "a fraction as label": (b"0 ||| dull\n1.0 ||| fun\n", ["bad.txt line 2", "'1.0'", "integer"]),
    "a negative label": (b"-1 ||| fun\n", ["bad.txt line 1", "'-1'", "integer"]),
    "no label": (b" ||| fun\n", ["bad.txt line 1", "''", "integer"]),
    "another script's digit": ("٣ ||| fun\n".encode(), ["bad.txt line 1", "integer"]),
    "label out of range": (
        b"0 ||| dull\n1 ||| fun\n2 ||| good\n",
        ["bad.txt line 3", "label 2", "0 to 1", "--label-names"],
    ),
    "Latin-1": ("0 ||| fun\n1 ||| café\n".encode("latin-1"), ["bad.txt line 2", "0xe9", "UTF-8"]),
    "UTF-16": ("0 ||| fun\n".encode("utf-16"), ["bad.txt is UTF-16", "UTF-8"]),
}


@pytest.mark.parametrize("split", ["train", "dev", "test"])
@pytest.mark.parametrize(("data", "parts"), BAD_DATA.values(), ids=BAD_DATA)
def test_a_bad_data_file_is_one_line_with_its_place(
    data: bytes, parts: list[str], split: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.txt").write_bytes(data)
    for option in ("prompt", "finetune"):
        assert_names(refusal(f"{COMMANDS[option]} --{split} bad.txt", capfd), *parts)


BAD_LABELS = {
    "not JSON": (b"bad, good", ["labels.bad", "not JSON", "list of words"]),
    "cut short": (b'["bad", "go', ["labels.bad", "not JSON", "list of words"]),
    "not UTF-8": ('["mauvais", "très bon"]'.encode("latin-1"), ["labels.bad", "not UTF-8"]),
    "empty": (b"", ["labels.bad", "not JSON"]),
    "a dict": (b'{"0": "bad", "1": "good"}', ["labels.bad", "list", "at least two"]),
    "numbers": (b"[0, 1]", ["labels.bad", "label words"]),
    "one word": (b'["good"]', ["labels.bad", "at least two"]),
    "the same word twice": (b'["good", "good"]', ["labels.bad", "different"]),
    "an empty word": (b'["bad", " "]', ["labels.bad", "label words"]),
}


@pytest.mark.parametrize(("names", "parts"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_a_bad_label_file_is_one_line(
    names: bytes, parts: list[str], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "labels.bad").write_bytes(names)
    for option in ("prompt", "finetune"):
        assert_names(refusal(f"{COMMANDS[option]} --label-names labels.bad", capfd), *parts)


@pytest.mark.parametrize("option", ENDINGS)
def test_a_missing_label_file_is_one_line(
    option: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    message = refusal(f"{COMMANDS[option]} --label-names data/none.json", capfd)
    assert_names(message, "data/none.json", "does not exist", "setup.sh")
    message = refusal(f"{COMMANDS[option]} --label-names data", capfd)
    assert_names(message, "data is a directory", "give a file")


@pytest.mark.parametrize("option", ENDINGS)
def test_fewer_label_words_than_labels_is_one_line(
    option: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(f"{label} ||| film {label}\n" for label in range(5))
    (folder / "data" / "tiny-train.txt").write_text(lines)
    message = refusal(COMMANDS[option], capfd)  # data/labels.json has two words
    assert_names(message, "data/tiny-train.txt line 3", "label 2", "2 labels", "--label-names")


def test_more_label_words_than_labels_is_a_warning(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "data" / "labels.json").write_text('["bad", "good", "great"]')
    run_llama.main(shlex.split(COMMANDS["prompt"]))
    error = capfd.readouterr().err.splitlines()[0]
    assert error.startswith("warning: ")
    assert_names(error, "data/tiny-train.txt", "label 2 (great)")


# GPU


@pytest.mark.parametrize("option", COMMANDS)
def test_use_gpu_without_a_gpu_is_one_line(
    option: str,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    message = refusal(f"{COMMANDS[option]} --use_gpu", capfd)
    assert_names(message, "--use_gpu", "CUDA", "run without --use_gpu")


# Checkpoints and tokenizers


def torch_bytes(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


class Payload:
    """Makes the folder ran-code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran-code",)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "pickle"])
@pytest.mark.parametrize("place", ["alone", "model", "model_args", "beside"])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run(
    place: str, is_zip: bool, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content: object = torch.load(folder / "model.pt", weights_only=True)
    if place == "alone":
        content = Payload()
    elif place == "beside":
        content["config"] = Payload()
    else:
        content[place]["norm.weight"] = Payload()
    evil = folder / "evil.pt"
    evil.write_bytes(torch_bytes(content, _use_new_zipfile_serialization=is_zip))
    torch.load(evil, weights_only=False)
    (folder / "ran-code").rmdir()  # so the file does run code where it is trusted
    message = refusal(f"{COMMANDS['generate']} --pretrained-model-path evil.pt", capfd)
    assert_names(message, "evil.pt", "nothing in a checkpoint is ever executed")
    assert not (folder / "ran-code").exists()


def truncated(data: bytes, size: float) -> bytes:
    return data[: int(size)] if size > 1 else data[: int(len(data) * size)]


@pytest.mark.parametrize("option", COMMANDS)
@pytest.mark.parametrize("size", [0, 2, 30, 1000, 0.5, 0.999])
def test_a_truncated_checkpoint_is_one_line(
    size: float, option: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = (folder / "model.pt").read_bytes()
    (folder / "cut.pt").write_bytes(truncated(data, size))
    message = refusal(f"{COMMANDS[option]} --pretrained-model-path cut.pt", capfd)
    state = "empty" if size == 0 else "truncated"
    assert_names(message, "cut.pt", state, "setup.sh")


@pytest.mark.parametrize("option", COMMANDS)
def test_what_is_no_checkpoint_file_is_one_line(
    option: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = f"{COMMANDS[option]} --tokenizer model.model --pretrained-model-path "
    assert_names(refusal(command + "none.pt", capfd), "none.pt", "does not exist", "setup.sh")
    assert_names(refusal(command + "data", capfd), "data is a directory", "check the path")
    message = refusal(command + "data/tiny-train.txt", capfd)
    assert_names(message, "data/tiny-train.txt", "neither a torch checkpoint", "setup.sh")


FOREIGN_KEYS = {
    "Hugging Face": ("attention.compute_query", "self_attn.q_proj"),
    "a prefix": ("layers.0.attention.compute_query", "student.layers.0.attention.compute_query"),
}


@pytest.mark.parametrize(("ours", "theirs"), FOREIGN_KEYS.values(), ids=FOREIGN_KEYS)
def test_a_checkpoint_with_foreign_keys_is_refused_by_their_names(
    ours: str, theirs: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(folder / "model.pt", weights_only=True)
    content["model"] = {key.replace(ours, theirs): t for key, t in content["model"].items()}
    (folder / "foreign.pt").write_bytes(torch_bytes(content))
    for option in COMMANDS:
        command = f"{COMMANDS[option]} --pretrained-model-path foreign.pt"
        key = "layers.0.attention.compute_query.weight"
        parts = ["foreign.pt", f"missing {key}", "unexpected", key.replace(ours, theirs)]
        assert_names(refusal(command, capfd), *parts)


CONTENTS = {
    "a state dict alone": ({"norm.weight": torch.ones(3)}, ["'model'", "norm.weight"]),
    "a list": ([torch.ones(3)], ["list", "dict"]),
    "no model_args": ({"model": {}}, ["'model_args'", "model"]),
    "no tensors": ({"model": {}, "model_args": {}}, ["0 tensors", "n_layers"]),
    "unknown model_args": ({"model": {}, "model_args": {"depth": 8}}, ["model_args", "depth"]),
    "bad model_args": (
        {"model": {}, "model_args": {"dim": 510}},
        ["dim=510", "must be", "n_heads=8"],
    ),
}


@pytest.mark.parametrize(("content", "parts"), CONTENTS.values(), ids=CONTENTS)
def test_a_torch_file_that_is_no_checkpoint_is_refused_by_what_it_holds(
    content: object, parts: list[str], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "other.pt").write_bytes(torch_bytes(content))
    message = refusal(f"{COMMANDS['generate']} --pretrained-model-path other.pt", capfd)
    assert_names(message, "other.pt", *parts)


@pytest.mark.parametrize("option", COMMANDS)
def test_a_tokenizer_of_another_vocabulary_is_refused(
    option: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(vocab_size=96)
    save_checkpoint(folder / "other.pt", config, random_llama(config).state_dict())
    arguments = "--pretrained-model-path other.pt --tokenizer model.model"
    message = refusal(f"{COMMANDS[option]} {arguments}", capfd)
    assert_names(message, "model.model", "300 pieces", "other.pt", "96", "--tokenizer")


@pytest.mark.parametrize("option", COMMANDS)
def test_what_is_no_tokenizer_is_one_line(
    option: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    real = (folder / "model.model").read_bytes()
    for data in (b"garbage" * 100, b"", real[: len(real) // 2]):
        (folder / "bad.model").write_bytes(data)
        message = refusal(f"{COMMANDS[option]} --tokenizer bad.model", capfd)
        assert_names(message, "bad.model", "not a SentencePiece model", "--tokenizer")
    for name in ("none.model", "data"):
        message = refusal(f"{COMMANDS[option]} --tokenizer {name}", capfd)
        assert_names(message, f"tokenizer {name} is not a file", "--tokenizer", "setup.sh")


# The process


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has 8."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["python", "GPU", "CPU"],
)
def test_too_little_memory_is_one_line(
    error: Exception,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def allocate(*_: object) -> None:
        raise error

    monkeypatch.setattr("mini_llama.assignment.scoring.predict", allocate)
    message = refusal(COMMANDS["prompt"], capfd)
    assert_names(message, "out of memory", "--batch_size", "--max_sentence_len")


def test_help_comes_at_once_and_shows_every_option_with_its_default() -> None:
    command = [sys.executable, "-X", "importtime", str(SCRIPT), "--help"]
    helped = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert helped.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in helped.stderr.splitlines()}
    assert "argparse" in imported
    assert "torch" not in imported
    shown = " ".join(helped.stdout.split()).partition("options:")[2]
    for flag, default in CONTRACT_DEFAULTS.items():
        _, found, entry = shown.partition(f" {flag} ")
        assert found, f"{flag} is not shown"
        if default not in (None, False):
            assert entry.partition("(default: ")[2].startswith(f"{default})")


def test_the_exit_status_of_a_refusal_is_not_0(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--epochs", "0"]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (refused.returncode, refused.stdout) == (2, "")
    message = r"run_llama\.py: error: --epochs 0 .*at least 1 and at most 100000\n"
    assert re.fullmatch(message, refused.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_developer_can_ask_for_the_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINI_LLAMA_TRACEBACK", "1")
    with pytest.raises(ValueError, match="--epochs 0"):
        run_llama.main(["--epochs", "0"])


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    arguments = "--pretrained-model-path nothere.pt --tokenizer x.model"
    command = f"{sys.executable} {SCRIPT} {arguments} | true"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert "Broken pipe" not in done.stderr and "Traceback" not in done.stderr
