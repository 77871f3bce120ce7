"""A pre-training run's folder: what it holds, and what of it would be replaced."""

from pathlib import Path

from mini_llama.pretraining.options import PretrainOptions
from mini_llama.training.folder import (
    CURVE,
    METRICS,
    PROGRESS,
    check_out,
    existing,
    remove_files,
)
from mini_llama.training.model_folder import MODEL_COMPANIONS, MODEL_FILES

TOKENIZER = "tokenizer.model"
TOKENS, SIDECAR = "tokens", "tokens.json"
TOKEN_FILES = {"train": "train.bin", "val": "val.bin"}
MODELS = ("best", "last")
RESULTS = (*(f"{name}.pt" for name in MODELS), PROGRESS, CURVE)


def check_folder(options: PretrainOptions) -> str | None:
    """A sentence to print, if there is something to say of --out before the work begins.

    Raises ValueError if the run would replace what is there, and --overwrite was not given.
    """
    folder = Path(options.out)

    def found() -> list[str]:
        own = folder / TOKENIZER
        given = Path(options.tokenizer) if options.tokenizer is not None else own
        is_given = options.tokenizer is not None and own.exists() and given.exists()
        is_own = is_given and own.samefile(given)
        return replaced(folder, keeps_tokenizer=is_own or options.resume)

    return check_out(folder, options.resume, options.overwrite, found)


def replaced(folder: Path, keeps_tokenizer: bool) -> list[str]:
    """What a run would write over: a finished or interrupted run's results, or a stranger's files.

    Tokens and tokenizer of a run that never saved a model are no loss: they are made again from the
    text, or used again.
    """
    has_tokens = (folder / TOKENS / SIDECAR).exists()
    names = [*RESULTS, *(f"{name}/{file}" for name in MODELS for file in MODEL_FILES)]
    if not has_tokens:
        names += [METRICS, *(f"{TOKENS}/{file}" for file in TOKEN_FILES.values())]
        names += [] if keeps_tokenizer else [TOKENIZER]
    return existing(folder, names)


def remove_results(folder: Path) -> None:
    """Delete the results of the run that --overwrite replaces, so that none is taken for new."""
    files = (*MODEL_FILES, *MODEL_COMPANIONS)
    models = [f"{name}/{file}" for name in MODELS for file in files]
    remove_files(folder, (*models, *RESULTS, METRICS))
