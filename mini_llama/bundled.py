"""The small model and data that come with the project, for a machine without the real files.

They stand in only where none of the real files is there and the user named none: a path that was
given is never replaced.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mini_llama.assignment.options import OUTPUT_ENDINGS, default_of
from mini_llama.places import DATA, SMOLLM2

FOLDER = DATA / "demo"
CHECKPOINT = FOLDER / "demo.pt"
REFERENCE = FOLDER / "sanity_check.data"
PROMPT_TEXT = "Once upon a time, there was a"
# Options that name real files, and what stands in for each.
PATHS = {
    "pretrained_model_path": CHECKPOINT,
    "train": FOLDER / "demo-train.txt",
    "dev": FOLDER / "demo-dev.txt",
    "test": FOLDER / "demo-test.txt",
    "label_names": FOLDER / "demo-label-mapping.json",
}


def announce(what: str) -> None:
    """Say on standard error, in one line, what is used, why, and how to get the real files."""
    real = ""
    if "model" in what:
        real = "; bash setup.sh --smollm2 gets a real chat model"
        if SMOLLM2.is_file():
            real = "; --pretrained-model-path smollm2 is a real chat model"
    print(
        f"using the bundled {what} in {FOLDER}: no real files are here and no path was given; "
        f"get them with bash setup.sh, or name your own{real}",
        file=sys.stderr,
    )


def stand_in(given: Mapping[str, Any]) -> dict[str, Any]:
    """Values for options that were not given, by name; nothing if any real file is there or named.

    `given` are the options that the command line names.
    """
    is_real = any(Path(default_of(name)).exists() for name in PATHS)
    is_trained = given.get("option") == "predict"  # the bundled model is no classifier
    if is_real or is_trained or given.keys() & PATHS.keys() or not CHECKPOINT.exists():
        return {}
    values = {name: str(path) for name, path in PATHS.items()} | {"prompt_text": PROMPT_TEXT}
    ending = OUTPUT_ENDINGS.get(given.get("option", ""))
    if ending:
        values |= {f"{split}_out": f"demo-{split}-{ending}-output.txt" for split in ("dev", "test")}
    return {name: value for name, value in values.items() if name not in given}
