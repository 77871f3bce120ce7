"""Option generate: continue a prompt, greedily and at a temperature, and write both texts."""

import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from config import Edition
from llama import Llama, load_pretrained
from mini_llama.assignment.adapters import load_adapters
from mini_llama.assignment.graded_run import report_text
from mini_llama.assignment.options import Options
from mini_llama.assignment.task import announce, prepare_model
from mini_llama.checkpoints.memory import Form, require_device_memory
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.report import describe_memory
from mini_llama.command_line import visible
from mini_llama.inference.decoders import choose_decoder
from mini_llama.inference.generation import generate
from mini_llama.inference.sampling import Sampler
from mini_llama.tokenization.base import BaseTokenizer
from mini_llama.tokenization.stop_ids import stop_ids
from utils import atomic_write, choose_device, seed_everything

RULE = "---------------"


def run(options: Options) -> None:
    """Write the greedy text and `num_samples` texts at `temperature`, each with its prompt.

    Several samples share a file, with a line of dashes between them. With `plan`, only print what
    fits this machine. Raises OSError or ValueError before any work is done.
    """
    if options.plan:
        checkpoint = read_checkpoint(options.pretrained_model_path)
        print(describe_memory(checkpoint, choose_device(options.use_gpu)))
        return
    seed_everything(options.seed)
    low, high = options.generated_sentence_low_temp_out, options.generated_sentence_high_temp_out
    llama, tokenizer = load(options, [low, high])
    for temperature, samples, path in (
        (0.0, 1, low),
        (options.temperature, options.num_samples, high),
    ):
        texts = complete(llama, tokenizer, options, temperature, samples)
        with atomic_write(path) as file:
            file.write(f"\n{RULE}\n".join(texts))
        print(f"Temperature is {temperature}")
        for text in texts:
            print(visible(text, kept="\n\t"))
            print(RULE)
        print(f"Wrote generated sentence to {path}.")
        if path == low:
            report_text(llama, tokenizer, options, texts[0])


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


def complete(
    llama: Llama, tokenizer: BaseTokenizer, options: Options, temperature: float, samples: int
) -> list[str]:
    """`samples` texts: the prompt and what the model writes after it."""
    edition: Edition = options.edition_in_force
    text = edition.prompt_text if options.prompt_text is None else options.prompt_text
    prompt = tokenizer.encode(text, bos=True, eos=False)
    sampler = Sampler(
        temperature,
        epsilon=edition.epsilon if options.epsilon is None else options.epsilon,
        top_p=edition.top_p if options.top_p is None else options.top_p,
        generator=torch.Generator(llama.device).manual_seed(options.seed),
        excluded=tokenizer.padding_only,
    )
    ends = stop_ids(options.pretrained_model_path, tokenizer) if options.stop_at_eos else ()
    # Before the clock starts: it may have to compile.
    decoder = choose_decoder(llama, samples, compiled=options.compile)
    start = time.perf_counter()
    tokens = generate(
        llama,
        torch.tensor([prompt] * samples, device=llama.device),
        options.max_new_tokens,
        sampler,
        stop_id=ends,
        decoder=decoder,
    )
    seconds = time.perf_counter() - start
    new_tokens = tokens[:, len(prompt) :].numel()
    print(f"{new_tokens} tokens, {new_tokens / seconds:.1f} tokens/s", file=sys.stderr)
    return [tokenizer.decode(_cut(row, len(prompt), ends)) for row in tokens.tolist()]


def _cut(ids: list[int], start: int, ends: Collection[int]) -> list[int]:
    """Ids up to the first of `ends` from `start` on."""
    first = next((n for n in range(start, len(ids)) if ids[n] in ends), len(ids))
    return ids[:first]
