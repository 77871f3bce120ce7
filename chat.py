#!/usr/bin/env python
"""Talk with a model: python chat.py --pretrained-model-path MODEL.

A line is a turn, and the answer is shown as it is written. From a pipe every line is a turn as
well, and standard output has the answers alone. Lines that begin with / are commands: /help. The
file knows no templates and no arithmetic.
"""

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bundled
from chat_template import TEMPLATES, default_template
from command_line import OneLineParser, describe, one_line_errors, visible
from options import Options, default_of
from run_llama import HELP, add_option, parse_given

if TYPE_CHECKING:
    from conversation import Conversation

PROGRAM = "chat.py"
PROMPT = "> "
LONGEST_LINE = 2**20  # characters; whatever a context holds is shorter
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
HELP_TEXT = """\
/system TEXT  another system prompt; without TEXT none
/undo         forget the last exchange
/reset        forget all exchanges; the system prompt stays
/quit         end, as Ctrl-D does
Ctrl-C stops an answer; what was written of it stays in the conversation.
A turn that is to begin with / needs a space before it."""


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

    from completion import load
    from conversation import Conversation
    from sampling import Sampler

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


def say(line: str) -> None:
    """One line to the user, on standard error."""
    print(visible(line, kept="\n"), file=sys.stderr, flush=True)


class Talk:
    """The loop over turns and commands.

    On a terminal, Ctrl-C stops the answer being written. Without one it ends the program, and
    `status` is 1 if a turn was refused.
    """

    def __init__(self, conversation: "Conversation") -> None:
        self.conversation = conversation
        self.is_terminal = sys.stdin.isatty()
        self.status = 0

    def run(self) -> None:
        """Until the input's end or /quit."""
        if self.is_terminal:
            with contextlib.suppress(ImportError):  # Windows has none
                import readline  # noqa: F401  input() then edits lines and recalls earlier ones
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # refused as a turn, not as a crash
        for line in self.lines():
            if line == "/quit":
                break
            if line.startswith("/"):
                self.command(line)
            elif line.strip():
                self.turn(line.strip())

    def lines(self) -> Iterator[str]:
        """Lines without their ends. One that is too long is refused, and read no further than it
        need be.
        """
        while (line := self.read_line()) is not None:
            text = line.rstrip("\r\n")
            if len(text) <= LONGEST_LINE:
                yield text
                continue
            while line and not line.endswith("\n"):
                line = sys.stdin.readline(LONGEST_LINE)
            self.refuse(ValueError(f"a line has at most {LONGEST_LINE} characters: shorten it"))

    def read_line(self) -> str | None:
        """The next line, None at the input's end; Ctrl-C on a terminal empties the line."""
        while self.is_terminal:
            try:
                return input(PROMPT) if sys.stdout.isatty() else input()
            except EOFError:
                say("")
                return None
            except KeyboardInterrupt:
                say("\nCtrl-D or /quit ends")
        return sys.stdin.readline(LONGEST_LINE + len("\r\n")) or None

    def command(self, line: str) -> None:
        """Carry out a line that begins with /."""
        conversation = self.conversation
        name, _, text = line.partition(" ")
        text = text.strip()
        if name == "/help":
            say(HELP_TEXT)
        elif name == "/reset":
            conversation.exchanges.clear()
            say("all exchanges are forgotten")
        elif name == "/undo":
            is_there = bool(conversation.exchanges)
            del conversation.exchanges[-1:]
            say("the last exchange is forgotten" if is_there else "there is nothing to undo")
        elif name == "/system":
            try:
                conversation.set_system(text)
                say("the system prompt is set" if text else "there is no system prompt")
            except ValueError as error:
                self.refuse(error)
        else:
            self.refuse(ValueError(f"{name[:40]} is no command: /help lists them"))

    def turn(self, user: str) -> None:
        """Answer one turn, or refuse it; the conversation goes on either way."""
        try:
            ids, dropped = self.conversation.prompt(user)
        except ValueError as error:
            self.refuse(error)
            return
        if dropped:
            plural = "exchange is" if dropped == 1 else "exchanges are"
            say(f"the context is full: the oldest {dropped} {plural} forgotten")
        answer = self.write(self.conversation.answer(ids), len(ids))
        try:
            self.conversation.keep(user, answer)
        except ValueError as error:
            say(f"not kept in the conversation: {error}")

    def write(self, pieces: Iterator[str], prompt_len: int) -> str:
        """Show an answer as it comes; all of it, or what there is of it at Ctrl-C."""
        answer, begin = [], time.perf_counter()
        try:
            for piece in pieces:
                print(visible(piece, kept="\n\t"), end="", flush=True)
                answer.append(piece)
        except KeyboardInterrupt:
            if not self.is_terminal:
                raise
        print(flush=True)
        seconds = time.perf_counter() - begin
        count = len(self.conversation.seen) - prompt_len
        say(f"prompt of {prompt_len} tokens, {count} written, {count / seconds:.1f} tokens/s")
        return "".join(answer)

    def refuse(self, error: ValueError) -> None:
        say(f"refused: {describe(error)}")
        if not self.is_terminal:
            self.status = 1


if __name__ == "__main__":
    main()
