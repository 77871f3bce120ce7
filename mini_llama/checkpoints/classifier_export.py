"""A trained classifier as a folder of Hugging Face's, where their classes can compute it.

LlamaForSequenceClassification reads the last token that is not padding, and its head has no bias:
what has one becomes a LlamaForTokenClassification, whose logits at the last token are the same.
Both are RMSNorm and causal attention.
"""

from pathlib import Path

from mini_llama.checkpoints.conversion import TARGETS, check_destination, decide_arithmetic
from mini_llama.checkpoints.formats import huggingface
from mini_llama.checkpoints.formats.base import Target
from mini_llama.checkpoints.formats.huggingface_tokenizer import find_beside, write_tokenizer
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.checkpoints.record import Checkpoint, fit_tensors
from mini_llama.checkpoints.report import backbone_of

HEAD = "classifier_head."


def export_if_classifier(source: str, destination: str, to: str) -> list[str] | None:
    """export_classifier of a source that is a trained classifier, with what was done; None for any
    other. Raises as
    read_checkpoint and export_classifier do.
    """
    checkpoint = read_checkpoint(source)
    if "classifier" not in checkpoint.metadata:
        return None
    notes = export_classifier(checkpoint, Path(destination), TARGETS[to])
    return [*notes, f"wrote {destination}"]


def export_classifier(checkpoint: Checkpoint, destination: Path, target: Target) -> list[str]:
    """Write the folder; lines for the user. Raises ValueError for a target that has no classifiers,
    an arithmetic that is not theirs, and a file without a head; OSError.
    """
    if target.name != "huggingface":
        raise ValueError(
            f"{checkpoint.path} is a trained classifier, not a pretrained model: --to huggingface "
            f"alone has such, and {target.name} has none"
        )
    check_destination(checkpoint.path, destination, target)
    backbone = backbone_of(checkpoint)
    arithmetic = decide_arithmetic(backbone, target)
    config = backbone.make_config(norm=arithmetic.norm, attention=arithmetic.attention)
    tensors = fit_tensors(backbone, config)
    del tensors["output.weight"]
    for part in ("weight", "bias"):
        if HEAD + part not in checkpoint.tensors:
            raise ValueError(f"{checkpoint.path} lacks {HEAD}{part}")
    weight, bias = (checkpoint.tensors[HEAD + part].float() for part in ("weight", "bias"))
    fields, notes = _fields(checkpoint, len(weight)), []
    tensors["score.weight"] = weight
    architecture = "LlamaForSequenceClassification"
    if bias.count_nonzero():
        architecture = "LlamaForTokenClassification"
        tensors["score.bias"] = bias
        fields["classifier_dropout"] = 0.0
        notes.append(
            "the head has a bias, and LlamaForSequenceClassification has none: written as "
            f"{architecture}, whose logits at the last token are the classifier's"
        )
    if not checkpoint.metadata.get("mask_padding"):
        notes.append(
            "it was trained to read the last column, padding or not: its logits here are those of "
            "texts without padding, one at a time (--mask_padding trains without the difference)"
        )
    tokenizer = find_beside(checkpoint.path, config.vocab_size)
    if tokenizer is not None:
        fields |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        fields["pad_token_id"] = tokenizer.pad_id
    huggingface.save_with_head(destination, config, tensors, architecture, fields)
    if tokenizer is not None:
        write_tokenizer(tokenizer, destination)
    else:
        notes.append(f"no tokenizer of this model is beside {checkpoint.path}: none was copied")
    return notes


def _fields(checkpoint: Checkpoint, count: int) -> dict[str, object]:
    names = checkpoint.metadata.get("label_names")
    if not (isinstance(names, list) and len(names) == count):
        names = [f"LABEL_{i}" for i in range(count)]
    ids = {str(name): i for i, name in enumerate(names)}
    return {"id2label": {str(i): name for name, i in ids.items()}, "label2id": ids}
