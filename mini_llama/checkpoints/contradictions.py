"""Where two parts of a checkpoint can disagree: right as transformers has it, with a warning, or
refused; never decided without a word.
"""

from typing import Any

from mini_llama.checkpoints.formats import meta
from mini_llama.checkpoints.formats.folder import CONFIG_FILE
from mini_llama.checkpoints.formats.huggingface_config import MODEL_TYPE, import_config
from mini_llama.checkpoints.record import Checkpoint
from mini_llama.warning import warn
from utils import REMEDY, read_json

# What both config.json and params.json say.
SHARED_FIELDS = ("dim", "n_layers", "n_heads", "n_kv_heads", "layer_norm_eps", "rope_theta")


def check(checkpoint: Checkpoint) -> None:
    """Warn, or raise ValueError, where a checkpoint that was read contradicts itself."""
    _check_tied(checkpoint)
    _check_two_configs(checkpoint)


def _check_tied(checkpoint: Checkpoint) -> None:
    """What the tensors say of a tied output embedding holds."""
    is_tied = checkpoint.model_args.get("tie_word_embeddings")
    if "tok_embeddings.weight" not in checkpoint.tensors:
        return
    if is_tied is False and "output.weight" not in checkpoint.tensors:
        if "task_head" in checkpoint.metadata:
            return
        raise ValueError(
            f"{checkpoint.path} lacks output.weight, and says that it is not tied to the "
            f"embedding; {REMEDY}"
        )
    if is_tied and not checkpoint.is_tied:
        warn(
            f"{checkpoint.path} says that its output embedding is tied, and holds another than the "
            "input's: the stored one is kept, as transformers does; correct tie_word_embeddings"
        )


def _check_two_configs(checkpoint: Checkpoint) -> None:
    """Hugging Face's config.json and Meta's params.json in one folder."""
    folder = checkpoint.path
    files = (folder / CONFIG_FILE, folder / meta.PARAMS_FILE)
    if not all(file.is_file() for file in files):
        return
    try:
        theirs = read_json(files[0])
        if theirs.get("model_type") != MODEL_TYPE:
            return
        ours, others = import_config(theirs), meta.import_params(read_json(files[1]))
    except ValueError as error:
        if checkpoint.format.startswith(meta.KIND):
            warn(f"{files[0]} is not used: {error}")
        return
    names = [name for name in SHARED_FIELDS if _value(ours, name) != _value(others, name)]
    if not names:
        return
    said = f"{names[0]} {_value(ours, names[0])} in {CONFIG_FILE} and {_value(others, names[0])}"
    problem = f"{folder} says {said} in {meta.PARAMS_FILE}"
    if checkpoint.format.startswith(meta.KIND):
        raise ValueError(f"{problem}: of which is the model? Remove or correct the wrong file")
    warn(f"{problem}: {CONFIG_FILE} counts, as in transformers")


def _value(args: dict[str, Any], name: str) -> Any:
    value = args.get(name)
    return args.get("n_heads") if name == "n_kv_heads" and value is None else value
