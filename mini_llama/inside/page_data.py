"""A trace as plain data for the page: what is shown of it, numbers in base64.

Shapes as in trace.py; U strongest units of the feed-forward, W components of the width that are
shown, N layers, L of them shown.
"""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from config import EDITIONS, LlamaConfig
from mini_llama.command_line import visible
from mini_llama.inside.attribution import Attribution
from mini_llama.inside.budget import COMPONENTS, FULL, UNITS, Budget
from mini_llama.inside.comparison import MATRICES, PLACES, Difference
from mini_llama.inside.pieces import Piece
from mini_llama.inside.sources import find_source, formulas
from mini_llama.inside.trace import LayerTrace, Lens, Step, Trace

FORMATS = {"f4": "<f4", "f2": "<f2", "i4": "<i4", "u1": "<u1"}
SHOWN_LOGITS = 40  # of each step, whose pieces a page needs
Read = Callable[[int], Piece]


@dataclass(frozen=True)
class Subject:
    """What is traced: a title, facts of the model by name, how it samples, and the id that is never
    drawn, if there is one.
    """

    title: str
    facts: Mapping[str, str]
    config: LlamaConfig
    sampling: Mapping[str, float]
    excluded: int | None = None


def pack(tensor: torch.Tensor, form: str) -> dict[str, Any]:
    """A tensor in one of FORMATS, little-endian."""
    array = np.ascontiguousarray(tensor.numpy().astype(FORMATS[form]))
    data = base64.b64encode(array.tobytes()).decode()
    return {"shape": list(array.shape), "type": form, "data": data}


def page_data(
    subject: Subject, trace: Trace, steps: Sequence[Step], budget: Budget, read: Read
) -> dict[str, Any]:
    """What the page knows of one trace. `read` gives the piece of a token id."""
    config = subject.config
    length = trace.length if trace.length < len(trace.tokens) else None
    ids = trace.tokens.tolist()
    tokens = [read(i) for i in ids[:length]]
    tokens += [Piece(i, "PAD", "padding") for i in ids[len(tokens) :]]
    shown = [_step(step, budget) for step in steps]
    return {
        "title": subject.title,
        "facts": dict(subject.facts),
        "notes": list(budget.notes),
        "config": _config(config),
        "sampling": dict(subject.sampling),
        "excluded": subject.excluded,
        "editions": {k: {"epsilon": e.epsilon, "topP": e.top_p} for k, e in EDITIONS.items()},
        "tokens": [asdict(token) for token in tokens],
        "length": trace.length,
        "last": trace.last,
        "layers": list(budget.layers),
        "heads": budget.heads,
        "arrays": _arrays(trace, budget),
        "steps": shown,
        "pieces": {i: read(i).text for i in _ids(trace.lens, steps)},
        "sources": _sources(config),
    }


def _config(config: LlamaConfig) -> dict[str, Any]:
    shape = ("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim")
    names = (*shape, "norm", "attention", "layer_norm_eps", "rope_theta")
    return {name: getattr(config, name) for name in names}


def _sources(config: LlamaConfig) -> dict[str, Any]:
    found = {}
    for name, formula in formulas(config).items():
        source = find_source(formula)
        found[name] = {"formula": formula.text, "source": asdict(source) if source else None}
    return found


def _arrays(trace: Trace, budget: Budget) -> dict[str, Any]:
    """By name; per layer where the first dimension is L."""
    form = "f4" if budget.bytes == FULL else "f2"
    layers = [trace.layers[i] for i in budget.layers]
    heads = budget.heads
    keys = max(1, heads * layers[0].key.shape[1] // layers[0].query.shape[1])

    def stack(part: Callable[[LayerTrace], torch.Tensor], form: str = form) -> dict[str, Any]:
        return pack(torch.stack([part(layer) for layer in layers]), form)

    units = [_units(layer) for layer in layers]
    stream = [trace.embedding, *(x for y in trace.layers for x in (y.middle, y.output))]
    added = [x for layer in trace.layers for x in (layer.attention, layer.feed_forward)]
    packed = {name: stack(_strip(name), form) for name in STRIPS}
    return packed | {
        "visible": pack(trace.visible, "u1"),
        "frequencies": pack(trace.frequencies, "f4"),
        "ropeFactor": trace.rope_factor,
        "embedding": pack(trace.embedding[:, :COMPONENTS], form),
        "query": stack(lambda layer: layer.query[:, :heads]),
        "key": stack(lambda layer: layer.key[:, :keys]),
        "scores": stack(lambda layer: layer.scores[:heads], "f4"),
        "headNorms": stack(lambda layer: layer.heads[:, :heads].norm(dim=-1), "f4"),
        "open": stack(lambda layer: (layer.gate > 0).float().mean(dim=-1), "f4"),
        "units": pack(torch.stack([ids for ids, _ in units]), "i4"),
        "gates": pack(torch.stack([values for _, values in units]), "f4"),
        "statistics": stack(_statistics, "f4"),
        "stream": pack(torch.stack([x.norm(dim=-1) for x in stream]), "f4"),
        "added": pack(torch.stack([x.norm(dim=-1) for x in added]), "f4"),
        "lensIds": pack(trace.lens.ids, "i4"),
        "lens": pack(trace.lens.probabilities, "f4"),
    }


STRIPS = ("residual", "attention_norm", "middle", "ffn_norm")


def _strip(name: str) -> Callable[[LayerTrace], torch.Tensor]:
    """The first COMPONENTS of the width: (T, W)."""
    return lambda layer: getattr(layer, name)[:, :COMPONENTS]


def _units(layer: LayerTrace) -> tuple[torch.Tensor, torch.Tensor]:
    """The UNITS of each token whose silu(gate)·up is largest: their numbers (T, U), and gate and up
    of each (T, U, 2).
    """
    product = torch.nn.functional.silu(layer.gate) * layer.up
    ids = product.abs().topk(min(UNITS, product.shape[1]), dim=-1).indices
    values = torch.stack([layer.gate.gather(1, ids), layer.up.gather(1, ids)], dim=-1)
    return ids, values


def _statistics(layer: LayerTrace) -> torch.Tensor:
    """Mean and root mean square of each token, before and after both norms: (T, 4, 2)."""
    parts = [getattr(layer, name) for name in STRIPS]
    values = [torch.stack([x.mean(-1), x.square().mean(-1).sqrt()], dim=-1) for x in parts]
    return torch.stack(values, dim=1)


def _step(step: Step, budget: Budget) -> dict[str, Any]:
    """One step: its tokens' ids, the token chosen, and the last column's logits, probabilities of
    attention (L, H, T) and logit lens (N + 1, LENS_TOKENS).
    """
    trace = step.trace
    last = trace.last
    logits = trace.logits[last]
    rows = [trace.layers[i].probabilities[: budget.heads, last] for i in budget.layers]
    order = logits.sort(descending=True, stable=True).indices
    data: dict[str, Any] = {
        "length": len(trace.tokens),
        "chosen": step.chosen,
        "top": order[:SHOWN_LOGITS].tolist(),
        "attention": pack(torch.stack(rows), "f4"),
        "lensIds": pack(trace.lens.ids[:, last], "i4"),
        "lens": pack(trace.lens.probabilities[:, last], "f4"),
    }
    if budget.logits < len(logits):
        kept = order[: budget.logits].sort().values
        return data | {"ids": pack(kept, "i4"), "logits": pack(logits[kept], "f4")}
    return data | {"logits": pack(logits, "f4")}


def _ids(lens: Lens, steps: Iterable[Step]) -> list[int]:
    """Every token that the page may have to name."""
    found = set(lens.ids.flatten().tolist())
    for step in steps:
        last = step.trace.last
        logits = step.trace.logits[last]
        found.add(step.chosen)
        found.update(logits.sort(descending=True, stable=True).indices[:SHOWN_LOGITS].tolist())
        found.update(step.trace.lens.ids[:, last].flatten().tolist())
    return sorted(found)


def difference_data(difference: Difference) -> dict[str, Any]:
    """What the page knows of how two traces differ."""
    first = difference.first()
    sentence = f"The first difference is at {first}." if first else "There is no difference."
    return {
        "sentence": sentence,
        "places": list(PLACES.values()),
        "errors": pack(difference.places, "f4"),
        "embedding": pack(torch.tensor([difference.embedding]), "f4"),
        "ends": pack(torch.tensor([difference.final_norm, difference.logits]), "f4"),
        "matrices": list(MATRICES.values()),
        "weights": pack(difference.weights, "f4"),
        "divergence": pack(difference.divergence, "f4"),
    }


def label_data(found: Attribution, names: Sequence[str], kind: str) -> dict[str, Any]:
    """What the page knows of a classification."""
    return {
        "kind": kind,
        "names": [visible(name) for name in names],
        "probabilities": found.probabilities.tolist(),
        "label": found.label,
        "gradient": pack(found.gradient, "f4"),
        "leftOut": pack(found.left_out, "f4"),
    }
