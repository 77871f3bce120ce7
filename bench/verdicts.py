#!/usr/bin/env python
"""Fine-tune a chat model on one task with LoRA, and compare it before and after.

python bench/verdicts.py MODEL --out FOLDER [--examples 200] [--held_out 50] [options of align.py]

The task: a film review of the bundled generator to a verdict in one fixed form, "Verdict: good, 4
of 5 stars.". It writes train.jsonl and test.jsonl, runs align.py sft with LoRA, and prints for the
held-out reviews how many answers have the form and how many the right verdict, with time and
memory.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "data" / "demo")]

import torch

from llama import Llama, load_pretrained
from mini_llama.alignment.data import Encoder
from mini_llama.alignment.options import SftOptions
from mini_llama.alignment.records import Prompt, read_prompts
from mini_llama.alignment.start import load_causal, load_language
from mini_llama.inference.generation import generate
from mini_llama.inference.sampling import Sampler
from reviews import LABEL_NAMES, reviews

OPTIONS = (
    "--lora_rank 8 --lora_alpha 16 --lora_targets compute_query,compute_value,w1,w2,w3".split()
)
OPTIONS += "--lr 1e-3 --warmup 5 --epochs 3 --batch_size 8 --eval_every 25 --samples 1".split()
ASK = "What does this review say of the film? Answer with a verdict.\n\n"
NAMES = LABEL_NAMES[5]
FORM = re.compile(r"Verdict: (\w+), ([1-5]) of 5 stars\.")


def answer(label: int) -> str:
    return f"Verdict: {NAMES[label]}, {label + 1} of 5 stars."


def write(path: Path, split: str, count: int) -> None:
    lines = []
    for label, sentence, _ in islice(reviews(0, 5, split), count):
        user = {"role": "user", "content": ASK + sentence}
        messages = [user, {"role": "assistant", "content": answer(label)}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def judge(llama: Llama, encoder: Encoder, path: Path) -> tuple[float, float, str]:
    """Share of answers in the form, share that is right, and the first answer."""
    lines = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    asked = path.with_name("asked.jsonl")
    asked.write_text("".join(json.dumps({"prompt": [m[0]]}) + "\n" for m in lines))
    prompts: list[Prompt] = read_prompts((str(asked),))
    texts = []
    for prompt in prompts:
        ids = encoder.prompt(prompt)
        tokens = generate(llama, torch.tensor([ids]), 24, Sampler(0.0), encoder.ends)
        texts.append(encoder.tokenizer.decode(tokens[0, len(ids) :].tolist()).strip())
    formed = [bool(FORM.fullmatch(text)) for text in texts]
    right = [text == m[1]["content"] for text, m in zip(texts, lines, strict=True)]
    return sum(formed) / len(texts), sum(right) / len(texts), texts[0]


def describe(when: str, form: float, right: float, text: str) -> str:
    return f"{when}: in the form {form:.2f}, right {right:.2f}; the first: {text!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--held_out", type=int, default=50)
    args, given = parser.parse_known_args()
    args.out.mkdir(exist_ok=True)
    train, test = args.out / "train.jsonl", args.out / "test.jsonl"
    write(train, "train", args.examples)
    write(test, "test", args.held_out)
    llama, _ = load_causal(args.model)
    options = SftOptions(pretrained_model_path=args.model, data=(str(train),))
    encoder = Encoder(*load_language(options, llama.config), llama.config.max_seq_len)
    print(
        "before: form {:.2f}, right {:.2f}; {!r}".format(*judge(llama, encoder, test)), flush=True
    )
    del llama
    command = [sys.executable, str(ROOT / "align.py"), "sft", "--pretrained-model-path", args.model]
    command += ["--data", str(train), "--val_data", str(test), "--out", str(args.out / "sft")]
    started = time.perf_counter()
    subprocess.run([*command, *OPTIONS, *given], check=True)
    minutes = (time.perf_counter() - started) / 60
    peak = resource.getrusage(resource.RUSAGE_CHILDREN)
    llama = load_pretrained(args.out / "sft" / "model.pt")
    print(describe("after", *judge(llama, encoder, test)))
    cpu = (peak.ru_utime + peak.ru_stime) / 60
    print(f"{minutes:.1f} minutes, {cpu:.1f} of CPU, {peak.ru_maxrss / 1e6:.2f} GB at most")


if __name__ == "__main__":
    main()
