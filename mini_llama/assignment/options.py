"""What a user can ask run_llama.py for: every option once, with its default, checked once.

The command line takes its defaults from these fields; the four options read them. The file starts
no work and needs no torch, so that help and errors come at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import (
    DEFAULT_EDITION,
    EDITIONS,
    LORA_ALPHA,
    LORA_RANK,
    LORA_TARGETS,
    Edition,
    check_sampling,
)

OPTIONS = ("generate", "prompt", "finetune", "lora")
# The assignment's rule for prediction files: what the names end in, by option.
OUTPUT_ENDINGS = {"prompt": "prompting", "finetune": "finetuning", "lora": "lora"}


@dataclass(frozen=True)
class Options:
    """Names and defaults of the first part are the assignment's; those of the second are ours.

    Raises ValueError, naming the flag, for a value out of bounds.
    """

    option: str = "generate"
    train: str = "data/cfimdb-train.txt"
    dev: str = "data/cfimdb-dev.txt"
    test: str = "data/cfimdb-test.txt"
    label_names: str = "data/cfimdb-label-mapping.json"
    pretrained_model_path: str = "stories42M.pt"
    max_sentence_len: int | None = None
    seed: int = 1337
    epochs: int = 5
    batch_size: int = 8
    lr: float = 2e-5
    hidden_dropout_prob: float = 0.3
    use_gpu: bool = False
    generated_sentence_low_temp_out: str = "generated-sentence-temp-0.txt"
    generated_sentence_high_temp_out: str = "generated-sentence-temp-1.txt"
    dev_out: str = "cfimdb-dev-prompting-output.txt"
    test_out: str = "cfimdb-test-prompting-output.txt"
    lora_rank: int = LORA_RANK
    lora_alpha: float = LORA_ALPHA

    edition: str | None = None
    norm: str | None = None
    attention: str | None = None
    epsilon: float | None = None
    top_p: float | None = None
    mask_padding: bool = False
    dtype: str = "float32"
    quantize: str | None = None
    compile: bool = False
    plan: bool = False
    tokenizer: str | None = None
    prompt_text: str | None = None
    max_new_tokens: int = 75
    temperature: float = 1.0
    stop_at_eos: bool = False
    num_samples: int = 1
    lora_targets: tuple[str, ...] = LORA_TARGETS
    checkpoint_out: str | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lora_rank", "max_new_tokens", "num_samples"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        if self.max_sentence_len is not None:
            self._check("max_sentence_len", self.max_sentence_len >= 1, "at least 1")
        self._check("seed", 0 <= self.seed < 2**63, "from 0 to 2^63 - 1")
        self._check("lr", 0 <= self.lr < float("inf"), "at least 0")
        self._check("hidden_dropout_prob", 0 <= self.hidden_dropout_prob < 1, "in [0, 1)")
        self._check("lora_alpha", 0 < self.lora_alpha < float("inf"), "above 0")
        trains = self.option in ("finetune", "lora")
        self._check(
            "quantize",
            not (self.quantize and trains),
            "left out: rounded weights cannot be trained",
        )
        self._check(
            "plan",
            not self.plan or self.option == "generate",
            "left out, but for --option generate",
        )
        packs = not (self.compile and self.quantize == "nf4")
        self._check("quantize", packs, "int8 with --compile")
        check_sampling(
            self.temperature, self.epsilon or 0.0, 1.0 if self.top_p is None else self.top_p
        )
        self._check_output_names()

    def _check(self, name: str, holds: bool, bound: str) -> None:
        if not holds:
            raise ValueError(f"--{name} {getattr(self, name)} is not allowed: it must be {bound}")

    def _check_output_names(self) -> None:
        """At once, not after hours of training."""
        if self.option not in OUTPUT_ENDINGS:
            return
        for split in ("dev", "test"):
            value = getattr(self, f"{split}_out")
            ending = f"{split}-{OUTPUT_ENDINGS[self.option]}-output.txt"
            self._check(f"{split}_out", value.endswith(ending), f"a name that ends in {ending}")

    @property
    def inputs(self) -> list[str]:
        """Files that the run reads; a tokenizer that is found by itself is not among them."""
        texts = [] if self.option == "generate" else [self.train, self.dev, self.test]
        names = [] if self.option == "generate" else [self.label_names]
        tokenizer = [self.tokenizer] if self.tokenizer else []
        return [self.pretrained_model_path, *texts, *names, *tokenizer]

    @property
    def edition_in_force(self) -> Edition:
        """For what no checkpoint records: sampling and the prompt's text."""
        return EDITIONS[self.edition or DEFAULT_EDITION]

    @property
    def dataset(self) -> str:
        """Short name of the data set: data/sst-train.txt → sst."""
        return Path(self.train).stem.removesuffix("-train") or "data"

    @property
    def checkpoint_path(self) -> Path:
        """Where training writes its best model, by default a name that runs with other data, other
        epochs or another learning rate do not share.
        """
        default = f"{self.option}-{self.dataset}-{self.epochs}-{self.lr}.pt"
        return Path(self.checkpoint_out or default)


def default_of(name: str) -> Any:
    """The default of one option, by its name."""
    return Options.__dataclass_fields__[name].default
