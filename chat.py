#!/usr/bin/env python
"""Talk with a model: python chat.py --pretrained-model-path MODEL.

A line is a turn, and the answer is shown as it is written. From a pipe every line is a turn as
well, and standard output has the answers alone. Lines that begin with / are commands: /help. The
file knows no templates and no arithmetic.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mini_llama import bundled
from mini_llama.assignment.option_parser import HELP, add_option, parse_given
from mini_llama.assignment.options import Options, default_of
from mini_llama.command_line import OneLineParser, one_line_errors
from mini_llama.inference.chat_template import TEMPLATES, default_template
from mini_llama.inference.talk import Talk, say

if TYPE_CHECKING:
    from mini_llama.inference.conversation import Conversation

PROGRAM = "chat.py"
# Options of run_llama.py, and the defaults that a chat has otherwise. Temperature and top-p are
# those of Meta's chat example.
SHARED = (
    *("pretrained_model_path", "tokenizer", "edition", "norm", "attention", "dtype", "quantize"),
    *("compile", "use_gpu", "seed", "max_new_tokens", "temperature", "top_p"),
)
DEFAULTS = {name: default_of(name) for name in SHARED}
DEFAULTS |= {"max_new_tokens": 128, "temperature": 0.6, "top_p": 0.9}
OWN_HELP = {
    "seed": "seeds sampling",
    "max_new_tokens": "most tokens of an answer; prompt and answer share the context",
    "temperature": "temperature of sampling; 0 takes the most probable token",
    "top_p": "sample from the most probable tokens that reach this together",
}


def make_parser() -> argparse.ArgumentParser:
    description = __doc__.partition("The\nfile")[0]
    parser = OneLineParser(prog=PROGRAM, description=description, allow_abbrev=False)
    for name, default in DEFAULTS.items():
        add_option(parser, name, default, OWN_HELP.get(name) or HELP[name])
    parser.add_argument("--system", metavar="TEXT", default="", help="system prompt")
    parser.add_argument(
        "--template",
        choices=tuple(TEMPLATES),
        help="llama2 for Llama 2's chat models, plain for those that continue text (llama2 for a "
        "folder with 32000 pieces, BOS 1 and EOS 2, else plain)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, talk; what a user can mend is one line on standard error."""
    own = {"system": "", "template": None}
    given = parse_given(make_parser(), argv, [*DEFAULTS, *own])
    with one_line_errors(PROGRAM):
        stand_in = {k: v for k, v in bundled.stand_in(given).items() if k in DEFAULTS}
        args: dict[str, Any] = DEFAULTS | own | stand_in | given
        system, template = args.pop("system"), args.pop("template")
        options = Options(**args)
        if stand_in:
            bundled.announce("model")
        from utils import raise_on_sigterm  # torch comes with it: after the quick checks

        raise_on_sigterm()
        talk = Talk(start(options, system, template))
        talk.run()
        sys.exit(talk.status)


def start(options: Options, system: str, template: str | None) -> "Conversation":
    """Load the model, and say on standard error what is in force. Raises OSError or ValueError."""
    import torch

    from mini_llama.assignment.completion import load
    from mini_llama.inference.conversation import Conversation
    from mini_llama.inference.sampling import Sampler

    with contextlib.redirect_stdout(sys.stderr):
        llama, tokenizer = load(options, [])
    path = options.pretrained_model_path
    chosen = template or default_template(tokenizer, Path(path).is_dir())
    device = llama.tok_embeddings.weight.device
    generator = torch.Generator(device).manual_seed(options.seed)
    sampler = Sampler(options.temperature, top_p=options.top_p, generator=generator)
    step = llama.decoding_step(compiled=options.compile)
    conversation = Conversation(
        llama, tokenizer, chosen, sampler, options.max_new_tokens, device, *step
    )
    conversation.set_system(system)
    reason = "as asked for" if template else "default"
    say(
        f"template {chosen} ({reason}), context {llama.config.max_seq_len} tokens, "
        f"{options.max_new_tokens} of them for the answer; /help lists the commands"
    )
    return conversation


if __name__ == "__main__":
    main()
