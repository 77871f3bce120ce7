"""A run's folder, in which nothing is replaced without being asked for."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

PROGRESS, METRICS, CURVE = "progress.pt", "metrics.jsonl", "loss.png"


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


def check_out(
    folder: Path, resume: bool, overwrite: bool, replaced: Callable[[], Sequence[str]]
) -> str | None:
    """A sentence to print, if there is something to say of --out before the work begins.

    Raises ValueError if the run would replace what is there, which `replaced` names, and
    --overwrite was not given.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is not a folder; give another name")
    blocking = next((p for p in folder.parents if p.exists() and not p.is_dir()), None)
    if blocking is not None:
        raise ValueError(f"--out {folder} cannot be made: {blocking} is a file; give another name")
    if overwrite or (resume and (folder / PROGRESS).exists()):
        return None
    found = replaced()
    if resume and not found:
        return f"nothing to resume at {folder / PROGRESS}: starting with step 0"
    if resume:
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


def existing(folder: Path, names: Iterable[str]) -> list[str]:
    """The names that are taken in the folder, by dangling links, too."""
    return [name for name in names if (folder / name).exists() or (folder / name).is_symlink()]


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Delete files of the run that --overwrite replaces, TensorBoard's among them, so that none is
    taken for new.
    """
    for name in names:
        (folder / name).unlink(missing_ok=True)
    for events in folder.glob("events.out.tfevents.*"):
        events.unlink()
