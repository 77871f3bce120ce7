"""A checkpoint's weights → a model, on the CPU, in a dtype or quantized, tensor by tensor."""

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from base_llama import LlamaPreTrainedModel, shapes_only
from config import WEIGHT_DTYPES, resolve_arithmetic
from mini_llama.checkpoints.lazy_tensors import LazyTensors, StreamedTensors
from mini_llama.checkpoints.memory import is_converted, require_memory
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.record import check_is_pretrained, stored_tensors, usable
from mini_llama.layers.int8_blocks import Int8BlockLinear, can_keep
from mini_llama.layers.linear import Linear
from mini_llama.layers.quantized_linear import KINDS, QuantizedLinear, import_bitsandbytes

Model = TypeVar("Model", bound=LlamaPreTrainedModel)


def load_model(
    model_class: type[Model],
    path: str | Path,
    edition: str | None = None,
    norm: str | None = None,
    attention: str | None = None,
    dtype: str = "float32",
    quantize: str | None = None,
) -> Model:
    """The model of a checkpoint file, on the CPU and in evaluation mode.

    Which formats are read, and the errors (OSError, ValueError): reading.read_checkpoint.
    Norm and attention: config.resolve_arithmetic; `model.arithmetic` says what was decided and why.

    Tensors come one by one. What the file holds in `dtype` ("float32", "bfloat16", "float16") stays
    mapped from it; the rest is converted. `quantize` ("int8", "nf4") is the form of every linear
    layer, always int8 for the output layer, and the model is then for inference only;
    embedding and norms stay in `dtype`. Raises ValueError for another dtype or quantization, for
    nf4 without bitsandbytes, for weights that hold NaN where they are quantized, and where memory
    has no room for what is converted (memory.require_memory).
    """
    _check_storage(dtype, quantize)
    checkpoint = read_checkpoint(path)
    check_is_pretrained(checkpoint)
    arithmetic = resolve_arithmetic(checkpoint.recorded, edition, norm, attention)
    config = checkpoint.make_config(norm=arithmetic.norm, attention=arithmetic.attention)
    tensors = stored_tensors(checkpoint, config)
    # Of a dtype that none is loaded in, since what the file has in another form is never mapped.
    other = {k: t.to(torch.float64) for k, t in tensors.meta.items() if k in checkpoint.made}
    held = tensors.meta | other
    require_memory(checkpoint.path, config, held, dtype, quantize, tensors.read_blocks)
    with shapes_only():
        model = model_class(config)
    if is_converted(held, dtype, quantize):
        streamed = StreamedTensors(tensors, checkpoint.pages)
        place_tensors(model, streamed, getattr(torch, dtype), quantize)
        streamed.give_back()
    else:
        place_tensors(model, tensors, getattr(torch, dtype), quantize)
    model.arithmetic = arithmetic
    return model.eval()


def _check_storage(dtype: str, quantize: str | None) -> None:
    for name, value, known in (
        ("dtype", dtype, WEIGHT_DTYPES),
        ("quantize", quantize, (None, *KINDS)),
    ):
        if value not in known:
            names = ", ".join(str(choice) for choice in known)
            raise ValueError(f"{name} {value!r} is none of {names}")
    if quantize == "nf4":
        import_bitsandbytes()  # before anything is read


def place_tensors(
    model: LlamaPreTrainedModel, tensors: LazyTensors, dtype: torch.dtype, quantize: str | None
) -> None:
    """Give the model its tensors, one by one; load_model says in which form."""
    is_tied = model.config.tie_word_embeddings and quantize is None
    for name in tensors:
        path, _, part = name.rpartition(".")
        module = model.get_submodule(path)
        if is_tied and module is model.output:
            continue
        if quantize is None or part == "bias" or not isinstance(module, Linear):
            tensor = usable(tensors[name], dtype)
            if tensor.ndim == 1 and isinstance(tensors, StreamedTensors):
                tensor = tensor.clone()  # a norm alone would keep the file mapped
            setattr(module, part, nn.Parameter(tensor))
            continue
        # 4 bits would cost the logits more than they save: it is one matrix of many.
        kind = "int8" if module is model.output else quantize
        try:
            quantized = _quantize(tensors, name, kind)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        quantized.bias = module.bias
        model.set_submodule(path, quantized)
    if quantize is None:
        model.tie_weights()
    else:
        model.requires_grad_(False)
    model.quantization = quantize


def _quantize(tensors: LazyTensors, name: str, kind: str) -> QuantizedLinear:
    """The layer of a quantized weight: of int8 blocks that the file has, if it does."""
    if kind == "int8" and name in tensors.read_blocks:
        blocks = tensors.read_blocks[name]()
        if can_keep(blocks):
            return Int8BlockLinear(blocks)
    return KINDS[kind](tensors[name])
