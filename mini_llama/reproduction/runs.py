"""The eight graded commands of the assignment as command lines of run_llama.py, for each seed.

Seven runs cover the eight, since generate writes both graded texts. This module does not import
torch, so that --plan and errors are fast.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_llama import bundled
from mini_llama.assignment import option_parser
from mini_llama.assignment.figures import BANDS, SPLITS
from mini_llama.assignment.options import GRADED, OUTPUT_ENDINGS, Options, default_of
from mini_llama.bounds import COUNTS, EPOCHS, Range, check_usage
from mini_llama.command_line import argument, argument_of, check_ranges, number
from mini_llama.tokenization.tiktoken import TIKTOKEN_PREFIX

DATASETS = tuple(BANDS)
TRAINED = ("finetune", "lora")
BATCH_SIZES = {("sst", "finetune"): 80, ("sst", "lora"): 80}
DEFAULT_BATCH_SIZE = 10
# The bundled data set that stands in for each of the courses'.
STAND_INS = {"sst": "demo", "cfimdb": "demo2"}


@dataclass(frozen=True)
class Settings:
    """What to run and where to write; the fields after `seeds` are run_llama.py's options.

    Raises ValueError for a value out of bounds.
    """

    out: Path = argument(text="folder for all output")
    only: Sequence[str] = argument(GRADED, "options to run", choices=GRADED, nargs="+", shown="all")
    datasets: Sequence[str] = argument(
        DATASETS, "data sets to run them on", choices=DATASETS, nargs="+", shown="all"
    )
    data: Sequence[str] = argument(
        (),
        "folder of the data files (default: data, else the bundled data); sst and cfimdb mean "
        "--datasets",
        nargs="+",
        metavar="DIR",
    )
    seeds: int = number(1, "number of seeds for finetune and lora, from 1337 up", Range(1, 1000))
    epochs: int = argument_of(Options, "epochs", text="epochs of finetune and lora", within=EPOCHS)
    edition: str | None = argument_of(
        Options,
        "edition",
        text="course edition whose arithmetic is used and whose figures are compared",
    )
    max_sentence_len: int | None = argument_of(
        Options,
        "max_sentence_len",
        text="in finetune and lora, truncate texts to this many tokens",
        within=COUNTS,
    )
    mask_padding: bool = argument_of(
        Options, "mask_padding", text="mask padding and read the last real token"
    )
    dtype: str = argument_of(Options, "dtype", text="arithmetic of matrix products")
    use_gpu: bool = argument_of(Options, "use_gpu", text="run on a GPU")
    pretrained_model_path: str | None = argument_of(
        Options,
        "pretrained_model_path",
        default=None,
        text="checkpoint (default: stories42M.pt, else the bundled model)",
    )
    tokenizer: str | None = argument_of(
        Options,
        "tokenizer",
        text="tokenizer of the checkpoint, if it is not found automatically",
    )
    data_dir: str | None = argument(None, "the older name of --data DIR", metavar="DIR")

    def __post_init__(self) -> None:
        check_ranges(self)
        given = " ".join(self.data)
        is_one = not self.data or self._names_sets or (len(self.data) == 1 and not self.data_dir)
        check_usage(f"--data {given}", is_one, "one folder, without --data_dir beside it")

    @property
    def _names_sets(self) -> bool:
        """Whether --data has names of data sets, which --datasets took over."""
        return set(self.data) <= set(DATASETS)

    @property
    def chosen(self) -> Sequence[str]:
        """The data sets to run on."""
        return self.data if self.data and self._names_sets else self.datasets

    @property
    def data_folder(self) -> str | None:
        """The folder of the data files, if one was named."""
        return self.data_dir if self._names_sets else self.data[0]

    @property
    def is_bundled(self) -> bool:
        """Whether the bundled model and data are used: no real file exists, and none was given."""
        named = {"pretrained_model_path": self.pretrained_model_path, "train": self.data_folder}
        given = {name: value for name, value in named.items() if value is not None}
        data = Path(default_of("train")).parent
        is_real = any((data / f"{dataset}-train.txt").exists() for dataset in DATASETS)
        return bool(bundled.stand_in(given)) and not is_real

    @property
    def checkpoint(self) -> str:
        if self.is_bundled:
            return str(bundled.CHECKPOINT)
        return self.pretrained_model_path or default_of("pretrained_model_path")


@dataclass(frozen=True)
class Run:
    """One command: `arguments` are run_llama.py's, `options` those parsed from them.

    `dataset` is the courses' name even if the bundled data is used, and None for generate.
    """

    name: str
    dataset: str | None
    folder: Path
    arguments: list[str]
    options: Options

    @property
    def command(self) -> str:
        """The command line, quoted for a shell."""
        return shlex.join(["python", "run_llama.py", *self.arguments])

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def outputs(self) -> list[Path]:
        """The graded files that the run writes."""
        texts = ("generated_sentence_low_temp_out", "generated_sentence_high_temp_out")
        names = texts if self.dataset is None else ("dev_out", "test_out")
        return [Path(getattr(self.options, name)) for name in names]

    @property
    def inputs(self) -> dict[str, str]:
        """The input files, by option, including a tokenizer that is found automatically."""
        options = self.options
        names = ["pretrained_model_path"]
        if self.dataset is not None:
            names += [*("train", *SPLITS), "label_names"]
        from mini_llama.checkpoints.own_tokenizer import find_own_tokenizer  # needs torch

        found = find_own_tokenizer(options.pretrained_model_path, options.tokenizer)
        tokenizer = str(found).removeprefix(TIKTOKEN_PREFIX)
        return {name: getattr(options, name) for name in names} | {"tokenizer": tokenizer}


def make_runs(settings: Settings) -> list[Run]:
    """The runs in the order of the assignment, cheap options first, seeds from 1337.

    generate and prompt run once regardless of `seeds`: there is one pair of graded texts, and
    prompting is deterministic. Raises ValueError for an option's value out of bounds.
    """
    runs = []
    for option in GRADED:
        if option not in settings.only:
            continue
        if option == "generate":
            runs.append(_generate(settings))
            continue
        for dataset in DATASETS:
            if dataset in settings.chosen:
                count = settings.seeds if option in TRAINED else 1
                runs += [_classify(settings, option, dataset, seed) for seed in range(count)]
    return runs


def _generate(settings: Settings) -> Run:
    folder = settings.out / "runs" / "generate"
    arguments = ["--option", "generate", *_common_arguments(settings)]
    for flag in ("generated_sentence_low_temp_out", "generated_sentence_high_temp_out"):
        arguments += [f"--{flag}", str(folder / default_of(flag))]
    if settings.is_bundled:
        arguments += ["--prompt_text", bundled.PROMPT_TEXT]
    return _make(None, folder, arguments)


def _classify(settings: Settings, option: str, dataset: str, seed: int) -> Run:
    """`seed` counts from 0; the first one is the assignment's."""
    name = STAND_INS[dataset] if settings.is_bundled else dataset
    is_trained, seed = option in TRAINED, default_of("seed") + seed
    run_name = f"{name}-{option}-{seed}" if is_trained else f"{name}-{option}"
    folder = settings.out / "runs" / run_name
    arguments = ["--option", option]
    if is_trained:
        arguments += ["--epochs", str(settings.epochs), "--lr", str(default_of("lr"))]
        arguments += ["--seed", str(seed)]
    batch_size = BATCH_SIZES.get((dataset, option), DEFAULT_BATCH_SIZE)
    arguments += ["--batch_size", str(batch_size), *_data_arguments(settings, name)]
    for split in SPLITS:
        output = f"{name}-{split}-{OUTPUT_ENDINGS[option]}-output.txt"
        arguments += [f"--{split}_out", str(folder / output)]
    if option == "lora":
        for flag in ("lora_rank", "lora_alpha"):
            arguments += [f"--{flag}", str(default_of(flag))]
    if is_trained:
        arguments += ["--checkpoint_out", str(folder / "model.pt")]
        if settings.max_sentence_len is not None:  # in prompt, it would cut off the question
            arguments += ["--max_sentence_len", str(settings.max_sentence_len)]
    arguments += _common_arguments(settings)
    return _make(dataset, folder, arguments + ["--mask_padding"] * settings.mask_padding)


def _data_arguments(settings: Settings, name: str) -> list[str]:
    given = settings.data_folder or Path(default_of("train")).parent
    folder = bundled.FOLDER if settings.is_bundled else Path(given)
    arguments = []
    for split in ("train", *SPLITS):
        arguments += [f"--{split}", str(folder / f"{name}-{split}.txt")]
    return [*arguments, "--label-names", str(folder / f"{name}-label-mapping.json")]


def _common_arguments(settings: Settings) -> list[str]:
    arguments = ["--pretrained-model-path", settings.checkpoint]
    for name in ("tokenizer", "edition"):
        if (value := getattr(settings, name)) is not None:
            arguments += [f"--{name}", value]
    if settings.dtype != default_of("dtype"):
        arguments += ["--dtype", settings.dtype]
    return arguments + ["--use_gpu"] * settings.use_gpu


def _make(dataset: str | None, folder: Path, arguments: list[str]) -> Run:
    args, _ = option_parser.parse(arguments)
    return Run(folder.name, dataset, folder, arguments, Options(**args))
