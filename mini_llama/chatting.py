"""The options of chat.py, and the conversation that they set up."""

import contextlib
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from mini_llama.assignment.options import Options
from mini_llama.command_line import argument, argument_of, check_option
from mini_llama.inference.chat_template import TEMPLATES, default_template
from mini_llama.inference.own_template import OwnTemplate
from mini_llama.inference.talk import say
from mini_llama.tokenization.chat_files import find_chat_template, read_template

if TYPE_CHECKING:
    from mini_llama.inference.conversation import Conversation
    from mini_llama.tokenization.base import BaseTokenizer

AUTO = "auto"
TEMPLATE_BOUND = "auto, llama2, plain, or a file that exists"


@dataclass(frozen=True)
class ChatOptions:
    """Options of run_llama.py, some with other defaults, and two of a chat's own.

    The defaults of temperature and top-p are those of Meta's chat example. Raises ValueError,
    naming the flag, for a value out of bounds.
    """

    pretrained_model_path: str = argument_of(Options, "pretrained_model_path")
    tokenizer: str | None = argument_of(Options, "tokenizer")
    edition: str | None = argument_of(Options, "edition")
    norm: str | None = argument_of(Options, "norm")
    attention: str | None = argument_of(Options, "attention")
    dtype: str = argument_of(Options, "dtype")
    tf32: bool = argument_of(Options, "tf32")
    quantize: str | None = argument_of(Options, "quantize")
    adapters: str | None = argument_of(
        Options,
        "adapters",
        text="LoRA adapters to add: an .adapters.pt, or PEFT's folder",
    )
    compile: bool = argument_of(Options, "compile")
    use_gpu: bool = argument_of(Options, "use_gpu")
    seed: int = argument_of(Options, "seed", text="seeds sampling")
    max_new_tokens: int = argument_of(
        Options,
        "max_new_tokens",
        default=128,
        text="most tokens of an answer; prompt and answer share the context",
    )
    temperature: float = argument_of(
        Options,
        "temperature",
        default=0.6,
        text="temperature of sampling; 0 takes the most probable token",
    )
    top_p: float = argument_of(
        Options,
        "top_p",
        default=0.9,
        text="sample from the most probable tokens that reach this together",
    )
    system: str = argument("", "system prompt", metavar="TEXT")
    template: str = argument(
        AUTO,
        "auto for the model's own, else llama2 for a folder with 32000 pieces, BOS 1 and EOS 2, "
        "else plain; llama2 for Llama 2's chat models; plain for those that continue text; or a "
        "file with one in Jinja",
        metavar="{auto,llama2,plain,FILE}",
    )

    def __post_init__(self) -> None:
        self.model_options()  # validates the shared options
        check_option(self, "template", is_template(self.template), TEMPLATE_BOUND)

    def model_options(self) -> Options:
        """The options that are shared with run_llama.py."""
        shared = {field.name for field in fields(self)} & {field.name for field in fields(Options)}
        return Options(**{name: getattr(self, name) for name in shared})


def is_template(name: str) -> bool:
    """Whether --template may be this: a template's name, or a file."""
    return name == AUTO or name in TEMPLATES or Path(name).is_file()


def start(chat: ChatOptions) -> "Conversation":
    """Load the model, and say on standard error which settings apply. The system prompt is still
    to be set.

    Raises OSError or ValueError.
    """
    import torch

    from mini_llama.assignment.completion import load
    from mini_llama.inference.conversation import Conversation
    from mini_llama.inference.decoders import choose_decoder
    from mini_llama.inference.sampling import Sampler
    from mini_llama.tokenization.stop_ids import stop_ids

    options = chat.model_options()
    with contextlib.redirect_stdout(sys.stderr):
        llama, tokenizer = load(options, [])
    template, name, reason = choose_template(chat.template, chat.pretrained_model_path, tokenizer)
    ends = stop_ids(options.pretrained_model_path, tokenizer)
    if isinstance(template, OwnTemplate):
        ends = (*ends, *template.check(tokenizer))
    generator = torch.Generator(llama.device).manual_seed(options.seed)
    sampler = Sampler(
        options.temperature,
        top_p=chat.top_p,
        generator=generator,
        excluded=tokenizer.padding_only,
    )
    decoder = choose_decoder(llama, compiled=options.compile)
    conversation = Conversation(
        llama, tokenizer, template, sampler, options.max_new_tokens, decoder
    )
    conversation.stops.update(ends, tokenizer.eos_ids)
    say(
        f"template {name} ({reason}), context {llama.config.max_seq_len} tokens, "
        f"{options.max_new_tokens} of them for the answer; /help lists the commands"
    )
    return conversation


def choose_template(
    wanted: str, model: str | Path, tokenizer: "BaseTokenizer"
) -> tuple["str | OwnTemplate", str, str]:
    """The template that --template and the model's path ask for, its name for the user, and why it
    is that one. Raises OSError, ValueError.
    """
    if wanted in TEMPLATES:
        return wanted, wanted, "as asked for"
    if wanted != AUTO:
        return OwnTemplate(read_template(Path(wanted)), wanted), wanted, "as asked for"
    path = Path(model)
    if found := find_template(tokenizer, path):
        source, origin = found
        return OwnTemplate(source, origin), str(origin), "the model's own"
    name = default_template(tokenizer, path.is_dir())
    return name, name, "default"


def find_template(tokenizer: "BaseTokenizer", checkpoint: Path) -> tuple[str, Path] | None:
    """The template that came with the tokenizer, else with the checkpoint's folder, and the file
    that has it. Raises OSError, ValueError.
    """
    source = tokenizer.chat_template
    if not source:
        return find_chat_template(checkpoint) if checkpoint.is_dir() else None
    beside = find_chat_template(tokenizer.model_path.parent)
    return beside if beside and beside[0] == source else (source, tokenizer.model_path)
