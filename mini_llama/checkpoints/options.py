"""What `checkpoint.py convert` offers: the formats that are written, and the size of a shard.

It needs no torch, so that help comes at once.
"""

from config import PRESETS
from mini_llama.bounds import UsageError

INFO = "print format, arithmetic, configuration, modules and sizes; weights are not read"
CONVERT = "write a checkpoint in another format, bit for bit, in the memory of about one shard"

# Name and help text; the writers are the formats' TARGETS.
TARGETS = {
    "assignment": "torch file, dict(model, model_args), under the assignment's names",
    "huggingface": "new folder: config.json, model.safetensors or shards, generation_config.json, "
    "and the\nsource's tokenizer where there is one",
    "llama2c": "llama2.c's .bin, version 0, float32",
    "llama2c-q80": "llama2.c's .bin, version 2, 8 bits",
    "gguf": "llama.cpp's GGUF, in --type (the weights' own), with the source's tokenizer and\nchat "
    "template where there are such",
    "peft": "new folder of PEFT: the LoRA adapters of --adapters, SRC being their model",
    "adapters": "an .adapters.pt of run_llama.py: the same",
}
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")
ADAPTERS = "LoRA adapters to merge: an .adapters.pt or PEFT's folder"
MAX_SHARD_SIZE = "5GB"
SOURCES = (
    "torch file (the assignment's, llama2.c's), llama2.c .bin, GGUF, or folder with config.json "
    "and safetensors or pytorch_model.bin (Hugging Face's LlamaForCausalLM, pretrain.py's)"
)
SOURCES_AND_PRESETS = f"{SOURCES}, or a preset: {', '.join(PRESETS)}"
EPILOG = """
All but assignment and adapters can only mean RMSNorm and causal attention. A file that does not
record its arithmetic is taken for that, and a line says so; a model of another is refused. An
existing file DST is replaced only with --overwrite; a folder DST must be new or empty.
"""


def target_name(to: str, kind: str | None) -> str:
    """The target that --to and --type mean together. Raises UsageError for a type of another."""
    if kind is None:
        return to
    if to != "gguf":
        raise UsageError(f"--type {kind} is not allowed: it is for --to gguf")
    return f"{to}-{kind}"


def describe_targets() -> str:
    """TARGETS and EPILOG, as the help shows them."""
    width = max(map(len, TARGETS)) + 2
    lines = [f"{k:{width}}{v}".replace("\n", "\n" + " " * width) for k, v in TARGETS.items()]
    return "\n".join([*lines, EPILOG])
