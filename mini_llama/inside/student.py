"""A student's model beside the formulas: the analysis of sanity_check.py --explain, for the page.

Their modules run in a limited process; nothing that comes back is trusted (student_model.py).
Shapes: T positions, W components of the width that are shown.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mini_llama.command_line import visible
from mini_llama.diagnosis.explanation import (
    Explanation,
    Place,
    editions_of,
    explain_run,
    read_formulas,
)
from mini_llama.diagnosis.formulas import Formulas
from mini_llama.diagnosis.numpy_llama import Array
from mini_llama.diagnosis.recording import COMPONENTS, Calls
from mini_llama.diagnosis.student_model import Question, judge_digests, run_student
from mini_llama.inside.budget import COMPONENTS as WIDTH
from mini_llama.inside.page_data import pack
from mini_llama.inside.sides import Side

LAYER = re.compile(r"layers\.(\d+)[.:] ?(.+)")


def student_data(side: Side, tokens: torch.Tensor) -> dict[str, Any]:
    """What the page shows of the model of --code on tokens (T,), with the weights and the
    arithmetic of `side`'s. Raises OSError or ValueError.
    """
    options, config = side.options, side.llama.config
    assert options.code is not None
    formulas, tensors, _ = read_formulas(options.pretrained_model_path)
    formulas = formulas.changed(norm=config.norm, attention=config.attention)
    editions = editions_of(config.norm, config.attention)
    batch = tokens[None].cpu()
    edition = options.edition or next(iter(editions), "")
    question = Question(options.pretrained_model_path, formulas.config, batch, edition)
    student = run_student(Path(options.code), question)
    weights = judge_digests(student, tensors)
    found = explain_run(student.run, weights, batch, formulas, strict=False)
    return {
        "name": visible(Path(options.code).name),
        "verdict": [visible(line) for line in found.verdict()],
        **place_table(found),
        "pictures": pictures(student.run.calls, formulas, batch.numpy()),
    }


def place_table(found: Explanation) -> dict[str, Any]:
    """The places as a table: a row for each layer, and one for each place that is in none."""
    rows: dict[str, dict[str, Any]] = {}
    columns: list[str] = []
    for place in found.places:
        match = LAYER.fullmatch(place.name)
        row, column = (f"layers.{match[1]}", match[2]) if match else (place.name, "")
        if column not in columns and column:
            columns.append(column)
        rows.setdefault(row, {})[column] = _cell(place, place is found.first)
    return {"columns": columns, "rows": [{"name": name, "cells": c} for name, c in rows.items()]}


def _cell(place: Place, is_first: bool) -> dict[str, Any]:
    return {
        "alone": number(place.alone),
        "fromStart": number(place.from_start),
        "problem": visible(place.problem),
        "isFirst": is_first,
    }


def number(value: float | None) -> float | str | None:
    """For JSON, which has no infinity."""
    return value if value is None or math.isfinite(value) else "∞"


def pictures(calls: Calls, formulas: Formulas, tokens: Array) -> Mapping[str, Any]:
    """What each component gave and what it should have given, (T, W), by its name."""
    _, _, record = formulas.forward(tokens)
    layers = [f"layers.{i}" for i in range(formulas.config.n_layers)]
    names = [name for layer in layers for name in (*(f"{layer}.{c}" for c in COMPONENTS), layer)]
    found = {}
    for name in names:
        if name in calls and calls[name].output.shape == record[name].shape:
            pair = np.stack([calls[name].output[0, :, :WIDTH], record[name][0, :, :WIDTH]])
            found[name] = pack(torch.tensor(np.nan_to_num(pair)), "f4")
    return found
