#!/usr/bin/env python
"""What rounded weights cost: perplexity of text read token by token in each precision.

python bench/quantization_loss.py CHECKPOINT TOKENIZER DATA [--texts 200] [--batch_size 20]

DATA has lines `LABEL ||| SENTENCE`, or is a name for generated text such as tales:200. Every text
is read from BOS by decoding.FastDecoder, the code that generates; nothing else is measured.
"""

import argparse
import itertools
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from llama import Llama, load_pretrained
from mini_llama.assignment.reviews import read_examples
from mini_llama.inference.decoding import PRECISIONS, FastDecoder
from mini_llama.pretraining.generated_text import generated_documents, is_generated
from mini_llama.tokenization.find import load_tokenizer


@torch.inference_mode()
def summed_loss(llama: Llama, rows: list[list[int]], precision: str) -> float:
    """-log p of all tokens but the first, over rows of one length."""
    tokens = torch.tensor(rows)
    decoder = FastDecoder(llama, len(rows), precision)
    cache = decoder.make_cache(*tokens.shape)
    total = 0.0
    for i in range(tokens.shape[1] - 1):
        logits = decoder(tokens[:, i : i + 1], cache)
        total += F.cross_entropy(logits, tokens[:, i + 1], reduction="sum").item()
    return total


def batches(rows: list, size: int) -> list[list]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("tokenizer")
    parser.add_argument("data")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=20)
    args = parser.parse_args()
    llama, tokenizer = load_pretrained(args.checkpoint, "llama2"), load_tokenizer(args.tokenizer)
    if is_generated(args.data):
        texts = list(generated_documents(args.data))
    else:
        texts = [example.sentence for example in read_examples(args.data)]
    rows = [tokenizer.encode(text, bos=True, eos=False) for text in texts[: args.texts]]
    rows = sorted((row[: llama.config.max_seq_len] for row in rows), key=len)
    groups = [list(group) for _, group in itertools.groupby(rows, key=len)]
    count = sum(len(row) - 1 for row in rows)
    exact = None
    for precision in PRECISIONS:
        total = sum(
            summed_loss(llama, part, precision)
            for group in groups
            for part in batches(group, args.batch_size)
        )
        perplexity = math.exp(total / count)
        exact = exact or perplexity
        print(f"{precision:<9} perplexity {perplexity:.4f} ({perplexity / exact - 1:+.3%})")
    print(f"{count} tokens of {len(rows)} texts")


if __name__ == "__main__":
    main()
