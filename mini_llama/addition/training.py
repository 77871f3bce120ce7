"""Train a model from scratch on additions: data, epochs, the best model, resuming.

All randomness is seeded by (seed, epoch), so that a resumed run ends like an uninterrupted one.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from addition_data_generation import generate_addition_data, write_additions
from addition_lib import Batches, CharDataset, make_dataset
from llama import Llama
from mini_llama.addition.additions import read_additions, without_pairs
from mini_llama.addition.experiment import (
    CURVE,
    MODEL,
    MODEL_CONFIG,
    PREDICTIONS,
    SUMMARY,
    TRAINING_CONFIG,
    model_record,
    write_record,
)
from mini_llama.addition.options import PROGRESS, TrainOptions, count_samples
from mini_llama.bounds import UsageError
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.memory import require_training_memory
from mini_llama.checkpoints.tensor_files import load_plain, save_plain
from mini_llama.resume import REMEDY, check_same_run, digest
from mini_llama.training.log import draw_losses
from optimizer import AdamW
from utils import check_not_there, check_outputs, choose_device, seed_everything

PROGRESS_KEYS = {"settings", "model", "optimizer", "history"}
SETTINGS = ("seed", "epochs", "batch_size", "lr", "lr_decay", "capacity")
Loader = Iterable[tuple[torch.Tensor, torch.Tensor]]
TrainEpoch = Callable[[Llama, Loader, AdamW, torch.device], float]
Evaluate = Callable[[Llama, Loader, torch.device], float]


def run(options: TrainOptions, train_one_epoch: TrainEpoch, evaluate_loss: Evaluate) -> None:
    """Train for all epochs, and keep the model with the lowest validation loss.

    Raises OSError or ValueError, one line each.
    """
    device = choose_device(options.use_gpu)
    require_training_memory(options.model_config(), device)
    folder = Path(options.save_dir)
    prepare_folders(options)
    seed_everything(options.seed)
    model = Llama(options.model_config()).to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"model parameters are {parameters}")
    train, val = prepare_additions(options, parameters)
    datasets = make_dataset(train), make_dataset(val)
    state = TrainingState(model, options, fingerprint(train, val))
    progress = folder / PROGRESS
    if options.resume:
        state.load(progress)
    records = training_record(options, parameters, len(train))
    while len(state.history) < options.epochs:
        losses = run_epoch(state, datasets, train_one_epoch, evaluate_loss)
        is_best = losses[1] < min((val for _, val in state.history), default=math.inf)
        if is_best:
            save_best(folder, state, losses[1], records)
        state.history.append(losses)
        state.save(progress)
        epoch = f"Epoch {len(state.history):02d}"
        print(f"{epoch} | train loss: {losses[0]:.4f} | val loss: {losses[1]:.4f}", flush=True)
    print(f"Model saved to {folder / MODEL}")
    draw(state.history, folder / CURVE)
    progress.unlink(missing_ok=True)


class TrainingState:
    """Model and optimizer of a run, and the (train, validation) losses of its finished epochs.

    `data` is a fingerprint of the additions, which must be the same when resuming.
    """

    def __init__(self, model: Llama, options: TrainOptions, data: str) -> None:
        self.model, self.options = model, options
        self.optimizer = AdamW(model.parameters(), lr=options.lr)
        self.history: list[tuple[float, float]] = []
        given = {name: getattr(options, name) for name in SETTINGS}
        self.settings = given | dataclasses.asdict(model.config) | {"data": data}

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        save_plain(path, {"settings": self.settings, "history": self.history, **state})

    def load(self, path: Path) -> None:
        """Restore a saved state. Raises ValueError as check_same_run does."""
        if not path.exists():
            print(f"nothing to resume at {path}: starting with epoch 1")
            return
        saved = load_plain(path)
        check_same_run(path, saved, PROGRESS_KEYS, self.settings)
        if not path.with_name(MODEL).exists():
            missing = f"{path.with_name(MODEL)}, the best model, is missing"
            raise ValueError(f"--resume: {missing}; {REMEDY}")
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.history = saved["history"]
        done = f"{len(self.history)} of {self.options.epochs} epochs are done"
        print(f"resume from {path}: {done}")


def run_epoch(
    state: TrainingState,
    datasets: tuple[CharDataset, CharDataset],
    train_one_epoch: TrainEpoch,
    evaluate_loss: Evaluate,
) -> tuple[float, float]:
    """Train one epoch; return training and validation loss. Raises ValueError if not finite."""
    options, epoch = state.options, len(state.history) + 1
    seed = np.random.SeedSequence([options.seed, epoch]).generate_state(1)[0]
    order = torch.Generator().manual_seed(int(seed))
    train, val = datasets
    batches = Batches(train, options.batch_size, order)
    steps = (epoch - 1) * len(batches), options.epochs * len(batches)
    bar = with_progress_bar(batches, f"epoch {epoch:02d}")
    with learning_rates(state.optimizer, options, *steps):
        train_loss = train_one_epoch(state.model, bar, state.optimizer, state.model.device)
    bar = with_progress_bar(Batches(val, options.batch_size), "validation")
    val_loss = evaluate_loss(state.model, bar, state.model.device)
    if not math.isfinite(train_loss + val_loss):
        losses = f"the training loss is {train_loss} and the validation loss {val_loss}"
        raise ValueError(f"{losses} in epoch {epoch}: lower --lr {options.lr}")
    return train_loss, val_loss


def learning_rate(options: TrainOptions, step: int, n_steps: int) -> float:
    """The learning rate after `step` of `n_steps` optimizer steps: --lr, constant or decaying to 0.

    The cosine is Loshchilov and Hutter 2017, eq. 5, without restarts.
    """
    progress = min(1.0, step / n_steps)
    match options.lr_decay:
        case "linear":
            return options.lr * (1 - progress)
        case "cosine":
            return options.lr * (1 + math.cos(math.pi * progress)) / 2
        case _:
            return options.lr


@contextlib.contextmanager
def learning_rates(
    optimizer: AdamW, options: TrainOptions, first_step: int, n_steps: int
) -> Iterator[None]:
    """Set the learning rate before each optimizer step inside the context, counting steps from
    `first_step`, so that train_one_epoch needs no scheduler.
    """
    steps = itertools.count(first_step)

    def set_rate(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        rate = learning_rate(options, next(steps), n_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate

    handle = optimizer.register_step_pre_hook(set_rate)
    try:
        yield
    finally:
        handle.remove()


def with_progress_bar(batches: Batches, name: str) -> Loader:
    return tqdm(batches, desc=name, unit="batch", leave=False, disable=None)


def prepare_folders(options: TrainOptions) -> None:
    """Create the folders that the run writes to. Raises OSError or ValueError for a bad output, and
    for one that only --overwrite replaces: a model, or an interrupted run.
    """
    folder = Path(options.save_dir)
    found = [name for name in (PROGRESS, MODEL) if (folder / name).exists()]
    if found == [MODEL] and options.resume:
        raise ValueError(
            f"--resume: {folder / MODEL} is there, and no {PROGRESS} to go on from: the run is "
            "finished; --overwrite replaces it, and another --save_dir keeps it"
        )
    if found and not (options.resume or options.overwrite):
        raise ValueError(
            f"{folder / found[0]} is there already: --resume goes on with an interrupted run, "
            "--overwrite replaces it, and another --save_dir keeps it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    outputs: list[str | Path] = [folder / MODEL, folder / CURVE]
    if not options.reuse_files:
        written = (options.train_file, options.val_file)
        for path in written:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        outputs += written
    check_outputs(outputs, [options.test_file])


def prepare_additions(options: TrainOptions, parameters: int) -> tuple[list[str], list[str]]:
    """Additions to train and to validate on, with no pair in both or in the test file.

    They are drawn and written or, with --reuse_files, read. Raises OSError, ValueError.
    """
    test: list[str] = []
    if Path(options.test_file).exists():
        test = read_additions(options.test_file)
    else:
        missing = f"{options.test_file} does not exist"
        print(f"{missing}: its pairs cannot be excluded from training", file=sys.stderr)
    if options.reuse_files:
        return reused_additions(options, test)
    n_train, n_val = count_samples(options.capacity, parameters, options.epochs)
    try:
        generator = np.random.default_rng(options.seed)
        drawn = generate_addition_data(n_train + n_val, test, generator)
    except ValueError as error:
        raise UsageError(f"{error}; lower --capacity, or raise --epochs") from None
    train, val = drawn[:n_train], drawn[n_train:]
    for lines, name in ((train, "train_file"), (val, "val_file")):
        write_again(lines, options, name)
    return train, val


def write_again(lines: Sequence[str], options: TrainOptions, name: str) -> None:
    """Write additions, where the course has them whatever is there. Raises ValueError for another
    file with other ones, unless --overwrite is given; OSError.
    """
    path = getattr(options, name)
    content = "".join(f"{line}\n" for line in lines).encode()
    is_same = Path(path).is_file() and Path(path).read_bytes() == content
    is_course_s = path == getattr(TrainOptions, name)
    is_resumed = options.resume and (Path(options.save_dir) / PROGRESS).exists()
    if is_resumed and not (is_same or is_course_s):
        return  # another run's: resuming refuses it
    check_not_there(path, options.overwrite or is_same or is_course_s)
    write_additions(lines, path)


def reused_additions(options: TrainOptions, test: Sequence[str]) -> tuple[list[str], list[str]]:
    """Both files without the test's pairs, and the validation file without the training pairs;
    prints how many lines are dropped.
    """
    train, val = (read_additions(path) for path in (options.train_file, options.val_file))
    kept_train = without_pairs(train, test)
    kept_val = without_pairs(val, [*test, *kept_train])
    for path, all_lines, kept, others in (
        (options.train_file, train, kept_train, options.test_file),
        (options.val_file, val, kept_val, f"{options.test_file} or {options.train_file}"),
    ):
        dropped = len(all_lines) - len(kept)
        print(f"{path}: dropped {dropped} of {len(all_lines)} lines whose pair is in {others}")
        if not kept:
            raise ValueError(f"{path}: no lines are left; give a file with other additions")
    return kept_train, kept_val


def fingerprint(*files: Sequence[str]) -> str:
    text = "\n\n".join("\n".join(lines) for lines in files)
    return hashlib.sha256(text.encode()).hexdigest()


def training_record(options: TrainOptions, parameters: int, n_train: int) -> dict[str, Any]:
    """The content of training_config.json."""
    test = Path(options.test_file)
    return {
        "capacity": options.capacity,
        "n_epochs": options.epochs,
        "batch_size": options.batch_size,
        "save_dir": options.save_dir,
        "model_parameters": parameters,
        "train_samples": n_train,
        "lr": options.lr,
        "lr_decay": options.lr_decay,
        "seed": options.seed,
        "excluded_test_file": digest(test) if test.exists() else None,
    }


def save_best(folder: Path, state: TrainingState, val_loss: float, records: dict[str, Any]) -> None:
    """Save the model and both configurations. The first time, delete an older model's results."""
    if not state.history:
        for name in (PROGRESS, SUMMARY, PREDICTIONS):
            (folder / name).unlink(missing_ok=True)
    facts = {"epoch": len(state.history) + 1, "val_loss": val_loss}
    save_checkpoint(folder / MODEL, state.model.config, state.model.state_dict(), **facts)
    write_record(folder / TRAINING_CONFIG, records)
    write_record(folder / MODEL_CONFIG, model_record(state.model.config))


def draw(history: Sequence[tuple[float, float]], path: Path) -> None:
    records = [
        {"step": epoch, "train_loss": train, "val_loss": val}
        for epoch, (train, val) in enumerate(history, 1)
    ]
    draw_losses(records, path, title="Addition", step_name="epoch", scale="log")  # 1 to 0.00001
