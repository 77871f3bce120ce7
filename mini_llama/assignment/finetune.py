"""Options finetune and lora: one loop that trains a classifier head and all weights, or adapters.

After every epoch the best model by dev accuracy and the state to resume from are written, each
atomically. `--resume` continues after the last finished epoch with the same result as an
uninterrupted run, because each epoch's randomness is seeded by (seed, epoch).
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import lora
from classifier import LlamaEmbeddingClassifier, load_classifier, save_classifier
from mini_llama.assignment.adapters import check_rank, save_adapters
from mini_llama.assignment.batches import (
    Batch,
    EncodedExamples,
    encode_examples,
    make_batches,
)
from mini_llama.assignment.metrics import accuracy
from mini_llama.assignment.options import Options
from mini_llama.assignment.progress import TRAINING, Progress
from mini_llama.assignment.scoring import predict, predict_splits, write_results
from mini_llama.assignment.task import Task, announce, classifier_config, prepare
from mini_llama.assignment.training_memory import prepare_memory
from mini_llama.bounds import UsageError, as_usage
from mini_llama.checkpoints.tensor_files import load_plain, save_plain
from mini_llama.resume import REMEDY, check_same_run, digest
from optimizer import AdamW
from utils import autocast, require_free_disk, seed_everything

# What a resumed run must share with the one that was interrupted.
RESUME_FIELDS = (
    "option",
    "max_sentence_len",
    "seed",
    "batch_size",
    "lr",
    "hidden_dropout_prob",
    "mask_padding",
    "dtype",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "text_column",
    "label_column",
)
PROGRESS_KEYS = {"settings", "parameters", "optimizer", "epochs_done", "best_accuracy"}


def run(options: Options) -> None:
    """Train, keep the best epoch, load it again, evaluate it on dev and test, write predictions.

    Raises OSError or ValueError before any work is done, ValueError if the loss is not finite.
    """
    set_up_arithmetic()
    seed_everything(options.seed)
    task = prepare(options, [options.checkpoint_path, adapters_path(options)])
    model = build(options, task)
    check_free_disk(options.checkpoint_path, model)
    splits = {
        split: encode_examples(examples, task.tokenizer) for split, examples in task.splits.items()
    }
    prepare_memory(options, model, splits["train"])
    scored = {split: splits[split] for split in options.scored}
    work = options.epochs * work_of_epoch(splits)
    with Progress(work + sum(encoded.tokens for encoded in scored.values())) as progress:
        train(options, task, model, splits, progress)
        best = load_classifier(options.checkpoint_path).to(task.device)
        with progress.aside():
            print(f"load model from {options.checkpoint_path}")
        predictions = predict_splits(best, scored, options, progress)
    write_results(scored, predictions, options, task.labels.written)
    progress_path(options).unlink(missing_ok=True)


def set_up_arithmetic() -> None:
    """Make denormals 0, of which gradients have many, as most come from one column and are tiny: a
    CPU is many times slower on them. Threads that are started later inherit it.
    """
    torch.set_flush_denormal(True)


def work_of_epoch(splits: Mapping[str, EncodedExamples]) -> int:
    """One epoch in Progress's unit: training, and the accuracies on train and dev."""
    return (TRAINING + 1) * splits["train"].tokens + splits["dev"].tokens


def build(options: Options, task: Task) -> LlamaEmbeddingClassifier:
    """The classifier to train, on its device, wrapped with LoRA if that is the option."""
    model = LlamaEmbeddingClassifier(classifier_config(options, task))
    announce(model.llama, task.tokenizer, options.pretrained_model_path, task.device)
    if options.option == "lora":
        rank, alpha, targets = options.lora_rank, options.lora_alpha, options.lora_targets
        check_rank(model.llama, rank, targets)
        with as_usage():
            lora.apply_lora(model.llama, rank, alpha, targets)
        check_adapters(model)
        trained = sum(parameter.numel() for parameter in trainable_parameters(model).values())
        every = sum(parameter.numel() for parameter in model.parameters())
        share = f"{100 * trained / every:.1f} %"
        print(f"LoRA: trains {trained:,} of {every:,} parameters ({share})")
    return model.to(task.device)


def check_adapters(model: LlamaEmbeddingClassifier) -> None:
    """Raise ValueError for adapters of layers that the classifier never reads: they would not be
    trained, however long.
    """
    adapters = {name: p for name, p in trainable_parameters(model).items() if ".lora_" in name}
    was_training = model.training
    output = model.eval()(torch.zeros(1, 1, dtype=torch.long))  # no dropout, so no random numbers
    model.train(was_training)
    gradients = torch.autograd.grad(output[0, 0], list(adapters.values()), allow_unused=True)
    found = zip(adapters, gradients, strict=True)
    layers = [name.rpartition(".lora_")[0] for name, gradient in found if gradient is None]
    if layers:
        names = ",".join(dict.fromkeys(layer.rpartition(".")[2] for layer in layers))
        raise UsageError(
            f"--lora_targets {names} is not allowed: it must be layers that the classifier reads, "
            f"and it never reads {layers[0]}, whose adapters would learn nothing; leave it out"
        )


def check_free_disk(path: Path, model: torch.nn.Module) -> None:
    """Raise ValueError unless the checkpoint and the state to resume from, old and new, fit."""
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in trainable_parameters(model).values())
    state = 3 * trained  # two moments a parameter
    # All files, one of them a second time while it is written; LoRA's adapters, and file headers.
    needed = total + state + max(total, state) + trained + 10**6
    there = [path, beside(path, "resume")]
    needed -= sum(file.stat().st_size for file in there if file.exists())
    require_free_disk(path.parent, needed, "training", "set --checkpoint_out")


def train(
    options: Options,
    task: Task,
    model: LlamaEmbeddingClassifier,
    splits: Mapping[str, EncodedExamples],
    progress: Progress,
) -> None:
    """Train the remaining epochs; the best one is saved to options.checkpoint_path."""
    parameters = trainable_parameters(model)
    optimizer = AdamW(parameters.values(), lr=options.lr)
    settings = resume_settings(options, task, model)
    facts = run_facts(options, task)
    epochs_done, best_accuracy = 0, -1.0
    if options.resume:
        epochs_done, best_accuracy = load_progress(options, settings, parameters, optimizer)
    elif progress_path(options).exists():
        print(f"{progress_path(options)} is of an interrupted run: --resume would go on with it")
    progress.leave_out(epochs_done * work_of_epoch(splits))
    for epoch in range(epochs_done, options.epochs):
        shuffle = seed_epoch(options.seed, epoch)
        batches = make_batches(
            splits["train"], options.batch_size, shuffle, by_length=options.mask_padding
        )
        loss = train_epoch(model, batches, optimizer, options, epoch, progress)
        train_accuracy, dev_accuracy = (
            evaluate(model, splits[split], options, f"epoch {epoch} eval {split}", progress)
            for split in ("train", "dev")
        )
        is_best = dev_accuracy > best_accuracy
        best_accuracy = max(best_accuracy, dev_accuracy)
        with progress.aside():
            if is_best:
                if epoch == 0:  # an older run's state does not fit the checkpoint written next
                    progress_path(options).unlink(missing_ok=True)
                save_best(options, model, {"epoch": epoch, "dev_accuracy": dev_accuracy} | facts)
            save_progress(options, settings, parameters, optimizer, epoch + 1, best_accuracy)
            prefix = "LoRA epoch" if options.option == "lora" else "epoch"
            print(
                f"{prefix} {epoch}: train loss :: {loss:.3f}, train acc :: {train_accuracy:.3f}, "
                f"dev acc :: {dev_accuracy:.3f}",
                flush=True,
            )


def evaluate(
    model: LlamaEmbeddingClassifier,
    encoded: EncodedExamples,
    options: Options,
    description: str,
    progress: Progress,
) -> float:
    """The model's accuracy on examples."""
    predictions = predict(model, encoded, options, description, progress)
    return accuracy([example.label for example in encoded.examples], predictions)


def train_epoch(
    model: LlamaEmbeddingClassifier,
    batches: Iterable[Batch],
    optimizer: AdamW,
    options: Options,
    epoch: int,
    progress: Progress,
) -> float:
    """One pass over the training batches; the mean over them of summed NLL / batch_size."""
    model.train()
    device = model.classifier_head.weight.device
    losses: list[float] = []
    for batch in progress.over(batches, f"epoch {epoch} train", TRAINING):
        lengths = batch.lengths.to(device) if options.mask_padding else None
        with autocast(device, options.dtype):
            log_probs = model(batch.tokens.to(device), lengths=lengths)  # (B, num_labels)
        # The last batch may be smaller and is still divided by batch_size, as in the assignment.
        loss = F.nll_loss(log_probs, batch.labels.to(device), reduction="sum")
        loss = loss / options.batch_size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.loss = loss.item()
        if not math.isfinite(progress.loss):
            raise ValueError(
                f"the loss is {progress.loss} in epoch {epoch}, batch {len(losses)}: "
                f"lower --lr {options.lr}{_or_alpha(options)}; what earlier epochs saved is kept"
            )
        losses.append(progress.loss)
    return float(np.mean(losses))


def _or_alpha(options: Options) -> str:
    return f" or --lora_alpha {options.lora_alpha}" if options.option == "lora" else ""


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def seed_epoch(seed: int, epoch: int) -> torch.Generator:
    """Seed dropout, and return the generator of the epoch's order, from (seed, epoch) alone."""
    dropout_seed, order_seed = np.random.SeedSequence([seed, epoch]).generate_state(2)
    torch.manual_seed(int(dropout_seed))
    return torch.Generator().manual_seed(int(order_seed))


def run_facts(options: Options, task: Task) -> dict[str, Any]:
    """What whoever uses the classifier must know of the run, as plain data."""
    tokenizer = task.tokenizer.model_path
    return {
        "option": options.option,
        "dataset": options.dataset,
        "label_names": task.label_names,
        "labels_written": task.labels.written,
        "batch_size": options.batch_size,
        "dtype": options.dtype,
        "mask_padding": options.mask_padding,
        "max_sentence_len": options.max_sentence_len,
        "tokenizer": {
            "name": Path(tokenizer).name,
            "path": str(tokenizer),
            "sha256": digest(tokenizer),
        },
    }


def save_best(options: Options, model: LlamaEmbeddingClassifier, facts: dict[str, Any]) -> None:
    """Write the classifier, LoRA merged, and beside it the adapters alone."""
    path = options.checkpoint_path
    save_classifier(
        path,
        model.llama.config,
        lora.merged_state_dict(model),
        hidden_dropout_prob=options.hidden_dropout_prob,
        **facts,
    )
    print(f"save the model to {path}")
    if options.option == "lora":
        save_adapters(adapters_path(options), model.llama, options, facts)


def adapters_path(options: Options) -> Path:
    """The file that holds LoRA's adapters alone."""
    return beside(options.checkpoint_path, "adapters")


def beside(checkpoint: Path, kind: str) -> Path:
    """NAME.pt → NAME.KIND.pt; a name may have other dots in it."""
    return checkpoint.with_name(f"{checkpoint.name.removesuffix('.pt')}.{kind}.pt")


def progress_path(options: Options) -> Path:
    """Where the state to resume from is kept until the run has finished."""
    return beside(options.checkpoint_path, "resume")


def resume_settings(
    options: Options, task: Task, model: LlamaEmbeddingClassifier
) -> dict[str, Any]:
    """What decides the result of a run, as plain data."""
    settings = {name: getattr(options, name) for name in RESUME_FIELDS}
    settings["lora_targets"] = list(options.lora_targets)
    settings["norm"], settings["attention"] = model.llama.config.norm, model.llama.config.attention
    settings["num_labels"] = task.num_labels
    settings["label_words"] = task.labels.names if task.labels.are_words else None
    for name, path in (
        ("pretrained_model_path", options.pretrained_model_path),
        ("tokenizer", task.tokenizer.model_path),
        ("train", options.train),
        ("dev", options.dev),
    ):
        settings[name] = f"{Path(path).name} (SHA-256 {digest(path)[:16]})"
    return settings


def save_progress(
    options: Options,
    settings: dict[str, Any],
    parameters: dict[str, torch.nn.Parameter],
    optimizer: AdamW,
    epochs_done: int,
    best_accuracy: float,
) -> None:
    """Write what the next epoch needs, after the best model: an epoch done twice does no harm."""
    content = {
        "settings": settings,
        "parameters": {name: parameter.detach() for name, parameter in parameters.items()},
        "optimizer": optimizer.state_dict(),
        "epochs_done": epochs_done,
        "best_accuracy": best_accuracy,
    }
    save_plain(progress_path(options), content)


def load_progress(
    options: Options,
    settings: dict[str, Any],
    parameters: dict[str, torch.nn.Parameter],
    optimizer: AdamW,
) -> tuple[int, float]:
    """Continue where save_progress left off: (epochs done, best dev accuracy so far).

    Raises ValueError if that run had other settings, or its files are not whole.
    """
    path = progress_path(options)
    if not path.exists():
        print(f"nothing to resume at {path}: starting with epoch 0")
        return 0, -1.0
    saved = load_plain(path)
    check_same_run(path, saved, PROGRESS_KEYS, settings)
    if not options.checkpoint_path.exists():
        raise ValueError(f"--resume: {options.checkpoint_path}, the best model, is gone; {REMEDY}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved["parameters"][name])
    optimizer.load_state_dict(saved["optimizer"])
    print(f"resume from {path}: {saved['epochs_done']} of {options.epochs} epochs are done")
    return saved["epochs_done"], saved["best_accuracy"]
