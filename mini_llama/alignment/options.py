"""The options of align.py's stages: each once, with its default and its help, checked once.

Nothing here needs torch, so that help and refusals come at once.
"""

import math
from dataclasses import dataclass

from config import ATTENTIONS, DTYPES, LARGEST_DIMENSION, LORA_TARGETS, NORMS
from mini_llama.assignment.options import Options
from mini_llama.bounds import (
    BATCH_SIZES,
    COUNTS,
    COUNTS_OR_NONE,
    LEARNING_RATES,
    SEEDS,
    Range,
    check_usage,
)
from mini_llama.bundled import CHECKPOINT
from mini_llama.chatting import AUTO, TEMPLATE_BOUND, is_template
from mini_llama.command_line import argument, argument_of, check_option, check_ranges, number
from mini_llama.tf32 import check_tf32, tf32_argument

SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """What every stage that trains has. Raises UsageError, naming the flag, for a value out of
    bounds.

    The defaults are those of Llama 2's section 3.1, which a stage's own class replaces.
    """

    pretrained_model_path: str = argument_of(
        Options,
        "pretrained_model_path",
        default=str(CHECKPOINT),
        text="the model to start from, of any format that run_llama.py reads",
        shown="the bundled one",
    )
    tokenizer: str | None = argument_of(Options, "tokenizer")
    norm: str | None = argument(None, "of a model that does not record it", choices=NORMS)
    attention: str | None = argument(None, "of a model that does not record it", choices=ATTENTIONS)
    template: str = argument(
        AUTO,
        "of conversations: auto for the model's own, llama2, plain, or a file in Jinja (chat.py)",
        metavar="{auto,llama2,plain,FILE}",
    )
    out: str = argument("aligned", "folder for model.pt, metrics and what --resume needs")
    max_length: int | None = number(
        None,
        "tokens of an example; longer answers are cut (the context)",
        Range(2, LARGEST_DIMENSION),
    )
    lora_rank: int = number(
        0, "train LoRA adapters of this rank; 0 trains all weights", Range(0, 2**20)
    )
    lora_alpha: float = argument_of(Options, "lora_alpha")
    lora_targets: tuple[str, ...] = argument_of(Options, "lora_targets", default=LORA_TARGETS)
    lr: float = number(2e-5, "largest learning rate", LEARNING_RATES)
    min_lr: float = number(0.0, "learning rate at the end of the cosine", LEARNING_RATES)
    warmup: int = number(0, "steps of linear warmup", COUNTS_OR_NONE)
    schedule: str = argument("cosine", choices=SCHEDULES)
    weight_decay: float = number(0.1, "on matrices; norms have none", Range(0, 1000))
    max_grad_norm: float = number(
        1.0, "gradients are scaled down to this norm; inf for no bound", Range(1e-9, math.inf)
    )
    dtype: str = argument(
        "float32",
        "arithmetic of the forward and backward pass; weights stay float32",
        choices=DTYPES,
    )
    tf32: bool = tf32_argument()
    checkpoint_activations: bool = argument(
        False, "compute each layer again in the backward pass: less memory, a third slower"
    )
    seed: int = number(1337, "", SEEDS)
    use_gpu: bool = argument(False, "CUDA, or Apple's MPS where there is no CUDA")
    shard: bool = argument(
        False, "under torchrun, divide weights and moments among the processes (FSDP2)"
    )
    tensorboard: bool = argument(False, "log for TensorBoard as well")
    resume: bool = argument(False, "go on from the last saved step of the run in --out")
    overwrite: bool = argument(False, "replace the run in --out, where there is one")

    def __post_init__(self) -> None:
        check_ranges(self)
        check_tf32(self, self.use_gpu)
        self._check("min_lr", self.min_lr <= self.lr, f"at most --lr {self.lr}")
        is_one = not (self.resume and self.overwrite)
        check_usage("--overwrite", is_one, "left out with --resume")
        check_usage("--shard", not (self.shard and self.lora_rank), "left out with --lora_rank")
        self._check("template", is_template(self.template), TEMPLATE_BOUND)
        if self.schedule == "constant":
            self._check("min_lr", self.min_lr == 0, "left out with --schedule constant")

    def _check(self, name: str, holds: bool, bound: str) -> None:
        check_option(self, name, holds, bound)


@dataclass(frozen=True, kw_only=True)
class DataOptions(StageOptions):
    """What stages have that go over a file of examples, in epochs."""

    data: tuple[str, ...] = argument(nargs="+", text="files of JSON lines to train on")
    val_data: tuple[str, ...] = argument(
        (), "files of held-out JSON lines (else a part of --data)", nargs="+", metavar="FILE"
    )
    val_fraction: float = number(
        0.05, "share of --data that is held out; 0 for none", Range(0, 0.5)
    )
    epochs: float = number(1.0, "passes over the data", Range(1e-9, 100_000))
    steps: int | None = number(None, "optimizer steps, instead of --epochs", COUNTS)
    decay_steps: int | None = number(None, "steps that the cosine is laid out for (all)", COUNTS)
    batch_size: int = number(64, "examples an optimizer step, over all processes", BATCH_SIZES)
    accumulation: int = number(
        1, "parts that a process's batch is computed in, to save memory", BATCH_SIZES
    )
    eval_every: int = number(50, "steps between evaluations and checkpoints", COUNTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        micro = self.batch_size % self.accumulation == 0
        self._check("batch_size", micro, f"a multiple of --accumulation {self.accumulation}")
        is_cosine = self.schedule == "cosine" or self.decay_steps is None
        self._check("decay_steps", is_cosine, "left out with --schedule constant")


@dataclass(frozen=True, kw_only=True)
class SftOptions(DataOptions):
    """Supervised fine-tuning (section 3.1)."""

    epochs: float = number(2.0, "passes over the data", Range(1e-9, 100_000))
    packing: bool = argument(
        False, "fill each row with several examples, which do not see each other"
    )
    samples: int = number(2, "answers to held-out prompts shown at each evaluation", Range(0, 100))
    sample_tokens: int = number(60, "longest answer shown", Range(1, 100_000))


@dataclass(frozen=True, kw_only=True)
class DpoOptions(DataOptions):
    """Direct preference optimization (Rafailov et al. 2023): its learning rate and beta."""

    lr: float = number(1e-6, "largest learning rate", LEARNING_RATES)
    warmup: int = number(10, "steps of linear warmup", COUNTS_OR_NONE)
    weight_decay: float = number(0.0, "on matrices; norms have none", Range(0, 1000))
    beta: float = number(0.1, "weight of the KL term: larger stays nearer", Range(0, 1000))
