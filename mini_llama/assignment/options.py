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
)
from mini_llama.assignment.table_files import is_table
from mini_llama.bounds import (
    BATCH_SIZES,
    COUNTS,
    EPOCHS,
    LEARNING_RATES,
    SEEDS,
    WIDTHS,
    Range,
    UsageError,
    check_usage,
)
from mini_llama.command_line import argument, check_option, check_ranges, number
from mini_llama.tf32 import check_tf32, tf32_argument

GRADED = ("generate", "prompt", "finetune", "lora")
OPTIONS = (*GRADED, "predict")
TRAINING = ("finetune", "lora")
FORMATS = ("lines", "tsv", "jsonl")
STANDARD_STREAM = "-"
NO_FILE = ("", "none")
# The assignment's rule for prediction files: what the names end in, by option.
OUTPUT_ENDINGS = {"prompt": "prompting", "finetune": "finetuning", "lora": "lora"}


@dataclass(frozen=True)
class AssignmentOptions:
    """The options that the assignment names, with its defaults."""

    option: str = argument(
        "generate",
        "generate text, classify by prompt, train a classifier (all weights or LoRA), or use a "
        "trained one on new texts",
        choices=OPTIONS,
    )
    train: str = argument(
        "data/cfimdb-train.txt",
        "training data: lines LABEL ||| SENTENCE, or CSV, TSV or JSON",
    )
    dev: str = argument("data/cfimdb-dev.txt", "development data")
    test: str = argument(
        "data/cfimdb-test.txt",
        "test data; there are none beside your own --train or --dev, or with none",
    )
    label_names: str = argument(
        "data/cfimdb-label-mapping.json",
        "JSON list of label words; a label is its word or index; without it, words in your own "
        "data make up the list",
        flag="label-names",
    )
    pretrained_model_path: str = argument(
        "stories42M.pt",
        "checkpoint: the assignment's .pt, llama2.c's .pt or .bin, a .gguf, a folder of Hugging "
        "Face's or Meta's, or smollm2 (bash setup.sh --smollm2)",
        flag="pretrained-model-path",
    )
    max_sentence_len: int | None = number(
        None, "keep at most this many tokens of a text, BOS and EOS not counted", COUNTS
    )
    seed: int = number(1337, "seeds python, numpy and torch", SEEDS)
    epochs: int = number(5, "passes over the training data", EPOCHS)
    batch_size: int = number(
        8, "examples a batch; in the default mode predictions depend on it", BATCH_SIZES
    )
    lr: float = number(2e-5, "learning rate of AdamW", LEARNING_RATES)
    hidden_dropout_prob: float = number(
        0.3, "dropout before the classifier head", Range(0, 1, is_half_open=True)
    )
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
    lora_rank: int = number(LORA_RANK, "rank of the adapters", WIDTHS)
    lora_alpha: float = number(
        LORA_ALPHA, "the adapters are scaled by alpha/rank", Range(0, 10**6, is_open=True)
    )

    def _check(self, name: str, holds: bool, bound: str) -> None:
        check_option(self, name, holds, bound)

    def _check_output_names(self) -> None:
        """At once, not after hours of training."""
        if self.option not in OUTPUT_ENDINGS:
            return
        for split in self.scored:
            value = getattr(self, f"{split}_out")
            ending = f"{split}-{OUTPUT_ENDINGS[self.option]}-output.txt"
            self._check(f"{split}_out", value.endswith(ending), f"a name that ends in {ending}")

    @property
    def splits(self) -> dict[str, str]:
        """The data files by split; there may be no test data, and in option prompt no training
        data.
        """
        files = {"train": self.train, "dev": self.dev, "test": self.test}
        return {split: path for split, path in files.items() if path not in NO_FILE}

    @property
    def scored(self) -> list[str]:
        """The splits that predictions are written for."""
        return [split for split in self.splits if split != "train"]

    @property
    def has_label_names(self) -> bool:
        """Whether --label-names belongs to the data: its default is of the default data."""
        is_default = self.label_names == default_of("label_names")
        return not (is_default and self.is_own)

    @property
    def is_own(self) -> bool:
        """Whether the data are others than the default's."""
        split = "train" if "train" in self.splits else "dev"
        return self.splits[split] != default_of(split)

    @property
    def dataset(self) -> str:
        return dataset_of(self.train)


@dataclass(frozen=True)
class OwnOptions(AssignmentOptions):
    """What we add to the assignment's four options."""

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
    epsilon: float | None = number(
        None,
        "drop tokens less probable than this when sampling; 0 keeps all (edition's)",
        Range(0, 1),
    )
    top_p: float | None = number(
        None,
        "sample from the most probable tokens that reach this together (edition's)",
        Range(0, 1, is_open=True),
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
    tf32: bool = tf32_argument()
    quantize: str | None = argument(
        None,
        "generate, prompt: weights are quantized to 8 or 4 bits as they are read (nf4 needs "
        "bitsandbytes)",
        choices=QUANTIZATIONS,
    )
    compile: bool = argument(
        False,
        "generate with a compiled decoding step (causal attention): faster, and needs a C++ "
        "compiler and half a minute once, or on a GPU a few seconds",
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
    prompts: str | None = argument(
        None,
        "generate: continue each text of a file, one a line, or JSON lines with a prompt or text",
        metavar="FILE",
    )
    question: str | None = argument(
        None,
        "prompt: what follows each text, in your language, with {labels} for the label words "
        "(default: 'Is this movie {labels}? This movie is ')",
    )
    text_column: str | None = argument(
        None, "column of the texts in CSV, TSV or JSON (one named text, sentence, review, …)"
    )
    label_column: str | None = argument(
        None, "column of the labels (one named label, sentiment, class, …)"
    )
    max_new_tokens: int = number(75, "tokens to generate", Range(1, 10**6))
    temperature: float = number(
        1.0, "temperature of the second generated text", Range(0, float("inf"), is_half_open=True)
    )
    stop_at_eos: bool = argument(False, "end a text at the first EOS")
    num_samples: int = number(1, "texts to draw at --temperature", Range(1, 10**4))
    lora_targets: tuple[str, ...] = argument(
        LORA_TARGETS, "linear layers that get adapters, separated by commas"
    )
    adapters: str | None = argument(
        None,
        "generate, prompt: add LoRA adapters: an .adapters.pt of option lora, or PEFT's folder",
    )
    checkpoint_activations: bool = argument(
        False,
        "finetune, lora: less memory for a third more time, with the same result: each layer is "
        "computed again for its gradients",
    )
    checkpoint_out: str | None = argument(
        None, "where the best model is saved (OPTION-DATASET-EPOCHS-LR.pt)"
    )
    resume: bool = argument(False, "go on after the last finished epoch of an interrupted run")


@dataclass(frozen=True)
class Options(OwnOptions):
    """All options: the assignment's and ours, those of predict among them.

    Raises ValueError, naming the flag, for a value out of bounds.
    """

    input: str | None = argument(
        None,
        "predict: texts to classify, one a line, or LABEL ||| SENTENCE, CSV, TSV or JSON; - is "
        "standard input",
        metavar="FILE",
    )
    output: str = argument(
        STANDARD_STREAM,
        "predict: file of the predictions, replaced if it is there; - is standard output",
        metavar="FILE",
    )
    format: str = argument(
        "lines",
        "predict: PREDICTION ||| SENTENCE, or a table or JSON lines with the label words",
        choices=FORMATS,
    )
    probabilities: bool = argument(
        False, "predict: the probability of every label as well (--format tsv or jsonl)"
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        check_tf32(self, self.use_gpu)
        trains = self.option in TRAINING
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
        self._check(
            "checkpoint_activations",
            trains or not self.checkpoint_activations,
            "left out, but for --option finetune and lora",
        )
        for name, of in OF_ONE_OPTION.items():
            is_used = getattr(self, name) == default_of(name) or self.option == of
            self._check(name, is_used, f"left out, but for --option {of}")
        is_one = self.prompts is None or self.prompt_text is None
        self._check("prompts", is_one, "left out with --prompt_text")
        is_line = self.question is None or len(self.question.splitlines()) == 1
        check_usage(f"--question {self.question!r}", is_line, "one line, not empty")
        packs = not (self.compile and self.quantize == "nf4")
        self._check("quantize", packs, "int8 with --compile")
        if self.option == "predict":
            self._check_predict()
            return
        self._check_data()
        self._check_output_names()

    def _check_predict(self) -> None:
        if self.input is None:
            raise UsageError("--option predict needs --input: a file of texts, or - (see --help)")
        if self.pretrained_model_path == default_of("pretrained_model_path"):
            raise UsageError(
                "--option predict needs --pretrained-model-path: a classifier that --option "
                "finetune or lora wrote"
            )
        self._check("quantize", self.quantize is None, "left out: a classifier is not quantized")
        has_place = not self.probabilities or self.format != "lines"
        self._check("probabilities", has_place, "left out, or --format tsv or jsonl")

    def _check_data(self) -> None:
        if self.option == "generate":
            return
        needed = ("dev",) if self.option == "prompt" else ("train", "dev")
        for name in needed:
            check_usage(f"--{name} {getattr(self, name)!r}", name in self.splits, "a data file")
        for name in ("text_column", "label_column"):
            is_used = getattr(self, name) is None or any(map(is_table, self.splits.values()))
            self._check(name, is_used, "left out, but for CSV, TSV and JSON files")

    @property
    def inputs(self) -> list[str]:
        """Files that the run reads, without a tokenizer that is found by itself."""
        if self.option == "predict":
            files = [self.pretrained_model_path, self.input, self.tokenizer]
            return [path for path in files if path and path != STANDARD_STREAM]
        texts = [] if self.option == "generate" else self.splits.values()
        names = [] if self.option == "generate" else [self.label_names]
        others = [path for path in (self.tokenizer, self.adapters, self.prompts) if path]
        return [self.pretrained_model_path, *texts, *names, *others]

    @property
    def edition_in_force(self) -> Edition:
        """The edition for what no checkpoint records: sampling and the prompt's text."""
        return EDITIONS[self.edition or DEFAULT_EDITION]

    @property
    def checkpoint_path(self) -> Path:
        """The file of the best model; its default name has option, data, epochs and rate."""
        default = f"{self.option}-{self.dataset}-{self.epochs}-{self.lr}.pt"
        return Path(self.checkpoint_out or default)


# Options that only one --option has a use for.
OF_ONE_OPTION = {"prompts": "generate", "question": "prompt"}
OF_ONE_OPTION |= dict.fromkeys(("input", "output", "format", "probabilities"), "predict")


def dataset_of(train: str) -> str:
    """Short name of a data set: data/sst-train.txt → sst."""
    return Path(train).stem.removesuffix("-train") or "data"


def default_of(name: str) -> Any:
    """The default of one option, by its name."""
    return Options.__dataclass_fields__[name].default
