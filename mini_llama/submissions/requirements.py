"""The files that each edition requires, and files that should never be submitted.

Sources: the courses' READMEs and prepare_submit.py.
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

# Import names of the packages that the courses' setup.sh installs, and of their dependencies.
_INSTALLED = frozenset(
    "torch torchvision torchaudio tqdm requests importlib_metadata filelock sklearn numpy "
    "tokenizers sentencepiece scipy joblib threadpoolctl jinja2 markupsafe sympy mpmath networkx "
    "fsspec typing_extensions PIL yaml certifi charset_normalizer idna urllib3 zipp setuptools "
    "pkg_resources pip".split()
)
# Optional dependencies of this solution.
_OWN_EXTRAS = frozenset(
    "bitsandbytes matplotlib pytest safetensors tensorboard tiktoken tokenizers".split()
)


@dataclass(frozen=True)
class Requirements:
    """The requirements of one edition.

    `options` are the options of run_llama.py whose prediction files are required, `extras` the
    patterns of optional files, `folders` those submitted as a whole, with their checkpoints, and
    `packages` those that may be imported.
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
        """The required files except the prediction files."""
        return (*self.sources, *self.others, *GENERATED_FILES)

    def is_extra(self, name: str) -> bool:
        """Whether a file is optional, or in a folder that is submitted as a whole."""
        return self.is_in_folder(name) or is_like(name, self.extras)

    def is_in_folder(self, name: str) -> bool:
        return name.split("/")[0] in self.folders and "/" in name


_WITH_LORA = (*_SOURCES, "lora.py")
_WITHOUT_LORA = tuple(option for option in OUTPUT_ENDINGS if option != "lora")
REQUIREMENTS = {
    "mmia": Requirements(sources=_WITH_LORA, packages=_INSTALLED | _OWN_EXTRAS),
    "fall2025": Requirements(sources=_WITH_LORA, extras=_EXTRAS),
    "fall2024": Requirements(others=_OTHERS, options=_WITHOUT_LORA, extras=(REPORTS,)),
    "spring2025": Requirements(others=_OTHERS, options=_WITHOUT_LORA, extras=_EXTRAS),
    "spring2026": Requirements(
        sources=(*_SOURCES, *_ADDITION_SOURCES),
        options=("prompt",),
        extras=("feedback.txt", REPORTS),
        folders=(ADDITION_MODELS,),
        max_bytes=15 * MEBIBYTE,
        packages=_INSTALLED | {"matplotlib"},
    ),
    "llama2": Requirements(sources=_WITH_LORA, packages=_INSTALLED | _OWN_EXTRAS),
}
# Required files of any edition; they show where in a zip the submission is.
REQUIRED_NAMES = frozenset(name for one in REQUIREMENTS.values() for name in one.names) | {
    *PREDICTION_FILES
}
# The files that show that a folder is a submission: a folder of submissions may hold a README too.
IDENTIFYING_NAMES = REQUIRED_NAMES - {*_OTHERS, _CHECKLIST}
EXTRA_PATTERNS = tuple(
    dict.fromkeys(extra for one in REQUIREMENTS.values() for extra in one.extras)
)


def is_like(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file directly in the top folder matches one of the patterns."""
    return "/" not in name and any(fnmatchcase(name.casefold(), p) for p in patterns)


# --- what no edition wants ---

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".gguf", ".onnx", ".h5")
NOT_CHECKPOINTS = {"tokenizer.bin"}  # llama2.c's tokenizer
CLUTTER_FOLDERS = frozenset(
    ".git .svn .hg __pycache__ .ipynb_checkpoints .pytest_cache .mypy_cache .ruff_cache .cache "
    ".tox .venv venv site-packages node_modules .idea .vscode .vs __MACOSX .Trash .eggs".split()
)
ENVIRONMENT_MARKS = ("pyvenv.cfg", "conda-meta/history")  # venv, conda
CLUTTER_FILES = (
    *("*.pyc", "*.pyo", "*.swp", "*~", ".ds_store", "._*", "thumbs.db", "desktop.ini", "icon\r"),
    *("*.zip", "*.tar", "*.tgz", "*.tar.?z", "*.tar.bz2", "*.7z", "*.rar", "*.tfevents.*"),
)
MACOS = re.compile(r"(^|/)(__MACOSX/|\.DS_Store$|\._[^/]*$|Icon\r$)")


def is_checkpoint(name: str) -> bool:
    """Whether a file holds weights, by its name."""
    base = name.rpartition("/")[2].casefold()
    return base.endswith(CHECKPOINT_SUFFIXES) and base not in NOT_CHECKPOINTS


def find_clutter(names: Collection[str]) -> dict[str, str]:
    """Files that should not be submitted, each with the folder to leave out, or itself."""
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
