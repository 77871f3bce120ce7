"""Find where an attention's arithmetic differs from the formulas: projections, rotation, scores.

Only of a student's model, whose functions are wrapped (recorder.py). What was not recorded, or has
another layout, is taken to be right: the attention as a whole is judged in any case.

Shapes: B batch, T positions, H heads, K key/value heads, D head_dim, C width.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from config import ATTENTIONS
from mini_llama.diagnosis import numpy_llama
from mini_llama.diagnosis.formulas import OTHER_ATTENTION, Form, Formulas
from mini_llama.diagnosis.numpy_llama import Array

KINDS = ("query", "key", "value")
Heads = dict[str, Array]  # by KINDS, (B, T, H or K, D)


class Inner(NamedTuple):
    """One step of an attention: its name, the recorded array, and the expected one."""

    place: str
    what: str
    actual: Array
    expected: Array
    forms: tuple[Form, ...] = ()


class InsideAttention:
    """The recorded steps of the named attention, for its input x (B, T, C)."""

    def __init__(self, formulas: Formulas, name: str, inside: Mapping[str, Array], x: Array):
        self.formulas, self.name, self.inside, self.x = formulas, name, inside, x
        self.batch, self.length, _ = x.shape

    def steps(self) -> Iterator[Inner]:
        """The steps in the order of the computation."""
        projected: Heads = {}
        for kind in KINDS:
            projected[kind] = right = self._project(kind)
            found = self.inside.get(f"{self.name}.compute_{kind} output")
            if found is not None and found.size == right.size:
                projected[kind] = found = found.reshape(right.shape)
                yield Inner(f"compute_{kind}", "its output", found, right)
        rotated = dict(projected)
        for kind in KINDS[:2]:
            rotated[kind] = self._rotate(projected[kind])
            yield from self._rotated(kind, projected[kind], rotated)
        yield from self._attended(projected, rotated)

    def _project(self, kind: str) -> Array:
        weight = self.formulas.weights[f"{self.name}.compute_{kind}.weight"]
        heads = numpy_llama.linear(self.x, weight)
        return heads.reshape(self.batch, self.length, -1, self.formulas.config.head_dim)

    def _rotate(self, heads: Array, direction: int = 1) -> Array:
        positions = direction * np.arange(self.length)
        return numpy_llama.rotate(heads, positions, self.formulas.config.rope_theta)

    def _rotated(self, kind: str, projected: Array, rotated: Heads) -> Iterator[Inner]:
        """Store the recorded array in `rotated`, for the next steps."""
        read = self.inside.get(f"{self.name} rotated {kind}")
        found = self.inside.get(f"{self.name} rotated {kind} output")
        if read is None or found is None or {read.shape, found.shape} != {projected.shape}:
            return
        what = f"what it reads as {kind} (compute_{kind}'s output)"
        yield Inner("apply_rotary_emb", what, read, projected)
        rotated[kind] = found
        expected, forms = self._rotate(read), self._rotation_forms(read)
        yield Inner("apply_rotary_emb", f"its {kind}", found, expected, forms)

    def _rotation_forms(self, heads: Array) -> tuple[Form, ...]:
        half = heads.shape[-1] // 2
        order = np.arange(2 * half).reshape(2, half).T.ravel()  # 0, half, 1, half + 1, …
        split = np.empty_like(heads)
        split[..., order] = self._rotate(heads[..., order])
        what = "what split halves give: the pairs are (2i, 2i+1)"
        return (
            Form("attention: RoPE is not applied", "what it reads: nothing is rotated", heads),
            Form("rope: split halves", what, split),
            Form("rope: wrong sign", "a rotation in the other direction", self._rotate(heads, -1)),
        )

    def _attended(self, projected: Heads, rotated: Heads) -> Iterator[Inner]:
        heads: Heads = {}
        place = "compute_query_key_value_scores"
        for kind in KINDS:
            found = self.inside.get(f"{self.name} attended {kind}")
            right = np.swapaxes(rotated[kind], 1, 2)  # (B, H or K, T, D)
            copies = self.formulas.config.n_heads // right.shape[1]
            repeated = np.repeat(right, copies, axis=1)
            if found is None or found.shape not in (right.shape, repeated.shape):
                return
            unrotated = np.repeat(np.swapaxes(projected[kind], 1, 2), copies, axis=1)
            what = "the heads that RoPE has not rotated"
            forms = (Form("attention: RoPE is not applied", what, unrotated),)
            expected = right if found.shape == right.shape else repeated
            origin = "compute_value's output" if kind == "value" else "rotated"
            yield Inner(place, f"what it reads as {kind} ({origin})", found, expected, forms)
            heads[kind] = found
        found = self.inside.get(f"{self.name} attended query output")
        if found is not None and found.shape == heads["query"].shape:
            expected = self._attend(heads)
            yield Inner(place, "its output", found, expected, tuple(self._score_forms(heads)))

    def _attend(self, heads: Heads, attention: str = "", factor: float = 1.0) -> Array:
        attention = attention or self.formulas.config.attention
        visible = numpy_llama.visible_keys(self.batch, self.length, attention)
        query, key, value = (heads[kind] for kind in KINDS)
        return numpy_llama.attend(query * factor, key, value, visible)

    def _score_forms(self, heads: Heads) -> Iterator[Form]:
        config = self.formulas.config
        other = next(attention for attention in ATTENTIONS if attention != config.attention)
        what = f"what {other} attention gives"
        yield Form(OTHER_ATTENTION[config.attention], what, self._attend(heads, other))
        head_dim, dim = config.head_dim, config.dim
        for mistake, without, factor in (
            ("no scale", "without 1/sqrt(head_dim)", math.sqrt(head_dim)),
            ("scaled by d", "over head_dim, not its root,", 1 / math.sqrt(head_dim)),
            ("scaled by the root of dim", "over sqrt(dim)", math.sqrt(head_dim / dim)),
        ):
            what = f"what scores {without} give"
            yield Form(f"attention: {mistake}", what, self._attend(heads, factor=factor))
