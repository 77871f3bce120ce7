"""A checkpoint's own tokenizer: of those that lie beside it, one that fits its vocabulary."""

from pathlib import Path

from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.tokenization.find import find_tokenizer


def find_own_tokenizer(checkpoint: str | Path, explicit: str | Path | None = None) -> Path:
    """find_tokenizer, which reads the checkpoint only where it must know the vocabulary's size.

    Raises OSError or ValueError as read_checkpoint does.
    """
    return find_tokenizer(checkpoint, explicit, lambda: vocabulary_of(checkpoint))


def vocabulary_of(path: str | Path) -> int:
    """How many pieces a checkpoint's embedding has."""
    checkpoint = read_checkpoint(path)
    size = checkpoint.model_args.get("vocab_size")
    return size if isinstance(size, int) and size > 0 else checkpoint.make_config().vocab_size
