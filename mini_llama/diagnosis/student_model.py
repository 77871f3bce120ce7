"""A student's model, run in a limited process, for sanity_check.py --code.

Nothing that comes back is trusted: an array has the shape that its place has, or it is refused, and
all comparing is done here. Shapes as in recorder.py; V vocabulary.
"""

import hashlib
import inspect
import json
import math
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import LlamaConfig
from mini_llama.checkpoints.reading import read_checkpoint
from mini_llama.diagnosis import recorder
from mini_llama.diagnosis.explanation import Place
from mini_llama.diagnosis.limits import MEMORY_BYTES
from mini_llama.diagnosis.numpy_llama import Array
from mini_llama.diagnosis.places import Place as Submitted
from mini_llama.diagnosis.recording import Call, Calls, Run
from mini_llama.diagnosis.sources import copy_sources
from mini_llama.submissions import missing_modules
from mini_llama.submissions.given import given_files
from mini_llama.submissions.limited_process import Outcome, run_limited
from mini_llama.submissions.untrusted_text import one_line, shorten

SECONDS = 180.0  # PyTorch's import and stories42M.pt on a slow machine
CHECKPOINT = "stories42M.pt"
# What model_args of the courses' checkpoint hold: all that a student's LlamaConfig must know.
MODEL_ARGS = (
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "max_seq_len"),
    *("dropout",),
)
MAX_HEADER_BYTES = 2**22


@dataclass(frozen=True)
class Question:
    """What a student's model is asked: `tokens` (B, T), of a checkpoint with this configuration;
    `edition` is for a load_pretrained that takes one.
    """

    checkpoint: str | Path
    config: LlamaConfig
    tokens: torch.Tensor
    edition: str


@dataclass(frozen=True)
class StudentRun:
    """What came back: the recorded run; digests of the model's tensors, and the names of parameters
    that are not 0, for a comparison with the checkpoint.
    """

    run: Run
    state: Mapping[str, str]
    nonzero: tuple[str, ...]


def run_student(folder: Path, question: Question, seconds: float | None = None) -> StudentRun:
    """Run the model that a folder's llama.py loads. Raises OSError or ValueError, in one line."""
    request = {
        "checkpoint": CHECKPOINT,
        "edition": question.edition,
        "tokens": question.tokens.tolist(),
        "n_layers": question.config.n_layers,
    }
    stand_ins, recording = map(inspect.getsource, (missing_modules, recorder))
    code = f"{stand_ins}\ninstall(os.getcwd())\n{recording}"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        target = Path(scratch) / "code"
        copy_sources(Submitted(folder.name, folder), target)
        if not (target / "llama.py").is_file():
            raise ValueError(f"{folder} holds no llama.py: name the folder that it is in")
        names = [path.name for path in target.glob("*.py")]
        for name, content in given_files(names).items():
            (target / name).write_bytes(content)
        write_assignment_checkpoint(question, target / CHECKPOINT)
        command = [sys.executable, "-c", code]
        stdin = json.dumps(request).encode()
        seconds = SECONDS if seconds is None else seconds
        outcome = run_limited(command, target, seconds, MEMORY_BYTES, stdin)
    if outcome.timed_out:
        raise ValueError(f"{folder}: its model did not end within {seconds:g} seconds")
    return parse_answer(outcome, folder, question)


def write_assignment_checkpoint(question: Question, path: Path) -> None:
    """The checkpoint as the courses host theirs. A torch file that is one of theirs is copied as it
    is: a name in it that a student's load_pretrained passes over is a fault to be seen.
    """
    content = read_checkpoint(question.checkpoint)
    if content.format == "torch file" and content.model_args.keys() <= {*MODEL_ARGS}:
        path.write_bytes(Path(question.checkpoint).read_bytes())
        return
    config = question.config
    args = {name: getattr(config, name) for name in MODEL_ARGS}
    hidden = math.ceil(int(8 * config.dim / 3) / config.multiple_of) * config.multiple_of
    if config.hidden_dim not in (None, hidden):
        args["hidden_dim"] = config.hidden_dim
    if config.layer_norm_eps != LlamaConfig.layer_norm_eps:
        args["layer_norm_eps"] = config.layer_norm_eps
    tensors = {name: tensor.float().clone() for name, tensor in content.tensors.items()}
    tensors.setdefault("output.weight", tensors["tok_embeddings.weight"])
    torch.save({"model": tensors, "model_args": args}, path)


def parse_answer(outcome: Outcome, folder: Path, question: Question) -> StudentRun:
    """Raises ValueError for a model that failed, and for what recorder.py cannot have written."""
    line, _, data = outcome.stdout.partition(b"\n")
    try:
        if len(line) > MAX_HEADER_BYTES or outcome.truncated:
            raise ValueError("too long")
        answer = json.loads(line)
        arrays = split_arrays(answer["arrays"], data)
        error = answer.get("error")
        state = {str(k): str(v) for k, v in answer.get("state", {}).items()}
        nonzero = tuple(str(name) for name in answer.get("nonzero", []))
        failure = None if error is None else ": ".join(str(part) for part in error[1:])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as reason:
        how = "" if outcome.returncode == 0 else f" (exit status {outcome.returncode})"
        raise ValueError(f"{folder}: its model's process gave no answer{how}") from reason
    if error is not None:
        what = one_line(shorten(failure or "", 300))
        raise ValueError(f"{folder}: the model fails in {one_line(shorten(str(error[0])))}: {what}")
    return StudentRun(make_run(arrays, question), state, nonzero)


def split_arrays(names: Any, data: bytes) -> dict[str, Array]:
    """The arrays of an answer by name. Raises ValueError or TypeError where they do not fit."""
    arrays: dict[str, Array] = {}
    at = 0
    for name, shape in names:
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"{name} has no shape")
        size = 8 * math.prod(shape)
        if len(shape) > 8 or at + size > len(data):
            raise ValueError(f"{name} is not there")
        arrays[str(name)] = np.frombuffer(data[at : at + size], dtype="<f8").reshape(shape)
        at += size
    return arrays


def make_run(arrays: Mapping[str, Array], question: Question) -> Run:
    """Raises ValueError for shapes that a component cannot read or give."""
    batch, length = question.tokens.shape
    whole, width = (batch, length), question.config.dim
    columns: tuple[tuple[int, ...], ...] = ((batch, 1), whole)
    calls = Calls()
    for name in recorder.places(question.config.n_layers):
        given, output = arrays.get(f"{name} input"), arrays.get(f"{name} output")
        is_inside = name.rpartition(".")[2] in recorder.PROJECTIONS
        if is_inside or given is None or output is None:
            continue
        allowed = columns if name == "output" else (whole,)
        width_out = question.config.vocab_size if name == "output" else width
        wanted = [(*columns, width) for columns in allowed]
        check_shape(f"{name} reads", given, [whole] if name == "tok_embeddings" else wanted)
        check_shape(f"{name} gives", output, [(*columns, width_out) for columns in allowed])
        calls[name] = Call(given, output)
    if "logits" not in arrays or "hidden_states" not in arrays:
        raise ValueError("the model returns no logits or no hidden states")
    return Run(calls, arrays["logits"], arrays["hidden_states"], arrays)


def check_shape(what: str, array: Array, wanted: list[tuple[int, ...]]) -> None:
    if array.shape not in wanted:
        shapes = " or ".join(str(list(shape)) for shape in wanted)
        raise ValueError(f"{what} shape {list(array.shape)}, not (B, T, C) = {shapes}")


def judge_digests(student: StudentRun, tensors: Mapping[str, torch.Tensor]) -> Place:
    """Whether the model's parameters are the checkpoint's tensors, to the last bit."""
    problems = []
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            problems.append(f"{name} of the checkpoint holds numbers that are not finite")
        elif name not in student.state:
            if not name.endswith("norm.bias") or tensor.count_nonzero():
                problems.append(f"{name} of the checkpoint is no parameter of the model")
        elif student.state[name] != _digest(tensor):
            problems.append(f"{name} is not what the checkpoint holds")
    for name in student.nonzero:
        if name not in tensors:
            name = one_line(shorten(name))
            problems.append(f"the checkpoint has no {name}, and the model's is not 0")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Place("weights", None if problems else 0.0, None, problems[0] + more if problems else "")


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.cpu().float().contiguous().numpy().data).hexdigest()
