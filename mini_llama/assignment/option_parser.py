"""The options of run_llama.py as command-line flags, with their help."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from config import ATTENTIONS, DTYPES, EDITIONS, NORMS, QUANTIZATIONS
from mini_llama import bundled
from mini_llama.assignment.options import OPTIONS, Options
from mini_llama.command_line import OneLineParser

PROGRAM = "run_llama.py"
DESCRIPTION = (
    "The assignment's command line: python run_llama.py --option {generate,prompt,finetune,lora}."
)
HELP = {
    "option": "generate text, classify by prompt, or train a classifier: all weights or LoRA",
    "train": "training data, lines LABEL ||| SENTENCE",
    "dev": "development data",
    "test": "test data",
    "label_names": "JSON list of label words; a label is the index of its word",
    "pretrained_model_path": "checkpoint: the assignment's .pt, llama2.c's .pt or .bin, or a "
    "folder of Hugging Face's or Meta's",
    "max_sentence_len": "keep at most this many tokens of a text, BOS and EOS not counted",
    "seed": "seeds python, numpy and torch",
    "epochs": "passes over the training data",
    "batch_size": "examples a batch; in the default mode predictions depend on it",
    "lr": "learning rate of AdamW",
    "hidden_dropout_prob": "dropout before the classifier head",
    "use_gpu": "run on CUDA, or on Apple's MPS where there is no CUDA",
    "generated_sentence_low_temp_out": "file for the text at temperature 0",
    "generated_sentence_high_temp_out": "file for the text at --temperature",
    "dev_out": "predictions for --dev; ends in dev-{prompting,finetuning,lora}-output.txt",
    "test_out": "predictions for --test; ends in test-{prompting,finetuning,lora}-output.txt",
    "lora_rank": "rank of the adapters",
    "lora_alpha": "the adapters are scaled by alpha/rank",
    "edition": "arithmetic of a course edition; without it, what the checkpoint records, else mmia",
    "norm": "norm, whatever the edition says",
    "attention": "attention mask, whatever the edition says",
    "epsilon": "drop tokens less probable than this when sampling; 0 keeps all (edition's)",
    "top_p": "sample from the most probable tokens that reach this together (edition's)",
    "mask_padding": "mask padding, read the last real token, and batch texts of like length: "
    "no dependence on the batch, and faster",
    "dtype": "arithmetic of matrix products, in generate of all weights: bfloat16 is faster and "
    "less exact",
    "quantize": "generate, prompt: weights are rounded to 8 or 4 bits as they are read (nf4 needs "
    "bitsandbytes)",
    "plan": "generate: print what fits this machine's memory, and stop before weights are read",
    "compile": "generate with a compiled decoding step (causal attention, CPU): faster, and needs "
    "a C++ compiler and half a minute once",
    "tokenizer": "SentencePiece model, tokenizer.json, llama2.c's tokenizer.bin, a folder "
    "with one, or tiktoken:NAME (the checkpoint's own, by the rules in README.md)",
    "prompt_text": "text to continue; an empty one means BOS alone (edition's)",
    "max_new_tokens": "tokens to generate",
    "temperature": "temperature of the second generated text",
    "stop_at_eos": "end a text at the first EOS",
    "num_samples": "texts to draw at --temperature",
    "lora_targets": "linear layers that get adapters, separated by commas",
    "checkpoint_out": "where the best model is saved (OPTION-DATASET-EPOCHS-LR.pt)",
    "resume": "go on after the last finished epoch of an interrupted run",
}
TYPES = {"max_sentence_len": int, "epsilon": float, "top_p": float}
CHOICES = {"option": OPTIONS, "edition": tuple(EDITIONS), "norm": NORMS, "attention": ATTENTIONS}
CHOICES |= {"dtype": DTYPES, "quantize": QUANTIZATIONS}
# The assignment spells these two with hyphens, and all others with underscores.
HYPHENATED = ("label_names", "pretrained_model_path")


def add_option(parser: argparse.ArgumentParser, name: str, default: Any, text: str) -> None:
    """One of Options' fields as a flag; chat.py has defaults and help of its own for some."""
    flag = "--" + (name.replace("_", "-") if name in HYPHENATED else name)
    if default is False:
        parser.add_argument(flag, dest=name, action="store_true", help=text)
        return
    kind = TYPES.get(name) or (str if default is None else type(default))
    shown = "" if default is None else f" (default: {default})"
    if kind is tuple:
        kind, shown = split_names, f" (default: {','.join(default)})"
    parser.add_argument(
        flag,
        dest=name,
        type=kind,
        default=default,
        choices=CHOICES.get(name),
        metavar=None if name in CHOICES else name.upper(),
        help=text + shown,
    )


def split_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def parse_given(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, names: Iterable[str]
) -> dict[str, Any]:
    """What the command line gives of the options called `names`, without their defaults."""
    # argparse leaves an attribute alone that is there already: what is still unset was not given.
    unset = object()
    args = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, unset))))
    return {name: value for name, value in args.items() if value is not unset}


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog=PROGRAM, description=DESCRIPTION, allow_abbrev=False)
    for field in fields(Options):
        add_option(parser, field.name, field.default, HELP[field.name])
    return parser


def parse(argv: Sequence[str] | None) -> tuple[dict[str, Any], bool]:
    """All options by name, and whether the bundled files stand in for missing real ones."""
    defaults = {field.name: field.default for field in fields(Options)}
    given = parse_given(make_parser(), argv, defaults)
    bundled_values = bundled.stand_in(given)
    return defaults | bundled_values | given, bool(bundled_values)
