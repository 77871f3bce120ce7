#!/usr/bin/env python
"""Generated tokens per second, ours beside llama.cpp, of the same random weights.

pip install llama-cpp-python gguf
python bench/decode_beside_llama_cpp.py [--preset 42m] [--prompt 30] [--tokens 128] [--rounds 5]

Both take turns in one process, greedily, on as many threads; medians over the rounds are printed,
of the time for the prompt and of the rate after it.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gguf
import llama_cpp
import numpy as np
import torch

from config import PRESETS, LlamaConfig
from llama import Llama
from mini_llama.checkpoints.formats.gguf_names import their_name
from mini_llama.inference.decoders import choose_decoder
from mini_llama.inference.generation import generate
from mini_llama.inference.sampling import Sampler

Timing = tuple[float, float]  # seconds for the prompt, tokens/s after it
Side = Callable[[list[int], int], tuple[Timing, list[int]]]


def write_gguf(path: Path, llama: Llama, quantize: bool) -> None:
    """float32, or with `quantize` q8_0: groups of 32 int8 values with a scale."""
    config, kind = llama.config, gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_layer_norm_rms_eps(config.layer_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    for name, tensor in llama.state_dict().items():
        array = tensor.numpy()
        if quantize and array.ndim == 2:
            writer.add_tensor(their_name(name), gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(their_name(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def their_side(path: Path, context: int) -> Side:
    model = llama_cpp.Llama(
        str(path),
        n_ctx=context,
        n_threads=torch.get_num_threads(),
        type_k=llama_cpp.GGML_TYPE_F32,  # its cache would be float16
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )

    def run(prompt: list[int], count: int) -> tuple[Timing, list[int]]:
        model.reset()
        start = time.perf_counter()
        model.eval(prompt)
        first = time.perf_counter()
        tokens = []
        for _ in range(count):
            logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
            tokens.append(int(np.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax()))
            model.eval(tokens[-1:])
        return (first - start, count / (time.perf_counter() - first)), tokens

    return run


def our_side(llama: Llama, precision: str, compiled: bool) -> Side:
    def run(prompt: list[int], count: int) -> tuple[Timing, list[int]]:
        tokens, seconds = torch.tensor([prompt]), []
        for length in (1, 2, count + 2):  # quantizing, before the second, is left out
            start = time.perf_counter()
            decoder = choose_decoder(llama, precision=precision, compiled=compiled)
            generated = generate(llama, tokens, length, Sampler(0.0), decoder=decoder)
            seconds.append(time.perf_counter() - start)
        rate = count / (seconds[2] - seconds[1])
        return (seconds[0], rate), generated[0, len(prompt) :].tolist()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="42m")
    parser.add_argument("--prompt", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    config = LlamaConfig(**PRESETS[args.preset] | {"norm": "rmsnorm", "attention": "causal"})
    llama = Llama(config).eval()
    print(f"{args.preset}, torch {torch.__version__}, llama-cpp-python {llama_cpp.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        sides = {}
        for name, quantize in (("float32", False), ("q8_0", True)):
            path = Path(folder) / f"{name}.gguf"
            write_gguf(path, llama, quantize)
            sides[f"llama.cpp, {name}"] = their_side(path, config.max_seq_len)
        for precision in ("float32", "int8"):
            for compiled in (False, True):
                name = f"ours, {precision}{', compiled' * compiled}"
                sides[name] = our_side(llama, precision, compiled)
        prompt = torch.randint(3, 500, (args.prompt,)).tolist()
        timings, texts = {name: [] for name in sides}, {}
        for number in range(args.rounds + 1):
            for name, side in sides.items():
                timing, texts[name] = side(prompt, args.tokens)
                if number:
                    timings[name].append(timing)
    same = texts["llama.cpp, float32"][: args.tokens] == texts["ours, float32"][: args.tokens]
    print(f"float32 tokens are {'the same' if same else 'NOT the same'}")
    for name, values in timings.items():
        first, rate = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{name:<24} first {first * 1e3:>5.1f} ms, then {rate:>6.1f}/s")


if __name__ == "__main__":
    main()
