"""Train a Llama from scratch on text: python pretrain.py --input TEXT… --out FOLDER.

Next-token loss, AdamW with weight decay on matrices only, warmup and a cosine or constant learning
rate. Everything that a step draws at random follows from (seed, step), so a resumed run continues
with the losses of an uninterrupted one. Under torchrun each process takes its share of every
global batch. The file knows files of token ids, not how they are made.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from config import PRESETS, LlamaConfig
from llama import Llama
from mini_llama.checkpoints.formats.folder import save_folder
from mini_llama.checkpoints.formats.torch_file import save_checkpoint
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.record import fit_tensors
from mini_llama.checkpoints.sizes import TrainingShape, count_parameters, describe
from mini_llama.checkpoints.tensor_files import import_safetensors, load_plain, save_plain
from mini_llama.layers.linear_loss import linear_cross_entropy
from mini_llama.pretraining.data import (
    TokenFile,
    TokenWindows,
    build_token_files,
    fingerprint_paths,
    make_loader,
    read_documents,
    train_tokenizer,
)
from mini_llama.pretraining.log import TrainingLog, draw_losses
from mini_llama.pretraining.options import PretrainOptions
from mini_llama.resume import check_same_run
from mini_llama.tokenization.find import load_tokenizer
from optimizer import AdamW
from utils import autocast, choose_device, seed_everything


@dataclass(frozen=True)
class Process:
    """This process among those that torchrun started, or alone."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a number over all processes."""
        value = value.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(value)
        return value.item() / self.world_size


@contextlib.contextmanager
def join_processes(use_gpu: bool) -> Iterator[Process]:
    """Join torchrun's group (nccl on CUDA, else gloo), if there is one, and leave it at the end."""
    device = choose_device(use_gpu)
    if "RANK" not in os.environ:
        yield Process(device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Process(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make the folder if it is not there; take it away again if an error leaves it empty."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty, or another process was faster
                folder.rmdir()
        raise


def prepare_data(options: PretrainOptions, process: Process) -> tuple[Any, TokenFile, TokenFile]:
    """The tokenizer, and the files of training and validation tokens, made if they are not there.

    With several processes the first makes them and the others wait.
    """
    out, paths = Path(options.out), options.input
    tokenizer_path = options.tokenizer or out / "tokenizer.model"

    def documents() -> Iterator[str]:
        return read_documents(paths, options.separator)

    def build() -> tuple[Any, TokenFile, TokenFile]:
        if options.tokenizer is None and not (options.resume and Path(tokenizer_path).exists()):
            train_tokenizer(
                documents(), options.vocab_size or default_vocab(options), tokenizer_path
            )
        tokenizer = load_tokenizer(tokenizer_path)
        fingerprint = fingerprint_paths(paths, options.separator)
        files = build_token_files(
            documents, fingerprint, tokenizer, out / "tokens", options.val_fraction
        )
        return tokenizer, *files

    if process.world_size > 1:
        if process.is_main:
            build()
        dist.barrier()
    return build()


def default_vocab(options: PretrainOptions) -> int:
    return PRESETS[options.preset]["vocab_size"]


def learning_rate(options: PretrainOptions, step: int) -> float:
    """Linear warmup over `warmup` steps to `lr`, then constant or half a cosine to `min_lr`.

    Steps count from 0. Loshchilov and Hutter 2017, eq. 5, without restarts.
    """
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    if options.schedule == "constant":
        return options.lr
    decay_steps = (options.decay_steps or options.steps) - options.warmup
    progress = min(1.0, (step - options.warmup) / max(1, decay_steps))
    return options.min_lr + (options.lr - options.min_lr) * (1 + math.cos(math.pi * progress)) / 2


def make_optimizer(model: torch.nn.Module, options: PretrainOptions) -> AdamW:
    """AdamW that decays matrices and leaves norms and biases alone."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=options.lr, betas=(0.9, 0.95), eps=1e-8)


class NextTokenLoss(torch.nn.Module):
    """The model with its loss as output, which is what gradients of several processes need."""

    def __init__(self, llama: Llama) -> None:
        super().__init__()
        self.llama = llama

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of token t + 1 given those up to t; windows (B, T + 1)."""
        hidden = self.llama.hidden_states(windows[:, :-1])  # (B, T, C)
        targets = windows[:, 1:].flatten()
        return linear_cross_entropy(hidden.flatten(0, 1), self.llama.output.weight, targets)


def wrap(llama: Llama, options: PretrainOptions, process: Process) -> torch.nn.Module:
    """The loss as a module, over several processes or sharded or compiled where asked for."""
    loss = NextTokenLoss(llama)
    if options.shard:
        from torch.distributed.fsdp import fully_shard

        for layer in llama.layers:
            fully_shard(layer)
        fully_shard(loss)
    if options.compile:
        loss.compile()
    if process.world_size > 1 and not options.shard:
        return torch.nn.parallel.DistributedDataParallel(loss)
    return loss


def synchronise(loss: torch.nn.Module, is_last: bool) -> contextlib.AbstractContextManager:
    """Let processes exchange gradients only after the last part of an accumulated batch."""
    if hasattr(loss, "set_requires_gradient_sync"):  # FSDP2
        loss.set_requires_gradient_sync(is_last)
    elif hasattr(loss, "no_sync") and not is_last:  # DDP
        return loss.no_sync()
    return contextlib.nullcontext()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout of a step follows from these three alone."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))


class Trainer:
    """Model, optimizer and progress of one run; each method is one thing that a run does."""

    def __init__(self, options: PretrainOptions, process: Process, config: LlamaConfig) -> None:
        self.options, self.process = options, process
        self.folder = Path(options.out)
        self.llama = Llama(config).to(process.device)
        self.loss = wrap(self.llama, options, process)
        self.optimizer = make_optimizer(self.llama, options)
        self.step, self.best_loss = 0, math.inf

    def autocast(self) -> contextlib.AbstractContextManager:
        return autocast(self.process.device, self.options.dtype)

    def train_step(self, windows: torch.Tensor) -> tuple[float, float]:
        """One optimizer step on this process's windows (B, T + 1): (loss, gradient norm).

        The loss is the mean over all processes. Raises ValueError if either is not finite; the
        weights are then those of the step before.
        """
        seed_step(self.options.seed, self.step, self.process.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.options, self.step)
        self.llama.train()
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.process.device)
        parts = windows.to(self.process.device).chunk(self.options.accumulation)
        for i, part in enumerate(parts):
            with synchronise(self.loss, i == len(parts) - 1), self.autocast():
                loss = self.loss(part) * (len(part) / len(windows))
                loss.backward()
            total += loss.detach()
        loss = self.process.mean(total)
        norm = torch.nn.utils.clip_grad_norm_(self.llama.parameters(), self.options.max_grad_norm)
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise ValueError(
                f"the loss is {loss} and the gradient norm {norm} at step {self.step}: lower --lr "
                f"{self.options.lr}; {self.folder} keeps the last good checkpoint"
            )
        self.optimizer.step()
        self.step += 1
        return loss, norm

    @torch.no_grad()
    def evaluate(self, windows: TokenWindows) -> float:
        """Mean loss over the first `eval_batches` batches of validation windows."""
        self.llama.eval()
        total, count = 0.0, 0
        loader = make_loader(windows, self.options.batch_size, self.options.seed, shuffle=False)
        for batch in itertools.islice(loader, self.options.eval_batches):
            with self.autocast():
                total += self.loss(batch.to(self.process.device)).item() * len(batch)
            count += len(batch)
        return total / count

    def save(self, name: str) -> None:
        """Write NAME.pt and NAME/ (safetensors and config.json), which run_llama.py loads."""
        tensors = training_state(self)["model"]
        if self.process.is_main:
            facts = {"step": self.step, "val_loss": self.best_loss}
            save_checkpoint(self.folder / f"{name}.pt", self.llama.config, tensors, **facts)
            save_folder(self.folder / name, self.llama.config, tensors)

    def load_weights(self, path: str) -> None:
        """Start from a model instead of from random weights. Raises ValueError if it has another
        shape.
        """
        checkpoint = read_checkpoint(path)
        tensors = fit_tensors(checkpoint, self.llama.config)
        load_training_state(self, {"model": tensors})

    @property
    def progress_path(self) -> Path:
        return self.folder / "progress.pt"

    def save_progress(self) -> None:
        """Write all that resuming needs, as one file."""
        content = training_state(self) | {
            "settings": resume_settings(self.options, self.llama.config),
            "step": self.step,
            "best_loss": self.best_loss,
        }
        if self.process.is_main:
            save_plain(self.progress_path, content)

    def load_progress(self) -> None:
        """Go on where save_progress left off. Raises ValueError if that run was another one."""
        saved = load_plain(self.progress_path)
        settings = resume_settings(self.options, self.llama.config)
        check_same_run(self.progress_path, saved, PROGRESS_KEYS, settings)
        load_training_state(self, saved)
        self.step, self.best_loss = saved["step"], saved["best_loss"]


def training_state(trainer: Trainer) -> dict[str, Any]:
    """{"model": tensors, "optimizer": moments}, whole; every process must ask."""
    if not trainer.options.shard:
        state = trainer.llama.state_dict()
        return {"model": state, "optimizer": trainer.optimizer.state_dict()}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, moments = get_state_dict(trainer.llama, trainer.optimizer, options=options)
    return {"model": model, "optimizer": moments}


def load_training_state(trainer: Trainer, saved: dict[str, Any]) -> None:
    """The inverse of training_state; without "optimizer" the moments stay at 0."""
    if not trainer.options.shard:
        trainer.llama.load_state_dict(saved["model"])
        if "optimizer" in saved:
            trainer.optimizer.load_state_dict(saved["optimizer"])
        return
    from torch.distributed.checkpoint import state_dict as api

    whole = api.StateDictOptions(full_state_dict=True)
    api.set_model_state_dict(trainer.llama, saved["model"], options=whole)
    if "optimizer" in saved:
        api.set_optimizer_state_dict(
            trainer.llama, trainer.optimizer, saved["optimizer"], options=whole
        )


PROGRESS_KEYS = {"settings", "model", "optimizer", "step", "best_loss"}
# A resumed run may ask for more or fewer evaluations, other samples or outputs, but not for these.
FREE_TO_CHANGE = {"out", "eval_every", "eval_batches", "sample_prompt", "sample_tokens"}
FREE_TO_CHANGE |= {"use_gpu", "tensorboard", "resume", "plan", "compile", "shard", "input"}


def resume_settings(options: PretrainOptions, config: LlamaConfig) -> dict[str, Any]:
    settings = dataclasses.asdict(options) | dataclasses.asdict(config)
    return {name: value for name, value in settings.items() if name not in FREE_TO_CHANGE}


class StopRequest:
    """Remembers SIGTERM or SIGINT, so that a run can finish its step, save and exit."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: object) -> None:
        if self.signal is not None:  # asked twice: do not wait for the step
            raise SystemExit(128 + number)
        self.signal = number

    def agreed(self, process: Process) -> bool:
        """Whether any process was asked to stop; all must ask, and get the same answer."""
        if process.world_size == 1:
            return self.signal is not None
        flag = torch.tensor(float(self.signal is not None), device=process.device)
        return process.mean(flag) > 0


def train(
    trainer: Trainer, tokenizer: Any, train_file: TokenFile, val_file: TokenFile, log: Any
) -> int:
    """Train to the last step, evaluating and saving on the way; the exit status."""
    options, process = trainer.options, trainer.process
    val_windows = TokenWindows(val_file.open(), options.context)
    batches = make_loader(
        TokenWindows(train_file.open(), options.context),
        options.batch_size,
        options.seed,
        trainer.step,
        process.rank,
        process.world_size,
    )
    stop = StopRequest()
    bar = tqdm(total=options.steps, initial=trainer.step, unit="step", disable=None)
    start, tokens = time.perf_counter(), 0
    for windows in itertools.islice(batches, options.steps - trainer.step):
        loss, norm = trainer.train_step(windows)
        tokens += options.batch_size * options.context
        rate = tokens / (time.perf_counter() - start)
        bar.set_postfix_str(f"loss {loss:.3f}, {rate:.0f} tokens/s", refresh=False)
        bar.update()
        values = {"train_loss": loss, "grad_norm": norm, "tokens_per_second": rate}
        values["lr"] = trainer.optimizer.param_groups[0]["lr"]
        is_stopped = stop.agreed(process)
        if trainer.step % options.eval_every == 0 or trainer.step == options.steps:
            values |= check_progress(trainer, tokenizer, val_windows)
        if process.is_main:
            log.write(trainer.step, **values)
        if is_stopped:
            break
    bar.close()
    trainer.save_progress()
    trainer.save("last")
    if stop.signal is not None:
        report(process, f"stopped at step {trainer.step}; --resume goes on from there")
        return 128 + stop.signal
    return 0


def check_progress(trainer: Trainer, tokenizer: Any, val_windows: TokenWindows) -> dict[str, float]:
    """Evaluate, show a sample, and save: the best model by validation loss, and the progress."""
    val_loss = trainer.evaluate(val_windows)
    if not math.isfinite(val_loss):
        raise ValueError(
            f"the validation loss is {val_loss} at step {trainer.step}: lower --lr "
            f"{trainer.options.lr}; {trainer.folder} keeps the last good checkpoint"
        )
    perplexity = math.exp(min(val_loss, 700))
    is_best = val_loss < trainer.best_loss
    report(
        trainer.process,
        f"step {trainer.step}: val loss {val_loss:.4f}, perplexity {perplexity:.2f}"
        + (" (best so far)" if is_best else ""),
    )
    if is_best:
        trainer.best_loss = val_loss
        trainer.save("best")
    trainer.save_progress()
    if trainer.options.sample_tokens and not trainer.options.shard and trainer.process.is_main:
        report(trainer.process, f"sample: {sample_text(trainer, tokenizer)}")
    return {"val_loss": val_loss, "val_perplexity": perplexity}


def sample_text(trainer: Trainer, tokenizer: Any) -> str:
    """What the model writes at temperature 0.8, behind `sample_prompt`, up to EOS."""
    device = trainer.process.device
    prompt = tokenizer.encode(trainer.options.sample_prompt, bos=True, eos=False)
    tokens = trainer.llama.generate(
        torch.tensor([prompt], device=device),
        trainer.options.sample_tokens,
        temperature=0.8,
        epsilon=0.0,
        generator=torch.Generator(device).manual_seed(trainer.options.seed),
        stop_id=tokenizer.eos_id,
    )
    return tokenizer.decode(tokens[0].tolist())


def report(process: Process, line: str) -> None:
    if process.is_main:
        tqdm.write(line)


def run(options: PretrainOptions) -> int:
    """The whole of it; the exit status. Raises OSError or ValueError with one line to show."""
    if options.plan:
        shape = TrainingShape(
            options.batch_size // options.accumulation, options.context, options.dtype
        )
        print(describe(options.model_config(options.vocab_size), shape))
        return 0
    if not options.input:
        raise ValueError("--input is needed: text files or folders to train on")
    import_safetensors()  # missing, it would be missed at the first save
    torch.set_float32_matmul_precision("high")
    with join_processes(options.use_gpu) as process:
        folder = Path(options.out)
        with new_folder(folder):
            tokenizer, train_file, val_file = prepare_data(options, process)
        seed_everything(options.seed)
        trainer = Trainer(options, process, options.model_config(tokenizer.n_words))
        if options.resume and trainer.progress_path.exists():
            trainer.load_progress()
        elif options.init is not None:
            trainer.load_weights(options.init)
        parameters = f"{count_parameters(trainer.llama.config):,} parameters"
        report(process, f"{parameters}, {train_file.count:,} training tokens")
        log = None
        if process.is_main:
            log = TrainingLog(folder, options.tensorboard, trainer.step)
        status = train(trainer, tokenizer, train_file, val_file, log)
        if process.is_main:
            log.close()
            draw_losses(log.records, folder / "loss.png")
        return status
