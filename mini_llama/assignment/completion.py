"""Option generate: continue a prompt, greedily and at a temperature, and write both texts."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from config import Edition
from llama import Llama, load_pretrained
from mini_llama.assignment.adapters import load_adapters
from mini_llama.assignment.graded_run import report_text
from mini_llama.assignment.options import Options
from mini_llama.assignment.prompts import read_prompts
from mini_llama.assignment.showing import RULE, Show
from mini_llama.assignment.task import announce, prepare_model
from mini_llama.checkpoints.memory import Form, require_device_memory
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.report import describe_memory
from mini_llama.command_line import is_out_of_memory
from mini_llama.inference.decoders import choose_decoder
from mini_llama.inference.generation import generate
from mini_llama.inference.sampling import Sampler
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.stop_ids import stop_ids
from utils import atomic_write, choose_device, seed_everything


def run(options: Options) -> None:
    """Write the greedy text and `num_samples` texts at `temperature`, each with its prompt.

    Several texts share a file, with a line of dashes between them: the samples of each prompt in
    its turn. With `plan`, only print what fits this machine. Raises OSError or ValueError before
    any work is done.
    """
    if options.plan:
        checkpoint = read_checkpoint(options.pretrained_model_path)
        print(describe_memory(checkpoint, choose_device(options.use_gpu)))
        return
    prompts = read_prompts(options.prompts) if options.prompts else [prompt_of(options)]
    seed_everything(options.seed)
    low, high = options.generated_sentence_low_temp_out, options.generated_sentence_high_temp_out
    llama, tokenizer = load(options, [low, high])
    for temperature, samples, path in (
        (0.0, 1, low),
        (options.temperature, options.num_samples, high),
    ):
        writer = Writer(llama, tokenizer, options, temperature, samples)
        most = len(prompts) * samples * options.max_new_tokens
        with Show(tokenizer, temperature, samples, most) as show:
            texts = [text for prompt in prompts for text in writer.texts(prompt, show)]
        with atomic_write(path) as file:
            file.write(f"\n{RULE}\n".join(texts))
        show.whole(texts)
        print(f"Wrote generated sentence to {path}.")
        if path == low and not options.prompts:
            report_text(llama, tokenizer, options, texts[0])


def prompt_of(options: Options) -> str:
    """The text to continue."""
    edition: Edition = options.edition_in_force
    return edition.prompt_text if options.prompt_text is None else options.prompt_text


def load(options: Options, outputs: Sequence[str | Path]) -> tuple[Llama, BaseTokenizer]:
    """The model, on its device, and its tokenizer. Raises OSError or ValueError."""
    device, tokenizer = prepare_model(options, outputs)
    llama = load_pretrained(
        options.pretrained_model_path,
        options.edition,
        options.norm,
        options.attention,
        "float32" if options.adapters else options.dtype,
        options.quantize,
    )
    announce(llama, tokenizer, options.pretrained_model_path, device)
    if options.adapters:
        load_adapters(llama, options.adapters)
        llama.to(getattr(torch, options.dtype))  # after the sum, which is exact in float32
    require_device_memory(llama.config, device, Form(options.dtype, options.quantize))
    return llama.to(device), tokenizer


class Writer:
    """Continues prompts, each `samples` times, at a temperature."""

    def __init__(
        self,
        llama: Llama,
        tokenizer: BaseTokenizer,
        options: Options,
        temperature: float,
        samples: int,
    ) -> None:
        self.llama, self.tokenizer, self.options = llama, tokenizer, options
        self.temperature, self.samples = temperature, samples
        # Before any clock starts: it may have to compile.
        self.decoder = choose_decoder(llama, samples, compiled=options.compile)
        path = options.pretrained_model_path
        self.ends = stop_ids(path, tokenizer) if options.stop_at_eos else ()

    def texts(self, prompt: str, show: Show) -> list[str]:
        """The prompt with what the model writes after it, `samples` times. The same prompt has the
        same texts, whatever stands before it in a file.
        """
        ids = self.tokenizer.encode(prompt, bos=True, eos=False)
        try:
            with show.text(ids, self._sampler(), self.ends) as sample:
                tokens = generate(
                    self.llama,
                    torch.tensor([ids] * self.samples, device=self.llama.device),
                    self.options.max_new_tokens,
                    sample,
                    stop_id=self.ends,
                    decoder=self.decoder,
                )
                show.count(tokens[:, len(ids) :].numel())
        except (MemoryError, RuntimeError) as error:
            if self.samples == 1 or not is_out_of_memory(error):
                raise
            raise ValueError(f"out of memory: lower --num_samples {self.samples}") from None
        rows = (_cut(row, len(ids), self.ends) for row in tokens.tolist())
        return [self.tokenizer.decode(row) for row in rows]

    def _sampler(self) -> Sampler:
        options = self.options
        edition: Edition = options.edition_in_force
        return Sampler(
            self.temperature,
            epsilon=edition.epsilon if options.epsilon is None else options.epsilon,
            top_p=edition.top_p if options.top_p is None else options.top_p,
            generator=torch.Generator(self.llama.device).manual_seed(options.seed),
            excluded=self.tokenizer.padding_only,
        )


def _cut(ids: list[int], start: int, ends: Collection[int]) -> list[int]:
    """Ids up to the first of `ends` from `start` on."""
    first = next((n for n in range(start, len(ids)) if ids[n] in ends), len(ids))
    return ids[:first]
