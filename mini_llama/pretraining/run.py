"""A pre-training run from text to model: data, training, evaluation, samples, checkpoints."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from mini_llama.bounds import UsageError
from mini_llama.checkpoints.formats.huggingface_tokenizer import copy_file
from mini_llama.checkpoints.memory import require_training_memory
from mini_llama.checkpoints.sizes import (
    TrainingShape,
    count_parameters,
    describe,
    training_flops,
)
from mini_llama.checkpoints.tensor_files import import_safetensors
from mini_llama.pretraining.budget import with_budget
from mini_llama.pretraining.data import (
    TokenFile,
    TokenWindows,
    build_token_files,
    fingerprint_paths,
    make_loader,
    read_documents,
    train_tokenizer,
)
from mini_llama.pretraining.options import PretrainOptions
from mini_llama.pretraining.run_folder import (
    TOKENIZER,
    TOKENS,
    check_folder,
    remove_results,
)
from mini_llama.pretraining.start import Start, find_start
from mini_llama.pretraining.trainer import Trainer
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.find import load_tokenizer
from mini_llama.training.folder import PROGRESS, new_folder
from mini_llama.training.log import TrainingLog
from mini_llama.training.loop import Steps, exit_status, report, run_loop
from mini_llama.training.processes import Process, join_processes
from mini_llama.training.throughput import peak_flops
from tokenizer import Tokenizer
from utils import seed_everything


def prepare_data(
    options: PretrainOptions, process: Process, existing: str | Path | None
) -> tuple[BaseTokenizer, TokenFile, TokenFile]:
    """The tokenizer, trained unless there is an `existing` one, and the files of training and
    validation tokens, made if they are not there.

    With several processes the first makes them and the others wait.
    """
    out, paths = Path(options.out), options.input
    own_tokenizer = out / TOKENIZER

    def documents() -> Iterator[str]:
        return read_documents(paths, options.separator)

    def build() -> tuple[BaseTokenizer, TokenFile, TokenFile]:
        if existing is None:
            vocab_size = options.vocab_size or options.preset_shape["vocab_size"]
            train_tokenizer(documents(), vocab_size, own_tokenizer)
        tokenizer = load_tokenizer(existing or own_tokenizer)
        fingerprint = fingerprint_paths(paths, options.separator)
        files = build_token_files(
            documents, fingerprint, tokenizer, out / TOKENS, options.val_fraction
        )
        return tokenizer, *files

    if process.world_size > 1:
        if process.is_main:
            build()
        dist.barrier()
    return build()


def train(
    trainer: Trainer,
    tokenizer: BaseTokenizer,
    train_file: TokenFile,
    val_file: TokenFile,
    log: TrainingLog | None,
) -> int:
    """Train to the last step, evaluating and saving on the way; the exit status.

    Only the first process has a log.
    """
    options, process = trainer.options, trainer.process
    val_windows = TokenWindows(val_file.open(), options.context)
    batches = make_loader(
        TokenWindows(train_file.open(), options.context, options.random_offsets),
        options.batch_size,
        options.seed,
        trainer.step,
        process.rank,
        process.world_size,
    )

    def take_step(windows: torch.Tensor) -> tuple[dict[str, float], int]:
        loss, norm = trainer.train_step(windows)
        return {"train_loss": loss, "grad_norm": norm}, options.batch_size * options.context

    def check() -> dict[str, float]:
        return check_progress(trainer, tokenizer, val_windows)

    steps = Steps(
        trainer.step,
        options.steps,
        options.eval_every,
        flops_a_token=training_flops(trainer.llama.config, options.context),
        peak=all_peaks(process, options),
    )
    stopped = run_loop(trainer.core, steps, batches, take_step, check, log)
    trainer.save_progress()
    trainer.save("last")
    return exit_status(process, stopped, trainer.step)


def check_progress(
    trainer: Trainer, tokenizer: BaseTokenizer, val_windows: TokenWindows
) -> dict[str, float]:
    """Evaluate, show a sample, and save: the best model by validation loss, and the progress."""
    val_loss, bits = trainer.evaluate(val_windows)
    if not math.isfinite(val_loss):
        raise ValueError(
            f"the validation loss is {val_loss} at step {trainer.step}: lower --lr "
            f"{trainer.options.lr}; {trainer.core.last_good()}"
        )
    perplexity = math.exp(min(val_loss, 700))
    is_best = val_loss < trainer.best_loss
    report(
        trainer.process,
        f"step {trainer.step}: val loss {val_loss:.4f}, perplexity {perplexity:.2f}"
        + ("" if math.isnan(bits) else f", {bits:.3f} bits a byte")
        + (" (best so far)" if is_best else ""),
    )
    if is_best:
        trainer.best_loss = val_loss
        trainer.save("best")
    trainer.save_progress()
    if trainer.options.sample_tokens and not trainer.options.shard and trainer.process.is_main:
        with trainer.averaged():
            text = sample_text(trainer, tokenizer)
        report(trainer.process, f"sample: {text}")
    return {"val_loss": val_loss, "val_perplexity": perplexity, "val_bits_per_byte": bits}


def sample_text(trainer: Trainer, tokenizer: BaseTokenizer) -> str:
    """What the model writes at temperature 0.8 after `sample_prompt`, up to EOS."""
    device = trainer.process.device
    prompt = tokenizer.encode(trainer.options.sample_prompt, bos=True, eos=False)
    if not prompt:
        return "none, for this tokenizer has no BOS to begin with: give --sample_prompt"
    tokens = trainer.llama.generate(
        torch.tensor([prompt], device=device),
        trainer.options.sample_tokens,
        temperature=0.8,
        epsilon=0.0,
        generator=torch.Generator(device).manual_seed(trainer.options.seed),
        stop_id=tokenizer.eos_id,
    )
    return tokenizer.decode(tokens[0].tolist())


def run(options: PretrainOptions) -> int:
    """Train, or print the plan; the exit status. Raises OSError or ValueError, one line each."""
    if options.plan:
        shape = TrainingShape(
            options.batch_size // options.accumulation,
            options.context,
            options.dtype,
            options.checkpoint_activations,
        )
        print(describe(options.model_config(options.vocab_size), shape))
        return 0
    if not options.input:
        raise UsageError("--input is needed: text files or folders to train on")
    import_safetensors()  # if missing, fail now, not at the first save
    torch.set_float32_matmul_precision("high")
    with join_processes(options.use_gpu, options.tf32) as process:
        folder = Path(options.out)
        if process.is_main and (said := check_folder(options)):
            print(said)
        start = find_start(options)
        with new_folder(folder):
            tokenizer, train_file, val_file = prepare_data(options, process, start.tokenizer)
        seed_everything(options.seed)
        config = start.config_for(options, tokenizer)
        require_training_memory(config, process.device, options.shard)
        given, options = options, with_budget(options, config)
        trainer = Trainer(options, process, config, tokenizer)
        begin(trainer, start)
        if process.is_main:
            keep_tokenizer(tokenizer, folder)
        parameters = f"{count_parameters(config):,} parameters"
        report(
            process,
            f"{parameters}, {train_file.count:,} training tokens{budget_of(given, options)}",
        )
        is_main = process.is_main
        log = TrainingLog(folder, options.tensorboard, trainer.step) if is_main else None
        status = train(trainer, tokenizer, train_file, val_file, log)
        if log is not None:
            log.finish()
        return status


def all_peaks(process: Process, options: PretrainOptions) -> float | None:
    """What all processes together could do at most, in operations a second, if it is known."""
    peak = peak_flops(process.device, options.dtype, options.tf32)
    return None if peak is None else peak * process.world_size


def budget_of(given: PretrainOptions, options: PretrainOptions) -> str:
    """ "; 120 steps for …", where a budget decided how many."""
    if options.steps == given.steps:
        return ""
    return f"; {options.steps:,} steps of {options.batch_size * options.context:,} tokens"


def begin(trainer: Trainer, start: Start) -> None:
    """Load the progress that --resume goes on from, or --init's weights; drop the results that
    --overwrite replaces.
    """
    options = trainer.options
    if options.resume and (trainer.folder / PROGRESS).exists():
        trainer.load_progress()
        return
    if start.checkpoint is not None:
        report(trainer.process, start.note)
        trainer.load_weights(start.checkpoint)
    if options.overwrite and trainer.process.is_main:
        remove_results(trainer.folder)


def keep_tokenizer(tokenizer: BaseTokenizer, folder: Path) -> None:
    """Put a SentencePiece model that came from elsewhere beside the run's models."""
    if isinstance(tokenizer, Tokenizer):
        copy_file(tokenizer.model_path, folder / TOKENIZER)
