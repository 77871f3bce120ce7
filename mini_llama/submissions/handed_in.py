"""What each edition asks its students to hand in, and what nobody should: one table of files.

Sources: the courses' own READMEs and prepare_submit.py.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mini_llama.assignment.options import OUTPUT_ENDINGS, default_of
from mini_llama.submissions.prediction_files import PREDICTION_FILES

MEBIBYTE = 1024 * 1024

GENERATED_FILES = (
    default_of("generated_sentence_low_temp_out"),
    default_of("generated_sentence_high_temp_out"),
)
_SOURCES = (
    "run_llama.py",
    "base_llama.py",
    "llama.py",
    "rope.py",
    "classifier.py",
    "config.py",
    "optimizer.py",
    "sanity_check.py",
    "tokenizer.py",
    "utils.py",
)
_ADDITION_SOURCES = ("addition_data_generation.py", "addition_lib.py", "addition_run.py")
_OTHERS = ("README.md", "structure.md", "sanity_check.data", "setup.sh")
_CHECKLIST = "checklist.md"

ADDITION_MODELS = "addition_models"
REPORTS = "*report*.pdf"  # its name should be ID-report.pdf
_EXTRAS = ("*-advanced-output.txt", "feedback.txt", REPORTS)

# What the courses' setup.sh installs, by the names that are imported, and what that brings along.
_INSTALLED = frozenset(
    "torch torchvision torchaudio tqdm requests importlib_metadata filelock sklearn numpy "
    "tokenizers sentencepiece scipy joblib threadpoolctl jinja2 markupsafe sympy mpmath networkx "
    "fsspec typing_extensions PIL yaml certifi charset_normalizer idna urllib3 zipp setuptools "
    "pkg_resources pip".split()
)
# Extras of this solution, imported where one is asked for.
_OWN_EXTRAS = frozenset(
    "bitsandbytes matplotlib pytest safetensors tensorboard tiktoken tokenizers".split()
)


@dataclass(frozen=True)
class HandIn:
    """What one edition asks for.

    `options` are those of run_llama.py whose prediction files are handed in. `extras` are patterns
    of files that may be added. `folders` are handed in whole, checkpoints in them too. `packages`
    may be imported.
    """

    sources: tuple[str, ...] = _SOURCES
    others: tuple[str, ...] = (*_OTHERS, _CHECKLIST)
    options: tuple[str, ...] = tuple(OUTPUT_ENDINGS)
    extras: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    max_bytes: int = 10 * MEBIBYTE
    packages: frozenset[str] = _INSTALLED

    @property
    def names(self) -> tuple[str, ...]:
        """The files that are asked for, without the prediction files."""
        return (*self.sources, *self.others, *GENERATED_FILES)

    def is_extra(self, name: str) -> bool:
        """Whether a file may be added, or is in a folder that is handed in whole."""
        return self.is_in_folder(name) or is_like(name, self.extras)

    def is_in_folder(self, name: str) -> bool:
        return name.split("/")[0] in self.folders and "/" in name


_WITH_LORA = (*_SOURCES, "lora.py")
_WITHOUT_LORA = tuple(option for option in OUTPUT_ENDINGS if option != "lora")
HAND_INS = {
    "mmia": HandIn(sources=_WITH_LORA, packages=_INSTALLED | _OWN_EXTRAS),
    "fall2025": HandIn(sources=_WITH_LORA, extras=_EXTRAS),
    "fall2024": HandIn(others=_OTHERS, options=_WITHOUT_LORA, extras=(REPORTS,)),
    "spring2025": HandIn(others=_OTHERS, options=_WITHOUT_LORA, extras=_EXTRAS),
    "spring2026": HandIn(
        sources=(*_SOURCES, *_ADDITION_SOURCES),
        options=("prompt",),
        extras=("feedback.txt", REPORTS),
        folders=(ADDITION_MODELS,),
        max_bytes=15 * MEBIBYTE,
        packages=_INSTALLED | {"matplotlib"},
    ),
    "llama2": HandIn(sources=_WITH_LORA, packages=_INSTALLED | _OWN_EXTRAS),
}
# Files of any edition, which tell where in a zip a submission is.
ASKED_FOR = frozenset(name for one in HAND_INS.values() for name in one.names) | {*PREDICTION_FILES}
# A class's own folder may well hold a README.
TELLING = ASKED_FOR - {*_OTHERS, _CHECKLIST}
ALL_EXTRAS = tuple(dict.fromkeys(extra for one in HAND_INS.values() for extra in one.extras))


def is_like(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file directly in the top folder has a name of one of these patterns."""
    return "/" not in name and any(fnmatchcase(name.casefold(), p) for p in patterns)


# --- what is wrong to hand in, whatever the edition ---

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".gguf", ".onnx", ".h5")
NO_CHECKPOINTS = {"tokenizer.bin"}  # llama2.c's tokenizer
CLUTTER_FOLDERS = frozenset(
    ".git .svn .hg __pycache__ .ipynb_checkpoints .pytest_cache .mypy_cache .ruff_cache .cache "
    ".tox .venv venv site-packages node_modules .idea .vscode .vs __MACOSX .Trash .eggs".split()
)
ENVIRONMENT_MARKS = ("pyvenv.cfg", "conda-meta/history")  # of venv, of conda
CLUTTER_FILES = (
    *("*.pyc", "*.pyo", "*.swp", "*~", ".ds_store", "._*", "thumbs.db", "desktop.ini", "icon\r"),
    *("*.zip", "*.tar", "*.tgz", "*.tar.?z", "*.tar.bz2", "*.7z", "*.rar", "*.tfevents.*"),
)
MACOS = re.compile(r"(^|/)(__MACOSX/|\.DS_Store$|\._[^/]*$|Icon\r$)")


def is_checkpoint(name: str) -> bool:
    """Whether a file is one of weights."""
    base = name.rpartition("/")[2].casefold()
    return base.endswith(CHECKPOINT_SUFFIXES) and base not in NO_CHECKPOINTS


def find_clutter(names: Collection[str]) -> dict[str, str]:
    """The names that nobody should hand in, each with the folder, or the file, that it is in."""
    ends = tuple(f"/{mark}" for mark in ENVIRONMENT_MARKS)
    marked = [(name, end) for name in names for end in ends if name.endswith(end)]
    environments = {name.removesuffix(end) + "/" for name, end in marked}
    found = {name: clutter for name in names if (clutter := _clutter(name))}
    for name in names:
        for folder in environments:
            if name.startswith(folder):
                found[name] = folder
    return found


def _clutter(name: str) -> str | None:
    parts = name.removesuffix("/").split("/")
    for i, part in enumerate(parts):
        if part in CLUTTER_FOLDERS:
            return "/".join(parts[: i + 1]) + "/"
    is_file = not name.endswith("/") and is_like(parts[-1], CLUTTER_FILES)
    return name if is_file else None
