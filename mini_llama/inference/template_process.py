"""Renders a chat template in a process of its own, with limits on time, memory and length.

The process stays for the next turn, and is started again after it had to be killed.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import IO, Any

from mini_llama.tokenization.chat_files import LARGEST_TEMPLATE

WORKER = Path(__file__).with_name("template_worker.py")
MEBIBYTE = 2**20
MEMORY_BYTES = 256 * MEBIBYTE
SECONDS = 1  # of computing, for a text; up to one more, as the system counts whole ones
WAITING_SECONDS = 20.0  # for an answer, on a machine that is busy
MOST_CHARACTERS = 4 * MEBIBYTE
LONGEST_ANSWER = 13 * MOST_CHARACTERS  # bytes; JSON has up to 12 for a character
ENVIRONMENT = ("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "HOME", "SYSTEMROOT", "TZ")
REMEDY = "choose --template plain, or give a template of your own with --template FILE"
WRONG = {
    "syntax": "is not valid Jinja: {}",
    "security": "reaches for what it must not have: {}",
    "length": "writes too much: {}",
    "memory": f"needs more than {MEMORY_BYTES // MEBIBYTE} MiB of memory",
    "recursion": "calls itself without end",
    "time": "computes for more than a second",
    "died": "ended its process: {}",
    "error": "fails: {}",
}


class TemplateRefusalError(ValueError):
    """The template's own words about a conversation that it does not take."""


class TemplateProcess:
    """A template, from `origin`, that is rendered elsewhere.

    On Linux the system bounds memory and computing time; elsewhere at least the wait is bounded.
    """

    def __init__(self, source: str, origin: str | Path) -> None:
        self.source, self.origin = source, origin
        self.process: subprocess.Popen[bytes] | None = None
        if len(source) > LARGEST_TEMPLATE:
            raise self.error("length", f"the template itself has {len(source)} characters")
        if importlib.util.find_spec("jinja2") is None:
            raise ValueError("a chat template needs jinja2, which is not installed: bash setup.sh")

    def render(self, variables: dict[str, Any]) -> str:
        """The template's text. Raises TemplateRefusalError for its own raise_exception, ValueError
        for a template that is no valid one, or exceeds a limit.
        """
        if self.process is None or self.process.poll() is not None:
            self._start()
        text = self._ask(variables)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self.error("error", "its text is not UTF-8") from None
        return text

    def error(self, kind: str, message: str) -> ValueError:
        """Of what the worker answers, in one line."""
        message = " ".join(message.split())
        if kind == "raised":
            return TemplateRefusalError(f"the chat template refuses this: {message}")
        return ValueError(f"chat template {self.origin} {WRONG[kind].format(message)}; {REMEDY}")

    def _start(self) -> None:
        kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept | {"PYTHONIOENCODING": "utf-8", "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=os.name == "posix",  # Ctrl-C is not for it
        )
        weakref.finalize(self, _stop, self.process)
        limits = {"seconds": SECONDS, "memory_bytes": MEMORY_BYTES, "most": MOST_CHARACTERS}
        try:
            self._ask({"source": self.source, **limits})
        except ValueError:
            self.close()
            raise

    def _ask(self, content: dict[str, Any]) -> str:
        """Send a line, and wait for one; the process is killed if none comes in time."""
        process = self.process
        assert process is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(WAITING_SECONDS, stop)
        timer.daemon = True
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                _pipe(process.stdin).write(json.dumps(content).encode() + b"\n")
                _pipe(process.stdin).flush()
            line = _pipe(process.stdout).readline(LONGEST_ANSWER)
        except BaseException:  # an answer that comes later must not be taken for another
            self.close()
            raise
        finally:
            timer.cancel()
        if line.endswith(b"\n"):
            answer: dict[str, str] = json.loads(line)
            if "text" in answer:
                return answer["text"]
            raise self.error(answer["kind"], answer["message"])
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)  # its own exit status, not that of being killed
        code = self.close()
        is_late = late.is_set() or code == -getattr(signal, "SIGXCPU", 0)
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        raise self.error("time" if is_late else "died", how)

    def close(self) -> int:
        """End the process; its exit status. The next text starts another."""
        process, self.process = self.process, None
        return 0 if process is None else _stop(process)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # both were asked for
    return pipe


def _stop(process: subprocess.Popen[bytes]) -> int:
    process.kill()
    code = process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was still to be written
            _pipe(pipe).close()
    return code
