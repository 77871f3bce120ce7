"""missing_modules.py: modules that are neither installed nor used cause no error."""

import subprocess
import sys
from pathlib import Path

import pytest

from mini_llama.submissions import missing_modules

SOURCE = Path(missing_modules.__file__).read_text(encoding="utf-8")
FOUND = """
import abent, importlib.util
from abent.sub.deeper import Thing, BadError, decorate
from abent import *
import abent.sub as short, importlib_metadata
from importlib_metadata import version

TORCH = version("torch")
THRESHOLD = abent.parse(abent.__version__) >= abent.parse("1.2")
Alias = Thing["b t", int] | None

class Mine(Thing, setting=1):
    @decorate
    def ready(self, x: Thing = short.DEFAULT) -> abent.Tensor: return 7

@abent.jit(fast=True)
def ready(x): return x + 1

def checks(x):
    try:
        return isinstance(x, Thing), ready(1)
    except (BadError, abent.exceptions.Timeout):
        return "caught"
"""


def run(folder: Path, code: str, **files: str) -> subprocess.CompletedProcess:
    """Run code as the checks do: nothing of the project is on the path."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-c", SOURCE + f"\ninstall({str(folder)!r})\n" + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_use_during_import_is_allowed(tmp_path):
    code = "import found; print(found.checks(3), found.Mine.ready(None), found.TORCH > '2')"
    done = run(tmp_path, code, found=FOUND)
    assert (done.stdout, done.stderr) == ("(False, 2) 7 True\n", "")


@pytest.mark.parametrize(
    ("use", "member"),
    [
        ("abent.rearrange(x, 'a b')", "rearrange"),
        ("abent.nn.functional.go(x)", "nn.functional.go"),
        ("Thing(x)", "sub.Thing"),
        ("Mine(x)", "sub.Thing"),
        ("Mine2(x)", "sub.OwnError"),
    ],
)
def test_a_use_names_module_and_line(tmp_path, use, member):
    text = "import abent\nfrom abent.sub import Thing, OwnError\nclass Mine(Thing): pass\n"
    text += f"class Mine2(OwnError): pass\ndef f(x):\n    return {use}\n"
    done = run(tmp_path, "import found; found.f(1)", found=text)
    expected = "No module named 'abent' is installed here, and line 6 of found.py uses its "
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {expected}{member}"


@pytest.mark.parametrize(
    "text",
    [
        "try:\n    import abent\n    has = True\nexcept ImportError:\n    has = False",
        "try:\n    from abent.sub import x as has\nexcept:\n    has = False",
        "try:\n    import abent as has\nexcept (KeyError, ModuleNotFoundError):\n    has = False",
        "import contextlib\nhas = False\nwith contextlib.suppress(ImportError):\n"
        "    import abent\n    has = True",
        "import importlib.util\nhas = importlib.util.find_spec('abent') is not None",
        "import helper\nhas = helper.has",
    ],
)
def test_guarded_imports_use_their_fallback(tmp_path, text):
    helper = "try:\n    import abent as has\nexcept Exception:\n    has = False"
    done = run(tmp_path, "import found; print(found.has)", found=text, helper=helper)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize("name", ["rope", "mini_llama.bounds", "torch.abent", "json.abent"])
def test_other_missing_modules_raise_as_usual(tmp_path, name):
    done = run(tmp_path, "import found", found=f"import {name}")
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: No module named")


def test_libraries_get_no_stubs(tmp_path):
    """Only the folder's files get stubs: PyTorch's own optional imports still fail."""
    folder, library = tmp_path / "mine", tmp_path / "library"
    folder.mkdir()
    library.mkdir()
    (library / "lib.py").write_text("import abent")
    done = run(folder, f"sys.path.append({str(library)!r}); import found", found="import lib")
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'abent'"
