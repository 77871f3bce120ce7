"""Write mini_llama/assignment/reference_data.py from outputs that independent runs agree on.

python -m tests.assignment.pack_reference_outputs OUTPUTS DATA TOKENIZER

OUTPUTS holds a JSON file for each edition: "greedy_text" and "greedy_text_runs" of option
generate, and "predictions" by data set, each with "labels" (one digit per example, in the data's
order) and "identical_runs" (how many runs gave exactly these). DATA holds the courses' data files,
TOKENIZER is their tokenizer.model.
"""

import base64
import hashlib
import json
import sys
import textwrap
import zlib
from pathlib import Path

import sentencepiece

from tests.helpers import ROOT
from tests.submissions.samples import LINES, SUFFIXES

TARGET = ROOT / "mini_llama" / "assignment" / "reference_data.py"
HEAD = '''\
"""Compressed outputs of the real stories42M.pt; reference_outputs.py unpacks and explains them.

Written by tests/assignment/pack_reference_outputs.py.
"""

'''


def pack(data: bytes) -> str:
    """Lines of base 85, which has neither quotes nor backslashes."""
    text = base64.b85encode(zlib.compress(data, 9)).decode("ascii")
    return "\n".join(textwrap.wrap(text, 96, break_on_hyphens=False))


def block(key: str, text: str) -> str:
    return f'    {key}: """\n{text}\n""",\n'


def key_of(names: list[str]) -> str:
    return f"({names[0]},)" if len(names) == 1 else f"({', '.join(names)})"


def prompted(folder: Path, name: str) -> list[str]:
    """The sentences of a data file, each with the question that follows it."""
    lines = (folder / f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    suffix = SUFFIXES[name.split("-")[0]]
    return [line.partition(" ||| ")[2].strip() + suffix for line in lines]


def module_text(outputs: Path, data: Path, tokenizer: Path) -> str:
    editions = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(outputs.glob("*.json"))]
    encode = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer)).encode
    sentences = {name: prompted(data, name) for name in LINES}
    shared: dict[str, list[str]] = {}
    text_runs, label_runs, texts = "", "", ""
    for one in editions:
        name = f'"{one["edition"]}"'
        found = [one["predictions"][data_name] for data_name in LINES]
        digits = "".join(part["labels"] for part in found)
        shared.setdefault(pack(bytes(map(int, digits))), []).append(name)
        label_runs += f"    {name}: {tuple(part['identical_runs'] for part in found)},\n"
        text_runs += f"    {name}: {one['greedy_text_runs']},\n"
        texts += block(name, pack(one["greedy_text"].encode()))
    labels = "".join(block(key_of(names), text) for text, names in shared.items())
    hashes, tokens = "", ""
    for name, lines in sentences.items():
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        hashes += f'    "{name}": "{digest}",\n'
        counts = [1 + len(encode(line)) for line in lines]
        tokens += block(
            f'"{name}"', pack(bytes(n & 255 for n in counts + [n >> 8 for n in counts]))
        )
    tables = {
        "LABELS": (
            "Editions that share labels → the labels of all data sets, one byte each.",
            labels,
        ),
        "LABEL_RUNS": (
            "Edition → number of runs that gave exactly these labels, by data set.",
            label_runs,
        ),
        "TEXTS": ("Edition → text at temperature 0, including the prompt.", texts),
        "TEXT_RUNS": ("Edition → number of runs that gave exactly this text.", text_runs),
        "SENTENCES": ("SHA-256 of the sentences with their questions, one per line.", hashes),
        "TOKENS": (
            "Token count of each of them, including BOS: all low bytes, then all high bytes.",
            tokens,
        ),
    }
    parts = [f"# {title}\n{name} = {{\n{body}}}\n" for name, (title, body) in tables.items()]
    return HEAD + "".join(parts)


if __name__ == "__main__":
    TARGET.write_text(module_text(*map(Path, sys.argv[1:])), encoding="utf-8")
    print(f"wrote {TARGET}")
