#!/usr/bin/env python
"""Train a Llama from scratch on text: python pretrain.py --input TEXT… --out FOLDER.

Next-token loss, AdamW with weight decay on matrices only, warmup and a cosine or constant learning
rate. Everything that a step draws at random follows from (seed, step), so a resumed run continues
with the losses of an uninterrupted one. Under torchrun each process takes its share of every
global batch. The file knows files of token ids, not how they are made.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from config import ATTENTIONS, DTYPES, NORMS, PRESETS
from mini_llama.command_line import OneLineParser, one_line_errors
from mini_llama.pretraining.trainer import SCHEDULES, PretrainOptions, run

HELP = {
    "input": "text files, folders of .txt files, or generated text: tales:COUNT, reviews:COUNT, "
    "each with :SEED if you like",
    "out": "folder for tokenizer, token files, checkpoints, metrics and loss curve",
    "separator": "what stands between two documents",
    "tokenizer": "an existing tokenizer, as run_llama.py takes it; else one is trained",
    "vocab_size": "pieces of the tokenizer to train (the preset's)",
    "val_fraction": "share of the documents kept for validation",
    "preset": "model shape",
    "context": "tokens a training window, and the model's max_seq_len",
    "steps": "optimizer steps",
    "batch_size": "windows an optimizer step, over all processes",
    "accumulation": "parts that a process's batch is computed in, to save memory",
    "lr": "largest learning rate",
    "min_lr": "learning rate at the end of the cosine",
    "decay_steps": "steps that the cosine is laid out for (--steps)",
    "init": "a checkpoint to start from instead of random weights",
    "warmup": "steps of linear warmup",
    "weight_decay": "on matrices; norms and biases have none",
    "max_grad_norm": "gradients are scaled down to this norm",
    "dtype": "arithmetic of the forward and backward pass; weights stay float32",
    "compile": "torch.compile the model: minutes at first, then faster",
    "eval_every": "steps between evaluations, samples and checkpoints",
    "eval_batches": "validation batches an evaluation",
    "sample_tokens": "tokens of the sample at each evaluation; 0 for none",
    "use_gpu": "CUDA, or Apple's MPS where there is no CUDA",
    "shard": "under torchrun, divide weights and moments among the processes (FSDP2)",
    "tensorboard": "log for TensorBoard as well",
    "resume": "go on from the last saved step of the run in --out",
    "plan": "print parameter count and memory plan, and stop",
}
CHOICES = {
    "preset": tuple(PRESETS),
    "norm": NORMS,
    "attention": ATTENTIONS,
    "schedule": SCHEDULES,
    "dtype": DTYPES,
}
INTEGERS = {"vocab_size", "decay_steps", "dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim"}


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    for option in dataclasses.fields(PretrainOptions):
        name, default = option.name, option.default
        shape_help = f"model shape: {name}, instead of the preset's" if default is None else None
        text = HELP.get(name) or shape_help
        if default is False:
            parser.add_argument(f"--{name}", action="store_true", help=text)
        elif name == "input":
            parser.add_argument("--input", nargs="+", default=(), metavar="TEXT", help=text)
        else:
            kind = int if name in INTEGERS else str if default is None else type(default)
            shown = "" if default in (None, "") else f" (default: {default!r})"
            parser.add_argument(
                f"--{name}",
                type=kind,
                default=default,
                choices=CHOICES.get(name),
                metavar=None if name in CHOICES else name.upper(),
                help=(text or "") + shown,
            )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = vars(parser.parse_args(argv))
    with one_line_errors(parser.prog):
        sys.exit(run(PretrainOptions(**args | {"input": tuple(args["input"])})))


if __name__ == "__main__":
    main()
