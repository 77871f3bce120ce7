"""What a model of a given shape counts and needs, on paper: nothing is allocated.

Bytes are of tensors; an allocator and a framework come on top.
"""

import math
from dataclasses import dataclass

from config import LlamaConfig, expected_shapes
from mini_llama.tables import align

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ADAMW_MOMENTS = 2
EMBEDDING, OUTPUT = "tok_embeddings.weight", "output.weight"


@dataclass(frozen=True)
class TrainingShape:
    """Sequences a step and device, tokens a sequence, and what the activations are computed in."""

    batch_size: int
    context: int
    dtype: str = "float32"
    checkpoint_activations: bool = False


def count_parameters(config: LlamaConfig) -> int:
    """All numbers that are trained; a tied embedding counts once."""
    total = sum(math.prod(shape) for _, shape in expected_shapes(config))
    return total - config.tie_word_embeddings * config.vocab_size * config.dim


def weight_bytes(config: LlamaConfig, dtype: str, quantize: str | None = None) -> int:
    """Of the weights, as llama.load_pretrained(dtype=…, quantize=…) holds them.

    A tied output layer takes no memory, unless it is quantized and the embedding is not.
    """
    is_shared = config.tie_word_embeddings and quantize is None
    return sum(
        tensor_bytes(name, shape, dtype, quantize)
        for name, shape in expected_shapes(config)
        if not (is_shared and name == OUTPUT)
    )


def is_quantized(name: str, quantize: str | None) -> bool:
    """Whether a tensor is a linear layer's that is quantized when it is loaded."""
    is_linear = name != EMBEDDING and "norm." not in name and name.endswith(".weight")
    return quantize is not None and is_linear


def block_bytes(shape: tuple[int, ...]) -> int:
    """At most, of a matrix that keeps a file's int8 blocks, as mini_llama/layers/int8_blocks.py has
    it packed: for 32 numbers as many bytes, four bfloat16 factors, and a scale of float32 or less.
    """
    rows, columns = shape
    packed = -(-rows // 64) * 64 * (columns + columns // 32 * 4 * BYTES["bfloat16"])
    return packed + rows * columns // 32 * BYTES["float32"]


def tensor_bytes(name: str, shape: tuple[int, ...], dtype: str, quantize: str | None = None) -> int:
    """Of one tensor, as mini_llama/layers/quantized_linear.py holds it.

    8 bits: a byte a number, rows padded to a multiple of 32, and a float32 and a bfloat16 scale a
    row. 4 bits: half a byte a number, rows padded to a multiple of 64, and at most a bfloat16 scale
    for 64. The output layer always has 8 bits.
    """
    if not is_quantized(name, quantize):
        return math.prod(shape) * BYTES[dtype]
    rows, columns = shape
    if quantize == "int8" or name == OUTPUT:
        return rows * (-(-columns // 32) * 32 + BYTES["float32"] + BYTES["bfloat16"])
    return rows * -(-columns // 64) * (64 // 2 + BYTES["bfloat16"])


def activation_bytes(config: LlamaConfig, shape: TrainingShape) -> int:
    """What the backward pass needs of the forward pass. The logits count twice, with their
    gradient.
    """
    logits = 2 * config.vocab_size * BYTES[shape.dtype]
    return layer_activation_bytes(config, shape) + shape.batch_size * shape.context * logits


def layer_activation_bytes(config: LlamaConfig, shape: TrainingShape) -> int:
    """The layers' part of activation_bytes.

    A layer keeps about, for every token: four times its input and two normalised copies of it
    (6 · dim), query and attended values (2 · query_dim), keys and values, and the feed-forward's
    three products and activation (4 · hidden_dim). With `checkpoint_activations` it keeps its
    input, a float32 whatever the dtype, and one layer at a time has the rest.
    """
    layer = 6 * config.dim + 2 * config.query_dim + 4 * config.kv_dim + 4 * config.hidden_dim
    token = config.n_layers * layer * BYTES[shape.dtype]
    if shape.checkpoint_activations:
        token = layer * BYTES[shape.dtype] + config.n_layers * config.dim * BYTES["float32"]
    return shape.batch_size * shape.context * token


def kv_cache_bytes(config: LlamaConfig, length: int, dtype: str) -> int:
    """Keys and values of one sequence of `length` tokens."""
    return 2 * config.n_layers * config.kv_dim * length * BYTES[dtype]


def training_flops(config: LlamaConfig, context: int) -> int:
    """Floating-point operations of forward and backward pass for one token.

    6 for each weight that is multiplied (Kaplan et al. 2020, section 2.1; the input embedding is a
    look-up), and 6 · context · query_dim a layer for causal attention, half of all pairs.
    """
    multiplied = count_parameters(config)
    if not config.tie_word_embeddings:
        multiplied -= config.vocab_size * config.dim
    return 6 * multiplied + 6 * config.n_layers * context * config.query_dim


def describe(config: LlamaConfig, shape: TrainingShape) -> str:
    """The plan as a table."""
    parameters = count_parameters(config)
    kept = parameters * BYTES["float32"]
    activations = activation_bytes(config, shape)
    training = kept * (2 + ADAMW_MOMENTS) + activations
    context = config.max_seq_len
    way = ", checkpointed" if shape.checkpoint_activations else ""
    rows = [
        ("parameters", f"{parameters:,}"),
        (
            "shape",
            f"{config.n_layers} layers, width {config.dim}, {config.n_heads} heads of "
            f"{config.head_dim}, {config.n_kv_heads} key/value heads, hidden "
            f"{config.hidden_dim}, vocabulary {config.vocab_size}",
        ),
        ("weights", f"{gigabytes(kept)} float32, {gigabytes(kept // 2)} bfloat16"),
        ("training: weights, gradients, moments", gigabytes(kept * (2 + ADAMW_MOMENTS))),
        (
            f"training: activations, {shape.batch_size} x {shape.context} tokens, "
            f"{shape.dtype}{way}",
            gigabytes(activations),
        ),
        ("training: together", gigabytes(training)),
        ("training: operations a token", f"{training_flops(config, shape.context):.3g}"),
        (
            f"key/value cache, {context} tokens, float32",
            gigabytes(kv_cache_bytes(config, context, "float32")),
        ),
    ]
    return "\n".join(align(rows, left=2))


def gigabytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.2f} MB"
