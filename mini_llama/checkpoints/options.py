"""What `checkpoint.py convert` offers: the formats that are written, and the size of a shard.

It needs no torch, so that help comes at once.
"""

# Name and help text; the writers are the formats' TARGETS.
TARGETS = {
    "assignment": "torch file, dict(model, model_args), under the assignment's names",
    "huggingface": "new folder: config.json, model.safetensors or shards, generation_config.json, "
    "and the\nsource's tokenizer where there is one",
    "llama2c": "llama2.c's .bin, version 0, float32",
    "llama2c-q80": "llama2.c's .bin, version 2, 8 bits",
}
MAX_SHARD_SIZE = "5GB"
