"""The options of the stages with rewards: reward models, rejection sampling, PPO.

Defaults are Llama 2's (section 3.2), and where it has none those of OpenAI's and TRL's PPO.
Nothing here needs torch.
"""

from dataclasses import dataclass

from mini_llama.alignment.options import DataOptions, SftOptions, StageOptions
from mini_llama.bounds import BATCH_SIZES, COUNTS, COUNTS_OR_NONE, LEARNING_RATES, SEEDS, Range
from mini_llama.command_line import argument, argument_of, check_option, check_ranges, number

MARGIN_TABLES = ("none", "small", "large")
TEMPERATURES = Range(0, 100)
NEW_TOKENS = Range(1, 10**6)


@dataclass(frozen=True, kw_only=True)
class RewardOptions(DataOptions):
    """A reward model (section 3.2.2): learning rate, warmup, batch and cosine to a tenth."""

    lr: float = number(1e-5, "largest learning rate", LEARNING_RATES)
    min_lr: float = number(1e-6, "learning rate at the end of the cosine", LEARNING_RATES)
    warmup: int = number(
        5, "steps of linear warmup; the paper's is 3 in 100 of all, 5 at least", COUNTS_OR_NONE
    )
    batch_size: int = number(512, "pairs an optimizer step, over all processes", BATCH_SIZES)
    margins: str = argument(
        "small",
        "by how much the score of the better answer should lead, by grade (table 27)",
        choices=MARGIN_TABLES,
    )
    safety_weight: float = number(
        0.0,
        "weight of the safety auxiliary loss (section A.3.4), for lines with chosen_safe and "
        "rejected_safe",
        Range(0, 1000),
    )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(StageOptions):
    """What stages have that sample answers and score them."""

    reward_model: str = argument(text="model.pt or folder of align.py reward")
    safety_model: str | None = argument(
        None, 'a second one: R_c takes it for prompts with "safety": true, and where it is < 0.15'
    )
    max_new_tokens: int = number(128, "longest answer", NEW_TOKENS)
    rows: int = number(256, "answers that are decoded together, at most", BATCH_SIZES)

    def check_samples(self) -> None:
        check_option(self, "shard", not self.shard, "left out: sampling needs whole weights")


@dataclass(frozen=True, kw_only=True)
class RejectionOptions(SftOptions, SamplingOptions):
    """Rejection sampling (section 3.2.3): the best of K answers a prompt, then SFT on them."""

    data: tuple[str, ...] = argument(nargs="+", text="files of JSON lines with prompts")
    policy: str | None = argument(
        None, "the model that answers, the most recent one (--pretrained-model-path)"
    )
    candidates: int = number(8, "answers sampled for each prompt: K", Range(1, 10_000))
    temperature: float = number(1.0, "of sampling; 0 gives K equal answers", TEMPERATURES)
    previous: tuple[str, ...] = argument(
        (), "best.jsonl of earlier iterations, whose answers compete", nargs="+", metavar="FILE"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_samples()


@dataclass(frozen=True, kw_only=True)
class PpoOptions(SamplingOptions):
    """PPO (section 3.2.3)."""

    data: tuple[str, ...] = argument(nargs="+", text="files of JSON lines with prompts")
    val_data: tuple[str, ...] = argument(
        (), "files of held-out prompts (else a part of --data)", nargs="+", metavar="FILE"
    )
    val_fraction: float = number(0.05, "share of --data that is held out", Range(1e-9, 0.5))
    lr: float = number(1e-6, "learning rate", LEARNING_RATES)
    schedule: str = argument_of(StageOptions, "schedule", default="constant")
    iterations: int = number(200, "of sampling a batch and learning from it", COUNTS)
    batch_size: int = number(512, "answers an iteration, over all processes", BATCH_SIZES)
    minibatch_size: int = number(64, "answers an optimizer step", BATCH_SIZES)
    epochs: int = number(1, "passes over an iteration's answers", Range(1, 1000))
    temperature: float = number(1.0, "of sampling", Range(1e-6, 100))
    beta: float = number(0.01, "weight of the KL penalty (the paper's: 0.01, 0.005)", Range(0, 1e6))
    clip: float = number(0.2, "bound of the ratio of new to old policy", Range(0, 1, is_open=True))
    gamma: float = number(1.0, "discount; not in the paper", Range(0, 1))
    gae_lambda: float = number(0.95, "of the advantages; not in the paper", Range(0, 1))
    value_weight: float = number(0.1, "of the value loss; not in the paper", Range(0, 1000))
    value_clip: float = number(0.2, "bound of a value's change; not in the paper", Range(0, 1e6))
    value_lr_scale: float = number(
        1.0, "learning rate of the value head over --lr; not in the paper", Range(0, 1e6)
    )
    missing_eos_penalty: float = number(
        1.0,
        "taken off the whitened reward of an answer without end; not in the paper",
        Range(0, 1e6),
    )
    eval_every: int = number(5, "iterations between evaluations and checkpoints", COUNTS)
    patience: int | None = number(
        None, "stop after so many evaluations without a better held-out reward", COUNTS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_samples()
        parts = self.batch_size % self.minibatch_size == 0
        self._check("batch_size", parts, f"a multiple of --minibatch_size {self.minibatch_size}")


@dataclass(frozen=True, kw_only=True)
class GattOptions(SftOptions):
    """Ghost Attention (section 3.3)."""

    data: tuple[str, ...] = argument((), "files of JSON lines with dialogues", nargs="+")
    max_new_tokens: int = number(128, "longest answer", NEW_TOKENS)
    temperature: float = number(1.0, "of sampling", TEMPERATURES)
    rows: int = number(256, "answers that are decoded together, at most", BATCH_SIZES)
    demo: bool = argument(
        False, "show it on the bundled model: obedience by turn, with and without"
    )


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The demonstration on the bundled model."""

    out: str = argument("align-demo", "folder for data, models, results.json and demo.html")
    seed: int = number(0, "of data, training and sampling", SEEDS)
    iterations: int = number(30, "of PPO", Range(1, 100_000))
    epochs: int = number(2, "of PPO, passes over an iteration's answers", Range(1, 1000))
    scale: float = number(1.0, "share of the data to use, for a quick look", Range(1e-6, 1))
    workers: int | None = number(
        None, "stages at a time, one thread each (the number of cores)", Range(1, 1024)
    )
    resume: bool = argument(False, "go on with the stages that are not done")

    def __post_init__(self) -> None:
        check_ranges(self)
