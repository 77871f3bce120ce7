"""Whether this Python has the packages that everything needs."""

import importlib.util
import sys
from pathlib import Path

from mini_llama.places import ROOT

PACKAGES = ("numpy", "sentencepiece", "sklearn", "torch", "tqdm")


def check_packages() -> None:
    """Exit with one line if one of our commands runs in a Python that lacks a package; usually
    that is the system's instead of the one in .venv. Other programs get Python's own error.
    """
    program = Path(sys.argv[0])
    if program.suffix != ".py" or program.resolve().parent != ROOT:
        return
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if not missing:
        return
    python = ROOT / ".venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    remedy = "install the packages with bash setup.sh"
    if python.exists() and Path(sys.prefix).resolve() != python.parent.parent.resolve():
        remedy = f"run it with {python}, or activate that environment"
    names = ", ".join(missing)
    sys.exit(f"{program.name}: error: {sys.executable} does not have {names}: {remedy}")
