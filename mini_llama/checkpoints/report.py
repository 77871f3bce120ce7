"""What a checkpoint, or a named shape, is made of, as text: its modules, their shapes and sizes.

Headers say all of it; of the weights only the two embeddings are compared, where a file holds both,
to tell whether they are one.
"""

import dataclasses
import itertools
import math
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from config import PRESETS, LlamaConfig, expected_shapes, resolve_arithmetic
from mini_llama.checkpoints.adapters import is_adapters, is_peft
from mini_llama.checkpoints.foreign import PEFT_CONFIG
from mini_llama.checkpoints.lazy_tensors import LazyTensors
from mini_llama.checkpoints.memory import describe_fit, memory_facts
from mini_llama.checkpoints.record import Checkpoint, check_is_pretrained, stored_tensors
from mini_llama.checkpoints.sizes import count_parameters, gigabytes, is_quantized
from mini_llama.checkpoints.tensor_files import load_plain
from mini_llama.tables import align
from utils import available_bytes, read_json

HEADINGS = ("module", "shape", "dtype", "parameters")
SHARED = "tied"
BACKBONE = "llama."  # of a classifier: what its backbone's names begin with


class Row(NamedTuple):
    module: str
    shape: str = ""
    dtype: str = ""
    parameters: str = ""


def describe_preset(name: str) -> str:
    """The report of a shape of config.PRESETS, in float32."""
    config = LlamaConfig(**PRESETS[name])
    meta = {
        name: torch.empty(shape, dtype=torch.float32, device="meta")
        for name, shape in expected_shapes(config)
    }
    facts = [("preset", name), ("arithmetic", f"{config.norm}, {config.attention} attention")]
    return describe(facts, config, meta)


def describe_checkpoint(checkpoint: Checkpoint) -> str:
    """The report of a checkpoint, or of a classifier that was trained from one. Raises ValueError
    where its tensors contradict its model_args.
    """
    if "classifier" in checkpoint.metadata:
        return describe_classifier(checkpoint)
    config, meta = _read_shapes(checkpoint)
    arithmetic = resolve_arithmetic(checkpoint.recorded)
    facts = [
        ("path", str(checkpoint.path)),
        ("format", checkpoint.format),
        ("on disk", gigabytes(sum(map(bytes_on_disk, checkpoint.files or [checkpoint.path])))),
        ("arithmetic", str(arithmetic)),
        *checkpoint.facts,
        *_kept_blocks(stored_tensors(checkpoint, config)),
    ]
    return describe(facts, config, meta)


def _kept_blocks(tensors: LazyTensors) -> Iterator[tuple[str, str]]:
    """How many matrices --quantize int8 leaves as they are in the file, if any."""
    matrices = [name for name in tensors if is_quantized(name, "int8")]
    kept = sum(name in tensors.read_blocks for name in matrices)
    if kept:
        yield (
            "--quantize int8",
            f"keeps {kept} of {len(matrices)} matrices, integers and scales",
        )


RECORDED = ("option", "dataset", "epoch", "dev_accuracy", "mask_padding", "max_sentence_len")


def describe_classifier(checkpoint: Checkpoint) -> str:
    """The report of a trained classifier: what its run recorded, and its backbone."""
    facts, metadata = [("path", str(checkpoint.path))], checkpoint.metadata
    head = metadata["classifier"] if isinstance(metadata["classifier"], dict) else {}
    facts += [("format", "trained classifier, torch file")]
    facts += [("labels", _labels(head.get("num_labels"), metadata.get("label_names")))]
    facts += [(k, str(metadata[k])) for k in RECORDED if metadata.get(k) is not None]
    if isinstance(tokenizer := metadata.get("tokenizer"), dict):
        facts += [("tokenizer", f"{tokenizer.get('name')}, SHA-256 {tokenizer.get('sha256')}")]
    backbone = backbone_of(checkpoint)
    config, meta = _read_shapes(backbone)
    facts += [("arithmetic", str(resolve_arithmetic(backbone.recorded)))]
    return describe(facts, config, meta)


def backbone_of(classifier: Checkpoint) -> Checkpoint:
    """The language model under a classifier's head."""
    tensors = {
        name.removeprefix(BACKBONE): tensor
        for name, tensor in classifier.tensors.items()
        if name.startswith(BACKBONE)
    }
    return Checkpoint(classifier.path, classifier.model_args, tensors)


def _labels(count: Any, names: Any) -> str:
    named = f": {', '.join(map(str, names))}" if isinstance(names, list) else ""
    return f"{count}{named}"


def describe_adapters(path: str | Path) -> str:
    """The report of LoRA adapters in a file of their own, ours or a folder of PEFT."""
    names: tuple[str, ...]
    facts = [("path", str(path))]
    if is_peft(path):
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        content = read_json(folder / PEFT_CONFIG)
        facts += [("format", "folder of PEFT")]
        names = ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules")
    else:
        content = load_plain(path)
        facts += [("format", "LoRA adapters of run_llama.py")]
        names = ("rank", "alpha", "targets", *RECORDED)
        if isinstance(base := content.get("base"), dict):
            facts += [("base", f"{base.get('name')}, fingerprint {base.get('fingerprint')}")]
        count = sum(tensor.numel() for tensor in content["adapters"].values())
        facts += [("parameters", f"{count:,}")]
    facts += [(name, str(content[name])) for name in names if content.get(name) is not None]
    return "\n".join(_align_facts(facts))


def holds_adapters(path: str | Path) -> bool:
    """Whether a path is a folder of PEFT or an .adapters.pt."""
    if is_peft(path):
        return True
    path = Path(path)
    return path.name.endswith(".adapters.pt") and path.is_file() and is_adapters(load_plain(path))


def describe_memory(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> str:
    """What its weights and key/value cache take, and what fits the device; raises ValueError as
    describe_checkpoint does.
    """
    config, _ = _read_shapes(checkpoint)
    facts = [("parameters", f"{count_parameters(config):,}"), *memory_facts(config, device)]
    return "\n".join([*_align_facts(facts), describe_fit(config, available_bytes(device))])


def _read_shapes(checkpoint: Checkpoint) -> tuple[LlamaConfig, Mapping[str, torch.Tensor]]:
    """Its configuration and its tensors' shapes and dtypes."""
    check_is_pretrained(checkpoint)
    attention = resolve_arithmetic(checkpoint.recorded).attention
    # Where nothing is recorded, the default's LayerNorm would add biases that are not there.
    norm = "layernorm" if checkpoint.has_biases else "rmsnorm"
    config = checkpoint.make_config(norm=norm, attention=attention)
    return config, stored_tensors(checkpoint, config).meta


def bytes_on_disk(path: Path) -> int:
    """Of a file, or of all files that stand in a folder."""
    files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def describe(
    facts: list[tuple[str, str]], config: LlamaConfig, meta: Mapping[str, torch.Tensor]
) -> str:
    total = count_parameters(config)
    embedding = config.vocab_size * config.dim
    if config.tie_word_embeddings:
        counts = f"{total:,}, tied ({total + embedding:,} if the output embedding were another)"
    else:
        counts = (
            f"{total:,}, untied ({total - embedding:,} if the output embedding were the input's)"
        )
    left_out = ("norm", "attention")  # the arithmetic's line has them
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in left_out}
    if config.rope_scaling is not None:
        given = fields["rope_scaling"].items()
        fields["rope_scaling"] = {name: value for name, value in given if value is not None}
    facts = [
        *facts,
        ("config", ", ".join(f"{name} {value}" for name, value in fields.items())),
        ("parameters", counts),
        *memory_facts(config),
    ]
    rows = align([Row(*HEADINGS), *tree(config, meta)], left=3)
    return "\n".join([*_align_facts(facts), describe_fit(config, available_bytes()), "", *rows])


def tree(config: LlamaConfig, meta: Mapping[str, torch.Tensor]) -> Iterator[Row]:
    """Modules in the network's order, indented; layers that are alike are one, layers.0-29."""
    yield from _branch("", {"tok_embeddings.weight": meta["tok_embeddings.weight"]})
    for layers, tensors in _alike_layers(config, meta):
        numbers = f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else f"{layers[0]}"
        count = sum(tensor.numel() for tensor in tensors.values())
        times = f"{len(layers)} x " if len(layers) > 1 else ""
        yield Row(f"layers.{numbers}", parameters=f"{times}{count:,}")
        yield from _branch("  ", tensors)
    yield from _branch("", {k: t for k, t in meta.items() if k.startswith("norm.")})
    if config.tie_word_embeddings:
        yield Row("output", *_leaf(meta["output.weight"])[:2], SHARED)
    else:
        yield from _branch("", {"output.weight": meta["output.weight"]})
    yield Row("total", parameters=f"{count_parameters(config):,}")


def _alike_layers(
    config: LlamaConfig, meta: Mapping[str, torch.Tensor]
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Runs of layers with the same names, shapes and dtypes, and the tensors of the first."""
    layers: list[dict[str, torch.Tensor]] = [{} for _ in range(config.n_layers)]
    for name, tensor in meta.items():
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            layers[int(number)][rest] = tensor

    def shape_of(layer: int) -> list[tuple]:
        return [(name, *_leaf(tensor)) for name, tensor in layers[layer].items()]

    for _, group in itertools.groupby(range(config.n_layers), key=shape_of):
        run = list(group)
        yield run, layers[run[0]]


def _branch(indent: str, tensors: Mapping[str, torch.Tensor]) -> Iterator[Row]:
    shown: list[str] = []
    for name, tensor in tensors.items():
        *modules, last = name.removesuffix(".weight").split(".")
        for depth, module in enumerate(modules):
            if shown[: depth + 1] != modules[: depth + 1]:
                yield Row(indent + "  " * depth + module)
        shown = [*modules, last]
        yield Row(indent + "  " * len(modules) + last, *_leaf(tensor))


def _leaf(tensor: torch.Tensor) -> tuple[str, str, str]:
    shape = " x ".join(str(size) for size in tensor.shape)
    return shape, str(tensor.dtype).removeprefix("torch."), f"{math.prod(tensor.shape):,}"


def _align_facts(facts: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in facts) + 2
    return [
        line
        for name, value in facts
        for line in textwrap.wrap(
            value,
            100,
            initial_indent=f"{name:<{width}}",
            subsequent_indent=" " * width,
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]
