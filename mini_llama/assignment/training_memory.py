"""Memory that training a classifier needs: estimated before it begins, and given back early."""

import sys

from classifier import LlamaEmbeddingClassifier
from mini_llama.allocator import give_back_large_blocks, keep_freed_blocks
from mini_llama.assignment.batches import EncodedExamples
from mini_llama.assignment.options import Options
from mini_llama.checkpoints.sizes import (
    ADAMW_MOMENTS,
    TrainingShape,
    gigabytes,
    layer_activation_bytes,
)
from utils import available_bytes

# Without give_back_large_blocks: 13.95 GB were measured where 11 were in use (docs/smollm2.md).
KEPT_BY_MALLOC = 1.3
# Keeping freed blocks pays where a step needs many, and is safe where there is memory to spare.
WORTH_KEEPING = 256 << 20
TO_SPARE = 2


def prepare_memory(
    options: Options, model: LlamaEmbeddingClassifier, train: EncodedExamples
) -> None:
    """Compute each layer again for its gradients, if that is asked for; keep what steps free where
    memory is ample; warn on standard error where training is likely to need more than is free.
    """
    model.llama.checkpoint_activations = options.checkpoint_activations
    if options.checkpoint_activations:
        give_back_large_blocks()
    device = model.classifier_head.weight.device
    needed, free = needed_bytes(options, model, train), available_bytes(device)
    is_ample = free is not None and WORTH_KEEPING <= needed <= free / TO_SPARE
    if is_ample and device.type == "cpu" and not options.checkpoint_activations:
        keep_freed_blocks()
    if free is None or needed <= free:
        return
    remedy = "a smaller --batch_size or --max_sentence_len needs less"
    if not options.checkpoint_activations:
        less = gigabytes(needed_bytes(options, model, train, checkpoint_activations=True))
        remedy = f"with --checkpoint_activations about {less}; {remedy}"
    longest = max(map(len, train.rows))
    print(
        f"warning: training needs about {gigabytes(needed)} for {options.batch_size} texts of up "
        f"to {longest} tokens a batch, and {gigabytes(free)} are free: {remedy}",
        file=sys.stderr,
    )


def needed_bytes(
    options: Options,
    model: LlamaEmbeddingClassifier,
    train: EncodedExamples,
    checkpoint_activations: bool | None = None,
) -> int:
    """Gradients, AdamW's moments, and the activations of a batch with the longest text, with what
    malloc keeps of others; the weights are there already.
    """
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    if checkpoint_activations is None:
        checkpoint_activations = options.checkpoint_activations
    rows = min(options.batch_size, len(train.rows))
    longest = max(map(len, train.rows))
    shape = TrainingShape(rows, longest, options.dtype, checkpoint_activations)
    activations = layer_activation_bytes(model.llama.config, shape)
    if not checkpoint_activations:
        activations = int(activations * KEPT_BY_MALLOC)
    return (1 + ADAMW_MOMENTS) * trained + activations
