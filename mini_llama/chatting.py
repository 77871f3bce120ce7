"""The options of chat.py, and the conversation that they set up."""

import contextlib
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from mini_llama.assignment.options import Options
from mini_llama.command_line import argument, argument_of
from mini_llama.inference.chat_template import TEMPLATES, default_template
from mini_llama.inference.talk import say

if TYPE_CHECKING:
    from mini_llama.inference.conversation import Conversation


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
    template: str | None = argument(
        None,
        "llama2 for Llama 2's chat models, plain for those that continue text (llama2 for a "
        "folder with 32000 pieces, BOS 1 and EOS 2, else plain)",
        choices=tuple(TEMPLATES),
    )

    def __post_init__(self) -> None:
        self.model_options()  # validates the shared options

    def model_options(self) -> Options:
        """The options that are shared with run_llama.py."""
        shared = {field.name for field in fields(self)} & {field.name for field in fields(Options)}
        return Options(**{name: getattr(self, name) for name in shared})


def start(chat: ChatOptions) -> "Conversation":
    """Load the model, and say on standard error which settings apply.

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
    path = options.pretrained_model_path
    chosen = chat.template or default_template(tokenizer, Path(path).is_dir())
    generator = torch.Generator(llama.device).manual_seed(options.seed)
    sampler = Sampler(
        options.temperature,
        top_p=chat.top_p,
        generator=generator,
        excluded=tokenizer.padding_only,
    )
    decoder = choose_decoder(llama, compiled=options.compile)
    conversation = Conversation(llama, tokenizer, chosen, sampler, options.max_new_tokens, decoder)
    conversation.stops.update(stop_ids(path, tokenizer))
    conversation.set_system(chat.system)
    reason = "as asked for" if chat.template else "default"
    say(
        f"template {chosen} ({reason}), context {llama.config.max_seq_len} tokens, "
        f"{options.max_new_tokens} of them for the answer; /help lists the commands"
    )
    return conversation
