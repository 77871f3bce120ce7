"""A complete sample submission, and helpers that patch zips."""

import struct
import zipfile

from config import FRANKENSTEIN

# written out from the assignment, not taken from the module
SOURCES = (
    "run_llama.py base_llama.py llama.py rope.py lora.py classifier.py config.py optimizer.py "
    "sanity_check.py tokenizer.py utils.py"
).split()
OTHERS = "README.md structure.md checklist.md sanity_check.data setup.sh".split()
GENERATED = ["generated-sentence-temp-0.txt", "generated-sentence-temp-1.txt"]
METHODS = ("prompting", "finetuning", "lora")
WORDS = {"sst": ["awful", "bad", "average", "good", "excellent"], "cfimdb": ["bad", "good"]}
SUFFIXES = {
    "sst": " Is this movie awful, bad, average, good, or excellent? This movie is ",
    "cfimdb": " Is this movie bad or good? This movie is ",
}
LINES = {"sst-dev": 1101, "sst-test": 2210, "cfimdb-dev": 245, "cfimdb-test": 488}
SENTENCES = {
    name: [f"{name} sentence {i} , d\u00e9j\u00e0 vu ." for i in range(7)] for name in LINES
}
LORA = "sst-dev-lora-output.txt"
PROMPTING = "cfimdb-dev-prompting-output.txt"


def good_files(sentences=SENTENCES):
    """A complete submission for the sentences of some data files."""
    files = {name: f"import torch  # {name}\n".encode() for name in SOURCES}
    files |= {name: f"# {name}\n".encode() for name in OTHERS}
    files |= {name: f"{FRANKENSTEIN} {name}".encode() for name in GENERATED}
    for data_name, texts in sentences.items():
        dataset = data_name.split("-")[0]
        for method in METHODS:
            suffix = SUFFIXES[dataset] if method == "prompting" else ""
            n_labels = len(WORDS[dataset])
            lines = [f"{i % n_labels} ||| {text}{suffix}\n" for i, text in enumerate(texts)]
            files[f"{data_name}-{method}-output.txt"] = "".join(lines).encode()
    return files


def patch_directory(data, name, offset, value, layout):
    """Overwrite a field of `name`'s central directory record, `offset` bytes into it."""
    at = data.rindex(name.encode()) - 46
    assert data[at : at + 4] == b"PK\x01\x02"
    patched = bytearray(data)
    struct.pack_into(layout, patched, at + offset, value)
    return bytes(patched)


def entry(name, mode=0, method=zipfile.ZIP_DEFLATED):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr, info.compress_type = 3, mode << 16, method
    return info


def only(lines, *parts):
    """Assert that there is exactly one line, and that it contains all the parts."""
    assert len(lines) == 1, lines
    for part in parts:
        assert part in lines[0], lines[0]


def write_work(parent):
    """Write good files to `parent`/work, which is returned, and their data to `parent`/data."""
    files = {f"work/{name}": content for name, content in good_files().items()}
    for name, sentences in SENTENCES.items():
        files[f"data/{name}.txt"] = "".join(f"0 ||| {text}\n" for text in sentences).encode()
    for name, content in files.items():
        (parent / name).parent.mkdir(exist_ok=True)
        (parent / name).write_bytes(content)
    return parent / "work"
