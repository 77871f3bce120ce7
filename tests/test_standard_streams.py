"""Standard streams that are closed or full, and a working directory that is gone, in a process."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.test_style import CHECKS, COMMANDS

CODE = """
import sys
from mini_llama.command_line import one_line_errors
with one_line_errors("it.py"):
    file = open(sys.argv[1], "w")
    assert file.fileno() > 2, "a file took the number of a stream"
    print("a note", file=sys.stderr)
    print("an answer")
    file.write("whole")
    file.close()
    sys.exit(int(sys.argv[2]))
"""


def run(folder: Path, redirection: str, status: int = 0, code: str = CODE):
    script = f'"$0" -c "$1" "$2" "$3" {redirection}'
    words = ["bash", "-c", script, sys.executable, code, str(folder / "out"), str(status)]
    return subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("status", [0, 3])
@pytest.mark.parametrize(
    ("redirection", "output", "error"),
    [
        ("2>&-", "an answer\n", ""),
        (">&-", "", "a note\n"),
        ("<&- >&- 2>&-", "", ""),
        ("<&-", "an answer\n", "a note\n"),
    ],
)
def test_a_closed_stream_is_as_dev_null(tmp_path, redirection, output, error, status):
    done = run(tmp_path, redirection, status)
    assert (done.returncode, done.stdout, done.stderr) == (status, output, error)
    assert (tmp_path / "out").read_text() == "whole"


def test_a_full_device_is_one_line(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("asks Linux for a full device")
    done = run(tmp_path, "> /dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "a note\nit.py: error: standard output"
    )  # PYTHONUNBUFFERED or not
    assert done.stderr.endswith(": No space left on device\n") and done.stderr.count("\n") == 2


def test_a_reader_that_has_gone_is_no_error(tmp_path):
    code = CODE.replace('print("an answer")', 'print("an answer\\n" * 100_000)')
    done = run(tmp_path, "| head -n 1; exit ${PIPESTATUS[0]}", code=code.replace("exec ", ""))
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_a_working_directory_that_is_gone_is_one_line(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    script = f'cd {folder} && rmdir {folder} && exec "$0" "$1" info {ROOT}/data/demo/demo.pt'
    words = ["bash", "-c", script, sys.executable, str(ROOT / "checkpoint.py")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and not done.stdout
    expected = "checkpoint.py: error: the working directory does not exist any more"
    assert done.stderr.startswith(expected) and done.stderr.count("\n") == 1


def test_no_home_is_one_line(monkeypatch):
    from mini_llama.inference.compiled_decoding import cache_folder

    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(ValueError, match=r"set XDG_CACHE_HOME \(or HOME\)"):
        cache_folder()


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    from mini_llama.inference.compiled_decoding import cache_folder

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"Not a directory.*set XDG_CACHE_HOME"):
        cache_folder()


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="asks Linux for a full device")


@FULL
@pytest.mark.parametrize("status", [0, 3])
def test_notes_that_a_full_standard_error_cannot_take_are_lost(tmp_path, status):
    done = run(tmp_path, "2> /dev/full", status)
    assert (done.returncode, done.stdout, done.stderr) == (status, "an answer\n", "")
    assert (tmp_path / "out").read_text() == "whole"


def test_notes_whose_reader_has_gone_are_lost(tmp_path):
    code = CODE.replace('"a note"', '"a note\\n" * 100_000')
    done = run(tmp_path, "2> >(exec true); wait", code=code)
    assert "Traceback" not in done.stderr and done.stdout == "an answer\n"


@FULL
@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("checkpoint.py --help", 1),
        ("download.py --list", 1),
        ("tokenizer.py export no.model new.bin", 1),
        ("checkpoint.py inform", 2),
    ],
)
def test_a_command_whose_output_is_full(words, status):
    """Help and results are lost, which is an error; other errors are said all the same."""
    script = f'"$0" {words} > /dev/full'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{words.split()[0]}: error: ")


@pytest.mark.parametrize("words", ["checkpoint --help", "download --list"])
def test_a_command_whose_reader_has_gone(words):
    command, option = words.split()
    code = f"import time; time.sleep(1)\nimport {command}\n{command}.main([{option!r}])"
    script = '"$0" -c "$1" | true; exit ${PIPESTATUS[0]}'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("command", [*COMMANDS, "run_llama", "tokenizer"])
def test_commands_need_no_folder_on_the_path(command, tmp_path):
    """python -P, or PYTHONSAFEPATH, does not look for modules beside the command."""
    words = [sys.executable, "-P", str(ROOT / f"{command}.py"), "--no-such-option"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"{command}.py: error: ")


def test_every_command_finds_its_folder():
    for command in ("run_llama", "tokenizer", "addition_data_generation", *COMMANDS, *CHECKS):
        lines = (ROOT / f"{command}.py").read_text(encoding="utf-8").splitlines()
        place = next(i for i, line in enumerate(lines) if line.startswith("if sys.flags.safe_path"))
        own = ("import mini_llama", "from mini_llama", "from rope", "from optimizer")
        first = next(i for i, line in enumerate(lines) if line.startswith(own))
        assert place < first, command


def test_an_interrupt_while_a_command_imports_is_one_line(tmp_path):
    code = "import signal, sys\nsys.argv = [sys.argv[1]]\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job has it ignored
    code += "import mini_llama\n"
    code += "signal.raise_signal(signal.SIGINT)"
    words = [sys.executable, "-c", code, str(ROOT / "chat.py")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (-2, "chat.py: interrupted\n")  # a shell's 130
