"""The limited side of diagnose.py: a student's modules are imported and examined here.

The request comes on standard input; for each component of each folder a line of JSON goes to
standard output. It is run as a script and imports nothing of the project but the probes: `llama` or
`config` must mean the modules that are examined.
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

MAX_ANSWER = 2**22  # bytes that one component may send

Examine = Callable[[str], dict[str, Any]]  # a component's name → what probes.examine gives


def load_probes() -> tuple[Callable[..., dict[str, Any]], type, Callable[..., object]]:
    """examine, Settings and missing_modules.install, from the project, which is then forgotten:
    `llama` and `mini_llama` are names of what is examined.
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
    """What `examine` gives for each component; {"timeout": seconds} or {"died": how} where it does
    not end by itself.

    One process examines them in turn; where it hangs or dies, another goes on with the next.
    """
    done = 0
    while done < len(components):
        child, reading, allowing = start(folder, components[done:], examine)
        lines = Lines(reading)
        while (line := lines.next(seconds)) and done < len(components):
            yield json_of(line)  # it is passed on before the next is begun, which may end us
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
    """The process that examines, the pipe on which it writes a line for each component, and the one
    on which it waits for a byte before it goes on.

    It imports from the folder, and from those above it up to the working directory, by which
    modules that form a package name each other.
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
        if fd not in (writing, waiting):  # above all the channel: nobody else answers there
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
    """Lines from a pipe, each waited for so long and no longer."""

    def __init__(self, reading: int) -> None:
        self.reading, self.held = reading, b""

    def next(self, seconds: float) -> bytes | None:
        """Empty at the end; None when the time is up, or the line is longer than MAX_ANSWER."""
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
    """Request: {"folders", "components", "settings", "seconds"}; folders are below this one.

    A line for each component of each folder: [folder, component, what examine gave].
    """
    request = json.load(sys.stdin)
    examine_with, make_settings, stand_in_for_missing = load_probes()
    settings = make_settings(**request["settings"])
    # What the examined modules print goes nowhere, and cannot be taken for an answer.
    channel = os.fdopen(os.dup(1), "w")
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    torch.set_num_threads(1)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # on the CPU, whatever there is
    # What takes long is imported here, and not again in every process: with the first optimizer
    # torch's compiler, and what the courses' utils.py asks for.
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
