"""The process with limits that diagnose.py starts: it imports and probes a student's modules.

It reads a request from standard input and writes one line of JSON to standard output for each
component of each folder. It runs as a script and imports nothing of the project but the probes:
`llama` or `config` must be the student's.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

MAX_ANSWER = 2**22  # bytes of output for one component

Examine = Callable[[str], dict[str, Any]]  # a component's name → the result of probes.examine


def load_probes() -> tuple[Callable[..., dict[str, Any]], type, Callable[..., object]]:
    """Import examine, Settings and missing_modules.install from the project, then remove the
    project from sys.modules: from here on `llama` and `mini_llama` are the student's.
    """
    root = str(Path(__file__).resolve().parents[2])
    sys.path.insert(0, root)
    examining = importlib.import_module("mini_llama.diagnosis.probes.examine")
    common = importlib.import_module("mini_llama.diagnosis.probes.common")
    missing = importlib.import_module("mini_llama.submissions.missing_modules")
    sys.path.remove(root)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mini_llama"]:
        del sys.modules[name]
    return examining.examine, common.Settings, missing.install


def answer(
    folder: str, components: Sequence[str], examine: Examine, seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield the result of `examine` for each component; {"timeout": seconds} if it hangs,
    {"died": how} if its process dies.

    One process examines them in turn; after a hang or a crash a new one continues with the next.
    """
    done = 0
    while done < len(components):
        child, reading, allowing = start(folder, components[done:], examine)
        lines = Lines(reading)
        while (line := lines.next(seconds)) and done < len(components):
            yield json_of(line)  # pass it on first: the next component may kill this process
            done += 1
            with contextlib.suppress(BrokenPipeError):
                os.write(allowing, b".")
        os.close(reading)
        os.close(allowing)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if done < len(components):
            code = os.waitstatus_to_exitcode(status)
            how = f"signal {-code}" if code < 0 else f"exit status {code}"
            yield {"timeout": seconds} if line is None else {"died": how}
            done += 1


def start(folder: str, components: Sequence[str], examine: Examine) -> tuple[int, int, int]:
    """Fork a process that examines the components. Returns its id, a pipe to read one line for each
    component from, and a pipe to write a byte to before each next component.

    It imports from the folder and its parents, up to the working directory, since modules in a
    package may import each other by the package's name.
    """
    top = Path.cwd().parent
    reading, writing = os.pipe()
    waiting, allowing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        os.close(waiting)
        return child, reading, allowing
    for fd in range(3, max(writing, allowing) + 100):
        if fd not in (
            writing,
            waiting,
        ):  # above all the channel, on which only the parent may write
            with contextlib.suppress(OSError):
                os.close(fd)
    os.chdir(folder)
    sys.path.insert(0, os.getcwd())
    sys.path += [str(above) for above in Path(os.getcwd()).parents if top in above.parents]
    for component in components:
        text = json.dumps(examine(component)) + "\n"
        with contextlib.suppress(BrokenPipeError), os.fdopen(os.dup(writing), "w") as pipe:
            pipe.write(text)
        os.read(waiting, 1)
    os._exit(0)


class Lines:
    """Reads lines from a pipe, with a time limit for each."""

    def __init__(self, reading: int) -> None:
        self.reading, self.held = reading, b""

    def next(self, seconds: float) -> bytes | None:
        """The next line; empty at the end, None on a timeout or a line longer than MAX_ANSWER."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self.held:
            left = max(0.0, deadline - time.monotonic())
            if len(self.held) > MAX_ANSWER or not select.select([self.reading], [], [], left)[0]:
                return None
            block = os.read(self.reading, 2**16)
            if not block:
                return b""
            self.held += block
        line, _, self.held = self.held.partition(b"\n")
        return line


def json_of(line: bytes) -> dict[str, Any]:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError):
        given = None
    return given if isinstance(given, dict) else {}


def main() -> None:
    """Answer the request {"folders", "components", "settings", "seconds"}; folders are relative.

    Writes a line [folder, component, result of examine] for each component of each folder.
    """
    request = json.load(sys.stdin)
    examine_with, make_settings, stand_in_for_missing = load_probes()
    settings = make_settings(**request["settings"])
    # Discard what the student's modules print, so that it cannot pass for an answer.
    channel = os.fdopen(os.dup(1), "w")
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    torch.set_num_threads(1)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # CPU only
    # Import slow modules once, before forking: those of the courses' utils.py, and torch's
    # compiler, which the first optimizer imports.
    for name in ("requests", "tqdm.auto", "filelock", "sentencepiece", "numpy"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)

    stand_in_for_missing(os.getcwd())

    def examine(component: str) -> dict[str, Any]:
        return examine_with(component, settings)

    for folder in request["folders"]:
        answers = answer(folder, request["components"], examine, request["seconds"])
        for component, given in zip(request["components"], answers, strict=True):
            channel.write(json.dumps([folder, component, given]) + "\n")
            channel.flush()


if __name__ == "__main__":
    main()
