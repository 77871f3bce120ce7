"""An experiment's folder: best_model.pth, and the records that are submitted with it.

model_config.json holds the shape, training_config.json the training settings,
experiment_summary.json both and the accuracy, and predictions.json the generated texts.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config import EDITIONS, LlamaConfig
from llama import Llama
from mini_llama.addition.options import EDITION, FIXED_SHAPE, SHAPE
from mini_llama.checkpoints.record import Checkpoint, fit_tensors, migrate_names
from mini_llama.checkpoints.tensor_files import check_tensors, load_plain
from utils import atomic_write, read_json

MODEL, CURVE = "best_model.pth", "loss_curve.png"
MODEL_CONFIG, TRAINING_CONFIG = "model_config.json", "training_config.json"
SUMMARY, PREDICTIONS = "experiment_summary.json", "predictions.json"
# The course's files contain these two settings; every model here has these values.
IMPLIED = {"position_embedding_type": "rotary", "use_cache": True}


def model_record(config: LlamaConfig) -> dict[str, Any]:
    """The content of model_config.json."""
    shape = {name: getattr(config, name) for name in SHAPE}
    return {**FIXED_SHAPE, **shape, **IMPLIED}


def write_record(path: Path, content: object) -> None:
    """Write JSON atomically. Raises OSError."""
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=4) + "\n")


def write_results(folder: Path, model: Llama, accuracy: float, predictions: Sequence[str]) -> None:
    """Write experiment_summary.json and predictions.json. Raises OSError."""
    training = folder / TRAINING_CONFIG
    summary = {
        "model_config": model_record(model.config),
        "train_config": read_json(training) if training.exists() else {},
        "num_params": sum(parameter.numel() for parameter in model.parameters()),
        "accuracy": accuracy,
    }
    write_record(folder / SUMMARY, summary)
    print(f"Experiment info saved to {folder / SUMMARY}")
    write_record(folder / PREDICTIONS, list(predictions))
    print(f"Predictions saved to {folder / PREDICTIONS}")


def load_model(path: Path) -> Llama:
    """Load a checkpoint; its shape is recorded in it, or in model_config.json in the same folder.

    Norm and attention are the edition's, unless it records its own. Raises OSError, ValueError for
    a file with anything but tensors and plain data, or with tensors of another model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--checkpoint {path} is not a file; train writes {MODEL}")
    content = load_plain(path)
    is_wrapped = isinstance(content, dict) and isinstance(content.get("model"), dict)
    tensors = check_tensors(path, migrate_names(path, content["model"] if is_wrapped else content))
    recorded = content.get("model_args") if is_wrapped else None
    if not isinstance(recorded, dict):
        recorded = read_json(path.with_name(MODEL_CONFIG))
    edition = EDITIONS[EDITION]
    shape = {"norm": edition.norm, "attention": edition.attention, **recorded}
    checkpoint = Checkpoint(path, shape, tensors)
    config = checkpoint.make_config()
    model = Llama(config)
    model.load_state_dict(fit_tensors(checkpoint, config))
    return model.eval()
