"""chat.py as a user has it: a pipe, a terminal, commands, refusals, Ctrl-C."""

import contextlib
import io
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import chat
from llama import Llama
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.inference import talk as talk_module
from mini_llama.inference.generation import generate
from mini_llama.inference.sampling import Sampler
from mini_llama.tokenization.base import StreamDecoder
from tests.helpers import ROOT, random_llama, tiny_config
from tokenizer import Tokenizer

SCRIPT = ROOT / "chat.py"
# Where Ctrl-C is ignored, as below nohup, the processes that a test starts ignore it as well.
CAN_INTERRUPT = pytest.mark.skipif(
    os.name != "posix" or signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
    reason="needs a pseudo-terminal, and Ctrl-C not to be ignored",
)
RATE = re.compile(r"prompt of (\d+) tokens, (\d+) written, [\d.]+ tokens/s")


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """small.pt, with a context of 64, and long.pt, with one that takes seconds to fill."""
    folder = tmp_path_factory.mktemp("chat")
    for name, length in (("small", 64), ("long", 60_000)):
        config = tiny_config(vocab_size=300, max_seq_len=length, norm="rmsnorm", attention="causal")
        llama = random_llama(config)
        tensors = llama.state_dict()
        tensors["output.weight"][:3] *= 0  # <unk>, BOS and EOS: answers end at their longest
        save_checkpoint(folder / f"{name}.pt", config, tensors)
        (folder / f"{name}.model").write_bytes((tiny_folder / "model.model").read_bytes())
    return folder


def run(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lines: str | bytes,
    *arguments: object,
) -> tuple[int | str, str, str]:
    """Exit status, or the message that goes with status 1; standard output; standard error."""
    content = lines if isinstance(lines, bytes) else lines.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    with pytest.raises(SystemExit) as ended:
        chat.main([*map(str, arguments)])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


@pytest.fixture
def talk(folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Lines and arguments → what a chat with the small model gives."""
    model = ["--pretrained-model-path", folder / "small.pt", "--max_new_tokens", 8]
    return lambda lines, *arguments: run(capsys, monkeypatch, lines, *model, *arguments)


def test_a_pipe_has_a_turn_on_every_line_and_only_answers_on_standard_output(
    folder: Path, tmp_path: Path
) -> None:
    command = [sys.executable, SCRIPT, "--pretrained-model-path", folder / "small.pt"]
    command += ["--max_new_tokens", "8", "--temperature", "0"]
    lines = "a dull film\n\n/system the plot\nis\r\n"
    done = subprocess.run(
        command, cwd=tmp_path, input=lines.encode(), capture_output=True, timeout=60
    )
    assert done.returncode == 0
    error = done.stderr.decode()
    assert re.search(r"^load model from .*small\.pt: rmsnorm, causal", error)
    assert "template plain (default), context 64 tokens, 8 of them for the answer" in error
    assert [found.group(2) for found in RATE.finditer(error)] == ["8", "8"]
    tokenizer = Tokenizer(tokenizer_model=folder / "small.model")
    llama = chat_model(folder / "small.pt")
    first = continuation(llama, tokenizer, "a dull film")
    second = continuation(llama, tokenizer, f"the plot a dull film{first.rstrip()} is")
    shown = [talk_module.visible(text, kept="\n\t") for text in (first, second)]
    assert done.stdout.decode() == f"{shown[0]}\n{shown[1]}\n"
    assert list(tmp_path.iterdir()) == []


def chat_model(path: Path) -> Llama:
    from llama import load_pretrained

    return load_pretrained(str(path))


def continuation(llama: Llama, tokenizer: Tokenizer, text: str) -> str:
    """Eight tokens, by the uncached path of generate, as text."""
    ids = tokenizer.encode(text, bos=True, eos=False)
    tokens = generate(llama, torch.tensor([ids]), 8, Sampler(0.0), use_cache=False)
    decoder = StreamDecoder(tokenizer, at_start=False)
    return "".join(map(decoder.feed, tokens[0, len(ids) :].tolist())) + decoder.finish()


def test_the_same_seed_gives_the_same_bytes(talk) -> None:
    results = [talk("a film\nthe plot\n", "--seed", seed)[1] for seed in (1, 1, 2)]
    assert results[0] == results[1] != results[2]


def test_refused_turns_leave_the_conversation_as_it_was(talk) -> None:
    alone = talk("a film\nthe\n", "--temperature", 0)
    too_long = b"plot " * 90
    lines = b"a film\nsay [INST] x\n/nonsense\n\xff\xfe\n" + too_long + b"\n/system </s>\nthe\n"
    status, out, err = talk(lines, "--temperature", 0)
    assert (alone[0], status) == (0, 1)
    assert out == alone[1]
    refusals = [line for line in err.splitlines() if line.startswith("refused: ")]
    assert len(refusals) == 5
    for line, text in zip(
        refusals,
        ["[INST] is not allowed", "/nonsense is no command", "not UTF-8", "at most 56 fit", "</s>"],
        strict=True,
    ):
        assert text in line


def test_old_exchanges_are_forgotten_with_a_line(talk) -> None:
    status, _, err = talk("a film the plot\n" * 9, "--system", "a story", "--template", "llama2")
    assert status == 0
    assert "the context is full: the oldest 1 exchange is forgotten" in err
    assert all(int(found.group(1)) + 8 <= 64 for found in RATE.finditer(err))
    assert len(RATE.findall(err)) == 9


def test_commands(talk) -> None:
    once, _ = talk("a film\n", "--temperature", 0)[1:]
    status, out, err = talk(
        "a film\n/undo\n/undo\na film\nand\n/reset\na film\n/help\n/system\n/quit\nnever\n",
        *("--temperature", 0),
    )
    assert status == 0
    answers = [*out.split(once)]
    assert out.startswith(once * 2) and out.endswith(once) and len(answers) >= 4
    for text in ("there is nothing to undo", "all exchanges are forgotten", "/system TEXT"):
        assert text in err
    assert "there is no system prompt" in err
    assert len(RATE.findall(err)) == 4  # and none for "never"


def test_a_line_of_any_length_is_refused(talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk_module, "LONGEST_LINE", 20)
    status, _, err = talk("x" * 99 + "\n" + "x" * 20 + "\na film\n" + "y" * 50)
    assert status == 1
    assert err.count("a line has at most 20 characters") == 2
    assert len(RATE.findall(err)) == 2


def test_control_characters_of_a_model_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scripted:
        exchanges, seen = [], [0] * 9

        def prompt(self, user: str) -> tuple[list[int], int]:
            return [1, 2], 0

        def answer(self, ids: list[int]) -> Iterator[str]:
            yield from ["a\x1b]0;x\x07", "b\tc\n", "\x9b31m\r\x7f\u202eé", ""]

        def keep(self, user: str, answer: str) -> None:
            self.exchanges.append((user, answer))

    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    conversation = Scripted()
    talk_module.Talk(conversation).run()
    shown = "a\\x1b]0;x\\x07b\tc\n\\x9b31m\\r\\x7f\\u202eé\n"
    assert capsys.readouterr().out == shown
    assert conversation.exchanges == [("hello", "a\x1b]0;x\x07b\tc\n\x9b31m\r\x7f\u202eé")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", -1], "--temperature -1.0 is not allowed: it must be at least 0"),
        (["--temperature", "nan"], "--temperature nan is not allowed"),
        (["--top_p", 0], "--top_p 0.0 is not allowed"),
        (["--seed", -1], "--seed -1 is not allowed"),
        (["--max_new_tokens", 0], "--max_new_tokens 0 is not allowed"),
        (["--max_new_tokens", 64], "--max_new_tokens 64 is not allowed: the context is 64 tokens"),
        (["--system", "a <<SYS>> b"], "<<SYS>> is not allowed in a text"),
        (["--system", "plot " * 80], "at most 56 fit the context"),
        (["--edition", "mmia", "--compile"], "needs a key/value cache"),
        (["--pretrained-model-path", "nothere.pt"], "nothere.pt"),
        (["--tokenizer", "nothere.model"], "nothere.model"),
        (["--tokenizer", ROOT / "data/demo/demo.model"], "has 2048 pieces, but"),
    ],
)
def test_what_cannot_start_is_one_line(talk, arguments: list, message: str) -> None:
    status, out, err = talk("a film\n", *arguments)
    line = err.splitlines()[-1] if status == 2 else status
    assert isinstance(line, str) and message in line and "\n" not in line
    assert line.startswith("chat.py: error: ") and out == ""


def test_wrong_words_are_one_line(talk) -> None:
    status, out, err = talk("", "--template", "llama3")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "llama3" in err


def test_bidirectional_attention_works_without_a_cache(talk) -> None:
    status, _, err = talk("a film\nthe\n", "--edition", "mmia", "--norm", "rmsnorm")
    assert status == 0 and "bidirectional attention" in err
    assert len(RATE.findall(err)) == 2


def test_help_comes_without_torch() -> None:
    command = [sys.executable, "-X", "importtime", str(SCRIPT), "--help"]
    helped = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert helped.returncode == 0 and "/help" in helped.stdout
    assert "torch" not in {line.rpartition("|")[2].strip() for line in helped.stderr.splitlines()}


class Terminal:
    """A chat on a pseudo-terminal."""

    def __init__(self, *arguments: object) -> None:
        pty = pytest.importorskip("pty")
        command = [sys.executable, str(SCRIPT), *map(str, arguments)]
        self.text = ""
        self.process, self.end = pty.fork()
        if self.process == 0:
            os.execv(command[0], command)

    def expect(self, pattern: str, seconds: float = 60, press: str = "") -> None:
        """Read until `pattern` has come, and forget all up to its end; meanwhile press a key, again
        and again: readline may miss a signal that comes with its prompt.
        """
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text)):
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern} did not come, but {self.text[-500:]!r}"
            self.type(press)
            if select.select([self.end], [], [], min(left, 0.5))[0]:
                self.text += os.read(self.end, 4096).decode(errors="replace")
        self.text = self.text[found.end() :]

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def close(self) -> int:
        """The exit status; a process that goes on is ended."""
        with contextlib.suppress(OSError):  # what Linux says when the other end is closed
            self.expect("nothing more", seconds=20)
        os.close(self.end)
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


@CAN_INTERRUPT
def test_a_terminal_and_ctrl_c(folder: Path) -> None:
    model = ["--pretrained-model-path", folder / "long.pt", "--max_new_tokens", 30_000]
    terminal = Terminal(*model)
    terminal.expect(r"template plain.*\n")
    terminal.expect("> ")
    terminal.type("a film\n")
    terminal.expect(r"a film\r\n.{20}")
    terminal.type("\x03")
    terminal.expect(r"prompt of \d+ tokens, \d+ written")
    terminal.expect("> ")
    terminal.type("/undo\n")
    terminal.expect("the last exchange is forgotten")  # what was written had stayed
    terminal.expect("> ")
    terminal.expect("Ctrl-D or /quit ends", press="\x03")
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.close() == 0
    assert "Traceback" not in terminal.text


@CAN_INTERRUPT
def test_ctrl_c_ends_a_pipe(folder: Path) -> None:
    command = [sys.executable, SCRIPT, "--pretrained-model-path", folder / "long.pt"]
    process = subprocess.Popen(
        [*command, "--max_new_tokens", "30000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(b"a film\nthe plot\n")
    process.stdin.flush()
    assert process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().endswith("chat.py: interrupted\n") and "Traceback" not in err.decode()
