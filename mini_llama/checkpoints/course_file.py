"""Classifiers that a student's own code has trained, as the courses' given code saves them.

Such a file has the classifier's tensors, the optimizer's state, the command's arguments, and the
classifier's configuration, but not the shape of its model: what tensors do not show is that of the
pretrained model that the configuration names, or of a preset.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from config import PRESETS, LlamaConfig
from mini_llama.checkpoints.tensor_files import load_plain

PREFIX = "llama."
# Fields of a model's shape that tensors show.
SHOWN = ("vocab_size", "dim", "n_layers", "hidden_dim")


def is_course_file(content: Mapping[str, Any]) -> bool:
    """Whether a torch file's content is a classifier that the courses' code saved."""
    model, config = content.get("model"), _fields(content.get("model_config"))
    is_named = isinstance(model, dict) and f"{PREFIX}tok_embeddings.weight" in model
    return is_named and "model_args" not in content and "num_labels" in config


def as_our_own(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The same in the form of classifier.save_classifier. Raises ValueError where its model's
    number of heads is unknown.
    """
    config, arguments = _fields(content["model_config"]), _fields(content.get("args"))
    head = {name: config.get(name) for name in ("num_labels", "hidden_dropout_prob")}
    facts = {"option": arguments.get("option", config.get("option"))}
    facts |= {name: arguments[name] for name in ("batch_size",) if name in arguments}
    args = _model_args(path, content["model"], str(config.get("pretrained_model_path")))
    return {"model": content["model"], "model_args": args, "classifier": head} | facts


def _fields(value: object) -> dict[str, Any]:
    """The attributes of an argparse.Namespace or SimpleNamespace, which hold data alone."""
    return dict(vars(value)) if hasattr(value, "__dict__") else {}


def _model_args(path: Path, tensors: Mapping[str, Any], pretrained: str) -> dict[str, Any]:
    found = _shape(tensors)
    beside = [Path(pretrained), path.with_name(Path(pretrained).name)]
    for place in beside:
        if place.suffix == ".pt" and place.is_file():
            args = load_plain(place).get("model_args", {})
            if isinstance(args, dict) and found == _shape_of(args):
                return _without_arithmetic(args)
    for preset in PRESETS.values():
        if found == _shape_of(preset):
            return _without_arithmetic(preset)
    shape = ", ".join(f"{name} {value}" for name, value in found.items())
    raise ValueError(
        f"{path} is a classifier of the course's code, which does not record its model's number "
        f"of heads ({shape}): put {Path(pretrained).name}, which it was trained from, beside it"
    )


def _shape(tensors: Mapping[str, Any]) -> dict[str, int]:
    def size(name: str, axis: int) -> int:
        tensor = tensors.get(PREFIX + name)
        return tensor.shape[axis] if isinstance(tensor, torch.Tensor) and tensor.ndim == 2 else 0

    layers = {name.split(".")[2] for name in tensors if name.startswith(f"{PREFIX}layers.")}
    embedding = "tok_embeddings.weight"
    values = (
        *(size(embedding, 0), size(embedding, 1), len(layers)),
        size("layers.0.feed_forward.w1.weight", 0),
    )
    return dict(zip(SHOWN, values, strict=True))


def _shape_of(args: Mapping[str, Any]) -> dict[str, int] | None:
    """The fields SHOWN of a model; None of what is no model's."""
    try:
        config = LlamaConfig(**args)
    except (TypeError, ValueError):
        return None
    return {name: getattr(config, name) for name in SHOWN}


def _without_arithmetic(args: Mapping[str, Any]) -> dict[str, Any]:
    """Norm and attention are those of the student's edition, not of the pretrained model."""
    return {name: value for name, value in args.items() if name not in ("norm", "attention")}
