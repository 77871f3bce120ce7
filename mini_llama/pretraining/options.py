"""The options of pretrain.py: each once, with its default and its help, checked once.

Nothing here needs torch, so that help and refusals come at once.
"""

import re
from dataclasses import dataclass
from typing import Any

from config import ATTENTIONS, DTYPES, LARGEST_DIMENSION, NORMS, PRESETS, LlamaConfig
from mini_llama.bounds import (
    BATCH_SIZES,
    COUNTS,
    COUNTS_OR_NONE,
    LAYERS,
    LEARNING_RATES,
    SEEDS,
    WIDTHS,
    Range,
    as_usage,
    check_usage,
)
from mini_llama.command_line import argument, check_option, check_ranges, number
from mini_llama.tf32 import check_tf32, tf32_argument
from mini_llama.training.schedule import fall_begins

SCHEDULES = ("cosine", "constant", "wsd")
OPTIMIZERS = ("adamw", "muon")
DEFAULT_PRESET = "15m"
SHAPE = ("dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim")
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "\\": "\\"}


def shape_argument(name: str, within: Range = WIDTHS) -> Any:
    return number(None, f"model shape: {name}, instead of the preset's", within)


def arithmetic_argument(name: str, choices: tuple[str, ...]) -> Any:
    return argument(None, f"model shape: {name}, instead of the preset's", choices=choices)


@dataclass(frozen=True)
class ModelOptions:
    """The text, tokenizer and model of a run."""

    input: tuple[str, ...] = argument(
        (),
        "text files, folders of .txt files, or generated text: tales:COUNT, reviews:COUNT, each "
        "with :SEED if you like",
        nargs="+",
        metavar="TEXT",
    )
    out: str = argument(
        "pretrained", "folder for tokenizer, token files, checkpoints, metrics and loss curve"
    )
    separator: str = argument(
        "\n\n", r"what stands between two documents; \n, \t, \r, \f and \\ are escapes"
    )
    tokenizer: str | None = argument(
        None, "an existing tokenizer, as run_llama.py takes it; else --init's, or one is trained"
    )
    vocab_size: int | None = number(None, "pieces of the tokenizer to train (the preset's)", WIDTHS)
    val_fraction: float = number(
        0.01, "share of the documents kept for validation", Range(1e-9, 0.5)
    )
    init: str | None = argument(
        None,
        "a checkpoint to start from instead of random weights: shape, arithmetic and tokenizer are "
        "its own",
    )
    preset: str | None = argument(
        None, f"model shape (default: '{DEFAULT_PRESET}')", choices=tuple(PRESETS)
    )
    dim: int | None = shape_argument("dim")
    n_layers: int | None = shape_argument("n_layers", LAYERS)
    n_heads: int | None = shape_argument("n_heads")
    n_kv_heads: int | None = shape_argument("n_kv_heads")
    hidden_dim: int | None = shape_argument("hidden_dim")
    norm: str | None = arithmetic_argument("norm", NORMS)
    attention: str | None = arithmetic_argument("attention", ATTENTIONS)
    dropout: float = number(0.0, "", Range(0, 1, is_half_open=True))
    context: int = number(
        256, "tokens a training window, and the model's max_seq_len", Range(1, LARGEST_DIMENSION)
    )
    random_offsets: bool = argument(
        False, "draw each window's place in the text, instead of a shuffled pass over all windows"
    )

    @property
    def preset_shape(self) -> dict[str, Any]:
        return PRESETS[self.preset or DEFAULT_PRESET]

    def model_config(self, vocab_size: int | None = None) -> LlamaConfig:
        """The preset's shape, with the given values in place of its own."""
        names = (*SHAPE, "norm", "attention")
        changes = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if vocab_size is not None:
            changes["vocab_size"] = vocab_size
        changes |= {"max_seq_len": self.context, "dropout": self.dropout}
        with as_usage():
            return LlamaConfig(**self.preset_shape | changes)


@dataclass(frozen=True)
class PretrainOptions(ModelOptions):
    """A run's settings. Raises ValueError, naming the flag, for a value out of bounds."""

    steps: int = number(1000, "optimizer steps", COUNTS)
    tokens_per_parameter: float | None = number(
        None, "as many steps as make this many tokens a parameter", Range(0, 10**6, is_open=True)
    )
    flops: float | None = number(
        None,
        "as many steps as this many operations allow, 6 a parameter and token",
        Range(1, 1e30),
    )
    batch_size: int = number(16, "windows an optimizer step, over all processes", BATCH_SIZES)
    accumulation: int = number(
        1, "parts that a process's batch is computed in, to save memory", BATCH_SIZES
    )
    lr: float = number(3e-4, "largest learning rate", LEARNING_RATES)
    min_lr: float = number(0.0, "learning rate at the end of cosine or wsd", LEARNING_RATES)
    decay_steps: int | None = number(
        None, "steps that the cosine is laid out for (--steps)", COUNTS
    )
    warmup: int = number(100, "steps of linear warmup", COUNTS_OR_NONE)
    schedule: str = argument(
        "cosine", "after the warmup; wsd: constant, then a linear fall", choices=SCHEDULES
    )
    cooldown: float = number(
        0.2, "share of the steps, at the end, in which wsd's learning rate falls", Range(0, 1)
    )
    optimizer: str = argument(
        "adamw", "muon: Muon for the layers' matrices, AdamW for the rest", choices=OPTIMIZERS
    )
    ema: float = number(
        0.0,
        "average the weights with this decay (0.999), and evaluate, sample and save the average; 0 "
        "for none",
        Range(0, 1, is_half_open=True),
    )
    weight_decay: float = number(0.1, "on matrices; norms and biases have none", Range(0, 1000))
    max_grad_norm: float = number(
        1.0, "gradients are scaled down to this norm; inf for no bound", Range(1e-9, float("inf"))
    )
    dtype: str = argument(
        "float32",
        "arithmetic of the forward and backward pass; weights stay float32",
        choices=DTYPES,
    )
    tf32: bool = tf32_argument()
    checkpoint_activations: bool = argument(
        False,
        "less memory for a third more time, with the same result: each layer is computed again for "
        "its gradients",
    )
    compile: bool = argument(False, "torch.compile the model: minutes at first, then faster")
    eval_every: int = number(100, "steps between evaluations, samples and checkpoints", COUNTS)
    eval_batches: int = number(20, "validation batches an evaluation", COUNTS)
    sample_prompt: str = argument("")
    sample_tokens: int = number(
        60, "tokens of the sample at each evaluation; 0 for none", Range(0, 100_000)
    )
    seed: int = number(1337, "", SEEDS)
    use_gpu: bool = argument(False, "CUDA, or Apple's MPS where there is no CUDA")
    shard: bool = argument(
        False, "under torchrun, divide weights and moments among the processes (FSDP2)"
    )
    tensorboard: bool = argument(False, "log for TensorBoard as well")
    resume: bool = argument(
        False,
        "go on from the last saved step of the run in --out; --steps may be more if the learning "
        "rates of the steps done stay the same",
    )
    overwrite: bool = argument(False, "replace the run in --out, where there is one")
    plan: bool = argument(False, "print parameter count and memory plan, and stop")

    def __post_init__(self) -> None:
        object.__setattr__(self, "separator", unescape(self.separator))
        check_ranges(self)
        check_tf32(self, self.use_gpu)
        micro = self.batch_size % self.accumulation == 0
        self._check("batch_size", micro, f"a multiple of --accumulation {self.accumulation}")
        self._check("min_lr", self.min_lr <= self.lr, f"at most --lr {self.lr}")
        if self.schedule == "constant":
            bound = "left out with --schedule constant"
            self._check("min_lr", self.min_lr == 0, bound)
        if self.schedule != "cosine":
            bound = f"left out with --schedule {self.schedule}"
            self._check("decay_steps", self.decay_steps is None, bound)
        if self.schedule != "wsd":
            bound = f"left out with --schedule {self.schedule}"
            self._check("cooldown", self.cooldown == self._default("cooldown"), bound)
        is_after = fall_begins(self.steps, self.cooldown) >= self.warmup
        bound = f"less, so that --steps {self.steps} hold --warmup {self.warmup} too"
        self._check("cooldown", is_after or self.schedule != "wsd", bound)
        self._check_budget()
        for name in ("ema", "optimizer"):
            is_plain = getattr(self, name) in (0.0, "adamw") or not self.shard
            self._check(name, is_plain, "left out with --shard")
        is_free = self.vocab_size is None or self.tokenizer is None
        self._check("vocab_size", is_free, f"left out with --tokenizer {self.tokenizer}")
        is_one = not (self.resume and self.overwrite)
        check_usage("--overwrite", is_one, "left out with --resume")

    def _check_budget(self) -> None:
        given = [n for n in ("tokens_per_parameter", "flops") if getattr(self, n) is not None]
        if given:
            is_one = len(given) == 1 and self.steps == self._default("steps")
            self._check(given[0], is_one, "left out with --steps or another budget")

    def _default(self, name: str) -> Any:
        return PretrainOptions.__dataclass_fields__[name].default

    def _check(self, name: str, holds: bool, bound: str) -> None:
        check_option(self, name, holds, bound)


def unescape(text: str) -> str:
    r"""The escapes that a shell passes on as they are written: \n, \t, \r, \f and \\."""
    return re.sub(r"\\([ntrf\\])", lambda match: ESCAPES[match[1]], text)
