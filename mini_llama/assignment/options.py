"""The options of run_llama.py: each once, with its default and its help, checked once.

Nothing here needs torch, so that help and refusals come at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import (
    ATTENTIONS,
    DEFAULT_EDITION,
    DTYPES,
    EDITIONS,
    LORA_ALPHA,
    LORA_RANK,
    LORA_TARGETS,
    NORMS,
    QUANTIZATIONS,
    Edition,
    check_sampling,
)
from mini_llama.command_line import argument, check_option

OPTIONS = ("generate", "prompt", "finetune", "lora")
# The assignment's rule for prediction files: what the names end in, by option.
OUTPUT_ENDINGS = {"prompt": "prompting", "finetune": "finetuning", "lora": "lora"}


@dataclass(frozen=True)
class AssignmentOptions:
    """The options that the assignment names, with its defaults."""

    option: str = argument(
        "generate",
        "generate text, classify by prompt, or train a classifier: all weights or LoRA",
        choices=OPTIONS,
    )
    train: str = argument("data/cfimdb-train.txt", "training data, lines LABEL ||| SENTENCE")
    dev: str = argument("data/cfimdb-dev.txt", "development data")
    test: str = argument("data/cfimdb-test.txt", "test data")
    label_names: str = argument(
        "data/cfimdb-label-mapping.json",
        "JSON list of label words; a label is the index of its word",
        flag="label-names",
    )
    pretrained_model_path: str = argument(
        "stories42M.pt",
        "checkpoint: the assignment's .pt, llama2.c's .pt or .bin, or a folder of Hugging Face's "
        "or Meta's",
        flag="pretrained-model-path",
    )
    max_sentence_len: int | None = argument(
        None, "keep at most this many tokens of a text, BOS and EOS not counted"
    )
    seed: int = argument(1337, "seeds python, numpy and torch")
    epochs: int = argument(5, "passes over the training data")
    batch_size: int = argument(8, "examples a batch; in the default mode predictions depend on it")
    lr: float = argument(2e-5, "learning rate of AdamW")
    hidden_dropout_prob: float = argument(0.3, "dropout before the classifier head")
    use_gpu: bool = argument(False, "run on CUDA, or on Apple's MPS where there is no CUDA")
    generated_sentence_low_temp_out: str = argument(
        "generated-sentence-temp-0.txt", "file for the text at temperature 0"
    )
    generated_sentence_high_temp_out: str = argument(
        "generated-sentence-temp-1.txt", "file for the text at --temperature"
    )
    dev_out: str = argument(
        "cfimdb-dev-prompting-output.txt",
        "predictions for --dev; ends in dev-{prompting,finetuning,lora}-output.txt",
    )
    test_out: str = argument(
        "cfimdb-test-prompting-output.txt",
        "predictions for --test; ends in test-{prompting,finetuning,lora}-output.txt",
    )
    lora_rank: int = argument(LORA_RANK, "rank of the adapters")
    lora_alpha: float = argument(LORA_ALPHA, "the adapters are scaled by alpha/rank")


@dataclass(frozen=True)
class Options(AssignmentOptions):
    """All options: the assignment's and ours.

    Raises ValueError, naming the flag, for a value out of bounds.
    """

    edition: str | None = argument(
        None,
        "arithmetic of a course edition; without it, what the checkpoint records, else "
        f"{DEFAULT_EDITION}",
        choices=tuple(EDITIONS),
    )
    norm: str | None = argument(None, "norm, whatever the edition says", choices=NORMS)
    attention: str | None = argument(
        None, "attention mask, whatever the edition says", choices=ATTENTIONS
    )
    epsilon: float | None = argument(
        None, "drop tokens less probable than this when sampling; 0 keeps all (edition's)"
    )
    top_p: float | None = argument(
        None, "sample from the most probable tokens that reach this together (edition's)"
    )
    mask_padding: bool = argument(
        False,
        "mask padding, read the last real token, and batch texts of like length: no dependence on "
        "the batch, and faster",
    )
    dtype: str = argument(
        "float32",
        "arithmetic of matrix products, in generate of all weights: bfloat16 is faster and less "
        "exact",
        choices=DTYPES,
    )
    quantize: str | None = argument(
        None,
        "generate, prompt: weights are quantized to 8 or 4 bits as they are read (nf4 needs "
        "bitsandbytes)",
        choices=QUANTIZATIONS,
    )
    compile: bool = argument(
        False,
        "generate with a compiled decoding step (causal attention, CPU): faster, and needs a C++ "
        "compiler and half a minute once",
    )
    plan: bool = argument(
        False,
        "generate: print what fits this machine's memory, and stop before weights are read",
    )
    tokenizer: str | None = argument(
        None,
        "SentencePiece model, tokenizer.json, llama2.c's tokenizer.bin, a folder with one, or "
        "tiktoken:NAME (the checkpoint's own: docs/checkpoints-and-tokenizers.md)",
    )
    prompt_text: str | None = argument(
        None, "text to continue; an empty one means BOS alone (edition's)"
    )
    max_new_tokens: int = argument(75, "tokens to generate")
    temperature: float = argument(1.0, "temperature of the second generated text")
    stop_at_eos: bool = argument(False, "end a text at the first EOS")
    num_samples: int = argument(1, "texts to draw at --temperature")
    lora_targets: tuple[str, ...] = argument(
        LORA_TARGETS, "linear layers that get adapters, separated by commas"
    )
    adapters: str | None = argument(
        None,
        "generate, prompt: add LoRA adapters: an .adapters.pt of option lora, or PEFT's folder",
    )
    checkpoint_out: str | None = argument(
        None, "where the best model is saved (OPTION-DATASET-EPOCHS-LR.pt)"
    )
    resume: bool = argument(False, "go on after the last finished epoch of an interrupted run")

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
            "left out: quantized weights cannot be trained",
        )
        self._check(
            "plan",
            not self.plan or self.option == "generate",
            "left out, but for --option generate",
        )
        is_used = not self.adapters or self.option in ("generate", "prompt")
        self._check("adapters", is_used, "left out, but for --option generate and prompt")
        is_plain = not (self.adapters and self.quantize)
        self._check("adapters", is_plain, "left out: quantized weights take no adapters")
        packs = not (self.compile and self.quantize == "nf4")
        self._check("quantize", packs, "int8 with --compile")
        check_sampling(
            self.temperature, self.epsilon or 0.0, 1.0 if self.top_p is None else self.top_p
        )
        self._check_output_names()

    def _check(self, name: str, holds: bool, bound: str) -> None:
        check_option(self, name, holds, bound)

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
        """Files that the run reads, without a tokenizer that is found by itself."""
        texts = [] if self.option == "generate" else [self.train, self.dev, self.test]
        names = [] if self.option == "generate" else [self.label_names]
        others = [path for path in (self.tokenizer, self.adapters) if path]
        return [self.pretrained_model_path, *texts, *names, *others]

    @property
    def edition_in_force(self) -> Edition:
        """The edition for what no checkpoint records: sampling and the prompt's text."""
        return EDITIONS[self.edition or DEFAULT_EDITION]

    @property
    def dataset(self) -> str:
        """Short name of the data set: data/sst-train.txt → sst."""
        return Path(self.train).stem.removesuffix("-train") or "data"

    @property
    def checkpoint_path(self) -> Path:
        """The file of the best model; its default name has option, data, epochs and rate."""
        default = f"{self.option}-{self.dataset}-{self.epochs}-{self.lr}.pt"
        return Path(self.checkpoint_out or default)


def default_of(name: str) -> Any:
    """The default of one option, by its name."""
    return Options.__dataclass_fields__[name].default
