"""A run's folder: what it holds, and that nothing in it is replaced without being asked for."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mini_llama.pretraining.options import PretrainOptions

PROGRESS, TOKENIZER, METRICS, CURVE = "progress.pt", "tokenizer.model", "metrics.jsonl", "loss.png"
TOKENS, SIDECAR = "tokens", "tokens.json"
TOKEN_FILES = {"train": "train.bin", "val": "val.bin"}
MODELS = ("best", "last")
MODEL_FILES = ("model.safetensors", "config.json")
MODEL_COMPANIONS = (
    *("generation_config.json", "tokenizer_config.json", "tokenizer.model"),
    *("tokenizer.json", "special_tokens_map.json", "chat_template.jinja"),
)
RESULTS = (*(f"{name}.pt" for name in MODELS), PROGRESS, CURVE)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make the folder if it is not there; remove it again if an error leaves it empty."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty, or another process was faster
                folder.rmdir()
        raise


def check_folder(options: PretrainOptions) -> str | None:
    """A sentence to print, if there is something to say of --out before the work begins.

    Raises ValueError if the run would replace what is there, and --overwrite was not given.
    """
    folder = Path(options.out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is not a folder; give another name")
    if options.overwrite or (options.resume and (folder / PROGRESS).exists()):
        return None
    own = folder / TOKENIZER
    given = Path(options.tokenizer) if options.tokenizer is not None else own
    is_given = options.tokenizer is not None and own.exists() and given.exists()
    is_own = is_given and own.samefile(given)
    found = replaced(folder, keeps_tokenizer=is_own or options.resume)
    if options.resume and not found:
        return f"nothing to resume at {folder / PROGRESS}: starting with step 0"
    if options.resume:
        raise ValueError(
            f"--resume: {folder} has {found[0]}, and no {PROGRESS} to go on from; --overwrite "
            "replaces it, and another --out keeps it"
        )
    if found:
        raise ValueError(
            f"{folder} has {found[0]} already: --resume goes on with a run, --overwrite replaces "
            "it, and another --out keeps it"
        )
    return None


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
    return [name for name in names if (folder / name).exists() or (folder / name).is_symlink()]


def remove_results(folder: Path) -> None:
    """Delete the results of the run that --overwrite replaces, so that none is taken for new."""
    for name in MODELS:
        for file in (*MODEL_FILES, *MODEL_COMPANIONS):
            (folder / name / file).unlink(missing_ok=True)
    for name in (*RESULTS, METRICS):
        (folder / name).unlink(missing_ok=True)
    for events in folder.glob("events.out.tfevents.*"):
        events.unlink()
