"""The files and folders that a stage is given: each is looked for before anything is loaded.

Nothing here needs torch.
"""

import os
from typing import Any

from mini_llama.command_line import flag_of
from mini_llama.places import resolve_model

MODELS = {"pretrained_model_path", "reward_model", "safety_model", "policy"}
REWARD = "a run of align.py reward leaves one in its FOLDER/model.pt"
# By option: what it should be, and what to do if it is not there.
INPUTS = {
    "data": (
        "a file of JSON lines to learn from",
        "docs/post-training.md has their form",
    ),
    "val_data": (
        "a file of held-out JSON lines",
        "without the flag a part of --data is held out",
    ),
    "previous": (
        "the best answers of an earlier iteration",
        "a run of align.py rejection leaves them in its FOLDER/best.jsonl",
    ),
    "pretrained_model_path": (
        "the model to start from",
        "without the flag it is the bundled one, which bash setup.sh gets",
    ),
    "policy": (
        "the model that answers",
        "a run leaves its own in FOLDER/model.pt; without the flag it is the model to start from",
    ),
    "reward_model": ("a reward model", REWARD),
    "safety_model": ("a reward model of safety", REWARD),
}


def check_inputs(options: Any) -> None:
    """Raise FileNotFoundError, one line with flag, path and remedy, for the first input of a stage
    that does not exist.
    """
    for name, (what, remedy) in INPUTS.items():
        given = getattr(options, name, None) or ()
        for path in (given,) if isinstance(given, str) else given:
            found = resolve_model(path) if name in MODELS else path
            if not os.path.exists(found):
                flag = flag_of(type(options), name)
                raise FileNotFoundError(f"{flag} {path} does not exist: give {what}; {remedy}")
