"""Before a command's imports: which packages are missing, and Ctrl-C in one line."""

import functools
import importlib.util
import os
import sys
import types
from pathlib import Path

from mini_llama.places import ROOT

PACKAGES = ("numpy", "sentencepiece", "sklearn", "torch", "tqdm")


def prepare_command() -> None:
    """If one of our commands runs: exit with one line where this Python lacks a package, and show a
    Ctrl-C in one line until its main does. Other programs get Python's own errors.
    """
    program = Path(sys.argv[0])
    if program.suffix == ".py" and program.resolve().parent == ROOT:
        check_packages(program)
        sys.excepthook = functools.partial(_show_error, program.name)


def _show_error(
    program: str,
    kind: type[BaseException],
    error: BaseException,
    traceback: types.TracebackType | None,
) -> None:
    if issubclass(kind, KeyboardInterrupt) and not os.environ.get("MINI_LLAMA_TRACEBACK"):
        print(f"{program}: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def check_packages(program: Path) -> None:
    """Exit with one line if a package is missing; usually the Python is then the system's instead
    of the one in .venv.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if not missing:
        return
    python = ROOT / ".venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    remedy = "install the packages with bash setup.sh"
    if python.exists() and Path(sys.prefix).resolve() != python.parent.parent.resolve():
        remedy = f"run it with {python}, or activate that environment"
    names = ", ".join(missing)
    sys.exit(f"{program.name}: error: {sys.executable} does not have {names}: {remedy}")
