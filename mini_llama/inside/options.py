"""The options of see.py."""

from dataclasses import dataclass, fields

from mini_llama.assignment.options import Options
from mini_llama.bounds import Range
from mini_llama.command_line import argument, argument_of, check_option, check_ranges, number
from mini_llama.inside.budget import MAX_TOKENS

MAX_STEPS = 32


@dataclass(frozen=True)
class SeeOptions:
    """Options of run_llama.py, and what is shown and where.

    Raises ValueError, naming the flag, for a value out of bounds.
    """

    pretrained_model_path: str = argument_of(Options, "pretrained_model_path")
    tokenizer: str | None = argument_of(Options, "tokenizer")
    edition: str | None = argument_of(Options, "edition")
    norm: str | None = argument_of(Options, "norm")
    attention: str | None = argument_of(Options, "attention")
    quantize: str | None = argument_of(Options, "quantize", text="quantize the weights as read")
    adapters: str | None = argument_of(
        Options, "adapters", text="LoRA adapters to add: an .adapters.pt, or PEFT's folder"
    )
    use_gpu: bool = argument_of(Options, "use_gpu")
    text: str | None = argument(None, "the text to run; an empty one means BOS alone (edition's)")
    pad_to: int = number(
        0,
        "pad the text to this many tokens, as a longer one in its batch would",
        Range(0, MAX_TOKENS),
    )
    mask_padding: bool = argument_of(
        Options, "mask_padding", text="mask padding, and read the last real token"
    )
    max_new_tokens: int = argument_of(
        Options,
        "max_new_tokens",
        default=8,
        text="tokens to generate and step through",
        within=Range(1, MAX_STEPS),
    )
    temperature: float = argument_of(
        Options, "temperature", default=0.0, text="how they are chosen; 0 is the most probable"
    )
    epsilon: float | None = argument_of(Options, "epsilon")
    top_p: float | None = argument_of(Options, "top_p")
    seed: int = argument_of(Options, "seed", text="seeds sampling")
    label_names: str | None = argument(
        None,
        "ask for one of these words, zero-shot: a JSON list; the text is followed by a question",
        flag="label-names",
        metavar="FILE",
    )
    question: str | None = argument_of(
        Options,
        "question",
        text="the question, with {labels} for the label words "
        "(default: 'Is this movie {labels}? This movie is ')",
    )
    worst: str | None = argument(
        None, "show the worst dev examples of a folder of reproduce.py", metavar="FOLDER"
    )
    compare: str | None = argument(
        None,
        "show a second model beside it: an edition's name, int8, LoRA adapters, or a checkpoint",
        metavar="WHAT",
    )
    code: str | None = argument(
        None,
        "compare the model of this folder's llama.py, run in a limited process, with the formulas",
        metavar="FOLDER",
    )
    serve: bool = argument(
        False, "show the page live, with a box for texts, at an address of this machine alone"
    )
    port: int = number(0, "the port of --serve; 0 is any free one", Range(0, 65535))
    out: str = argument("inside.html", "the page to write, replaced if it is there", metavar="FILE")

    def __post_init__(self) -> None:
        check_ranges(self)
        self.model_options()  # validates the shared options
        asks = self.label_names is not None or self.question is None
        check_option(self, "question", asks, "left out without --label-names")
        is_padded = self.pad_to > 0 or not self.mask_padding
        check_option(self, "mask_padding", is_padded, "left out without --pad_to")

    def model_options(self) -> Options:
        """The options that are shared with run_llama.py."""
        shared = {field.name for field in fields(self)} & {field.name for field in fields(Options)}
        shared -= {"label_names", "question"}  # of another --option than generate
        return Options(**{name: getattr(self, name) for name in shared}, prompt_text=self.text)
