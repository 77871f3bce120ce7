"""The options of addition_run.py, with their defaults, help texts and checks.

Nothing here imports torch, so that --help and errors are fast.
"""

import math
from dataclasses import dataclass
from typing import Any

from config import EDITIONS, LlamaConfig
from mini_llama.addition.additions import CHARS, MAX_LENGTH
from mini_llama.bounds import (
    BATCH_SIZES,
    COUNTS,
    EPOCHS,
    LAYERS,
    SEEDS,
    WIDTHS,
    Range,
    as_usage,
    check_usage,
)
from mini_llama.command_line import (
    argument,
    argument_of,
    check_option,
    check_ranges,
    number,
)

EDITION = "spring2026"
CAPACITY = 5_808_844_800_000  # the course's budget, 6 · parameters · samples seen
VAL_SHARE = 0.2
TEST_FILE = "data/addition_test.txt"
PROGRESS = "progress.pth"  # the state of a run that has not ended
# The settings of the model that the task fixes, as in model_config.json.
FIXED_SHAPE: dict[str, Any] = {
    "vocab_size": len(CHARS) + 1,
    "dropout": 0.0,
    "max_seq_len": MAX_LENGTH + 1,
    "layer_norm_eps": 1e-5,
    "multiple_of": 32,
    "hidden_dim": None,
}
SHAPE = ("dim", "n_layers", "n_heads", "n_kv_heads")
LR_DECAYS = ("none", "linear", "cosine")


@dataclass(frozen=True)
class TrainOptions:
    """addition_run.py train. Raises ValueError, naming the flag, for a value out of bounds."""

    use_gpu: bool = argument(False, "CUDA, or Apple's MPS where there is no CUDA")
    seed: int = number(1337, "seed of the weights, the data and its order", SEEDS)
    epochs: int = number(10, "", EPOCHS)
    batch_size: int = number(1024, "", BATCH_SIZES)
    lr: float = number(
        1e-3,
        "learning rate of our AdamW, which is without weight decay",
        Range(0, 1e30, is_open=True),
    )
    lr_decay: str = argument(
        "none",
        "how the learning rate falls to 0 over all steps of all epochs; the course's is constant",
        choices=LR_DECAYS,
    )
    save_dir: str = argument("addition_models/best_model/", "folder of the model and its records")
    train_file: str = argument(
        "data/addition_train.txt",
        "overwritten, unless --reuse_files; a file of another name needs --overwrite",
    )
    val_file: str = argument("data/addition_dev.txt", "overwritten, unless --reuse_files")
    dim: int = number(16, "", WIDTHS)
    n_layers: int = number(6, "", LAYERS)
    n_heads: int = number(4, "", WIDTHS)
    n_kv_heads: int = number(4, "", WIDTHS)
    capacity: int = number(
        CAPACITY,
        "training samples are capacity / (6 · parameters · epochs), rounded up",
        Range(1, 10**18),
    )
    test_file: str = argument(TEST_FILE, "if it exists, its pairs are excluded from both files")
    reuse_files: bool = argument(False, "train on the existing files, without the test's pairs")
    resume: bool = argument(False, "continue the run in --save_dir after its last finished epoch")
    overwrite: bool = argument(False, "replace the model in --save_dir, if there is one")

    def __post_init__(self) -> None:
        check_ranges(self)
        is_one = not (self.resume and self.overwrite)
        check_usage("--overwrite", is_one, "left out with --resume")
        is_known = self.lr_decay in LR_DECAYS
        check_option(self, "lr_decay", is_known, f"one of {', '.join(LR_DECAYS)}")
        with as_usage():
            self.model_config()

    def model_config(self) -> LlamaConfig:
        shape = FIXED_SHAPE | {name: getattr(self, name) for name in SHAPE}
        edition = EDITIONS[EDITION]
        return LlamaConfig(norm=edition.norm, attention=edition.attention, **shape)


@dataclass(frozen=True)
class TestOptions:
    """addition_run.py test. Raises ValueError, naming the flag, for a value out of bounds."""

    __test__ = False  # or pytest would collect it, because of its name

    checkpoint: str = argument(text="best_model.pth of a folder that train wrote")
    use_gpu: bool = argument_of(TrainOptions, "use_gpu")
    seed: int = number(1337, "has no effect, since decoding is greedy", SEEDS)
    test_file: str = argument(TEST_FILE, "lines a+b=c")
    max_gen_len: int = number(10, "most tokens of an answer, including its end", Range(1, 1000))
    max_test_examples: int | None = number(
        None, "test only this many lines, from the first", COUNTS
    )

    def __post_init__(self) -> None:
        check_ranges(self)


def count_samples(capacity: int, parameters: int, epochs: int) -> tuple[int, int]:
    """The numbers of additions to train and to validate on: as many training samples as `capacity`
    = 6 · parameters · samples · epochs allows (Kaplan et al. 2020, section 2.1), rounded up, and a
    fifth of that.
    """
    train = -(-capacity // (6 * parameters * epochs))
    return train, math.ceil(train * VAL_SHARE)
