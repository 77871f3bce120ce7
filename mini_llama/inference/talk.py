"""The loop of a chat: reads turns and commands from a terminal or a pipe, and shows answers."""

import contextlib
import io
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mini_llama.command_line import describe, visible
from mini_llama.inference.template_process import TemplateRefusalError

if TYPE_CHECKING:
    from mini_llama.inference.conversation import Conversation

PROMPT = "> "
LONGEST_LINE = 2**20  # characters; longer than any context
HELP_TEXT = """\
/system TEXT  another system prompt; without TEXT none
/undo         forget the last exchange
/reset        forget all exchanges; the system prompt stays
/quit         end, as Ctrl-D does
Ctrl-C stops an answer; what was written of it stays in the conversation.
A turn that is to begin with / needs a space before it."""


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

    def begin(self, system: str) -> None:
        """Set the system prompt of the start. The chat goes on without one if the template refuses
        it. Raises ValueError for one that is not allowed otherwise.
        """
        try:
            self.conversation.set_system(system)
        except TemplateRefusalError as error:
            self.refuse(error)

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
        """Lines without their ends. A line that is too long is refused, without reading all of it
        into memory.
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
        """Show an answer as it is generated; return it, or the part before Ctrl-C."""
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
