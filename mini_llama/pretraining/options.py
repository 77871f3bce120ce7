"""The options of pretrain.py: each once, with its default and its help, checked once.

Nothing here needs torch, so that help and refusals come at once.
"""

from dataclasses import dataclass
from typing import Any

from config import ATTENTIONS, DTYPES, NORMS, PRESETS, LlamaConfig
from mini_llama.command_line import argument, check_option

SCHEDULES = ("cosine", "constant")


def shape_argument(name: str, choices: tuple[str, ...] | None = None) -> Any:
    return argument(None, f"model shape: {name}, instead of the preset's", choices=choices)


@dataclass(frozen=True)
class PretrainOptions:
    """A run's settings. Raises ValueError, naming the flag, for a value out of bounds."""

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
    separator: str = argument("\n\n", "what stands between two documents")
    tokenizer: str | None = argument(
        None, "an existing tokenizer, as run_llama.py takes it; else one is trained"
    )
    vocab_size: int | None = argument(None, "pieces of the tokenizer to train (the preset's)")
    val_fraction: float = argument(0.01, "share of the documents kept for validation")
    init: str | None = argument(None, "a checkpoint to start from instead of random weights")
    preset: str = argument("15m", "model shape", choices=tuple(PRESETS))
    dim: int | None = shape_argument("dim")
    n_layers: int | None = shape_argument("n_layers")
    n_heads: int | None = shape_argument("n_heads")
    n_kv_heads: int | None = shape_argument("n_kv_heads")
    hidden_dim: int | None = shape_argument("hidden_dim")
    norm: str | None = shape_argument("norm", NORMS)
    attention: str | None = shape_argument("attention", ATTENTIONS)
    dropout: float = argument(0.0)
    context: int = argument(256, "tokens a training window, and the model's max_seq_len")
    steps: int = argument(1000, "optimizer steps")
    batch_size: int = argument(16, "windows an optimizer step, over all processes")
    accumulation: int = argument(1, "parts that a process's batch is computed in, to save memory")
    lr: float = argument(3e-4, "largest learning rate")
    min_lr: float = argument(0.0, "learning rate at the end of the cosine")
    decay_steps: int | None = argument(None, "steps that the cosine is laid out for (--steps)")
    warmup: int = argument(100, "steps of linear warmup")
    schedule: str = argument("cosine", choices=SCHEDULES)
    weight_decay: float = argument(0.1, "on matrices; norms and biases have none")
    max_grad_norm: float = argument(1.0, "gradients are scaled down to this norm")
    dtype: str = argument(
        "float32",
        "arithmetic of the forward and backward pass; weights stay float32",
        choices=DTYPES,
    )
    compile: bool = argument(False, "torch.compile the model: minutes at first, then faster")
    eval_every: int = argument(100, "steps between evaluations, samples and checkpoints")
    eval_batches: int = argument(20, "validation batches an evaluation")
    sample_prompt: str = argument("")
    sample_tokens: int = argument(60, "tokens of the sample at each evaluation; 0 for none")
    seed: int = argument(1337)
    use_gpu: bool = argument(False, "CUDA, or Apple's MPS where there is no CUDA")
    shard: bool = argument(
        False, "under torchrun, divide weights and moments among the processes (FSDP2)"
    )
    tensorboard: bool = argument(False, "log for TensorBoard as well")
    resume: bool = argument(False, "go on from the last saved step of the run in --out")
    plan: bool = argument(False, "print parameter count and memory plan, and stop")

    def __post_init__(self) -> None:
        at_least_1 = ("context", "steps", "batch_size", "accumulation", "eval_every")
        for name in (*at_least_1, "eval_batches"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("lr", "min_lr", "warmup", "weight_decay", "sample_tokens", "seed"):
            self._check(name, 0 <= getattr(self, name) < float("inf"), "at least 0")
        self._check("max_grad_norm", self.max_grad_norm > 0, "above 0")
        self._check("val_fraction", 0 < self.val_fraction <= 0.5, "above 0 and at most 0.5")
        micro = self.batch_size % self.accumulation == 0
        self._check("batch_size", micro, f"a multiple of --accumulation {self.accumulation}")

    def _check(self, name: str, holds: bool, bound: str) -> None:
        check_option(self, name, holds, bound)

    def model_config(self, vocab_size: int | None = None) -> LlamaConfig:
        """The preset's shape, with the given values in place of its own."""
        names = ("dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim", "norm", "attention")
        changes = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if vocab_size is not None:
            changes["vocab_size"] = vocab_size
        changes |= {"max_seq_len": self.context, "dropout": self.dropout}
        return LlamaConfig(**PRESETS[self.preset] | changes)
